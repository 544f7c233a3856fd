// Assigns ground-truth boxes to anchors on the CPU as torchvision's Matcher does. IoUs are computed block by block of
// anchors, once for each anchor's best box and each box's best anchor, and once more to find the anchors that reach
// their box's largest IoU, so no (A, M) matrix is kept.
#include <algorithm>

#include "common/boxes.hpp"
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
  bool allow_low_quality;

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

// Matches of one chunk by the thresholds; with low-quality matches allowed, the boxes' maxima as well.
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

void match_batch(const Matching& m) {
  const int64_t chunks = m.chunks();
  parallel_for(m.n * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) match_chunk(m, i / chunks, i % chunks);
  });
  if (m.allow_low_quality) {
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
  }
  parallel_for(m.n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      const int32_t* row = m.matches + image * m.count;
      int32_t foreground = 0;
      for (int32_t i = 0; i < m.count; ++i) foreground += row[i] >= 0;
      m.foreground[image] = foreground;
    }
  });
}

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
                                          double high, double low, int32_t allow_low_quality) {
  return on_stream("dlfs_match_anchors", stream, [&](Stream& s) {
    const int64_t bytes = workspace_bytes(n, anchors_count, max_boxes);
    check_pointer(matches, "matches");
    check_pointer(foreground, "foreground");
    check_pointer(anchors, "anchors");
    check_pointer(counts, "counts");
    if (bytes > 0) {
      check_pointer(boxes, "boxes");
      check_pointer(workspace, "workspace");
    }
    DLFS_CHECK(low <= high, DLFS_ERROR_ARGUMENT, "expected low <= high, got low %g and high %g", low, high);
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
                     allow_low_quality != 0};
    s.enqueue([=] { match_batch(m); });
  });
}
