// What the CPU's image kernels share: pixels as vectors, and writing them in the output's dtype.
#pragma once

#include <cstring>

#include "common/sampling.hpp"
#include "cpu/numeric.hpp"

namespace dlfs::cpu {

// Four floats, one pixel and a channel that is not used (a vector extension of GCC and Clang).
typedef float Pixel __attribute__((vector_size(16)));

inline Pixel load_pixel(const float* p) {
  Pixel value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// Converts and stores one value.
template <class T>
inline void put(T* p, float value) {
  store(p, value);
}
inline void put(uint8_t* p, float value) { *p = static_cast<uint8_t>(round_u8(value)); }

// Calls body with a null pointer of the element type.
template <class Body>
void dispatch_output(dlfs_dtype dtype, const Body& body) {
  switch (dtype) {
    case DLFS_F32:
      return body(static_cast<float*>(nullptr));
    case DLFS_BF16:
      return body(static_cast<Bf16*>(nullptr));
    case DLFS_F16:
      return body(static_cast<F16*>(nullptr));
    case DLFS_U8:
      return body(static_cast<uint8_t*>(nullptr));
  }
}

}  // namespace dlfs::cpu
