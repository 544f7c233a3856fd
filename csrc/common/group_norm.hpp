// What group normalization checks on both backends before anything is enqueued.
#pragma once

#include "common/arguments.hpp"

namespace dlfs {

// x (N, rows, C) with statistics of N times `groups` sets of rows * (C / groups) values.
struct GroupNormGeometry {
  int32_t n;
  int64_t rows;
  int32_t c, groups;

  DLFS_HD int32_t per_group() const { return c / groups; }
  DLFS_HD int64_t image_elements() const { return rows * c; }
};

inline GroupNormGeometry group_norm_geometry(int32_t n, int64_t rows, int32_t c, int32_t groups, dlfs_dtype dtype) {
  check_float_dtype(dtype);
  check_size(n, "n");
  check_size(rows, "rows");
  check_size(c, "c");
  check_size(groups, "groups");
  DLFS_CHECK(c % groups == 0, DLFS_ERROR_SHAPE, "%d channels do not divide into %d groups", c, groups);
  checked_product({n, rows, c}, "x");
  return {n, rows, c, groups};
}

struct GroupNormForward {
  void* y;
  float *save_mean, *save_invstd;
  const void* x;
  const float *weight, *bias;
  double eps;
  dlfs_activation activation;
};

inline void check_group_norm(const GroupNormForward& a) {
  check_activation(a.activation, {DLFS_ACT_NONE, DLFS_ACT_RELU});
  DLFS_CHECK(a.eps >= 0 && a.eps - a.eps == 0, DLFS_ERROR_ARGUMENT, "expected eps >= 0, got %g", a.eps);
  check_pointer(a.y, "y");
  check_pointer(a.save_mean, "save_mean");
  check_pointer(a.save_invstd, "save_invstd");
  check_pointer(a.x, "x");
  check_pointer(a.weight, "weight");
  check_pointer(a.bias, "bias");
}

struct GroupNormBackward {
  void* dx;
  float *dweight, *dbias;
  const void *dy, *x;
  const void* y;  // read with ReLU
  const float *weight, *save_mean, *save_invstd;
  dlfs_activation activation;
};

inline void check_group_norm(const GroupNormBackward& a) {
  check_activation(a.activation, {DLFS_ACT_NONE, DLFS_ACT_RELU});
  check_pointer(a.dx, "dx");
  check_pointer(a.dweight, "dweight");
  check_pointer(a.dbias, "dbias");
  check_pointer(a.dy, "dy");
  check_pointer(a.x, "x");
  if (a.activation == DLFS_ACT_RELU) check_pointer(a.y, "y (read by the gradient of relu)");
  check_pointer(a.weight, "weight");
  check_pointer(a.save_mean, "save_mean");
  check_pointer(a.save_invstd, "save_invstd");
}

}  // namespace dlfs
