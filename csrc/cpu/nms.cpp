// Batched, class-aware greedy non-maximum suppression on the CPU. Candidates are visited from the best score down; each
// is compared with the boxes of its class kept so far, held by coordinate so that a block of them is compared in vector
// registers. The kept boxes of a class are in a row, in as much room as the class has candidates.
#include <algorithm>

#include "common/detection_arguments.hpp"
#include "cpu/runtime.hpp"

using namespace dlfs;
using namespace dlfs::cpu;

namespace {

constexpr int32_t block = 32;  // kept boxes that are compared at once

// Workspace of one image: K sort keys, K kept boxes by coordinate, and of each class that occurs its label, where its
// boxes start and how many of them are kept.
struct Scratch {
  uint64_t* keys;
  float *x1, *y1, *x2, *y2, *area;
  int32_t *classes, *start, *kept;

  static int64_t bytes(int32_t k) { return int64_t{k} * (sizeof(uint64_t) + 5 * sizeof(float) + 3 * sizeof(int32_t)); }

  Scratch(void* workspace, int64_t image, int32_t k) {
    keys = reinterpret_cast<uint64_t*>(static_cast<char*>(workspace) + image * bytes(k));
    x1 = reinterpret_cast<float*>(keys + k);
    y1 = x1 + k;
    x2 = y1 + k;
    y2 = x2 + k;
    area = y2 + k;
    classes = reinterpret_cast<int32_t*>(area + k);
    start = classes + k;
    kept = start + k;
  }

  void set(int64_t i, const Box& box) {
    x1[i] = box.x1;
    y1[i] = box.y1;
    x2[i] = box.x2;
    y2[i] = box.y2;
    area[i] = box_area(box);
  }
};

struct Nms {
  int32_t* keep;          // (N, max_out)
  int32_t* keep_counts;   // (N)
  const float* boxes;     // (N, K, 4)
  const float* scores;    // (N, K)
  const int32_t* labels;  // (N, K)
  void* workspace;
  int32_t n, k, max_out;
  float iou_threshold;
  bool class_aware;

  bool overlaps(const Scratch& kept, int64_t i, const Box& box, float area) const {
    return box_iou({kept.x1[i], kept.y1[i], kept.x2[i], kept.y2[i]}, kept.area[i], box, area) > iou_threshold;
  }

  bool suppressed(const Scratch& kept, int64_t first, int64_t end, const Box& box) const {
    const float area = box_area(box);
    for (; first + block <= end; first += block) {
      uint32_t hits = 0;
      for (int64_t i = first; i < first + block; ++i) hits |= static_cast<uint32_t>(overlaps(kept, i, box, area));
      if (hits) return true;
    }
    for (; first < end; ++first) {
      if (overlaps(kept, first, box, area)) return true;
    }
    return false;
  }

  int32_t label_of(int64_t image, int32_t i) const { return class_aware ? labels[image * k + i] : 0; }

  // Lists the classes that occur, ascending, and where the boxes of each start. Returns the end of the list.
  int32_t* arrange(const Scratch& scratch, int64_t image, int32_t candidates) const {
    for (int32_t c = 0; c < candidates; ++c) {
      scratch.classes[c] = label_of(image, candidate_index(scratch.keys[c]));
    }
    std::sort(scratch.classes, scratch.classes + candidates);
    int32_t *from = scratch.classes, *to = scratch.classes, *const end = scratch.classes + candidates;
    for (; from < end; ++to) {
      const int64_t index = to - scratch.classes;
      scratch.start[index] = static_cast<int32_t>(from - scratch.classes);
      scratch.kept[index] = 0;
      const int32_t label = *from;
      while (from < end && *from == label) ++from;
      *to = label;
    }
    return to;
  }

