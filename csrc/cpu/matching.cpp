// Assigns ground-truth boxes to anchors on the CPU, as torchvision's Matcher and SSDMatcher do, and to points, as its
// FCOS does. IoUs are computed block by block of anchors, once for each anchor's best box and each box's best anchor,
// and once more to find the anchors that reach their box's largest IoU, so no (A, M) matrix is kept.
#include <algorithm>

#include "common/detection_arguments.hpp"
#include "cpu/runtime.hpp"

using namespace dlfs;
using namespace dlfs::cpu;

namespace {

constexpr int64_t block = 64;    // anchors whose IoUs with one box are computed together, in vector registers
constexpr int64_t chunk = 4096;  // anchors between two of a thread's turns; one row of box maxima is kept for each

struct Matching {
  int32_t* matches;       // (N, A)
  int32_t* foreground;    // (N)
  const float* anchors;   // (A, 4)
  const float* boxes;     // (N, M, 4)
  const int32_t* counts;  // (N)
  float* maxima;          // (N, chunks, M): the largest IoU of each box with a chunk's anchors
  int32_t n, count, max_boxes;
  float high, low;
  int32_t matching;

  int64_t chunks() const { return (int64_t{count} + chunk - 1) / chunk; }
  int32_t boxes_of(int64_t image) const { return std::clamp(counts[image], 0, max_boxes); }
};

// Up to `block` anchors by coordinate, padded with empty ones.
struct AnchorBlock {
  float x1[block], y1[block], x2[block], y2[block], area[block];
  int64_t size;

  AnchorBlock(const float* anchors, int64_t begin, int64_t end) : size(end - begin) {
    for (int64_t i = 0; i < block; ++i) {
      const Box box = i < size ? load_box(anchors + 4 * (begin + i)) : Box{0, 0, 0, 0};
      x1[i] = box.x1;
      y1[i] = box.y1;
      x2[i] = box.x2;
      y2[i] = box.y2;
      area[i] = box_area(box);
    }
  }

