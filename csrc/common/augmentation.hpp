// The layers of dlfs_augment: what one pixel of one layer is, shared by both backends, in fp32 (sampled points in
// double), in one order and without fused multiply-adds, so that both give the same bits. Resampling is that of
// sampling.hpp with a footprint of columns and one of rows around the sampled point.
#pragma once

#include <cmath>
#include <vector>

#include "common/sampling.hpp"

namespace dlfs {

struct Layer {
  const uint8_t* source;  // NULL: one colour
  int64_t pitch;          // bytes from row to row
  double map[6];          // output to source
  double crop[4];         // x1, y1, x2, y2 of what is drawn, inside the source
  SampleFilter columns, rows;
  int32_t region[4];  // x1, y1, x2, y2 of the output
  float matrix[12];   // (3, 4)
  float hue;          // shift in sixths of a turn, 0 to 6
  float saturation, value;
  float color[3];
  float opacity;
  float weight;  // > 0: a new picture begins
  bool aligned;  // the source's columns depend on the output's columns alone, rows on rows
  bool recolors, changes_hsv;
};

// The point of the source that an output pixel samples.
DLFS_HD inline void layer_point(double& x, double& y, const Layer& layer, int32_t u, int32_t v) {
  const double across = u + 0.5, down = v + 0.5;
  x = layer.map[0] * across + layer.map[1] * down + layer.map[2];
  y = layer.map[3] * across + layer.map[4] * down + layer.map[5];
}

DLFS_HD inline bool in_columns(const Layer& layer, double x) { return x >= layer.crop[0] && x < layer.crop[2]; }
DLFS_HD inline bool in_rows(const Layer& layer, double y) { return y >= layer.crop[1] && y < layer.crop[3]; }

// The sampled pixel at a point inside the crop: per column the rows are summed first, both ascending.
DLFS_HD inline void sample_layer(float (&rgb)[3], const Layer& layer, double x, double y) {
  const Footprint column = footprint_at(layer.columns, x);
  const Footprint row = footprint_at(layer.rows, y);
  const uint8_t* corner = layer.source + row.first * layer.pitch + int64_t{column.first} * 3;
  rgb[0] = rgb[1] = rgb[2] = 0.0f;
  for (int32_t j = 0; j < column.count; ++j) {
    float sum[3] = {0.0f, 0.0f, 0.0f};
    const uint8_t* pixel = corner + 3 * j;
    for (int32_t i = 0; i < row.count; ++i, pixel += layer.pitch) {
      const float weight = footprint_weight(layer.rows, row, i);
      for (int32_t c = 0; c < 3; ++c) sum[c] += weight * static_cast<float>(pixel[c]);
    }
    const float weight = footprint_weight(layer.columns, column, j);
    for (int32_t c = 0; c < 3; ++c) rgb[c] += weight * sum[c];
  }
}

DLFS_HD inline float clamp_level(float value) {
  value = value > 0.0f ? value : 0.0f;
  return value < 255.0f ? value : 255.0f;
}

// One channel of a colour whose hue is `hue` sixths of a turn: n is 5 for red, 3 for green, 1 for blue (the closed form
// of HSV to RGB).
DLFS_HD inline float hsv_channel(float hue, float saturation, float value, float n) {
  float k = n + hue;
  k = k >= 6.0f ? k - 6.0f : k;
  const float rest = 4.0f - k;
  float part = k < rest ? k : rest;
  part = part > 0.0f ? part : 0.0f;
  part = part < 1.0f ? part : 1.0f;
  return value - value * saturation * part;
}

// Shifts the hue, scales saturation and value; levels 0 to 255.
DLFS_HD inline void change_hsv(float (&rgb)[3], float shift, float saturation, float value) {
  const float r = rgb[0], g = rgb[1], b = rgb[2];
  const float most = r > g ? (r > b ? r : b) : (g > b ? g : b);
  const float least = r < g ? (r < b ? r : b) : (g < b ? g : b);
  const float chroma = most - least;
  const float safe = chroma > 0.0f ? chroma : 1.0f;
  const bool red = most == r, green = most == g;
  const float difference = red ? g - b : green ? b - r : r - g;
  float hue = difference / safe + (red ? 0.0f : green ? 2.0f : 4.0f);  // -1 to 5
  hue += shift;                                                        // to 11
  hue = hue < 0.0f ? hue + 6.0f : hue;
  hue = hue >= 6.0f ? hue - 6.0f : hue;
  float s = chroma / (most > 0.0f ? most : 1.0f) * saturation;
  s = s < 1.0f ? s : 1.0f;
  const float v = clamp_level(most * value);
  rgb[0] = hsv_channel(hue, s, v, 5.0f);
  rgb[1] = hsv_channel(hue, s, v, 3.0f);
  rgb[2] = hsv_channel(hue, s, v, 1.0f);
}

// The layer's colour transform of a sampled pixel.
DLFS_HD inline void recolor(float (&rgb)[3], const Layer& layer) {
  if (layer.recolors) {
    const float r = rgb[0], g = rgb[1], b = rgb[2];
    for (int32_t c = 0; c < 3; ++c) {
      const float* m = layer.matrix + 4 * c;
      rgb[c] = clamp_level(m[0] * r + m[1] * g + m[2] * b + m[3]);
    }
  }
  if (layer.changes_hsv) change_hsv(rgb, layer.hue, layer.saturation, layer.value);
}

// `over` drawn on `under` with an opacity; two pictures are mixed alike.
DLFS_HD inline float blend(float under, float over, float opacity) {
  return opacity == 1.0f ? over : under * (1.0f - opacity) + over * opacity;
}

// ---- host only ----

// Layer j of dlfs_augment's arrays, checked; `numbers`: its DLFS_LAYER_NUMBERS.
inline Layer parse_layer(int32_t j, int64_t source, const double* numbers, int32_t out_h, int32_t out_w) {
  static const char* const names[DLFS_LAYER_NUMBERS] = {
      "image",     "source height", "source width", "row pitch",      "map a",      "map b",     "map c",
      "map d",     "map e",         "map f",        "crop x1",        "crop y1",    "crop x2",   "crop y2",
      "region x1", "region y1",     "region x2",    "region y2",      "matrix[0]",  "matrix[1]", "matrix[2]",
      "matrix[3]", "matrix[4]",     "matrix[5]",    "matrix[6]",      "matrix[7]",  "matrix[8]", "matrix[9]",
      "matrix[10]", "matrix[11]",   "hue shift",    "saturation",     "value",      "red",       "green",
      "blue",      "opacity",       "picture weight", "flags",        "unused"};
  const auto expect = [&](int32_t k, double low, double high, bool whole) {
    const double value = numbers[k];
    DLFS_CHECK(value >= low && value <= high && (!whole || value == std::floor(value)), DLFS_ERROR_ARGUMENT,
               "layer %d: expected %s %s from %g to %g, got %g", j, names[k], whole ? "a whole number" : "a number",
               low, high, value);
    return value;
  };
  const double limit = 0x1p24;
  Layer layer{};
  layer.source = reinterpret_cast<const uint8_t*>(source);
  const int32_t side = source != 0 ? max_image_side : 0;
  const int32_t height = static_cast<int32_t>(expect(1, source != 0, side, true));
  const int32_t width = static_cast<int32_t>(expect(2, source != 0, side, true));
  layer.pitch = static_cast<int64_t>(expect(3, 3.0 * width, source != 0 ? 0x1p31 : 0.0, true));
  for (int32_t k = 0; k < 6; ++k) layer.map[k] = expect(4 + k, -limit, limit, false);
  for (int32_t k = 0; k < 4; ++k) {
    const double value = expect(10 + k, -limit, limit, false);
    const double size = k % 2 == 0 ? width : height;
    layer.crop[k] = k < 2 ? (value > 0 ? value : 0) : (value < size ? value : size);
    layer.region[k] = static_cast<int32_t>(expect(14 + k, 0, k % 2 == 0 ? out_w : out_h, true));
  }
  layer.recolors = layer.changes_hsv = false;
  for (int32_t k = 0; k < 12; ++k) {
    layer.matrix[k] = static_cast<float>(expect(18 + k, -1e6, 1e6, false));
    layer.recolors = layer.recolors || layer.matrix[k] != (k % 5 == 0 ? 1.0f : 0.0f);
  }
  const double turns = expect(30, -1, 1, false);
  layer.hue = static_cast<float>(6.0 * (turns - std::floor(turns)));
  if (layer.hue >= 6.0f) layer.hue = 0.0f;
  layer.saturation = static_cast<float>(expect(31, 0, 1000, false));
  layer.value = static_cast<float>(expect(32, 0, 1000, false));
  layer.changes_hsv = layer.hue != 0.0f || layer.saturation != 1.0f || layer.value != 1.0f;
  for (int32_t c = 0; c < 3; ++c) layer.color[c] = static_cast<float>(expect(33 + c, 0, 255, false));
  layer.opacity = static_cast<float>(expect(36, 0, 1, false));
  layer.weight = static_cast<float>(expect(37, 0, 1, false));
  const bool antialias = (static_cast<int32_t>(expect(38, 0, DLFS_LAYER_ANTIALIAS, true)) & DLFS_LAYER_ANTIALIAS) != 0;
  expect(39, 0, 0, true);
  layer.columns = sample_filter(std::fmax(1.0, std::fabs(layer.map[0]) + std::fabs(layer.map[1])), width, antialias);
  layer.rows = sample_filter(std::fmax(1.0, std::fabs(layer.map[3]) + std::fabs(layer.map[4])), height, antialias);
  layer.aligned = layer.map[1] == 0 && layer.map[3] == 0;
  return layer;
}

// All layers, and per image where its layers begin: starts (n + 1).
struct LayerList {
  std::vector<Layer> layers;
  std::vector<int32_t> starts;
  float fill[3];  // RGB, 0 to 255
};

// Checks and reads the arguments of dlfs_augment.
inline LayerList parse_layers(const int64_t* sources, const double* layers, const float* normalisation, int32_t n,
                              int32_t layer_count, int32_t out_h, int32_t out_w, int32_t out_c, dlfs_dtype dtype,
                              int32_t flags) {
  check_image_format(normalisation, n, out_h, out_w, out_c, dtype, flags, DLFS_PREPROCESS_BGR);
  check_range(layer_count, 0, int64_t{n} * DLFS_MAX_LAYERS, "layer_count");
  if (layer_count > 0) {
    check_pointer(sources, "sources");
    check_pointer(layers, "layers");
  }
  LayerList list;
  list.layers.reserve(static_cast<size_t>(layer_count));
  list.starts.push_back(0);
  for (int32_t j = 0; j < layer_count; ++j) {
    const double* numbers = layers + int64_t{j} * DLFS_LAYER_NUMBERS;
    const int32_t image = static_cast<int32_t>(list.starts.size()) - 1;
    DLFS_CHECK(numbers[0] >= image && numbers[0] < n && numbers[0] == std::floor(numbers[0]), DLFS_ERROR_ARGUMENT,
               "layer %d: expected an image from %d to %d, not descending, got %g", j, image, n - 1, numbers[0]);
    while (static_cast<double>(list.starts.size()) <= numbers[0]) list.starts.push_back(j);
    DLFS_CHECK(j - list.starts.back() < DLFS_MAX_LAYERS, DLFS_ERROR_ARGUMENT, "image %g has more than %d layers",
               numbers[0], DLFS_MAX_LAYERS);
    list.layers.push_back(parse_layer(j, sources[j], numbers, out_h, out_w));
  }
  while (static_cast<int32_t>(list.starts.size()) <= n) list.starts.push_back(layer_count);
  for (int32_t c = 0; c < 3; ++c) list.fill[c] = clamp_level(normalisation[6 + c]);
  return list;
}

}  // namespace dlfs
