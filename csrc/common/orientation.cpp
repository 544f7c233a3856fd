#include "common/orientation.hpp"

#include <algorithm>
#include <cstring>

namespace dlfs {

void turn_upright(uint8_t* dst, const uint8_t* src, int32_t width, int32_t height, int32_t orientation) {
  const PixelOrder order = pixel_order(orientation, width, height);
  const int64_t out_width = swaps_sides(orientation) ? height : width;
  const int64_t out_height = swaps_sides(orientation) ? width : height;
  // Squares whose rows fit the nearest cache in both pictures: columns become rows without a miss for each pixel.
  constexpr int64_t side = 64;
  for (int64_t top = 0; top < out_height; top += side) {
    for (int64_t left = 0; left < out_width; left += side) {
      const int64_t bottom = std::min(top + side, out_height), right = std::min(left + side, out_width);
      for (int64_t y = top; y < bottom; ++y) {
        const uint8_t* from = src + 3 * (order.start + left * order.dx + y * order.dy);
        uint8_t* to = dst + 3 * (y * out_width + left);
        for (int64_t x = left; x < right; ++x, from += 3 * order.dx, to += 3) {
          memcpy(to, from, 2);
          to[2] = from[2];
        }
      }
    }
  }
}

}  // namespace dlfs
