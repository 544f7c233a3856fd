// What surrounds a convolution by cuDNN: padding channels with zeros for the tensor cores, dropping the padding again, and
// the bias, residual and activation of a plan whose engine does not fuse them.
#include "cuda/conv.hpp"
#include "cuda/numeric.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {
namespace {

// One vector of V channels of dst per thread; the reads overlap in the cache.
template <class T, int V>
__global__ void __launch_bounds__(256)
    pad_kernel(T* dst, const T* src, int64_t rows_out, int64_t rows_in, int32_t c_out, int32_t c_in) {
  for_rows(rows_out, c_out / V, [&](int64_t row, int32_t vector) {
    Pack<T, V> pack;
    const int32_t channel = vector * V;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      pack.value[j] = row < rows_in && channel + j < c_in ? src[row * c_in + channel + j] : from_float<T>(0.0f);
    }
    *reinterpret_cast<Pack<T, V>*>(dst + row * c_out + channel) = pack;
  });
}

// One value per thread: the slices are small, or dropped padding of a few channels.
template <class Dst, class Src>
__global__ void __launch_bounds__(256)
    slice_kernel(Dst* dst, const Src* src, int64_t rows, int32_t c_out, int32_t c_in) {
  for_rows(rows, c_out, [&](int64_t row, int32_t channel) {
    dst[row * c_out + channel] = from_float<Dst>(to_float(src[row * c_in + channel]));
  });
}

template <class T, int V>
__global__ void __launch_bounds__(256) epilogue_kernel(T* y, const T* src, const float* bias, const T* residual, int64_t rows,
                                                       int32_t k, int32_t k_in, dlfs_activation activation) {
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
    store(y + row * k + channel, value);
  });
}

template <class T>
__global__ void __launch_bounds__(256) noise_kernel(T* dst, int64_t n, uint32_t seed) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * 256;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; i < n; i += stride) {
    uint32_t bits = static_cast<uint32_t>(i) * 0x9E3779B9u + seed;  // a multiplicative hash
    bits = (bits ^ bits >> 16) * 0x85EBCA6Bu;
    bits = (bits ^ bits >> 13) * 0xC2B2AE35u;
    dst[i] = from_float<T>(static_cast<float>(bits >> 8) * 0x1p-23f - 1.0f);
  }
}

}  // namespace

void pad_channels(Stream& stream, void* dst, const void* src, int64_t rows_out, int64_t rows_in, int32_t c_out, int32_t c_in,
                  dlfs_dtype dtype) {
  dispatch_channels(dtype, c_out, aligned16({dst}), [&](auto tag, auto width) {
    using T = typename decltype(tag)::type;
    constexpr int V = decltype(width)::value;
    const RowGrid g = row_grid(*stream.context, rows_out, c_out / V);
    launch(stream, g.grid, g.block, 0, pad_kernel<T, V>, static_cast<T*>(dst), static_cast<const T*>(src), rows_out, rows_in,
           c_out, c_in);
  });
}

void slice_channels(Stream& stream, void* dst, const void* src, int64_t rows, int32_t c_out, int32_t c_in,
                    dlfs_dtype dst_dtype, dlfs_dtype src_dtype) {
  const RowGrid g = row_grid(*stream.context, rows, c_out);
  dispatch_float(dst_dtype, [&](auto dst_tag) {
    using Dst = typename decltype(dst_tag)::type;
    dispatch_float(src_dtype, [&](auto src_tag) {
      using Src = typename decltype(src_tag)::type;
      launch(stream, g.grid, g.block, 0, slice_kernel<Dst, Src>, static_cast<Dst*>(dst), static_cast<const Src*>(src), rows,
             c_out, c_in);
    });
  });
}

void conv_epilogue(Stream& stream, void* y, const void* src, const float* bias, const void* residual, int64_t rows, int32_t k,
                   int32_t k_in, dlfs_dtype dtype, dlfs_activation activation) {
  // Vectors need both row lengths to be multiples of them: padding is to 8, so k decides.
  dispatch_channels(dtype, k_in % 8 == 0 || k_in == k ? k : 1, aligned16({y, src, residual}), [&](auto tag, auto width) {
    using T = typename decltype(tag)::type;
    constexpr int V = decltype(width)::value;
    const RowGrid g = row_grid(*stream.context, rows, k / V);
    launch(stream, g.grid, g.block, 0, epilogue_kernel<T, V>, static_cast<T*>(y), static_cast<const T*>(src), bias,
           static_cast<const T*>(residual), rows, k, k_in, activation);
  });
}

void fill_noise(Stream& stream, void* dst, int64_t n, dlfs_dtype dtype, uint32_t seed) {
  dispatch_float(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(stream, grid_size(*stream.context, n, 256), 256, 0, noise_kernel<T>, static_cast<T*>(dst), n, seed);
  });
}

}  // namespace dlfs
