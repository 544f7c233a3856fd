// Pixels of a batch of images by number, and where windows and kernel positions fall.
#pragma once

#include "common/status.hpp"

namespace dlfs {

struct Pixel {
  int32_t n, row, column;
};

// Pixel `number` of (N, height, width). Index: an unsigned 32-bit type where the numbers fit, else int64_t.
template <class Index>
__device__ __forceinline__ Pixel pixel_of(Index number, int32_t height, int32_t width) {
  const Index line = number / static_cast<Index>(width);
  return {static_cast<int32_t>(line / static_cast<Index>(height)),
          static_cast<int32_t>(line % static_cast<Index>(height)),
          static_cast<int32_t>(number % static_cast<Index>(width))};
}

// Offset of a pixel's first channel in (N, height, width, C).
__device__ __forceinline__ int64_t pixel_offset(int32_t n, int32_t row, int32_t column, int32_t height, int32_t width,
                                                int32_t c) {
  return ((static_cast<int64_t>(n) * height + row) * width + column) * c;
}

}  // namespace dlfs
