// Soft-NMS on the CPU. The candidates of an image are held by coordinate in the order of their indices; each turn takes
// the first of those with the largest score and goes over all of them, a block at a time in vector registers.
#include <algorithm>

#include "common/detection_arguments.hpp"
#include "cpu/runtime.hpp"

using namespace dlfs;
using namespace dlfs::cpu;

namespace {

constexpr int64_t block = 32;     // candidates that are decayed at once
constexpr float removed = -1.0f;  // the score of a candidate that was taken or left out; others are above 0

// Workspace of one image: its candidates by coordinate, rounded up to blocks.
struct Scratch {
  float *x1, *y1, *x2, *y2, *area, *score;
  int32_t *label, *index;

  static int64_t capacity(int32_t k) { return (int64_t{k} + block - 1) / block * block; }
  static int64_t bytes(int32_t k) { return capacity(k) * static_cast<int64_t>(8 * sizeof(float)); }

  Scratch(void* workspace, int64_t image, int32_t k) {
    const int64_t size = capacity(k);
    x1 = reinterpret_cast<float*>(static_cast<char*>(workspace) + image * bytes(k));
    y1 = x1 + size;
    x2 = y1 + size;
    y2 = x2 + size;
    area = y2 + size;
    score = area + size;
    label = reinterpret_cast<int32_t*>(score + size);
    index = label + size;
  }

  Box box(int64_t i) const { return {x1[i], y1[i], x2[i], y2[i]}; }

  void set(int64_t i, const Box& box, float box_score, int32_t box_label, int32_t box_index) {
    x1[i] = box.x1;
    y1[i] = box.y1;
    x2[i] = box.x2;
    y2[i] = box.y2;
    area[i] = box_area(box);
    score[i] = box_score;
    label[i] = box_label;
    index[i] = box_index;
  }
};

struct SoftNms {
  int32_t* keep;          // (N, max_out)
  int32_t* keep_counts;   // (N)
  float* keep_scores;     // (N, max_out)
  const float* boxes;     // (N, K, 4)
  const float* scores;    // (N, K)
  const int32_t* labels;  // (N, K)
  void* workspace;
  int32_t n, k, max_out;
  SoftNmsRules rules;

  // The candidates above min_score, padded to whole blocks with removed ones; returns their number with the padding.
  int64_t collect(Scratch& candidates, int64_t image) const {
    int64_t count = 0;
    for (int32_t i = 0; i < k; ++i) {
      const int64_t at = image * k + i;
      if (labels[at] < 0 || !(scores[at] > rules.min_score)) continue;
      candidates.set(count++, load_box(boxes + 4 * at), scores[at], rules.class_aware ? labels[at] : 0, i);
    }
    while (count % block != 0) candidates.set(count++, {0, 0, 0, 0}, removed, 0, 0);
    return count;
  }

  // Decays the candidates by their overlap with a box that was taken; returns the largest score that is left. `kind`
  // says at compile time whether the decay is gaussian.
  template <bool gaussian>
  float decay(const Scratch& candidates, int64_t count, const Box& box, int32_t label) const {
    SoftNmsRules own = rules;
    own.gaussian = gaussian;
    const float area = box_area(box);
    float largest = removed;
    for (int64_t first = 0; first < count; first += block) {
      float block_largest = removed;
#pragma omp simd reduction(max : block_largest)
      for (int64_t i = first; i < first + block; ++i) {
        const float iou = box_iou(candidates.box(i), candidates.area[i], box, area);
        const float factor = candidates.label[i] == label ? own.decay(iou) : 1.0f;
        const float score = candidates.score[i] * factor;
        const float left = score > own.min_score ? score : removed;
        candidates.score[i] = left;
        block_largest = left > block_largest ? left : block_largest;
      }
      largest = std::max(largest, block_largest);
    }
    return largest;
  }

  void run(int64_t image) const {
    Scratch candidates(workspace, image, k);
    const int64_t size = collect(candidates, image);
    float largest = removed;
    for (int64_t i = 0; i < size; ++i) largest = std::max(largest, candidates.score[i]);
    int32_t* out = keep + image * max_out;
    float* out_scores = keep_scores + image * max_out;
    int32_t count = 0;
    while (count < max_out && largest > 0) {
      const int64_t i = std::find(candidates.score, candidates.score + size, largest) - candidates.score;
      out[count] = candidates.index[i];
      out_scores[count++] = largest;
      candidates.score[i] = removed;
      const Box box = candidates.box(i);
      const int32_t label = candidates.label[i];
      largest = rules.gaussian ? decay<true>(candidates, size, box, label) : decay<false>(candidates, size, box, label);
    }
    keep_counts[image] = count;
    std::fill(out + count, out + max_out, -1);
    std::fill(out_scores + count, out_scores + max_out, 0.0f);
  }
};

int64_t workspace_bytes(int32_t n, int32_t k) {
  check_range(n, 1, INT32_MAX, "n");
  check_range(k, 1, INT32_MAX, "k");
  return checked_product({n, Scratch::bytes(k)}, "the workspace");
}

}  // namespace

extern "C" dlfs_status dlfs_soft_nms_workspace(dlfs_context ctx, int64_t* out, int32_t n, int32_t k) {
  return guard("dlfs_soft_nms_workspace", [&] {
    require_context(ctx);
    check_pointer(out, "out");
    *out = workspace_bytes(n, k);
  });
}

extern "C" dlfs_status dlfs_soft_nms(dlfs_stream stream, int32_t* keep, int32_t* keep_counts, float* keep_scores,
                                     const float* boxes, const float* scores, const int32_t* labels, void* workspace,
                                     int32_t n, int32_t k, int32_t max_out, int32_t method, double iou_threshold,
                                     double sigma, double min_score, int32_t class_aware) {
  return on_stream("dlfs_soft_nms", stream, [&](Stream& s) {
    const int64_t bytes = workspace_bytes(n, k);
    check_range(max_out, 1, INT32_MAX, "max_out");
    const SoftNmsRules rules = soft_nms_rules(method, iou_threshold, sigma, min_score, class_aware);
    check_pointer(keep, "keep");
    check_pointer(keep_counts, "keep_counts");
    check_pointer(keep_scores, "keep_scores");
    check_pointer(boxes, "boxes");
    check_pointer(scores, "scores");
    check_pointer(labels, "labels");
    check_workspace(workspace, bytes);
    const SoftNms work{keep, keep_counts, keep_scores, boxes, scores, labels, workspace, n, k, max_out, rules};
    s.enqueue([work] {
      parallel_for(work.n, 1, [&](int64_t begin, int64_t end) {
        for (int64_t image = begin; image < end; ++image) work.run(image);
      });
    });
  });
}
