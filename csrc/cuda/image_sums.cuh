// Sums over the rows of each image of an (n, rows, C) array, in a fixed order: a block takes a few neighbouring channel
// vectors of one image, at 16 bytes each a whole cache line, by 32 or more row lanes, and adds up its lanes in shared
// memory. Where images are few, their rows are split among blocks, which leave partial sums to the operation.
#pragma once

#include "cuda/numeric.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {

constexpr int image_sum_threads = 256;

struct ImageSumGrid {
  int tx, ty;       // channel vectors and row lanes of a block
  unsigned tiles;   // blocks along the channels
  unsigned images;  // blocks along the images
  unsigned splits;  // blocks along the rows

  dim3 grid() const { return dim3(tiles, images, splits); }
  dim3 block() const { return dim3(static_cast<unsigned>(tx), static_cast<unsigned>(ty)); }
};

// vectors: C / V. may_split: rows may be given to several blocks, as many as fill the device and have 8 rows a lane.
inline ImageSumGrid image_sum_grid(const Context& context, int64_t n, int64_t rows, int64_t vectors, bool may_split) {
  ImageSumGrid g{1, 1, 1, 1, 1};
  while (g.tx < 8 && g.tx < vectors) g.tx *= 2;
  g.ty = image_sum_threads / g.tx;
  const int64_t tiles = ceil_div<int64_t>(vectors, g.tx);
  g.tiles = static_cast<unsigned>(tiles);
  g.images = static_cast<unsigned>(std::min<int64_t>(n, 65535));
  if (may_split) {
    const int64_t most = ceil_div<int64_t>(int64_t{4} * context.sm_count, tiles * g.images);
    g.splits = static_cast<unsigned>(
        std::clamp<int64_t>(ceil_div<int64_t>(rows, g.ty * 8), 1, std::min<int64_t>(most, 65535)));
  }
  return g;
}

// op.add(sum, at): adds the terms of elements at ... at + V; op.write(image, split, channel, sum): takes the sums of the
// rows of an image that belong to a split.
template <int V, class Op>
__global__ void __launch_bounds__(image_sum_threads) image_sums_kernel(int64_t n, int64_t rows, int32_t c, Op op) {
  __shared__ float shared[V][image_sum_threads];
  const int64_t channel = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  const int64_t first = static_cast<int64_t>(blockIdx.z) * blockDim.y + threadIdx.y;
  const int64_t stride = static_cast<int64_t>(gridDim.z) * blockDim.y;
  for (int64_t image = blockIdx.y; image < n; image += gridDim.y) {
    float sum[V] = {};
    if (channel < c) {
#pragma unroll 4
      for (int64_t row = first; row < rows; row += stride) op.add(sum, (image * rows + row) * c + channel);
    }
    for (unsigned half = blockDim.y / 2; half > 0; half /= 2) {
      if (threadIdx.y >= half && threadIdx.y < 2 * half) {
#pragma unroll
        for (int j = 0; j < V; ++j) shared[j][thread] = sum[j];
      }
      __syncthreads();
      if (threadIdx.y < half) {
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += shared[j][thread + half * blockDim.x];
      }
      __syncthreads();
    }
    if (channel < c && threadIdx.y == 0) op.write(image, blockIdx.z, channel, sum);
  }
}

}  // namespace dlfs
