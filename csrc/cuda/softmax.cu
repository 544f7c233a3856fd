// Softmax over rows of channels and its gradient. A group of 2 to 32 neighbouring lanes takes a row and reads it more
// than once: rows are short, so that only the first time comes from memory.
#include "common/rows.hpp"
#include "cuda/numeric.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {
namespace {

constexpr int block_threads = 256;

// The sum or the maximum over the lanes of a group, in every lane; a fixed order. All lanes of the warp take part.
template <class Combine>
__device__ __forceinline__ float over_group(float value, int group, const Combine& combine) {
  for (int offset = group / 2; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  return value;
}

struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
};

// fmaxf leaves out NaN, which then reaches the sum through its own exponential.
struct Largest {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Calls body(values of a vector's start) for the vectors of a row that belong to this lane.
template <int V, class Body>
__device__ __forceinline__ void for_own(int32_t c, int lane, int group, const Body& body) {
  for (int32_t j = lane * V; j < c; j += group * V) body(j);
}

// Calls body(row, lane of the group, whether the row exists) so often that all lanes of a warp stay together.
template <class Body>
__device__ __forceinline__ void for_group_rows(int64_t rows, int group, const Body& body) {
  const int64_t groups_per_block = block_threads / group;
  const int lane = static_cast<int>(threadIdx.x) % group;
  const int64_t own = static_cast<int64_t>(threadIdx.x) / group;
  for (int64_t first = blockIdx.x * groups_per_block; first < rows; first += gridDim.x * groups_per_block) {
    const int64_t row = first + own;
    body(row, lane, row < rows);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(block_threads) softmax_kernel(T* y, const T* x, int64_t rows, int32_t c, int group) {
  for_group_rows(rows, group, [&](int64_t row, int lane, bool exists) {
    const T* in = x + row * c;
    const int32_t own = exists ? c : 0;
    float largest = -INFINITY;
    for_own<V>(own, lane, group, [&](int32_t j) {
      float value[V];
      load(value, in + j);
#pragma unroll
      for (int k = 0; k < V; ++k) largest = fmaxf(largest, value[k]);
    });
    largest = over_group(largest, group, Largest{});
    float sum = 0.0f;
    for_own<V>(own, lane, group, [&](int32_t j) {
      float value[V];
      load(value, in + j);
#pragma unroll
      for (int k = 0; k < V; ++k) sum += expf(value[k] - largest);
    });
    sum = over_group(sum, group, Sum{});
    const float inverse = 1.0f / sum;
    for_own<V>(own, lane, group, [&](int32_t j) {
      float value[V];
      load(value, in + j);
#pragma unroll
      for (int k = 0; k < V; ++k) value[k] = expf(value[k] - largest) * inverse;
      store(y + row * c + j, value);
    });
  });
}

template <class T, int V>
__global__ void __launch_bounds__(block_threads)
    softmax_backward_kernel(T* dx, const T* dy, const T* y, int64_t rows, int32_t c, int group) {
  for_group_rows(rows, group, [&](int64_t row, int lane, bool exists) {
    const int32_t own = exists ? c : 0;
    float sum = 0.0f;
    for_own<V>(own, lane, group, [&](int32_t j) {
      float gradient[V], p[V];
      load(gradient, dy + row * c + j);
      load(p, y + row * c + j);
#pragma unroll
      for (int k = 0; k < V; ++k) sum += gradient[k] * p[k];
    });
    sum = over_group(sum, group, Sum{});
    for_own<V>(own, lane, group, [&](int32_t j) {
      float gradient[V], p[V];
      load(gradient, dy + row * c + j);
      load(p, y + row * c + j);
#pragma unroll
      for (int k = 0; k < V; ++k) gradient[k] = p[k] * (gradient[k] - sum);
      store(dx + row * c + j, gradient);
    });
  });
}

// Lanes for a row: a power of two that has one vector each for them, at most a warp.
int group_size(int64_t vectors) {
  int group = 2;
  while (group < 32 && group < vectors) group *= 2;
  return group;
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_softmax_forward(dlfs_stream stream, void* y, const void* x, int64_t rows, int32_t c,
                                 dlfs_dtype dtype) {
  return stream_call("dlfs_softmax_forward", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    if (check_rows(rows, c) == 0) return;
    check_pointer(y, "y");
    check_pointer(x, "x");
    dispatch_channels(dtype, c, aligned16({y, x}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width)::value;
      const int group = group_size(c / V);
      launch(s, grid_size(*s.context, rows * group, block_threads), block_threads, 0, softmax_kernel<T, V>,
             static_cast<T*>(y), static_cast<const T*>(x), rows, c, group);
    });
  });
}

dlfs_status dlfs_softmax_backward(dlfs_stream stream, void* dx, const void* dy, const void* y, int64_t rows, int32_t c,
                                  dlfs_dtype dtype) {
  return stream_call("dlfs_softmax_backward", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    if (check_rows(rows, c) == 0) return;
    check_pointer(dx, "dx");
    check_pointer(dy, "dy");
    check_pointer(y, "y");
    dispatch_channels(dtype, c, aligned16({dx, dy, y}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width)::value;
      const int group = group_size(c / V);
      launch(s, grid_size(*s.context, rows * group, block_threads), block_threads, 0, softmax_backward_kernel<T, V>,
             static_cast<T*>(dx), static_cast<const T*>(dy), static_cast<const T*>(y), rows, c, group);
    });
  });
}

}  // extern "C"