  void run(int64_t image) const {
    Scratch scratch(workspace, image, k);
    int32_t candidates = 0;
    for (int32_t i = 0; i < k; ++i) {
      if (labels[image * k + i] >= 0) scratch.keys[candidates++] = candidate_key(scores[image * k + i], i);
    }
    std::sort(scratch.keys, scratch.keys + candidates);
    int32_t* const last = arrange(scratch, image, candidates);
    int32_t* out = keep + image * max_out;
    int32_t count = 0;
    for (int32_t c = 0; c < candidates && count < max_out; ++c) {
      const int32_t i = candidate_index(scratch.keys[c]);
      const Box box = load_box(boxes + (image * k + i) * 4);
      const int64_t of = std::lower_bound(scratch.classes, last, label_of(image, i)) - scratch.classes;
      const int64_t first = scratch.start[of], end = first + scratch.kept[of];
      if (suppressed(scratch, first, end, box)) continue;
      scratch.set(end, box);
      ++scratch.kept[of];
      out[count++] = i;
    }
    keep_counts[image] = count;
    std::fill(out + count, out + max_out, -1);
  }
};

int64_t workspace_bytes(int32_t n, int32_t k) {
  check_range(n, 1, INT32_MAX, "n");
  check_range(k, 1, INT32_MAX, "k");
  return checked_product({n, Scratch::bytes(k)}, "the workspace");
}

}  // namespace

extern "C" dlfs_status dlfs_nms_workspace(dlfs_context ctx, int64_t* out, int32_t n, int32_t k) {
  return guard("dlfs_nms_workspace", [&] {
    require_context(ctx);
    check_pointer(out, "out");
    *out = workspace_bytes(n, k);
  });
}

extern "C" dlfs_status dlfs_nms(dlfs_stream stream, int32_t* keep, int32_t* keep_counts, const float* boxes,
                                const float* scores, const int32_t* labels, void* workspace, int32_t n, int32_t k,
                                int32_t max_out, double iou_threshold, int32_t class_aware) {
  return on_stream("dlfs_nms", stream, [&](Stream& s) {
    const int64_t bytes = workspace_bytes(n, k);
    check_range(max_out, 1, INT32_MAX, "max_out");
    check_pointer(keep, "keep");
    check_pointer(keep_counts, "keep_counts");
    check_pointer(boxes, "boxes");
    check_pointer(scores, "scores");
    check_pointer(labels, "labels");
    check_workspace(workspace, bytes);
    check_iou_threshold(iou_threshold);
    const Nms work{keep,
                   keep_counts,
                   boxes,
                   scores,
                   labels,
                   workspace,
                   n,
                   k,
                   max_out,
                   static_cast<float>(iou_threshold),
                   class_aware != 0};
    s.enqueue([work] {
      parallel_for(work.n, 1, [&](int64_t begin, int64_t end) {
        for (int64_t image = begin; image < end; ++image) work.run(image);
      });
    });
  });
}

extern "C" dlfs_status dlfs_gather_detections(dlfs_stream stream, float* detections, const float* boxes,
                                              const float* scores, const int32_t* labels, const int32_t* keep,
                                              const float* keep_scores, int32_t n, int32_t k, int32_t max_out) {
  return on_stream("dlfs_gather_detections", stream, [&](Stream& s) {
    check_range(n, 1, INT32_MAX, "n");
    check_range(k, 1, INT32_MAX, "k");
    check_range(max_out, 1, INT32_MAX, "max_out");
    check_pointer(detections, "detections");
    check_pointer(boxes, "boxes");
    check_pointer(scores, "scores");
    check_pointer(labels, "labels");
    check_pointer(keep, "keep");
    s.enqueue([=] {
      parallel_for(int64_t{n} * max_out, 1024, [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          float* out = detections + 6 * i;
          if (keep[i] < 0) {
            std::fill(out, out + 6, 0.0f);
            continue;
          }
          const int64_t candidate = i / max_out * k + keep[i];
          store_box(out, load_box(boxes + 4 * candidate));
          out[4] = keep_scores ? keep_scores[i] : scores[candidate];
          out[5] = static_cast<float>(labels[candidate]);
        }
      });
    });
  });
}
