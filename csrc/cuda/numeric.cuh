// Element types on the device: conversions to and from fp32, 16-byte vectors, and the switch from dlfs_dtype to a type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <climits>
#include <initializer_list>
#include <utility>

#include "common/activations.hpp"
#include "common/status.hpp"

namespace dlfs {

using bf16 = __nv_bfloat16;
using f16 = __half;

// A value as fp32; exact.
__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }

// Rounds to nearest even.
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float x) {
  return __float2half_rn(x);
}

// An address in shared memory as PTX instructions take it.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// N values that are loaded and stored at once; the address must be a multiple of its size.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  static_assert(sizeof(T) * N <= 16 && (N & (N - 1)) == 0, "a vector access has 1, 2, 4, 8 or 16 bytes");
  T value[N];
};

// How many values a 16-byte access moves.
template <class T>
inline constexpr int vector_width = 16 / static_cast<int>(sizeof(T));

// How many values of N one access moves: all of them, or 16 bytes' worth.
template <class T, int N>
inline constexpr int access_width = N < vector_width<T> ? N : vector_width<T>;

// N values as they are in memory, in one access.
template <int N, class T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}

// The same for values that are not read again soon: their lines leave the L2 cache first.
template <int N, class T>
__device__ __forceinline__ Pack<T, N> load_pack_once(const T* p) {
  if constexpr (sizeof(T) * N == 16) {
    const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(p));
    return *reinterpret_cast<const Pack<T, N>*>(&bits);
  } else {
    return load_pack<N>(p);
  }
}

template <int N, class T>
__device__ __forceinline__ void unpack(float (&out)[N], const Pack<T, N>& pack) {
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = to_float(pack.value[i]);
}

// out[0..N) = p[0..N) as fp32; p is a multiple of the size of N values, or of 16 bytes where they are longer.
template <int N, class T>
__device__ __forceinline__ void load(float (&out)[N], const T* p) {
  constexpr int width = access_width<T, N>;
#pragma unroll
  for (int first = 0; first < N; first += width) {
    const Pack<T, width> pack = *reinterpret_cast<const Pack<T, width>*>(p + first);
#pragma unroll
    for (int i = 0; i < width; ++i) out[first + i] = to_float(pack.value[i]);
  }
}

// p[0..N) = in[0..N), rounded to nearest even; alignment as for load.
template <int N, class T>
__device__ __forceinline__ void store(T* p, const float (&in)[N]) {
  constexpr int width = access_width<T, N>;
#pragma unroll
  for (int first = 0; first < N; first += width) {
    Pack<T, width> pack;
#pragma unroll
    for (int i = 0; i < width; ++i) pack.value[i] = from_float<T>(in[first + i]);
    *reinterpret_cast<Pack<T, width>*>(p + first) = pack;
  }
}

// True where every pointer (NULL included) is a multiple of 16 bytes.
inline bool aligned16(std::initializer_list<const void*> pointers) {
  uintptr_t bits = 0;
  for (const void* pointer : pointers) bits |= reinterpret_cast<uintptr_t>(pointer);
  return bits % 16 == 0;
}

// Names a type for a generic lambda: [&](auto tag) { using T = typename decltype(tag)::type; ... }.
template <class T>
struct TypeTag {
  using type = T;
};

// Calls body(TypeTag<T>) with the element type of an activation dtype.
template <class Body>
decltype(auto) dispatch_float(dlfs_dtype dtype, Body&& body) {
  switch (dtype) {
    case DLFS_F32: return body(TypeTag<float>{});
    case DLFS_BF16: return body(TypeTag<bf16>{});
    case DLFS_F16: return body(TypeTag<f16>{});
  }
  throw Error(DLFS_ERROR_DTYPE, format("expected dtype f32, bf16 or f16, got %s (%d)", dtype_name(dtype), dtype));
}

// As dispatch_float, with the number of values per access as a compile-time constant:
// [&](auto tag, auto width) { constexpr int V = decltype(width)::value; ... }; 16-byte accesses where `vector`, else 1.
template <int N>
struct Width {
  static constexpr int value = N;
};

template <class Body>
void dispatch_vector(dlfs_dtype dtype, bool vector, Body&& body) {
  dispatch_float(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (vector) {
      body(tag, Width<vector_width<T>>{});
    } else {
      body(tag, Width<1>{});
    }
  });
}

