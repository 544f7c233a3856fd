// Which taps of a window lie inside the image, and which outputs a tap serves: the bounds of our convolution loops,
// along one axis.
#pragma once

#include <algorithm>
#include <cstdint>

namespace dlfs::cpu {

// Half-open range of a window's taps.
struct Taps {
  int32_t begin, end;
};

// Taps t of a window that begins at pixel `start` (which may be outside) for which start + t * dilation is in [0,
// size).
inline Taps valid_taps(int64_t start, int32_t window, int32_t dilation, int32_t size) {
  const int64_t first = start >= 0 ? 0 : (-start + dilation - 1) / dilation;
  const int64_t last = start >= size ? 0 : (size - 1 - start) / dilation + 1;
  return {static_cast<int32_t>(std::min<int64_t>(first, window)),
          static_cast<int32_t>(std::min<int64_t>(last, window))};
}

// Half-open range of outputs.
struct Outputs {
  int64_t begin, end;
};

// Outputs q for which q * stride + shift is in [0, size).
inline Outputs valid_outputs(int64_t shift, int32_t stride, int32_t size, int32_t outputs) {
  const int64_t first = shift >= 0 ? 0 : (-shift + stride - 1) / stride;
  const int64_t last = shift >= size ? 0 : (size - 1 - shift) / stride + 1;
  return {first, std::min<int64_t>(last, outputs)};
}

// The output whose window's tap lies on a pixel, `distance` being the pixel's distance from output 0's tap; -1 for
// none.
inline int64_t output_of(int64_t distance, int32_t stride, int32_t outputs) {
  if (distance < 0 || distance % stride != 0) return -1;
  const int64_t output = distance / stride;
  return output < outputs ? output : -1;
}

}  // namespace dlfs::cpu
