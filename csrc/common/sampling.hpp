// How dlfs_preprocess samples and normalises, for one row, column and pixel, shared by both backends. Resampling is
// separable: a row and a column each have a footprint of source pixels with weights, and
//   sampled = sum over columns j of wx[j] * (sum over rows i of wy[i] * pixel[i][j]),
// in fp32 and in this order (rows innermost, both ascending), without fused multiply-adds, so that both backends give
// the same bits. Weights follow torch.nn.functional.interpolate: bilinear with align_corners=False, and the triangle
// filter of antialias=True where the image shrinks.
#pragma once

#include <cstring>

#include "common/arguments.hpp"

namespace dlfs {

// How one axis of a source image is filtered.
struct SampleFilter {
  double scale;    // source pixels per output pixel
  float inverse;   // its reciprocal
  int32_t size;    // source pixels
  bool antialias;  // triangle filter; only set where scale > 1
};

DLFS_HD inline SampleFilter sample_filter(double scale, int32_t size, bool antialias) {
  return {scale, static_cast<float>(1.0 / scale), size, antialias && scale > 1.0};
}

// One axis of one image's transform.
struct SampleAxis : SampleFilter {
  float crop;         // where the crop starts, source pixels
  float target;       // where the target starts, output pixels
  float target_size;  // output pixels
  bool flip;          // the target is mirrored
};

DLFS_HD inline SampleAxis sample_axis(float crop, float crop_size, float target, float target_size, bool flip,
                                      int32_t size, bool antialias) {
  const double scale = static_cast<double>(crop_size) / target_size;
  return {sample_filter(scale, size, antialias), crop, target, target_size, flip};
}

// The source pixels behind one output row or column: first to first + count - 1; count 0 means the fill colour.
struct Footprint {
  int32_t first, count;
  float offset;  // triangle filter: from the sampled point to the middle of the first pixel
  float value;   // triangle filter: the sum of the raw weights; bilinear: the second pixel's weight
};

// Weight before normalisation that the triangle filter gives the footprint's pixel j.
DLFS_HD inline float triangle_weight(const SampleFilter& filter, float offset, int32_t j) {
  const float d = (offset + static_cast<float>(j)) * filter.inverse;
  const float w = 1.0f - (d < 0.0f ? -d : d);
  return w > 0.0f ? w : 0.0f;
}

// The footprint of a sampled point from 0 to size, where pixel i spans i to i + 1.
DLFS_HD inline Footprint footprint_at(const SampleFilter& filter, double point) {
  if (filter.antialias) {
    const int32_t low = static_cast<int32_t>(point - filter.scale + 0.5);
    const int32_t high = static_cast<int32_t>(point + filter.scale + 0.5);
    const int32_t first = low > 0 ? low : 0;
    const int32_t count = (high < filter.size ? high : filter.size) - first;
    const float offset = static_cast<float>(first + 0.5 - point);
    float total = 0.0f;
    for (int32_t j = 0; j < count; ++j) total += triangle_weight(filter, offset, j);
    return {first, count, offset, total};
  }
  const double last = filter.size - 1;
  double s = point - 0.5;
  s = s < 0.0 ? 0.0 : s;
  s = s > last ? last : s;
  const int32_t first = static_cast<int32_t>(s);
  return {first, first + 1 < filter.size ? 2 : 1, 0.0f, static_cast<float>(s - first)};
}

// The sampled point is computed in double: torch's fp32 coordinates, whose rounding shows in the fifth digit of the
// result, differ between its kernels.
DLFS_HD inline Footprint footprint(const SampleAxis& axis, int32_t output) {
  double t = output + 0.5 - axis.target;
  if (t < 0.0 || t >= axis.target_size) return {0, 0, 0.0f, 0.0f};
  if (axis.flip) t = axis.target_size - t;
  const double point = axis.scale * t + axis.crop;
  if (!(point >= 0.0 && point <= axis.size)) return {0, 0, 0.0f, 0.0f};
  return footprint_at(axis, point);
}

// Weight of the footprint's pixel j; they add up to 1.
DLFS_HD inline float footprint_weight(const SampleFilter& filter, const Footprint& f, int32_t j) {
  if (filter.antialias) return triangle_weight(filter, f.offset, j) / f.value;
  return j == 0 ? 1.0f - f.value : f.value;
}

// What is written for a sampled value (0 to 255): value * scale + shift, per output channel; fill is written as it is.
struct ColorTransform {
  float scale[3], shift[3], fill[3];
  int32_t source[3];  // the source channel (0 R, 1 G, 2 B) of output channels 0 to 2
};

// What one dlfs_preprocess or dlfs_decoder_submit asks of every image.
struct PreprocessFormat {
  int32_t out_h, out_w, out_c;
  dlfs_dtype dtype;
  int32_t flags;
  ColorTransform color;

