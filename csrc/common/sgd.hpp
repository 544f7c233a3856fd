// What the optimizers of both backends share.
#pragma once

#include <cmath>

#include "common/arguments.hpp"
#include "common/geometry.hpp"

namespace dlfs {

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

inline void check_step_numbers(double momentum, double grad_factor, double max_norm, double max_value) {
  check_number(momentum, "momentum");
  check_number(grad_factor, "grad_factor");
  check_number(max_norm, "max_norm");
  DLFS_CHECK(max_norm >= 0, DLFS_ERROR_ARGUMENT, "expected max_norm >= 0, got %g", max_norm);
  check_number(max_value, "max_value");
  DLFS_CHECK(max_value >= 0, DLFS_ERROR_ARGUMENT, "expected max_value >= 0, got %g", max_value);
}

}  // namespace dlfs
