// Numbers of 8 bits: conversions from and to fp32 that give the same bits on both backends, and what the entry points
// of quantization check.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_fp8.h>
#endif

#include "common/arguments.hpp"

namespace dlfs {

// E4M3: sign, 4 bits of exponent with bias 7, 3 of mantissa. No infinity; 0x7f is NaN, the largest number 0x7e = 448.
struct E4m3 {
  uint8_t bits;
};

struct Int8 {
  int8_t value;
};

DLFS_HD inline float to_float(E4m3 x) {
  const uint32_t magnitude = x.bits & 0x7fu;
  // Placed in an fp32, exponent and mantissa mean 2^-120 of the number, subnormal numbers included.
  const uint32_t bits = magnitude == 0x7fu ? 0x7fc00000u : magnitude << 20;
  float value;
  memcpy(&value, &bits, sizeof value);
  value *= 1.329227995784916e36f;  // 2^120
  return x.bits & 0x80u ? -value : value;
}

DLFS_HD inline float to_float(Int8 x) { return static_cast<float>(x.value); }

// Rounds to nearest even; what is beyond 448 becomes 448.
DLFS_HD inline E4m3 to_e4m3(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  return {__nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3)};
#else
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu;
  uint32_t rounded;
  if (magnitude > 0x7f800000u) return {0x7f};
  if (magnitude >= 0x43e00000u) {  // 448
    rounded = 0x7e;
  } else if (magnitude >= 0x3c800000u) {  // 2^-6, the smallest normal number
    rounded = (magnitude - 0x3c000000u + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20;
  } else {  // adding 2^14 leaves the mantissa's unit at 2^-9, the subnormal numbers', and rounds to even
    float shifted;
    memcpy(&shifted, &magnitude, sizeof shifted);
    shifted += 16384.0f;
    memcpy(&rounded, &shifted, sizeof rounded);
    rounded -= 0x46800000u;
  }
  return {static_cast<uint8_t>(rounded | sign)};
#endif
}

// Rounds to nearest even; saturates to -128 and 127; NaN becomes 0.
DLFS_HD inline Int8 to_int8(float x) {
  if (!(x > -128.0f)) return {static_cast<int8_t>(x == x ? -128 : 0)};
  if (x > 127.0f) return {127};
#ifdef __CUDA_ARCH__
  return {static_cast<int8_t>(__float2int_rn(x))};
#else
  return {static_cast<int8_t>(std::nearbyintf(x))};
#endif
}

// The same by type: from_quantized<E4m3>(x).
template <class T>
DLFS_HD inline T to_quantized(float x);
template <>
DLFS_HD inline E4m3 to_quantized<E4m3>(float x) {
  return to_e4m3(x);
}
template <>
DLFS_HD inline Int8 to_quantized<Int8>(float x) {
  return to_int8(x);
}

// The largest magnitude that weights are scaled to.
template <class T>
inline constexpr float quantized_limit = 448.0f;
template <>
inline constexpr float quantized_limit<Int8> = 127.0f;

inline bool is_quantized(dlfs_dtype dtype) { return dtype == DLFS_F8E4M3 || dtype == DLFS_I8; }

inline void check_quantized_dtype(dlfs_dtype dtype, const char* name) {
  check_dtype(dtype, {DLFS_F8E4M3, DLFS_I8}, name);
}

// Names a type for a generic lambda: [&](auto tag) { using T = typename decltype(tag)::type; ... }.
template <class T>
struct QuantizedTag {
  using type = T;
};

// Calls body(QuantizedTag<T>) with the element type of a dtype of 8 bits.
template <class Body>
decltype(auto) dispatch_quantized(dlfs_dtype dtype, Body&& body) {
  check_quantized_dtype(dtype, "dtype");
  if (dtype == DLFS_I8) return body(QuantizedTag<Int8>{});
  return body(QuantizedTag<E4m3>{});
}

// The bin of dlfs_count_magnitudes. All NaN are one: widening f16 and bf16 keeps their bits on the CPU and not on the GPU.
DLFS_HD inline int32_t magnitude_bin(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t magnitude = bits & 0x7fffffffu;
  return static_cast<int32_t>((magnitude > 0x7f800000u ? 0x7fc00000u : magnitude) >> 18);
}

// ---- entry points -------------------------------------------------------------------------------------------------

// Checks dlfs_quantize and, with the dtypes exchanged, dlfs_dequantize.
inline void check_quantize(const void* dst, const void* src, int64_t n, dlfs_dtype quantized, dlfs_dtype wide,
                           double factor) {
  check_count(n, "n");
  check_quantized_dtype(quantized, "the dtype of 8 bits");
  check_float_dtype(wide, "the other dtype");
  check_number(factor, "factor");
  if (n == 0) return;
  check_pointer(dst, "dst");
  check_pointer(src, "src");
}

inline void check_quantize_channels(const void* dst, const float* scale, const void* src, int32_t k,
                                    int64_t per_channel, dlfs_dtype quantized, dlfs_dtype wide) {
  check_size(k, "k");
  check_size(per_channel, "per_channel");
  checked_product({k, per_channel}, "src");
  check_quantized_dtype(quantized, "dst_dtype");
  check_float_dtype(wide, "src_dtype");
  check_pointer(dst, "dst");
  check_pointer(scale, "scale");
  check_pointer(src, "src");
}

inline void check_count_magnitudes(const int64_t* counts, const void* src, int64_t n, dlfs_dtype dtype) {
  check_count(n, "n");
  check_float_dtype(dtype, "src_dtype");
  check_pointer(counts, "counts");
  if (n > 0) check_pointer(src, "src");
}

// The dtype of y and the residual of a convolution plan of 8 bits, from the plan's flags; checks the flags, direction
// and groups' part that is about 8 bits.
inline dlfs_dtype conv_result_dtype(dlfs_dtype dtype, int32_t direction, int32_t flags) {
  const int32_t wide = flags & (DLFS_CONV_Y_F32 | DLFS_CONV_Y_BF16 | DLFS_CONV_Y_F16);
  if (!is_quantized(dtype)) {
    DLFS_CHECK(wide == 0, DLFS_ERROR_ARGUMENT, "the flags DLFS_CONV_Y_... apply to dtypes f8 and i8 only");
    return dtype;
  }
  DLFS_CHECK(direction == DLFS_CONV_FORWARD, DLFS_ERROR_ARGUMENT,
             "plans of dtype %s are for the forward direction only", dtype_name(dtype));
  DLFS_CHECK((flags & DLFS_CONV_MOMENTS) == 0, DLFS_ERROR_ARGUMENT, "plans of dtype %s give no moments",
             dtype_name(dtype));
  switch (wide) {
    case 0: return dtype;
    case DLFS_CONV_Y_F32: return DLFS_F32;
    case DLFS_CONV_Y_BF16: return DLFS_BF16;
    case DLFS_CONV_Y_F16: return DLFS_F16;
  }
  throw Error(DLFS_ERROR_ARGUMENT, "more than one of the flags DLFS_CONV_Y_... was given");
}

}  // namespace dlfs
