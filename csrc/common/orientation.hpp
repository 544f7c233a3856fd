// Turns decoded pixels upright: what both backends need for the EXIF orientations of exif.hpp.
#pragma once

#include <cstdint>

#include "common/status.hpp"

namespace dlfs {

// Whether the upright picture is as wide as the stored one is high.
constexpr bool swaps_sides(int32_t orientation) { return orientation >= 5; }

// Where the pixel (x, y) of the upright picture is stored: at index start + x * dx + y * dy.
struct PixelOrder {
  int64_t start, dx, dy;
};

// For a stored picture of width x height pixels and an orientation of 1 to 8.
inline PixelOrder pixel_order(int32_t orientation, int64_t width, int64_t height) {
  const int64_t last = width * height - 1;
  switch (orientation) {
    case 2: return {width - 1, -1, width};
    case 3: return {last, -1, -width};
    case 4: return {last - (width - 1), 1, -width};
    case 5: return {0, width, 1};
    case 6: return {last - (width - 1), -width, 1};
    case 7: return {last, -width, -1};
    case 8: return {width - 1, width, -1};
    default: return {0, 1, width};
  }
}

// Copies the stored picture src (height, width, 3) to dst, upright: (width, height, 3) where swaps_sides.
void turn_upright(uint8_t* dst, const uint8_t* src, int32_t width, int32_t height, int32_t orientation);

}  // namespace dlfs