// The same for rows of c channels: 16-byte accesses where c allows them, else four channels at once, else one.
// `aligned`: all addresses are multiples of 16 bytes.
template <class Body>
void dispatch_channels(dlfs_dtype dtype, int64_t c, bool aligned, Body&& body) {
  dispatch_float(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (aligned && c % vector_width<T> == 0) return body(tag, Width<vector_width<T>>{});
    if constexpr (vector_width<T> > 4) {
      if (aligned && c % 4 == 0) return body(tag, Width<4>{});
    }
    body(tag, Width<1>{});
  });
}

// Calls body(TypeTag<Index>) with the type for counting `rows` pixels: 32 bits divide several times faster than 64.
template <class Body>
void dispatch_index(int64_t rows, Body&& body) {
  if (rows <= INT32_MAX) {
    body(TypeTag<uint32_t>{});
  } else {
    body(TypeTag<int64_t>{});
  }
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// activation(x) in fp32. ReLU keeps NaN, as torch does. slope: leaky ReLU's.
template <dlfs_activation activation>
__device__ __forceinline__ float activate(float x, [[maybe_unused]] float slope = 0.0f) {
  if constexpr (activation == DLFS_ACT_RELU) {
    return x < 0.0f ? 0.0f : x;
  } else if constexpr (activation == DLFS_ACT_SIGMOID) {
    return sigmoid(x);
  } else if constexpr (activation == DLFS_ACT_SILU) {
    return x / (1.0f + expf(-x));
  } else if constexpr (activation == DLFS_ACT_RELU6) {
    return relu6(x);
  } else if constexpr (activation == DLFS_ACT_LEAKY_RELU) {
    return leaky_relu(x, slope);
  } else if constexpr (activation == DLFS_ACT_HARDSWISH) {
    return hardswish(x);
  } else if constexpr (activation == DLFS_ACT_HARDSIGMOID) {
    return hardsigmoid(x);
  } else {
    return x;
  }
}

// One of the activations that check_activation() lets pass.
__device__ __forceinline__ float activate(dlfs_activation activation, float x) {
  switch (activation) {
    case DLFS_ACT_RELU: return activate<DLFS_ACT_RELU>(x);
    case DLFS_ACT_SIGMOID: return activate<DLFS_ACT_SIGMOID>(x);
    case DLFS_ACT_SILU: return activate<DLFS_ACT_SILU>(x);
    case DLFS_ACT_RELU6: return relu6(x);
    default: return x;
  }
}

// Calls body(Activation<a>) with one of the activations that check_activation() lets pass as a compile-time constant.
template <dlfs_activation a>
struct Activation {
  static constexpr dlfs_activation value = a;
};

template <class Body>
void dispatch_activation(dlfs_activation activation, Body&& body) {
  switch (activation) {
    case DLFS_ACT_NONE: return body(Activation<DLFS_ACT_NONE>{});
    case DLFS_ACT_RELU: return body(Activation<DLFS_ACT_RELU>{});
    case DLFS_ACT_SIGMOID: return body(Activation<DLFS_ACT_SIGMOID>{});
    case DLFS_ACT_SILU: return body(Activation<DLFS_ACT_SILU>{});
    case DLFS_ACT_RELU6: return body(Activation<DLFS_ACT_RELU6>{});
  }
  throw Error(DLFS_ERROR_ARGUMENT, format("unknown activation %d", activation));
}

// The same for all activations.
template <class Body>
void dispatch_any_activation(dlfs_activation activation, Body&& body) {
  switch (activation) {
    case DLFS_ACT_LEAKY_RELU: return body(Activation<DLFS_ACT_LEAKY_RELU>{});
    case DLFS_ACT_HARDSWISH: return body(Activation<DLFS_ACT_HARDSWISH>{});
    case DLFS_ACT_HARDSIGMOID: return body(Activation<DLFS_ACT_HARDSIGMOID>{});
    default: return dispatch_activation(activation, std::forward<Body>(body));
  }
}

// Sum over the 32 lanes of a full warp, in every lane; a fixed order.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// Sum of one value per thread over a block of `threads`, in thread 0, in a fixed order. All threads call it; the next
// call needs no barrier in between.
template <int threads>
__device__ double block_sum(double value) {
  static_assert(threads % 32 == 0 && threads <= 1024, "whole warps");
  __shared__ double warps[threads / 32];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
  __syncthreads();  // the last call's reads are over
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < threads / 32; ++i) value += warps[i];
  }
  return value;
}

}  // namespace dlfs