  void iou(float* out, const Box& box) const {
    const float box_size = box_area(box);
    for (int64_t i = 0; i < block; ++i) out[i] = box_iou({x1[i], y1[i], x2[i], y2[i]}, area[i], box, box_size);
  }
};

// Matches of one chunk by the thresholds, and the boxes' maxima.
void match_chunk(const Matching& m, int64_t image, int64_t index) {
  const int32_t boxes = m.boxes_of(image);
  const float* image_boxes = m.boxes + image * m.max_boxes * 4;
  float* maxima = m.maxima + (image * m.chunks() + index) * m.max_boxes;
  for (int32_t j = 0; j < boxes; ++j) maxima[j] = 0;
  const int64_t last = std::min<int64_t>((index + 1) * chunk, m.count);
  for (int64_t begin = index * chunk; begin < last; begin += block) {
    const AnchorBlock anchors(m.anchors, begin, std::min(begin + block, last));
    float best[block], iou[block];
    int32_t match[block];
    for (int64_t i = 0; i < block; ++i) best[i] = -1.0f, match[i] = 0;
    for (int32_t j = 0; j < boxes; ++j) {
      anchors.iou(iou, load_box(image_boxes + int64_t{4} * j));
      float most = maxima[j];
#pragma omp simd reduction(max : most)
      for (int64_t i = 0; i < block; ++i) {
        match[i] = iou[i] > best[i] ? j : match[i];
        best[i] = iou[i] > best[i] ? iou[i] : best[i];
        most = iou[i] > most ? iou[i] : most;
      }
      maxima[j] = most;
    }
    int32_t* out = m.matches + image * m.count + begin;
    for (int64_t i = 0; i < anchors.size; ++i) {
      out[i] = boxes == 0 || !(best[i] >= m.low) ? match_background : best[i] >= m.high ? match[i] : match_ignored;
    }
  }
}

// Restores the match of every anchor whose IoU with some box is the largest that this box reaches: to the anchor's own
// best box, which need not be that one, as in torchvision. largest: (M), of the image.
void restore_chunk(const Matching& m, int64_t image, int64_t index, const float* largest) {
  const int32_t boxes = m.boxes_of(image);
  const float* image_boxes = m.boxes + image * m.max_boxes * 4;
  const int64_t last = std::min<int64_t>((index + 1) * chunk, m.count);
  for (int64_t begin = index * chunk; begin < last; begin += block) {
    const AnchorBlock anchors(m.anchors, begin, std::min(begin + block, last));
    float best[block], iou[block];
    int32_t match[block], restore[block];
    for (int64_t i = 0; i < block; ++i) best[i] = -1.0f, match[i] = 0, restore[i] = 0;
    for (int32_t j = 0; j < boxes; ++j) {
      anchors.iou(iou, load_box(image_boxes + int64_t{4} * j));
      const float most = largest[j];
      for (int64_t i = 0; i < block; ++i) {
        match[i] = iou[i] > best[i] ? j : match[i];
        best[i] = iou[i] > best[i] ? iou[i] : best[i];
        restore[i] |= iou[i] == most;
      }
    }
    int32_t* out = m.matches + image * m.count + begin;
    for (int64_t i = 0; i < anchors.size; ++i) {
      if (restore[i]) out[i] = match[i];
    }
  }
}

// The first anchor with which box j has its largest IoU.
int32_t best_anchor(const Matching& m, int64_t image, int32_t j) {
  const float* maxima = m.maxima + image * m.chunks() * m.max_boxes + j;  // of chunk c: maxima[c * M]
  int64_t first = 0;
  for (int64_t c = 1; c < m.chunks(); ++c) {
    if (maxima[c * m.max_boxes] > maxima[first * m.max_boxes]) first = c;
  }
  const float largest = maxima[first * m.max_boxes];
  const Box box = load_box(m.boxes + (image * m.max_boxes + j) * 4);
  const int64_t last = std::min<int64_t>((first + 1) * chunk, m.count);
  for (int64_t begin = first * chunk; begin < last; begin += block) {
    const AnchorBlock anchors(m.anchors, begin, std::min(begin + block, last));
    float iou[block];
    anchors.iou(iou, box);
    const float* found = std::find(iou, iou + anchors.size, largest);
    if (found < iou + anchors.size) return static_cast<int32_t>(begin + (found - iou));
  }
  return 0;  // IoUs that are no numbers
}

void count_foreground(int32_t* foreground, const int32_t* matches, int32_t n, int32_t count) {
  parallel_for(n, 1, [=](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      const int32_t* row = matches + image * count;
      foreground[image] = static_cast<int32_t>(std::count_if(row, row + count, [](int32_t m) { return m >= 0; }));
    }
  });
}

void match_batch(const Matching& m) {
  const int64_t chunks = m.chunks();
  parallel_for(m.n * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) match_chunk(m, i / chunks, i % chunks);
  });
  if (m.matching == DLFS_MATCH_LOW_QUALITY) {
    for (int64_t image = 0; image < m.n; ++image) {
      float* largest = m.maxima + image * chunks * m.max_boxes;
      for (int64_t i = 1; i < chunks; ++i) {
        for (int32_t j = 0; j < m.boxes_of(image); ++j) largest[j] = std::max(largest[j], largest[i * m.max_boxes + j]);
      }
    }
    parallel_for(m.n * chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        restore_chunk(m, i / chunks, i % chunks, m.maxima + i / chunks * chunks * m.max_boxes);
      }
    });
  } else if (m.matching == DLFS_MATCH_BEST_ANCHOR) {
    parallel_for(m.n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image) {
        for (int32_t j = 0; j < m.boxes_of(image); ++j) m.matches[image * m.count + best_anchor(m, image, j)] = j;
      }
    });
  }
  count_foreground(m.foreground, m.matches, m.n, m.count);
}

struct PointMatching {
  int32_t* matches;       // (N, A)
  const float* anchors;   // (A, 4)
  const float* boxes;     // (N, M, 4)
  const int32_t* counts;  // (N)
  int32_t count, max_boxes, first_level, last_level;
  float radius;

