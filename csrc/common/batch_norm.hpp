// What both backends know of batch normalization: where its ReLU passed a value on, and which operands fit together.
#pragma once

#include "common/arguments.hpp"

namespace dlfs {

// The largest fp32 that is stored as 0 in a dtype, so that y <= 0 exactly where the value before the rounding is <= this:
// half of the smallest number, which rounds to even.
constexpr float largest_zero(dlfs_dtype dtype) {
  return dtype == DLFS_BF16 ? 0x1p-134f : (dtype == DLFS_F16 ? 0x1p-25f : 0.0f);
}

// Bytes of a row of c bits; rows start at whole bytes.
DLFS_HD constexpr int64_t mask_pitch(int64_t c) { return (c + 7) / 8; }

// A mask is written for ReLU alone.
inline void check_mask(const void* mask, dlfs_activation activation) {
  DLFS_CHECK(!mask || activation == DLFS_ACT_RELU, DLFS_ERROR_ARGUMENT, "expected no mask with activation %s",
             activation_name(activation));
}

struct NamedPointer {
  const void* pointer;
  const char* name;
};

// Operands of the sum of two normalized tensors, none of which may be NULL.
inline void check_join(dlfs_dtype dtype, int64_t rows, int32_t c, std::initializer_list<NamedPointer> operands) {
  check_float_dtype(dtype);
  check_range(rows, 2, max_elements, "rows");
  check_size(c, "c");
  checked_product({rows, c}, "x");
  for (const auto& [pointer, name] : operands) check_pointer(pointer, name);
}

// Moments have at least one part; those after the first may be without rows.
inline void check_moments(const void* moments, int64_t parts) {
  if (moments) {
    check_range(parts, 1, INT32_MAX, "parts");
  } else {
    DLFS_CHECK(parts == 0, DLFS_ERROR_ARGUMENT, "moments is NULL, expected 0 parts, got %lld",
               static_cast<long long>(parts));
  }
}

}  // namespace dlfs
