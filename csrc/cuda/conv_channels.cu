// What surrounds a convolution by cuDNN: padding channels with zeros for the tensor cores, dropping the padding again,
// and the bias, residual, activation and mask of a plan whose engine does not fuse them or that runs backward.
#include "cuda/conv.hpp"
#include "cuda/pixel.cuh"
#include "cuda/quantized.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {
namespace {

// One vector of V channels of dst per thread; the reads overlap in the cache.
template <class Dst, class Src, int V>
__global__ void __launch_bounds__(256)
    pad_kernel(Dst* dst, const Src* src, int64_t rows_out, int64_t rows_in, int32_t c_out, int32_t c_in) {
  for_rows(rows_out, c_out / V, [&](int64_t row, int32_t vector) {
    const int32_t channel = vector * V;
    float value[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      value[j] = row < rows_in && channel + j < c_in ? to_float(src[row * c_in + channel + j]) : 0.0f;
    }
    store(dst + row * c_out + channel, value);
  });
}

template <class Dst, class Src, int V>
__global__ void __launch_bounds__(256)
    epilogue_kernel(Dst* dst, const Src* src, const float* bias, const Dst* residual, int64_t rows, int32_t k,
                    int32_t k_in, dlfs_activation activation) {
  for_rows(rows, k / V, [&](int64_t row, int32_t vector) {
    const int32_t channel = vector * V;
    float value[V];
    load(value, src + row * k_in + channel);
    if (bias) {
#pragma unroll
      for (int j = 0; j < V; ++j) value[j] += bias[channel + j];
    }
    if (residual) {
      float other[V];
      load(other, residual + row * k + channel);
#pragma unroll
      for (int j = 0; j < V; ++j) value[j] += other[j];
    }
#pragma unroll
    for (int j = 0; j < V; ++j) value[j] = activate(activation, value[j]);
    store(dst + row * k + channel, value);
  });
}

template <class T, int V>
__global__ void __launch_bounds__(256)
    gradient_epilogue_kernel(T* dx, const T* gradient, const T* residual, const T* mask, int64_t n) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * 256 * V;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) * V; i < n; i += stride) {
    float value[V];
    load(value, gradient + i);
    if (residual) {
      float other[V];
      load(other, residual + i);
#pragma unroll
      for (int j = 0; j < V; ++j) value[j] += other[j];
    }
    if (mask) {
      float kept[V];
      load(kept, mask + i);
#pragma unroll
      for (int j = 0; j < V; ++j) value[j] = kept[j] <= 0.0f ? 0.0f : value[j];
    }
    store(dx + i, value);
  }
}

// One vector of channels of a pixel of dx per thread, or of packed where only its pixels change (`touched`).
template <class T, int V, class Index>
__global__ void __launch_bounds__(256) scatter_kernel(T* dx, const T* packed, const T* residual, const T* mask,
                                                      ConvGeometry g, bool touched) {
  const int32_t height = touched ? g.p : g.h, width = touched ? g.q : g.w;
  for_rows(static_cast<Index>(int64_t{g.n} * height * width), g.c / V, [&](Index row, int32_t vector) {
    const Pixel pixel = pixel_of(row, height, width);
    const int32_t channel = vector * V;
    const int32_t h = touched ? pixel.row * g.stride_h : pixel.row, w = touched ? pixel.column * g.stride_w : pixel.column;
    const int64_t at = pixel_offset(pixel.n, h, w, g.h, g.w, g.c) + channel;
    float value[V] = {};
    // P and Q count all multiples of the strides, so these pixels lie in packed.
    if (h % g.stride_h == 0 && w % g.stride_w == 0) {
      load(value, packed + pixel_offset(pixel.n, h / g.stride_h, w / g.stride_w, g.p, g.q, g.c) + channel);
    }
    if (residual) {
      float other[V];
      load(other, residual + at);
#pragma unroll
      for (int j = 0; j < V; ++j) value[j] += other[j];
    }
    if (mask) {
      float kept[V];
      load(kept, mask + at);
#pragma unroll
      for (int j = 0; j < V; ++j) value[j] = kept[j] <= 0.0f ? 0.0f : value[j];
    }
    store(dx + at, value);
  });
}

// Calls body(tag) with the type of `other`, which is T's dtype or, where either is fp32, any.
template <class T, class Body>
void dispatch_partner(dlfs_dtype dtype, dlfs_dtype other, Body&& body) {
  if (other == dtype) return body(TypeTag<T>{});
  if constexpr (std::is_same_v<T, float>) {
    dispatch_float(other, body);
  } else {
    DLFS_CHECK(other == DLFS_F32, DLFS_ERROR_INTERNAL, "a copy between %s and %s", dtype_name(dtype),
               dtype_name(other));
    body(TypeTag<float>{});
  }
}

// A multiplicative hash of i, in [-1, 1).
__device__ __forceinline__ float noise(int64_t i, uint32_t seed) {
  uint32_t bits = static_cast<uint32_t>(i) * 0x9E3779B9u + seed;
  bits = (bits ^ bits >> 16) * 0x85EBCA6Bu;
  bits = (bits ^ bits >> 13) * 0xC2B2AE35u;
  return static_cast<float>(bits >> 8) * 0x1p-23f - 1.0f;
}

template <class T>
__global__ void __launch_bounds__(256) noise_kernel(T* dst, int64_t n, uint32_t seed) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * 256;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; i < n; i += stride) {
    dst[i] = from_float<T>(noise(i, seed));
  }
}

