// Sizes of convolutions, poolings and resampling: what is allowed, and what comes out. Both backends check through
// these functions, so that a wrong size has one message.
#pragma once

#include "common/arguments.hpp"

namespace dlfs {

// (size + 2 pad - dilation (window - 1) - 1) / stride + 1, rounded down; <= 0 where the window does not fit.
DLFS_HD inline int64_t output_size(int64_t size, int64_t window, int64_t stride, int64_t pad, int64_t dilation) {
  const int64_t room = size + 2 * pad - dilation * (window - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

// y (N, P, Q, K) = conv(x (N, H, W, C), w (K, R, S, C / groups)).
struct ConvGeometry {
  int32_t n, h, w, c;
  int32_t k, r, s;
  int32_t stride_h, stride_w;
  int32_t pad_h, pad_w;
  int32_t dilation_h, dilation_w;
  int32_t groups;
  int32_t p, q;

  DLFS_HD int64_t x_elements() const { return int64_t{n} * h * w * c; }
  DLFS_HD int64_t y_elements() const { return int64_t{n} * p * q * k; }
  DLFS_HD int64_t w_elements() const { return int64_t{k} * r * s * (c / groups); }
  // Multiplications and additions of any one of the three directions.
  DLFS_HD double flops() const { return 2.0 * static_cast<double>(y_elements()) * r * s * (c / groups); }
  DLFS_HD bool depthwise() const { return groups > 1 && groups == c && k == c; }
  DLFS_HD bool pointwise() const { return r == 1 && s == 1 && pad_h == 0 && pad_w == 0; }
  // True where y (N H W, K) = x (N H W, C) w^T, w (K, C).
  DLFS_HD bool matrix_product() const { return pointwise() && stride_h == 1 && stride_w == 1 && groups == 1; }

  // "x (8, 80, 80, 16), w (32, 3, 3, 16), stride 1x1, pad 1x1, dilation 1x1, groups 1", for messages.
  std::string text() const {
    return format("x (%d, %d, %d, %d), w (%d, %d, %d, %d), stride %dx%d, pad %dx%d, dilation %dx%d, groups %d", n, h, w,
                  c, k, r, s, groups > 0 ? c / groups : c, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
                  groups);
  }
};

// Checks that a direction takes these flags and this activation.
inline void check_conv_epilogue(int32_t direction, int32_t flags, dlfs_activation activation) {
  static const char* const names[] = {"forward", "backward-data", "backward-weight"};
  static const int32_t wide = DLFS_CONV_Y_F32 | DLFS_CONV_Y_BF16 | DLFS_CONV_Y_F16;
  static const int32_t allowed[] = {DLFS_CONV_BIAS | DLFS_CONV_RESIDUAL | DLFS_CONV_MOMENTS | wide,
                                    DLFS_CONV_RESIDUAL | DLFS_CONV_RELU_MASK, 0};
  check_range(direction, DLFS_CONV_FORWARD, DLFS_CONV_BACKWARD_WEIGHT, "direction");
  check_activation(activation);
  DLFS_CHECK((flags & ~allowed[direction]) == 0, DLFS_ERROR_ARGUMENT, "the %s direction does not take flags %d",
             names[direction], flags & ~allowed[direction]);
  DLFS_CHECK(!(flags & DLFS_CONV_MOMENTS) || (flags == DLFS_CONV_MOMENTS && activation == DLFS_ACT_NONE),
             DLFS_ERROR_ARGUMENT, "DLFS_CONV_MOMENTS goes with no other flag and no activation");
  DLFS_CHECK(direction == DLFS_CONV_FORWARD || activation == DLFS_ACT_NONE, DLFS_ERROR_ARGUMENT,
             "the %s direction does not take an activation, got %s", names[direction], activation_name(activation));
}

// Checks that a convolution may give its result's moments.
inline void check_conv_moments(const ConvGeometry& g) {
  DLFS_CHECK(g.r == 1 && g.s == 1 && g.groups == 1 && g.c % 8 == 0 && g.k % 8 == 0, DLFS_ERROR_UNSUPPORTED,
             "moments are of 1x1 convolutions without groups with multiples of 8 channels, got %s", g.text().c_str());
}

// Checks the sizes and computes P and Q. Any window may overhang the image as far as the padding lets it.
inline ConvGeometry conv_geometry(int32_t n, int32_t h, int32_t w, int32_t c, int32_t k, int32_t r, int32_t s,
                                  int32_t stride_h, int32_t stride_w, int32_t pad_h, int32_t pad_w, int32_t dilation_h,
                                  int32_t dilation_w, int32_t groups) {
  const int64_t most = INT32_MAX;
  check_range(n, 1, most, "n");
  check_range(h, 1, most, "h");
  check_range(w, 1, most, "w");
  check_range(c, 1, most, "c");
  check_range(k, 1, most, "k");
  check_range(r, 1, most, "r");
  check_range(s, 1, most, "s");
  check_range(stride_h, 1, most, "stride_h");
  check_range(stride_w, 1, most, "stride_w");
  check_range(pad_h, 0, most, "pad_h");
  check_range(pad_w, 0, most, "pad_w");
  check_range(dilation_h, 1, most, "dilation_h");
  check_range(dilation_w, 1, most, "dilation_w");
  check_range(groups, 1, most, "groups");
  ConvGeometry g{n, h, w, c, k, r, s, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, 0, 0};
  DLFS_CHECK(c % groups == 0, DLFS_ERROR_SHAPE, "%d input channels do not divide into %d groups: %s", c, groups,
             g.text().c_str());
  DLFS_CHECK(k % groups == 0, DLFS_ERROR_SHAPE, "%d output channels do not divide into %d groups: %s", k, groups,
             g.text().c_str());
  const int64_t p = output_size(h, r, stride_h, pad_h, dilation_h);
  const int64_t q = output_size(w, s, stride_w, pad_w, dilation_w);
  DLFS_CHECK(p >= 1 && q >= 1, DLFS_ERROR_SHAPE, "the kernel is larger than the padded image: %s", g.text().c_str());
  DLFS_CHECK(p <= most && q <= most, DLFS_ERROR_SHAPE, "the output is larger than 2^31 - 1 rows or columns: %s",
             g.text().c_str());
  g.p = static_cast<int32_t>(p);
  g.q = static_cast<int32_t>(q);
  checked_product({n, h, w, c}, "x");
  checked_product({k, r, s, c / groups}, "w");
  checked_product({n, p, q, k}, "y");
  return g;
}

// y (N, P, Q, C) = pool(x (N, H, W, C)) over windows of R x S.
struct PoolGeometry {
  int32_t n, h, w, c;
  int32_t r, s;
  int32_t stride_h, stride_w;
  int32_t pad_h, pad_w;
  int32_t p, q;

  DLFS_HD int64_t x_elements() const { return int64_t{n} * h * w * c; }
  DLFS_HD int64_t y_elements() const { return int64_t{n} * p * q * c; }

  std::string text() const {
    return format("x (%d, %d, %d, %d), window %dx%d, stride %dx%d, pad %dx%d", n, h, w, c, r, s, stride_h, stride_w,
                  pad_h, pad_w);
  }
};

// Checks the sizes and computes P and Q. max_window limits R * S (255 where winners are uint8, else INT32_MAX). The
// padding is at most half the window, so that every window touches the image.
inline PoolGeometry pool_geometry(int32_t n, int32_t h, int32_t w, int32_t c, int32_t r, int32_t s, int32_t stride_h,
                                  int32_t stride_w, int32_t pad_h, int32_t pad_w, int64_t max_window) {
  const int64_t most = INT32_MAX;
  check_range(n, 1, most, "n");
  check_range(h, 1, most, "h");
  check_range(w, 1, most, "w");
  check_range(c, 1, most, "c");
  check_range(r, 1, most, "r");
  check_range(s, 1, most, "s");
  check_range(stride_h, 1, most, "stride_h");
  check_range(stride_w, 1, most, "stride_w");
  check_range(pad_h, 0, most, "pad_h");
  check_range(pad_w, 0, most, "pad_w");
  PoolGeometry g{n, h, w, c, r, s, stride_h, stride_w, pad_h, pad_w, 0, 0};
  DLFS_CHECK(int64_t{r} * s <= max_window, DLFS_ERROR_ARGUMENT, "expected a window of at most %lld pixels: %s",
             static_cast<long long>(max_window), g.text().c_str());
  DLFS_CHECK(pad_h <= r / 2 && pad_w <= s / 2, DLFS_ERROR_SHAPE, "expected a padding of at most half the window: %s",
             g.text().c_str());
  const int64_t p = output_size(h, r, stride_h, pad_h, 1);
  const int64_t q = output_size(w, s, stride_w, pad_w, 1);
  DLFS_CHECK(p >= 1 && q >= 1, DLFS_ERROR_SHAPE, "the window is larger than the padded image: %s", g.text().c_str());
  g.p = static_cast<int32_t>(p);
  g.q = static_cast<int32_t>(q);
  checked_product({n, h, w, c}, "x");
  checked_product({n, p, q, c}, "y");
  return g;
}

// y (N, P, Q, C) = resample(x (N, H, W, C)).
struct ResizeGeometry {
  int32_t n, h, w, c;
  int32_t p, q;
};

inline ResizeGeometry resize_geometry(int32_t n, int32_t h, int32_t w, int32_t c, int32_t p, int32_t q) {
  const int64_t most = INT32_MAX;
  check_range(n, 1, most, "n");
  check_range(h, 1, most, "h");
  check_range(w, 1, most, "w");
  check_range(c, 1, most, "c");
  check_range(p, 1, most, "p");
  check_range(q, 1, most, "q");
  checked_product({n, h, w, c}, "x");
  checked_product({n, p, q, c}, "y");
  return {n, h, w, c, p, q};
}

// Torch's "nearest": the source row or column of output index i, floor(i * in / out) in integers.
DLFS_HD inline int32_t nearest_source(int32_t i, int32_t in, int32_t out) {
  return static_cast<int32_t>(static_cast<int64_t>(i) * in / out);
}

// The first output index whose source is at least `source`: ceil(source * out / in). The outputs that read source row i
// are nearest_first(i) up to but without nearest_first(i + 1).
DLFS_HD inline int32_t nearest_first(int32_t source, int32_t in, int32_t out) {
  return static_cast<int32_t>((static_cast<int64_t>(source) * out + in - 1) / in);
}

}  // namespace dlfs
