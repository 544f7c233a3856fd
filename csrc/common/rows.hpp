// Checks of operations on rows of channels and on batches of matrices, with one wording for both backends.
#pragma once

#include "common/arguments.hpp"

namespace dlfs {

// A packed (rows, C) array; rows may be 0. Returns the number of its elements.
inline int64_t check_rows(int64_t rows, int32_t c) {
  check_count(rows, "rows");
  check_size(c, "c");
  return checked_product({rows, c}, "x");
}

// A packed (n, rows, C) array of n images. Returns the number of its elements, which may be 0.
inline int64_t check_images(int32_t n, int64_t rows, int32_t c) {
  check_count(n, "n");
  check_count(rows, "rows");
  check_size(c, "c");
  return checked_product({n, rows, c}, "x");
}

// A shuffle of channels that does not overlap. Returns the number of elements.
inline int64_t check_shuffle(const void* y, const void* x, int64_t rows, int32_t c, int32_t groups, dlfs_dtype dtype) {
  check_float_dtype(dtype);
  const int64_t elements = check_rows(rows, c);
  check_range(groups, 1, c, "groups");
  DLFS_CHECK(c % groups == 0, DLFS_ERROR_SHAPE, "expected channels divisible by %d groups, got %d", groups, c);
  if (elements == 0) return 0;
  check_pointer(y, "y");
  check_pointer(x, "x");
  const int64_t bytes = elements * dtype_size(dtype);
  check_no_overlap(y, bytes, "y", x, bytes, "x");
  return elements;
}

// A transposition of n matrices that does not overlap. Returns the number of elements.
inline int64_t check_transpose(const void* dst, const void* src, int64_t n, int64_t rows, int64_t columns,
                               dlfs_dtype dtype) {
  check_dtype(dtype, {DLFS_F32, DLFS_BF16, DLFS_F16, DLFS_I32});
  check_count(n, "n");
  check_count(rows, "rows");
  check_count(columns, "columns");
  const int64_t elements = checked_product({n, rows, columns}, "src");
  if (elements == 0) return 0;
  check_pointer(dst, "dst");
  check_pointer(src, "src");
  const int64_t bytes = elements * dtype_size(dtype);
  check_no_overlap(dst, bytes, "dst", src, bytes, "src");
  return elements;
}

}  // namespace dlfs
