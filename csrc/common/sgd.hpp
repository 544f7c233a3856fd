// What the optimizers of both backends share.
#pragma once

#include <cmath>

#include "common/arguments.hpp"
#include "common/geometry.hpp"

namespace dlfs {

// An element's term of a parameter's checksum; an odd factor, so that no change of its bits is lost.
DLFS_HD inline uint64_t checksum_term(uint32_t bits, int64_t index) {
  return (uint64_t{bits} + 0x8000000000000000u) * (2 * static_cast<uint64_t>(index) + 1);
}


// What gradients of this norm are multiplied by besides grad_factor, so that theirs is at most max_norm:
// torch.nn.utils.clip_grad_norm_'s coefficient. NaN for a norm of NaN.
DLFS_HD inline float clip_coefficient(float norm, float grad_factor, float max_norm) {
  const float coefficient = max_norm / (fabsf(grad_factor) * norm + 1e-6f);
  return coefficient > 1.0f ? 1.0f : coefficient;
}

// A gradient within -limit and limit; a NaN stays one. A limit of 0 is none.
DLFS_HD inline float clip_value(float gradient, float limit) {
  if (!(limit > 0.0f)) return gradient;
  return gradient > limit ? limit : gradient < -limit ? -limit : gradient;
}

// What gradients are multiplied by that were scaled by *grad_scale (nullable).
DLFS_HD inline float unscaled_factor(float grad_factor, const float* grad_scale) {
  return grad_scale ? grad_factor * (1.0f / *grad_scale) : grad_factor;
}

// ---- dynamic loss scaling ----

struct LossScaleRule {
  double growth, backoff;
  float least;
  int32_t interval, patience;
};

inline LossScaleRule check_loss_scale_rule(double growth, double backoff, int32_t interval, double least,
                                           int32_t patience) {
  check_number(growth, "growth");
  DLFS_CHECK(growth >= 1, DLFS_ERROR_ARGUMENT, "expected growth >= 1, got %g", growth);
  DLFS_CHECK(backoff > 0 && backoff <= 1, DLFS_ERROR_ARGUMENT, "expected backoff above 0 and up to 1, got %g", backoff);
  check_range(interval, 1, INT32_MAX, "interval");
  check_number(least, "least");
  DLFS_CHECK(static_cast<float>(least) > 0, DLFS_ERROR_ARGUMENT, "expected least > 0, got %g", least);
  check_range(patience, 1, INT32_MAX, "patience");
  return {growth, backoff, static_cast<float>(least), interval, patience};
}

inline void check_loss_scale_pointers(const float* scale, const int32_t* counters, const int32_t* failed,
                                      const int32_t* overflow) {
  check_pointer(scale, "scale");
  check_pointer(counters, "counters");
  check_pointer(failed, "failed");
  check_pointer(overflow, "overflow");
}

// torch.amp.GradScaler.update (_amp_update_scale_) with a least scale; see dlfs_loss_scale_step.
DLFS_HD inline void update_loss_scale(float* scale, int32_t* counters, int32_t* failed, bool overflow,
                                      const LossScaleRule& rule) {
  if (*failed != 0) return;
  int32_t &good = counters[0], &overflows = counters[1], &stuck = counters[2];
  const float now = *scale;  // products are fp64's, rounded, as there
  if (overflow) {
    good = 0;
    if (overflows < INT32_MAX) ++overflows;
    if (now <= rule.least) {
      if (++stuck >= rule.patience) *failed = 1;
    } else {
      const float less = static_cast<float>(now * rule.backoff);
      *scale = less < rule.least ? rule.least : less;
    }
    return;
  }
  stuck = 0;
  if (++good < rule.interval) return;
  good = 0;
  const float more = static_cast<float>(now * rule.growth);
  if (more - more == 0.0f) *scale = more;
}

inline void check_step_numbers(double momentum, double grad_factor, double max_norm, double max_value) {
  check_number(momentum, "momentum");
  check_number(grad_factor, "grad_factor");
  check_number(max_norm, "max_norm");
  DLFS_CHECK(max_norm >= 0, DLFS_ERROR_ARGUMENT, "expected max_norm >= 0, got %g", max_norm);
  check_number(max_value, "max_value");
  DLFS_CHECK(max_value >= 0, DLFS_ERROR_ARGUMENT, "expected max_value >= 0, got %g", max_value);
}

}  // namespace dlfs
