// The activations made of straight pieces, one definition for both backends, with what is known of all of them.
#pragma once

#include "common/status.hpp"

namespace dlfs {

// min(max(x, 0), 6). NaN stays NaN, here and below.
DLFS_HD inline float relu6(float x) { return x < 0.0f ? 0.0f : (x > 6.0f ? 6.0f : x); }

DLFS_HD inline float leaky_relu(float x, float slope) { return x > 0.0f ? x : x * slope; }

DLFS_HD inline float hardsigmoid(float x) { return relu6(x + 3.0f) * (1.0f / 6.0f); }

DLFS_HD inline float hardswish(float x) { return x * hardsigmoid(x); }

// Gradients from dy: of relu6 and hardsigmoid with y, of hardswish with x, of leaky_relu with x, or with y where slope >=
// 0. Where an activation is flat they are 0 whatever dy is, infinity included, as torch's are.
DLFS_HD inline float relu6_gradient(float dy, float y) { return y <= 0.0f || y >= 6.0f ? 0.0f : dy; }

DLFS_HD inline float leaky_relu_gradient(float dy, float kept, float slope) { return kept > 0.0f ? dy : dy * slope; }

DLFS_HD inline float hardsigmoid_gradient(float dy, float y) {
  return y > 0.0f && y < 1.0f ? dy * (1.0f / 6.0f) : 0.0f;
}

DLFS_HD inline float hardswish_gradient(float dy, float x) {
  return x <= -3.0f ? 0.0f : (x >= 3.0f ? dy : dy * (x * (1.0f / 3.0f) + 0.5f));
}

// Whether an activation is differentiated from its input rather than from its output.
inline bool differentiated_from_input(dlfs_activation activation, double slope) {
  return activation == DLFS_ACT_SILU || activation == DLFS_ACT_HARDSWISH ||
         (activation == DLFS_ACT_LEAKY_RELU && slope < 0);
}

}  // namespace dlfs