  int64_t row_bytes() const { return int64_t{out_w} * out_c * dtype_size(dtype); }
  int64_t image_bytes() const { return out_h * row_bytes(); }
};

// A value of U8 output: rounded to the nearest integer (to even between two), limited to 0..255.
DLFS_HD inline float round_u8(float value) {
  value = value > 0.0f ? value : 0.0f;
  value = value < 255.0f ? value : 255.0f;
  return (value + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23
}

// ---- host only ----

// The transform of one image as dlfs_preprocess's array holds it.
struct ImageTransform {
  float crop_x, crop_y, crop_w, crop_h;
  float target_x, target_y, target_w, target_h;
  float flip_x, flip_y;
  float unused[2];
};
static_assert(sizeof(ImageTransform) == DLFS_TRANSFORM_FLOATS * sizeof(float), "the layout of dlfs.h");

constexpr int32_t max_image_side = 65535;  // JPEG's own limit

// Checks the output and normalisation of dlfs_preprocess, dlfs_decoder_submit and dlfs_augment.
inline void check_image_format(const float* normalisation, int32_t n, int32_t out_h, int32_t out_w, int32_t out_c,
                               dlfs_dtype dtype, int32_t flags, int32_t known_flags) {
  check_pointer(normalisation, "normalisation");
  check_range(n, 1, 1 << 20, "n");
  check_range(out_h, 1, max_image_side, "out_h");
  check_range(out_w, 1, max_image_side, "out_w");
  check_range(out_c, 3, 1 << 16, "out_c");
  checked_product({n, out_h, out_w, out_c, dtype_size(dtype)}, "dst");
  check_dtype(dtype, {DLFS_F32, DLFS_BF16, DLFS_F16, DLFS_U8});
  DLFS_CHECK((flags & ~known_flags) == 0, DLFS_ERROR_ARGUMENT, "flags 0x%x has unknown bits",
             static_cast<unsigned>(flags));
  for (int32_t i = 0; i < 9; ++i) {
    const double value = normalisation[i];
    const double size = value < 0 ? -value : value;
    DLFS_CHECK(size <= 1e6 && (i / 3 != 1 || size >= 1e-6), DLFS_ERROR_ARGUMENT,
               "normalisation: expected values up to 1e6, std from 1e-6 in magnitude, got %s[%d] = %g",
               i < 3   ? "mean"
               : i < 6 ? "std"
                       : "fill",
               i % 3, value);
  }
}

// Checks what dlfs_preprocess and dlfs_decoder_submit have in common, before anything is enqueued.
inline void check_preprocess(const float* transforms, const float* normalisation, int32_t n, int32_t out_h,
                             int32_t out_w, int32_t out_c, dlfs_dtype dtype, int32_t flags) {
  check_pointer(transforms, "transforms");
  check_image_format(normalisation, n, out_h, out_w, out_c, dtype, flags,
                     DLFS_PREPROCESS_ANTIALIAS | DLFS_PREPROCESS_BGR);
  const float limit = 0x1p24f;  // up to here fp32 holds every pixel's coordinate
  for (int32_t i = 0; i < n; ++i) {
    const float* t = transforms + int64_t{i} * DLFS_TRANSFORM_FLOATS;
    static const char* const names[] = {"crop_x",   "crop_y",   "crop_w", "crop_h", "target_x", "target_y",
                                        "target_w", "target_h", "flip_x", "flip_y", "unused",   "unused"};
    for (int32_t j = 0; j < DLFS_TRANSFORM_FLOATS; ++j) {
      const bool is_size = j == 2 || j == 3 || j == 6 || j == 7;
      DLFS_CHECK(t[j] >= -limit && t[j] <= limit && (!is_size || t[j] > 0), DLFS_ERROR_ARGUMENT,
                 "transforms of image %d: expected %s %s, got %g", i, names[j],
                 is_size ? "above 0 and up to 2^24" : "from -2^24 to 2^24", static_cast<double>(t[j]));
      DLFS_CHECK(j < 8 || t[j] == 0 || (j < 10 && t[j] == 1), DLFS_ERROR_ARGUMENT,
                 "transforms of image %d: expected %s to be %s, got %g", i, names[j], j < 10 ? "0 or 1" : "0",
                 static_cast<double>(t[j]));
    }
    DLFS_CHECK(t[2] / t[6] <= limit && t[3] / t[7] <= limit && t[6] / t[2] <= limit && t[7] / t[3] <= limit,
               DLFS_ERROR_ARGUMENT, "transforms of image %d: a crop of %g x %g does not scale to %g x %g", i,
               static_cast<double>(t[2]), static_cast<double>(t[3]), static_cast<double>(t[6]),
               static_cast<double>(t[7]));
  }
}

inline ImageTransform image_transform(const float* transforms, int32_t i) {
  ImageTransform t;
  memcpy(&t, transforms + int64_t{i} * DLFS_TRANSFORM_FLOATS, sizeof t);
  return t;
}

inline SampleAxis sample_columns(const ImageTransform& t, int32_t width, int32_t flags) {
  return sample_axis(t.crop_x, t.crop_w, t.target_x, t.target_w, t.flip_x != 0, width,
                     (flags & DLFS_PREPROCESS_ANTIALIAS) != 0);
}

inline SampleAxis sample_rows(const ImageTransform& t, int32_t height, int32_t flags) {
  return sample_axis(t.crop_y, t.crop_h, t.target_y, t.target_h, t.flip_y != 0, height,
                     (flags & DLFS_PREPROCESS_ANTIALIAS) != 0);
}

// normalisation = {mean[3], std[3], fill[3]}, RGB: (value / 255 - mean) / std, or the value itself for U8.
inline ColorTransform color_transform(const float* normalisation, dlfs_dtype dtype, int32_t flags);

// What dlfs_normalize_pixels does, from its arguments: mean and deviation alone.
inline ColorTransform pixel_transform(const float* normalisation) {
  check_pointer(normalisation, "normalisation");
  float all[9] = {};
  for (int c = 0; c < 3; ++c) {
    check_number(normalisation[c], "mean");
    check_number(normalisation[3 + c], "std");
    DLFS_CHECK(normalisation[3 + c] != 0, DLFS_ERROR_ARGUMENT, "the standard deviation of channel %d is 0", c);
    all[c] = normalisation[c];
    all[3 + c] = normalisation[3 + c];
  }
  return color_transform(all, DLFS_F32, 0);
}

inline ColorTransform color_transform(const float* normalisation, dlfs_dtype dtype, int32_t flags) {
  ColorTransform color{};
  for (int32_t c = 0; c < 3; ++c) {
    const int32_t source = flags & DLFS_PREPROCESS_BGR ? 2 - c : c;
    const double mean = normalisation[source], std = normalisation[3 + source], fill = normalisation[6 + source];
    color.source[c] = source;
    if (dtype == DLFS_U8) {
      color.scale[c] = 1.0f;
      color.shift[c] = 0.0f;
      color.fill[c] = round_u8(static_cast<float>(fill));
    } else {
      color.scale[c] = static_cast<float>(1.0 / (255.0 * std));
      color.shift[c] = static_cast<float>(-mean / std);
      color.fill[c] = static_cast<float>((fill / 255.0 - mean) / std);
    }
  }
  return color;
}

}  // namespace dlfs
