// Random initialisation from Philox counters (common/philox.hpp): the same seed gives the same values on every backend.
#include "common/philox.hpp"

#include "common/arguments.hpp"
#include "cuda/numeric.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {
namespace {

constexpr int block_threads = 256;

// One Philox block of four values per turn; vector: dst is a multiple of 16 bytes.
template <class Draw>
__device__ __forceinline__ void draw_blocks(float* dst, int64_t n, bool vector, const Draw& draw) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * block_threads;
  const int64_t blocks = (n + 3) / 4;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x; b < blocks; b += stride) {
    float value[4];
    draw(b, value);
    if (vector && 4 * b + 4 <= n) {
      store(dst + 4 * b, value);
    } else {
      for (int i = 0; i < 4; ++i) {
        if (4 * b + i < n) dst[4 * b + i] = value[i];
      }
    }
  }
}

__global__ void __launch_bounds__(block_threads)
    uniform_kernel(float* dst, int64_t n, bool vector, uint64_t seed, uint64_t offset, float low, float high) {
  draw_blocks(dst, n, vector, [&](int64_t block, float (&value)[4]) {
    const PhiloxBlock words = philox4x32_10(seed, static_cast<uint64_t>(block), offset);
#pragma unroll
    for (int i = 0; i < 4; ++i) value[i] = philox_uniform(words.word[i], low, high);
  });
}

__global__ void __launch_bounds__(block_threads)
    normal_kernel(float* dst, int64_t n, bool vector, uint64_t seed, uint64_t offset, double mean, double std) {
  draw_blocks(dst, n, vector, [&](int64_t block, float (&value)[4]) {
    philox_normal_block(philox4x32_10(seed, static_cast<uint64_t>(block), offset), mean, std, value);
  });
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_init_uniform(dlfs_stream stream, float* dst, int64_t n, int64_t seed, int64_t offset, double low,
                              double high) {
  return stream_call("dlfs_init_uniform", stream, [&](Stream& s) {
    check_count(n, "n");
    check_number(low, "low");
    check_number(high, "high");
    DLFS_CHECK(low <= high, DLFS_ERROR_ARGUMENT, "expected low <= high, got %g and %g", low, high);
    if (n == 0) return;
    check_pointer(dst, "dst");
    launch(s, grid_size(*s.context, ceil_div<int64_t>(n, 4), block_threads), block_threads, 0, uniform_kernel, dst, n,
           aligned16({dst}), static_cast<uint64_t>(seed), static_cast<uint64_t>(offset), static_cast<float>(low),
           static_cast<float>(high));
  });
}

dlfs_status dlfs_init_normal(dlfs_stream stream, float* dst, int64_t n, int64_t seed, int64_t offset, double mean,
                             double std) {
  return stream_call("dlfs_init_normal", stream, [&](Stream& s) {
    check_count(n, "n");
    check_number(mean, "mean");
    check_number(std, "std");
    DLFS_CHECK(std >= 0, DLFS_ERROR_ARGUMENT, "expected std >= 0, got %g", std);
    if (n == 0) return;
    check_pointer(dst, "dst");
    launch(s, grid_size(*s.context, ceil_div<int64_t>(n, 4), block_threads), block_threads, 0, normal_kernel, dst, n,
           aligned16({dst}), static_cast<uint64_t>(seed), static_cast<uint64_t>(offset), mean, std);
  });
}

}  // extern "C"
