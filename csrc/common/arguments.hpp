// Checks of scalar arguments and pointers that both backends make before anything is enqueued, with one wording.
#pragma once

#include <initializer_list>

#include "common/status.hpp"

namespace dlfs {

// The largest number of elements or bytes of a tensor: the integers that a double holds exactly.
constexpr int64_t max_elements = int64_t{1} << 53;

inline const char* activation_name(dlfs_activation activation) {
  static const char* const names[] = {"none", "relu", "sigmoid", "silu", "relu6", "leaky_relu", "hardswish", "hardsigmoid"};
  return activation >= 0 && activation <= DLFS_ACT_HARDSIGMOID ? names[activation] : "unknown";
}

inline void check_pointer(const void* pointer, const char* name) {
  DLFS_CHECK(pointer != nullptr, DLFS_ERROR_ARGUMENT, "%s is NULL", name);
}

// Throws unless low <= value <= high.
inline void check_range(int64_t value, int64_t low, int64_t high, const char* name) {
  DLFS_CHECK(value >= low && value <= high, DLFS_ERROR_ARGUMENT, "expected %s from %lld to %lld, got %lld", name,
             static_cast<long long>(low), static_cast<long long>(high), static_cast<long long>(value));
}

// A number of elements or bytes that may be 0.
inline void check_count(int64_t value, const char* name) { check_range(value, 0, max_elements, name); }

// A size that is at least 1.
inline void check_size(int64_t value, const char* name) { check_range(value, 1, max_elements, name); }

// Throws unless the value is a number (neither NaN nor infinite).
inline void check_number(double value, const char* name) {
  DLFS_CHECK(value - value == 0, DLFS_ERROR_ARGUMENT, "expected a finite %s, got %g", name, value);
}

// What normalisation adds to a variance.
inline void check_eps(double eps) {
  DLFS_CHECK(eps >= 0 && eps - eps == 0, DLFS_ERROR_ARGUMENT, "expected eps >= 0, got %g", eps);
}

// a * b * ... of sizes >= 0; throws where the product exceeds max_elements.
inline int64_t checked_product(std::initializer_list<int64_t> sizes, const char* name) {
  int64_t product = 1;
  for (int64_t size : sizes) {
    int64_t next = 0;
    DLFS_CHECK(size >= 0 && !__builtin_mul_overflow(product, size, &next) && next <= max_elements, DLFS_ERROR_SHAPE,
               "%s has more than 2^53 elements", name);
    product = next;
  }
  return product;
}

// Throws unless dtype is one of those allowed; the message lists them.
inline void check_dtype(dlfs_dtype dtype, std::initializer_list<dlfs_dtype> allowed, const char* name = "dtype") {
  for (dlfs_dtype one : allowed) {
    if (one == dtype) return;
  }
  std::string list;
  for (dlfs_dtype one : allowed) list += std::string(list.empty() ? "" : ", ") + dtype_name(one);
  throw Error(DLFS_ERROR_DTYPE,
              format("expected %s to be one of %s, got %s (%d)", name, list.c_str(), dtype_name(dtype), dtype));
}

// The dtypes that activations have.
inline void check_float_dtype(dlfs_dtype dtype, const char* name = "dtype") {
  check_dtype(dtype, {DLFS_F32, DLFS_BF16, DLFS_F16}, name);
}

inline void check_activation(dlfs_activation activation, std::initializer_list<dlfs_activation> allowed) {
  for (dlfs_activation one : allowed) {
    if (one == activation) return;
  }
  std::string list;
  for (dlfs_activation one : allowed) list += std::string(list.empty() ? "" : ", ") + activation_name(one);
  throw Error(DLFS_ERROR_ARGUMENT, format("expected an activation out of %s, got %s (%d)", list.c_str(),
                                          activation_name(activation), activation));
}

// The activations that other operations can end in.
inline void check_activation(dlfs_activation activation) {
  check_activation(activation, {DLFS_ACT_NONE, DLFS_ACT_RELU, DLFS_ACT_SIGMOID, DLFS_ACT_SILU, DLFS_ACT_RELU6});
}

// All of them, with the slope of those that have one.
inline void check_any_activation(dlfs_activation activation, double slope) {
  check_activation(activation,
                   {DLFS_ACT_NONE, DLFS_ACT_RELU, DLFS_ACT_SIGMOID, DLFS_ACT_SILU, DLFS_ACT_RELU6, DLFS_ACT_LEAKY_RELU,
                    DLFS_ACT_HARDSWISH, DLFS_ACT_HARDSIGMOID});
  if (activation == DLFS_ACT_LEAKY_RELU) check_number(slope, "slope");
}

// A workspace of at least `bytes`, which may be NULL when that is 0.
inline void check_workspace(const void* workspace, int64_t bytes) {
  if (bytes == 0) return;
  DLFS_CHECK(workspace != nullptr, DLFS_ERROR_ARGUMENT, "workspace is NULL, expected %lld bytes",
             static_cast<long long>(bytes));
  DLFS_CHECK(reinterpret_cast<uintptr_t>(workspace) % 256 == 0, DLFS_ERROR_ARGUMENT,
             "workspace is not 256-byte aligned (%p)", workspace);
}

// Throws where [a, a + bytes_a) and [b, b + bytes_b) share a byte.
inline void check_no_overlap(const void* a, int64_t bytes_a, const char* name_a, const void* b, int64_t bytes_b,
                             const char* name_b) {
  const char* first = static_cast<const char*>(a);
  const char* second = static_cast<const char*>(b);
  DLFS_CHECK(first + bytes_a <= second || second + bytes_b <= first, DLFS_ERROR_ARGUMENT, "%s and %s overlap", name_a,
             name_b);
}

}  // namespace dlfs
