// Vectors of numbers of 8 bits on the device.
#pragma once

#include <type_traits>

#include "common/quantized.hpp"
#include "cuda/numeric.cuh"

namespace dlfs {

// p[0..N) = in[0..N), rounded and saturated; p is a multiple of N bytes, N at most 16.
template <int N, class T>
__device__ __forceinline__ void store_quantized(T* p, const float (&in)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.value[i] = to_quantized<T>(in[i]);
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

// What products of a type are summed in.
template <class T>
using SumOf = std::conditional_t<std::is_same_v<T, Int8>, int32_t, float>;

// Calls body(tag of the 8-bit type, tag of the wide type).
template <class Body>
void dispatch_quantized_pair(dlfs_dtype quantized, dlfs_dtype wide, Body&& body) {
  dispatch_quantized(quantized, [&](auto narrow) { dispatch_float(wide, [&](auto type) { body(narrow, type); }); });
}

}  // namespace dlfs
