// Conversions to and from numbers of 8 bits, and the counts of magnitudes that calibration looks at.
#include "cuda/quantized.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {
namespace {

constexpr int threads = 256;

// 16 elements per thread and turn, the rest one by one.
template <class T, class Wide, int V>
__global__ void __launch_bounds__(threads) quantize_kernel(T* dst, const Wide* src, int64_t n, float factor) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * threads;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  for (int64_t i = first; i < n / V; i += stride) {
    float value[V];
    load(value, src + i * V);
#pragma unroll
    for (int j = 0; j < V; ++j) value[j] *= factor;
    store_quantized(dst + i * V, value);
  }
  for (int64_t i = n / V * V + first; i < n; i += stride) dst[i] = to_quantized<T>(to_float(src[i]) * factor);
}

template <class Wide, class T, int V>
__global__ void __launch_bounds__(threads) dequantize_kernel(Wide* dst, const T* src, int64_t n, float factor) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * threads;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  for (int64_t i = first; i < n / V; i += stride) {
    float value[V];
    load(value, src + i * V);
#pragma unroll
    for (int j = 0; j < V; ++j) value[j] *= factor;
    store(dst + i * V, value);
  }
  for (int64_t i = n / V * V + first; i < n; i += stride) dst[i] = from_float<Wide>(to_float(src[i]) * factor);
}

// One block per output channel: its largest magnitude, then the division.
template <class T, class Wide>
__global__ void __launch_bounds__(threads)
    quantize_channels_kernel(T* dst, float* scale, const Wide* src, int32_t k, int64_t per_channel) {
  __shared__ float warps[threads / 32];
  for (int32_t channel = static_cast<int32_t>(blockIdx.x); channel < k; channel += static_cast<int32_t>(gridDim.x)) {
    const Wide* const from = src + channel * per_channel;
    T* const to = dst + channel * per_channel;
    float largest = 0.0f;
    for (int64_t i = threadIdx.x; i < per_channel; i += threads) largest = fmaxf(largest, fabsf(to_float(from[i])));
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
    }
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = largest;
    __syncthreads();
    for (int i = 0; i < threads / 32; ++i) largest = fmaxf(largest, warps[i]);
    const float step = largest > 0.0f ? largest / quantized_limit<T> : 1.0f;
    for (int64_t i = threadIdx.x; i < per_channel; i += threads) to[i] = to_quantized<T>(to_float(from[i]) / step);
    if (threadIdx.x == 0) scale[channel] = step;
    __syncthreads();  // the next channel writes `warps`
  }
}

// Counts of a block in shared memory, 32 bits each: a block looks at less than 2^32 elements.
template <class Wide>
__global__ void __launch_bounds__(threads)
    count_magnitudes_kernel(unsigned long long* counts, const Wide* src, int64_t n) {
  __shared__ uint32_t own[DLFS_MAGNITUDE_BINS];
  for (int i = threadIdx.x; i < DLFS_MAGNITUDE_BINS; i += threads) own[i] = 0;
  __syncthreads();
  const int64_t stride = static_cast<int64_t>(gridDim.x) * threads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x; i < n; i += stride) {
    atomicAdd(&own[magnitude_bin(to_float(src[i]))], 1u);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < DLFS_MAGNITUDE_BINS; i += threads) {
    if (own[i] > 0) atomicAdd(&counts[i], static_cast<unsigned long long>(own[i]));
  }
}

// Vectors of 16 bytes of the 8-bit side where both addresses allow them.
template <class Body>
void dispatch_width(bool aligned, Body&& body) {
  if (aligned) {
    body(Width<16>{});
  } else {
    body(Width<1>{});
  }
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" dlfs_status dlfs_quantize(dlfs_stream stream, void* dst, const void* src, int64_t n, dlfs_dtype dst_dtype,
                                     dlfs_dtype src_dtype, double factor) {
  return stream_call("dlfs_quantize", stream, [&](Stream& s) {
    check_quantize(dst, src, n, dst_dtype, src_dtype, factor);
    if (n == 0) return;
    dispatch_quantized_pair(dst_dtype, src_dtype, [&](auto narrow, auto type) {
      using T = typename decltype(narrow)::type;
      using Wide = typename decltype(type)::type;
      dispatch_width(aligned16({dst, src}), [&](auto width) {
        constexpr int V = decltype(width)::value;
        launch(s, grid_size(*s.context, ceil_div<int64_t>(n, V), threads), threads, 0, quantize_kernel<T, Wide, V>,
               static_cast<T*>(dst), static_cast<const Wide*>(src), n, static_cast<float>(factor));
      });
    });
  });
}

extern "C" dlfs_status dlfs_dequantize(dlfs_stream stream, void* dst, const void* src, int64_t n, dlfs_dtype dst_dtype,
                                       dlfs_dtype src_dtype, double factor) {
  return stream_call("dlfs_dequantize", stream, [&](Stream& s) {
    check_quantize(dst, src, n, src_dtype, dst_dtype, factor);
    if (n == 0) return;
    dispatch_quantized_pair(src_dtype, dst_dtype, [&](auto narrow, auto type) {
      using T = typename decltype(narrow)::type;
      using Wide = typename decltype(type)::type;
      dispatch_width(aligned16({dst, src}), [&](auto width) {
        constexpr int V = decltype(width)::value;
        launch(s, grid_size(*s.context, ceil_div<int64_t>(n, V), threads), threads, 0, dequantize_kernel<Wide, T, V>,
               static_cast<Wide*>(dst), static_cast<const T*>(src), n, static_cast<float>(factor));
      });
    });
  });
}

extern "C" dlfs_status dlfs_quantize_channels(dlfs_stream stream, void* dst, float* scale, const void* src, int32_t k,
                                              int64_t per_channel, dlfs_dtype dst_dtype, dlfs_dtype src_dtype) {
  return stream_call("dlfs_quantize_channels", stream, [&](Stream& s) {
    check_quantize_channels(dst, scale, src, k, per_channel, dst_dtype, src_dtype);
    dispatch_quantized_pair(dst_dtype, src_dtype, [&](auto narrow, auto type) {
      using T = typename decltype(narrow)::type;
      using Wide = typename decltype(type)::type;
      const unsigned blocks = static_cast<unsigned>(std::min<int32_t>(k, 65535));
      launch(s, blocks, threads, 0, quantize_channels_kernel<T, Wide>, static_cast<T*>(dst), scale,
             static_cast<const Wide*>(src), k, per_channel);
    });
  });
}

extern "C" dlfs_status dlfs_count_magnitudes(dlfs_stream stream, int64_t* counts, const void* src, int64_t n,
                                             dlfs_dtype src_dtype) {
  return stream_call("dlfs_count_magnitudes", stream, [&](Stream& s) {
    check_count_magnitudes(counts, src, n, src_dtype);
    if (n == 0) return;
    dispatch_float(src_dtype, [&](auto type) {
      using Wide = typename decltype(type)::type;
      launch(s, grid_size(*s.context, n, threads, 1), threads, 0, count_magnitudes_kernel<Wide>,
             reinterpret_cast<unsigned long long*>(counts), static_cast<const Wide*>(src), n);
    });
  });
}