template <class T>
__global__ void __launch_bounds__(256) quantized_noise_kernel(T* dst, int64_t n, uint32_t seed, float amplitude) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * 256;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; i < n; i += stride) {
    dst[i] = to_quantized<T>(noise(i, seed) * amplitude);
  }
}

}  // namespace

void pad_channels(Stream& stream, void* dst, const void* src, int64_t rows_out, int64_t rows_in, int32_t c_out,
                  int32_t c_in, dlfs_dtype dst_dtype, dlfs_dtype src_dtype) {
  dispatch_channels(src_dtype, c_out, aligned16({dst}), [&](auto src_tag, auto width) {
    using Src = typename decltype(src_tag)::type;
    constexpr int V = decltype(width)::value;
    dispatch_partner<Src>(src_dtype, dst_dtype, [&](auto dst_tag) {
      using Dst = typename decltype(dst_tag)::type;
      const RowGrid g = row_grid(*stream.context, rows_out, c_out / V);
      launch(stream, g.grid, g.block, 0, pad_kernel<Dst, Src, V>, static_cast<Dst*>(dst), static_cast<const Src*>(src),
             rows_out, rows_in, c_out, c_in);
    });
  });
}

void conv_epilogue(Stream& stream, void* dst, const void* src, const float* bias, const void* residual, int64_t rows,
                   int32_t k, int32_t k_in, dlfs_dtype dst_dtype, dlfs_dtype src_dtype, dlfs_activation activation) {
  // Vectors need both row lengths to be multiples of them: padded rows are multiples of 4, so 4 channels suit both.
  const int64_t rows_fit = k_in == k || k_in % 8 == 0 ? k : k_in % 4 == 0 && k % 4 == 0 ? 4 : 1;
  dispatch_channels(dst_dtype, rows_fit, aligned16({dst, src, residual}), [&](auto dst_tag, auto width) {
    using Dst = typename decltype(dst_tag)::type;
    constexpr int V = decltype(width)::value;
    dispatch_partner<Dst>(dst_dtype, src_dtype, [&](auto src_tag) {
      using Src = typename decltype(src_tag)::type;
      const RowGrid g = row_grid(*stream.context, rows, k / V);
      launch(stream, g.grid, g.block, 0, epilogue_kernel<Dst, Src, V>, static_cast<Dst*>(dst),
             static_cast<const Src*>(src), bias, static_cast<const Dst*>(residual), rows, k, k_in, activation);
    });
  });
}

void gradient_epilogue(Stream& stream, void* dx, const void* gradient, const void* residual, const void* mask, int64_t n,
                       dlfs_dtype dtype) {
  dispatch_channels(dtype, n, aligned16({dx, gradient, residual, mask}), [&](auto tag, auto width) {
    using T = typename decltype(tag)::type;
    constexpr int V = decltype(width)::value;
    launch(stream, grid_size(*stream.context, n / V, 256), 256, 0, gradient_epilogue_kernel<T, V>, static_cast<T*>(dx),
           static_cast<const T*>(gradient), static_cast<const T*>(residual), static_cast<const T*>(mask), n);
  });
}

void scatter_gradient(Stream& stream, void* dx, const void* packed, const void* residual, const void* mask,
                      const ConvGeometry& g, dlfs_dtype dtype) {
  const bool touched = dx == residual && !mask;
  const int64_t rows = int64_t{g.n} * (touched ? int64_t{g.p} * g.q : int64_t{g.h} * g.w);
  dispatch_channels(dtype, g.c, aligned16({dx, packed, residual, mask}), [&](auto tag, auto width) {
    using T = typename decltype(tag)::type;
    constexpr int V = decltype(width)::value;
    dispatch_index(rows, [&](auto index) {
      using Index = typename decltype(index)::type;
      const RowGrid grid = row_grid(*stream.context, rows, g.c / V);
      launch(stream, grid.grid, grid.block, 0, scatter_kernel<T, V, Index>, static_cast<T*>(dx),
             static_cast<const T*>(packed), static_cast<const T*>(residual), static_cast<const T*>(mask), g, touched);
    });
  });
}

void fill_noise(Stream& stream, void* dst, int64_t n, dlfs_dtype dtype, uint32_t seed) {
  const unsigned grid = grid_size(*stream.context, n, 256);
  if (is_quantized(dtype)) {
    return dispatch_quantized(dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      launch(stream, grid, 256, 0, quantized_noise_kernel<T>, static_cast<T*>(dst), n, seed,
             std::is_same_v<T, Int8> ? 64.0f : 2.0f);
    });
  }
  dispatch_float(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(stream, grid, 256, 0, noise_kernel<T>, static_cast<T*>(dst), n, seed);
  });
}

}  // namespace dlfs

using namespace dlfs;

extern "C" dlfs_status dlfs_add_bias(dlfs_stream stream, void* y, const void* x, const float* bias, int64_t rows,
                                     int32_t c, dlfs_dtype dtype, dlfs_activation activation) {
  return stream_call("dlfs_add_bias", stream, [&](Stream& s) {
    check_float_dtype(dtype);
    check_activation(activation);
    check_size(rows, "rows");
    check_size(c, "c");
    checked_product({rows, c}, "x");
    check_pointer(y, "y");
    check_pointer(x, "x");
    check_pointer(bias, "bias");
    conv_epilogue(s, y, x, bias, nullptr, rows, c, c, dtype, dtype, activation);
  });
}
