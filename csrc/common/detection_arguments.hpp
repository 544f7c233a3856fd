// Checks of the detection functions' arguments that both backends make, and what the arguments become.
#pragma once

#include <algorithm>

#include "common/arguments.hpp"
#include "common/boxes.hpp"

namespace dlfs {

inline void check_thresholds(double high, double low) {
  DLFS_CHECK(low <= high, DLFS_ERROR_ARGUMENT, "expected low <= high, got low %g and high %g", low, high);
}

inline void check_levels(int32_t anchors_count, int32_t first_level, int32_t last_level) {
  check_range(first_level, 0, anchors_count, "first_level");
  check_range(last_level, 0, anchors_count, "last_level");
}

inline void check_radius(double radius) {
  check_number(radius, "radius");
  DLFS_CHECK(radius > 0, DLFS_ERROR_ARGUMENT, "expected a radius above 0, got %g", radius);
}

// Rows of k results each, row_stride apart.
inline void check_row_stride(int32_t n, int32_t k, int64_t row_stride) {
  DLFS_CHECK(n == 1 || (row_stride >= k && row_stride <= max_elements), DLFS_ERROR_SHAPE,
             "expected row_stride of at least k = %d, got %lld", k, static_cast<long long>(row_stride));
}

// Rows of m logits each, logits_stride apart.
inline void check_logits_stride(int32_t n, int64_t m, int64_t logits_stride) {
  DLFS_CHECK(n == 1 || (logits_stride >= m && logits_stride <= max_elements), DLFS_ERROR_SHAPE,
             "expected logits_stride of at least m = %lld, got %lld", static_cast<long long>(m),
             static_cast<long long>(logits_stride));
}

// How a row of candidates names classes and anchors, and how its boxes are coded.
struct CandidateRules {
  int32_t classes, per_class, coder;
  BoxWeights weights;

  struct Source {
    int32_t anchor, label;
  };

  // Of entry r of a row, with index >= 0.
  DLFS_HD Source source(int32_t r, int32_t index) const {
    if (per_class > 0) return {index, r / per_class};
    return {index / classes, index % classes};
  }

  DLFS_HD Box decode(const BoxDeltas& deltas, const Box& anchor) const {
    return coder == DLFS_CODER_LINEAR ? box_decode_linear(deltas, anchor) : box_decode(deltas, anchor, weights);
  }
};

inline CandidateRules candidate_rules(int32_t k, int32_t classes, int32_t per_class, int32_t coder, double wx,
                                      double wy, double ww, double wh) {
  check_range(classes, 1, INT32_MAX, "classes");
  check_range(per_class, 0, INT32_MAX, "per_class");
  DLFS_CHECK(per_class == 0 || (k % per_class == 0 && k / per_class <= classes), DLFS_ERROR_SHAPE,
             "expected k to be up to %d classes' %d candidates, got %d", classes, per_class, k);
  check_range(coder, DLFS_CODER_CENTRE, DLFS_CODER_LINEAR, "coder");
  return {classes, per_class, coder, coder_weights(coder, wx, wy, ww, wh)};
}

inline void check_iou_threshold(double iou_threshold) {
  DLFS_CHECK(iou_threshold >= 0 && iou_threshold <= 1, DLFS_ERROR_ARGUMENT,
             "expected iou_threshold from 0 to 1, got %g", iou_threshold);
}

inline SoftNmsRules soft_nms_rules(int32_t method, double iou_threshold, double sigma, double min_score,
                                   int32_t class_aware) {
  check_range(method, DLFS_SOFT_NMS_LINEAR, DLFS_SOFT_NMS_GAUSSIAN, "method");
  const bool gaussian = method == DLFS_SOFT_NMS_GAUSSIAN;
  if (gaussian) {
    DLFS_CHECK(static_cast<float>(sigma) > 0, DLFS_ERROR_ARGUMENT, "expected a sigma above 0, got %g", sigma);
  } else {
    check_iou_threshold(iou_threshold);
  }
  check_number(min_score, "min_score");
  DLFS_CHECK(min_score >= 0, DLFS_ERROR_ARGUMENT, "expected a min_score of at least 0, got %g", min_score);
  return {gaussian, class_aware != 0, static_cast<float>(iou_threshold), static_cast<float>(sigma),
          static_cast<float>(min_score)};
}

}  // namespace dlfs