  // Matches of up to `block` points of one image.
  void match(int64_t image, int64_t begin) const {
    const int64_t size = std::min<int64_t>(block, count - begin);
    float x[block], y[block], reach[block], lower[block], upper[block], best[block];
    int32_t found[block];
    for (int64_t i = 0; i < block; ++i) {
      const int64_t a = begin + i;
      const Box anchor = i < size ? load_box(anchors + 4 * a) : Box{0, 0, 0, 0};
      const PointTarget point = point_target(anchor, radius, a < first_level, a >= count - last_level);
      x[i] = point.x;
      y[i] = point.y;
      reach[i] = point.reach;
      lower[i] = point.lower;
      upper[i] = point.upper;
      best[i] = 0;
      found[i] = 0;
    }
    const int32_t image_boxes = std::clamp(counts[image], 0, max_boxes);
    for (int32_t j = 0; j < image_boxes; ++j) {
      const Box box = load_box(boxes + (image * max_boxes + j) * 4);
      for (int64_t i = 0; i < block; ++i) {
        const float match = point_match({x[i], y[i], reach[i], lower[i], upper[i]}, box);
        found[i] = match > best[i] ? j : found[i];
        best[i] = match > best[i] ? match : best[i];
      }
    }
    int32_t* out = matches + image * count + begin;
    for (int64_t i = 0; i < size; ++i) out[i] = best[i] >= least_point_match ? found[i] : match_background;
  }
};

int64_t workspace_bytes(int32_t n, int32_t anchors, int32_t max_boxes) {
  check_range(n, 1, INT32_MAX, "n");
  check_range(anchors, 1, INT32_MAX, "anchors");
  check_range(max_boxes, 0, INT32_MAX, "max_boxes");
  return checked_product({n, (int64_t{anchors} + chunk - 1) / chunk, max_boxes, sizeof(float)}, "the workspace");
}

}  // namespace

extern "C" dlfs_status dlfs_match_anchors_workspace(dlfs_context ctx, int64_t* out, int32_t n, int32_t anchors,
                                                    int32_t max_boxes) {
  return guard("dlfs_match_anchors_workspace", [&] {
    require_context(ctx);
    check_pointer(out, "out");
    *out = workspace_bytes(n, anchors, max_boxes);
  });
}

extern "C" dlfs_status dlfs_match_anchors(dlfs_stream stream, int32_t* matches, int32_t* foreground,
                                          const float* anchors, const float* boxes, const int32_t* counts,
                                          void* workspace, int32_t n, int32_t anchors_count, int32_t max_boxes,
                                          double high, double low, int32_t matching) {
  return on_stream("dlfs_match_anchors", stream, [&](Stream& s) {
    const int64_t bytes = workspace_bytes(n, anchors_count, max_boxes);
    check_pointer(matches, "matches");
    check_pointer(foreground, "foreground");
    check_pointer(anchors, "anchors");
    check_pointer(counts, "counts");
    if (max_boxes > 0) check_pointer(boxes, "boxes");
    check_workspace(workspace, bytes);
    check_thresholds(high, low);
    check_range(matching, DLFS_MATCH_THRESHOLDS, DLFS_MATCH_BEST_ANCHOR, "matching");
    const Matching m{matches,
                     foreground,
                     anchors,
                     boxes,
                     counts,
                     static_cast<float*>(workspace),
                     n,
                     anchors_count,
                     max_boxes,
                     static_cast<float>(high),
                     static_cast<float>(low),
                     matching};
    s.enqueue([=] { match_batch(m); });
  });
}

extern "C" dlfs_status dlfs_match_points(dlfs_stream stream, int32_t* matches, int32_t* foreground,
                                         const float* anchors, const float* boxes, const int32_t* counts, int32_t n,
                                         int32_t anchors_count, int32_t max_boxes, int32_t first_level,
                                         int32_t last_level, double radius) {
  return on_stream("dlfs_match_points", stream, [&](Stream& s) {
    check_range(n, 1, INT32_MAX, "n");
    check_range(anchors_count, 1, INT32_MAX, "anchors_count");
    check_range(max_boxes, 0, INT32_MAX, "max_boxes");
    check_levels(anchors_count, first_level, last_level);
    check_radius(radius);
    check_pointer(matches, "matches");
    check_pointer(foreground, "foreground");
    check_pointer(anchors, "anchors");
    check_pointer(counts, "counts");
    if (max_boxes > 0) check_pointer(boxes, "boxes");
    const PointMatching m{matches,   anchors,     boxes,      counts,        anchors_count,
                          max_boxes, first_level, last_level, static_cast<float>(radius)};
    s.enqueue([=] {
      const int64_t blocks = (int64_t{m.count} + block - 1) / block;
      parallel_for(n * blocks, 16, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) m.match(i / blocks, i % blocks * block);
      });
      count_foreground(foreground, matches, n, m.count);
    });
  });
}
