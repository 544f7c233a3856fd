// Dropout and its gradient: a thread takes eight elements, which are one byte of the mask and two Philox blocks.
#include "common/dropout.hpp"
#include "cuda/numeric.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {
namespace {

constexpr int block_threads = 256;

// out = in * scale where the bit is set, else 0, for the eight elements of a group. vector: 16-byte addresses.
template <class T>
__device__ __forceinline__ void apply_bits(T* out, const T* in, int64_t group, int64_t n, bool vector, uint32_t bits,
                                           float scale) {
  const int64_t first = dropout_group * group;
  if (vector && first + dropout_group <= n) {
    float value[dropout_group];
    load(value, in + first);
#pragma unroll
    for (int i = 0; i < dropout_group; ++i) value[i] = bits >> i & 1u ? value[i] * scale : 0.0f;
    store(out + first, value);
  } else {
    for (int i = 0; i < dropout_group && first + i < n; ++i) {
      out[first + i] = from_float<T>(bits >> i & 1u ? to_float(in[first + i]) * scale : 0.0f);
    }
  }
}

template <class Body>
__device__ __forceinline__ void for_groups(int64_t n, const Body& body) {
  const int64_t groups = (n + dropout_group - 1) / dropout_group;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * block_threads;
  for (int64_t g = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x; g < groups; g += stride) body(g);
}

template <class T>
__global__ void __launch_bounds__(block_threads)
    dropout_kernel(T* y, uint8_t* mask, const float* counter, const T* x, int64_t n, bool vector, uint64_t seed,
                   DropoutRate rate) {
  const uint64_t offset = dropout_offset(*counter);
  for_groups(n, [&](int64_t group) {
    const uint8_t bits = dropout_mask(seed, offset, group, n, rate.threshold);
    if (mask) mask[group] = bits;
    apply_bits(y, x, group, n, vector, bits, rate.scale);
  });
}

template <class T>
__global__ void __launch_bounds__(block_threads)
    dropout_backward_kernel(T* dx, const T* dy, const uint8_t* mask, int64_t n, bool vector, float scale) {
  for_groups(n, [&](int64_t group) { apply_bits(dx, dy, group, n, vector, mask[group], scale); });
}

// After all blocks of the draw have read it.
__global__ void advance_kernel(float* counter) { *counter = dropout_next(*counter); }

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_dropout_forward(dlfs_stream stream, void* y, uint8_t* mask, float* counter, const void* x, int64_t n,
                                 dlfs_dtype dtype, double p, int64_t seed) {
  return stream_call("dlfs_dropout_forward", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_count(n, "n");
    const DropoutRate rate = dropout_rate(p);
    check_pointer(counter, "counter");
    if (n > 0) {
      check_pointer(y, "y");
      check_pointer(x, "x");
      dispatch_float(dtype, [&](auto tag) {
        using T = typename decltype(tag)::type;
        launch(s, grid_size(*s.context, ceil_div<int64_t>(n, dropout_group), block_threads), block_threads, 0,
               dropout_kernel<T>, static_cast<T*>(y), mask, counter, static_cast<const T*>(x), n, aligned16({y, x}),
               static_cast<uint64_t>(seed), rate);
      });
    }
    launch(s, 1, 1, 0, advance_kernel, counter);
  });
}

dlfs_status dlfs_dropout_backward(dlfs_stream stream, void* dx, const void* dy, const uint8_t* mask, int64_t n,
                                  dlfs_dtype dtype, double p) {
  return stream_call("dlfs_dropout_backward", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_count(n, "n");
    const DropoutRate rate = dropout_rate(p);
    if (n == 0) return;
    check_pointer(dx, "dx");
    check_pointer(dy, "dy");
    check_pointer(mask, "mask");
    dispatch_float(dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      launch(s, grid_size(*s.context, ceil_div<int64_t>(n, dropout_group), block_threads), block_threads, 0,
             dropout_backward_kernel<T>, static_cast<T*>(dx), static_cast<const T*>(dy), mask, n, aligned16({dx, dy}),
             rate.scale);
    });
  });
}

}  // extern "C"
