// Bilinear resampling along one axis, in the arithmetic of torch's interpolate: which two inputs an output mixes, and
// which outputs an input takes part in. Both backends compute coordinates through these functions.
#pragma once

#include <math.h>

#include "common/geometry.hpp"

namespace dlfs {

// Output i lies between inputs low and high, at `share` of the way; high = low at the end of the axis.
struct BilinearTap {
  int32_t low, high;
  float share;
};

struct BilinearAxis {
  int32_t in, out;
  float step;  // inputs from one output to the next
  float half;  // where in a pixel its coordinate lies

  DLFS_HD BilinearTap tap(int32_t i) const {
    const float at = fmaxf(step * (static_cast<float>(i) + half) - half, 0.0f);
    const int32_t last = in - 1;
    const int32_t low = at < static_cast<float>(last) ? static_cast<int32_t>(at) : last;
    return {low, low < last ? low + 1 : low, fminf(at - static_cast<float>(low), 1.0f)};
  }

  // How much of output i is input `source`.
  DLFS_HD float weight(int32_t i, int32_t source) const {
    const BilinearTap t = tap(i);
    return (t.low == source ? 1.0f - t.share : 0.0f) + (t.high == source ? t.share : 0.0f);
  }

  // The outputs that may read input `source`: first up to and with last, an output to spare on both sides for rounding.
  DLFS_HD int32_t first(int32_t source) const {
    if (source == 0 || step <= 0.0f) return 0;
    const float edge = (static_cast<float>(source - 1) + half) / step - half - 1.0f;
    return edge > 0.0f ? static_cast<int32_t>(fminf(edge, static_cast<float>(out - 1))) : 0;
  }
  DLFS_HD int32_t last(int32_t source) const {
    if (source == in - 1 || step <= 0.0f) return out - 1;
    const float edge = (static_cast<float>(source + 1) + half) / step - half + 1.0f;
    return edge < static_cast<float>(out - 1) ? static_cast<int32_t>(fmaxf(edge, 0.0f)) + 1 : out - 1;
  }
};

// scale: 0, or the factor that replaces out / in; see dlfs_upsample_bilinear_forward.
inline BilinearAxis bilinear_axis(int32_t in, int32_t out, bool align_corners, double scale, const char* name) {
  DLFS_CHECK(scale >= 0 && scale - scale == 0, DLFS_ERROR_ARGUMENT, "expected %s >= 0, got %g", name, scale);
  if (align_corners) return {in, out, out > 1 ? static_cast<float>(in - 1) / static_cast<float>(out - 1) : 0.0f, 0.0f};
  const float step = scale > 0 ? static_cast<float>(1.0 / scale) : static_cast<float>(in) / static_cast<float>(out);
  return {in, out, step, 0.5f};
}

}  // namespace dlfs
