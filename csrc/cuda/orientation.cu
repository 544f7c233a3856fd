// Turns a decoded picture upright: a copy, made only of the few images that are not stored so.
#include "common/orientation.hpp"
#include "cuda/image.hpp"
#include "cuda/runtime.cuh"

namespace dlfs {
namespace {

constexpr int threads = 128;
constexpr int most_rows = 65535;  // of a grid

// One row of blocks for each row of the upright picture, or for every gridDim.y-th.
__global__ void __launch_bounds__(threads)
    turn_upright_kernel(uint8_t* dst, const uint8_t* src, int width, int height, PixelOrder order) {
  const int x = static_cast<int>(blockIdx.x) * threads + static_cast<int>(threadIdx.x);
  if (x >= width) return;
  for (int y = static_cast<int>(blockIdx.y); y < height; y += static_cast<int>(gridDim.y)) {
    const uint8_t* from = src + 3 * (order.start + x * order.dx + y * order.dy);
    uint8_t* to = dst + 3 * (int64_t{y} * width + x);
    for (int c = 0; c < 3; ++c) to[c] = from[c];
  }
}

}  // namespace

void turn_upright(const Stream& stream, uint8_t* dst, const uint8_t* src, int32_t width, int32_t height,
                  int32_t orientation) {
  const PixelOrder order = pixel_order(orientation, width, height);
  if (swaps_sides(orientation)) std::swap(width, height);
  launch(stream, dim3(ceil_div(width, threads), std::min(height, most_rows)), dim3(threads), 0, turn_upright_kernel, dst,
         src, width, height, order);
}

}  // namespace dlfs
