// Element types of the CPU backend's kernels and their conversions, written so that compilers vectorise them. A kernel
// is a template over the element type (float or Bf16) that reads through load() and writes through store().
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common/activations.hpp"
#include "common/status.hpp"

namespace dlfs::cpu {

// bfloat16: the upper half of an fp32.
struct Bf16 {
  uint16_t bits;
};

// IEEE half precision, for storage and conversion only.
struct F16 {
  uint16_t bits;
};

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float to_float(float value) { return value; }
inline float to_float(Bf16 value) { return bits_float(static_cast<uint32_t>(value.bits) << 16); }

// Subnormal halves are normal floats: they are scaled up by 2^112 in the exponent through a multiplication.
inline float to_float(F16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  const float scaled = bits_float(magnitude) * 5.192296858534828e+33f;  // 2^112
  const uint32_t special = magnitude | 0x7f800000u;                     // infinity and NaN keep their payload
  return bits_float(((value.bits & 0x7c00u) == 0x7c00u ? special : float_bits(scaled)) | sign);
}

// Conversions from float round to nearest, ties to even; NaN stays NaN (quiet), overflow becomes infinity.
template <class T>
T from_float(float value);

template <>
inline float from_float<float>(float value) {
  return value;
}

template <>
inline Bf16 from_float<Bf16>(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const uint32_t nan = bits >> 16 | 0x40u;
  return {static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
}

template <>
inline F16 from_float<F16>(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | (magnitude >> 13 & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // normal halves: 2^-14 and above
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  } else {  // subnormal halves: adding 0.5 leaves the mantissa's unit at 2^-24 and rounds to even
    half = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  }
  return {static_cast<uint16_t>(half | sign)};
}

template <class T>
inline float load(const T* p) {
  return to_float(*p);
}

template <class T>
inline void store(T* p, float value) {
  *p = from_float<T>(value);
}

// e^x to about one unit in the last place, in operations that vectorise: x = n ln 2 + r, a polynomial in r (Moshier,
// Cephes' expf), then n added to the exponent. Below -87 the result is 0, above 88 that of 88; NaN stays NaN.
inline float exp_f32(float x) {
  const float low = -87.0f, high = 88.0f;
  const bool vanishes = x < low;
  x = vanishes ? low : x;
  x = x > high ? high : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which ends up in the lowest bits
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float value = bits_float(float_bits((p * r) * r + r + 1.0f) + (float_bits(shifted) << 23));
  return vanishes ? 0.0f : value;
}

// 1 / (1 + e^-x), exact to a few units in the last place on both sides.
inline float sigmoid_f32(float x) {
  const float e = exp_f32(x < 0.0f ? x : -x);
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

// activation(x), chosen at compile time. NaN stays NaN. slope: leaky ReLU's.
template <dlfs_activation activation>
inline float activate(float x, [[maybe_unused]] float slope = 0.0f) {
  if constexpr (activation == DLFS_ACT_RELU) return x < 0.0f ? 0.0f : x;
  if constexpr (activation == DLFS_ACT_SIGMOID) return sigmoid_f32(x);
  if constexpr (activation == DLFS_ACT_SILU) return x * sigmoid_f32(x);
  if constexpr (activation == DLFS_ACT_RELU6) return relu6(x);
  if constexpr (activation == DLFS_ACT_LEAKY_RELU) return leaky_relu(x, slope);
  if constexpr (activation == DLFS_ACT_HARDSWISH) return hardswish(x);
  if constexpr (activation == DLFS_ACT_HARDSIGMOID) return hardsigmoid(x);
  return x;
}

template <dlfs_activation value>
using ActivationTag = std::integral_constant<dlfs_activation, value>;

// Calls body(ActivationTag<activation>{}) for one of the activations that check_activation() lets pass.
template <class Body>
auto dispatch_activation(dlfs_activation activation, Body&& body) {
  switch (activation) {
    case DLFS_ACT_RELU: return body(ActivationTag<DLFS_ACT_RELU>{});
    case DLFS_ACT_SIGMOID: return body(ActivationTag<DLFS_ACT_SIGMOID>{});
    case DLFS_ACT_SILU: return body(ActivationTag<DLFS_ACT_SILU>{});
    case DLFS_ACT_RELU6: return body(ActivationTag<DLFS_ACT_RELU6>{});
    default: return body(ActivationTag<DLFS_ACT_NONE>{});
  }
}

// The same for all activations.
template <class Body>
auto dispatch_any_activation(dlfs_activation activation, Body&& body) {
  switch (activation) {
    case DLFS_ACT_LEAKY_RELU: return body(ActivationTag<DLFS_ACT_LEAKY_RELU>{});
    case DLFS_ACT_HARDSWISH: return body(ActivationTag<DLFS_ACT_HARDSWISH>{});
    case DLFS_ACT_HARDSIGMOID: return body(ActivationTag<DLFS_ACT_HARDSIGMOID>{});
    default: return dispatch_activation(activation, std::forward<Body>(body));
  }
}

// Channels that a kernel takes at a time: four vector registers of AVX-512.
constexpr int32_t channel_chunk = 64;

// Calls body(count, first) for runs of at most channel_chunk channels that cover [0, c). For a whole run `count` is a
// compile-time constant, so that its sums stay in registers. (Shorter constants would be worse than none: GCC unrolls
// such loops before it could vectorise them.)
template <class Body>
inline void for_each_chunk(int32_t c, const Body& body) {
  int32_t first = 0;
  for (; first + channel_chunk <= c; first += channel_chunk)
    body(std::integral_constant<int32_t, channel_chunk>{}, first);
  if (first < c) body(c - first, first);
}

template <class T>
struct Type {
  using type = T;
};

// Calls body(Type<float>{}) or body(Type<Bf16>{}). F16 activations are not supported on the CPU.
template <class Body>
auto dispatch_float(dlfs_dtype dtype, Body&& body) {
  switch (dtype) {
    case DLFS_F32: return body(Type<float>{});
    case DLFS_BF16: return body(Type<Bf16>{});
    case DLFS_F16: throw Error(DLFS_ERROR_UNSUPPORTED, "f16 is not supported by the CPU backend");
    default:
      throw Error(DLFS_ERROR_DTYPE,
                  format("expected dtype to be one of f32, bf16, f16, got %s (%d)", dtype_name(dtype), dtype));
  }
}

}  // namespace dlfs::cpu
