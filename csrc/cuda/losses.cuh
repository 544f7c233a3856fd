// What the kernels of detection losses share. Each reads its input once and writes the gradient in the same pass; the
// loss is summed per thread, then per block into the workspace, then by one block in the order of the blocks: no float
// atomics, so the same bytes each run. Every term carries its image's weight (LossScale) already.
#pragma once

#include "common/levels.hpp"
#include "common/losses.hpp"
#include "cuda/detection.cuh"

namespace dlfs {

constexpr int loss_threads = 256;
constexpr int most_loss_blocks = 8192;  // of a loss kernel; each leaves one partial sum

// How a loss is normalized, before the device has counted the batch's foreground.
struct LossNormalization {
  const int32_t* foreground;  // (N)
  int32_t n, normalization;
};

// What the images' terms are multiplied by. All threads of a block of loss_threads call it.
__device__ __forceinline__ LossScale loss_scale(const LossNormalization& by) {
  if (by.normalization == DLFS_LOSS_PER_IMAGE) return {by.foreground, by.n, -1};
  __shared__ int64_t total;
  double sum = 0;  // exact: counts stay far below 2^53
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < by.n; i += loss_threads) sum += by.foreground[i];
  sum = block_sum<loss_threads>(sum);
  if (threadIdx.x == 0) total = static_cast<int64_t>(sum);
  __syncthreads();
  return {by.foreground, by.n, total};
}

// partial[block] = the sum of its threads' values; all threads call it.
__device__ __forceinline__ void write_partial(double* partial, double sum) {
  sum = block_sum<loss_threads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// Whether all maps can be read and written 16 bytes at a time: aligned addresses (or none) and pitches.
inline bool vector_maps(const Levels& levels, dlfs_dtype dtype, std::initializer_list<LevelAddresses> maps) {
  const int32_t width = dtype == DLFS_F32 ? 4 : 8;
  bool vector = true;
  for (int32_t level = 0; level < levels.count; ++level) {
    vector &= levels.pitch[level] % width == 0;
    for (const LevelAddresses& addresses : maps) vector &= aligned16({addresses.at[level]});
  }
  return vector;
}

// Enqueues *loss = the sum of partial (count), in a fixed order.
void sum_partials(Stream& s, float* loss, const double* partial, int count);

}  // namespace dlfs
