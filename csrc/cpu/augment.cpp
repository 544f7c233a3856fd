// Composing images out of warped and recoloured layers on the CPU, an output row at a time: a picture is a row of
// pixels in fp32 on which the layers are drawn, then normalised and written. A layer whose rows and columns stay such
// is resampled separably, by the tables of preprocess.cpp; others pixel by pixel.
#include <algorithm>
#include <memory>
#include <type_traits>

#include "common/augmentation.hpp"
#include "cpu/pixel.hpp"
#include "cpu/preprocess.hpp"
#include "cpu/runtime.hpp"

using namespace dlfs;
using namespace dlfs::cpu;

namespace {

// Memory that a thread reuses from row to row and image to image.
struct Scratch {
  std::vector<PreprocessScratch> columns;  // of the present image's aligned layers
  std::vector<Pixel> picture, finished, drawn;
};

struct Batch {
  char* dst;
  LayerList list;
  PreprocessFormat format;
  Pixel fill;

  // Output rows [begin, end) of the whole batch.
  void run(int64_t begin, int64_t end) const {
    thread_local Scratch scratch;
    scratch.picture.resize(static_cast<size_t>(format.out_w));
    scratch.finished.resize(static_cast<size_t>(format.out_w));
    scratch.drawn.resize(static_cast<size_t>(format.out_w));
    while (begin < end) {
      const int32_t image = static_cast<int32_t>(begin / format.out_h);
      const int32_t row = static_cast<int32_t>(begin % format.out_h);
      const int32_t row_end = static_cast<int32_t>(std::min<int64_t>(row + end - begin, format.out_h));
      prepare(scratch, image);
      for (int32_t v = row; v < row_end; ++v) {
        compose_row(scratch, image, v);
        write_row(scratch.picture.data(), image, v);
      }
      begin += row_end - row;
    }
  }

  const Layer* first(int32_t image) const { return list.layers.data() + list.starts[image]; }
  int32_t count(int32_t image) const { return list.starts[image + 1] - list.starts[image]; }

  // The column tables of the image's aligned layers.
  void prepare(Scratch& scratch, int32_t image) const {
    const int32_t layers = count(image);
    if (scratch.columns.size() < static_cast<size_t>(layers)) scratch.columns.resize(static_cast<size_t>(layers));
    for (int32_t k = 0; k < layers; ++k) {
      const Layer& layer = first(image)[k];
      if (layer.source == nullptr || !layer.aligned) continue;
      PreprocessScratch& table = scratch.columns[static_cast<size_t>(k)];
      begin_columns(table, format.out_w, layer.columns.size, layer.columns.antialias);
      for (int32_t u = layer.region[0]; u < layer.region[2]; ++u) {
        double x, y;
        layer_point(x, y, layer, u, 0);
        // The columns inside the crop are neighbours, as the map is monotonic.
        if (in_columns(layer, x)) add_column(table, layer.columns, u, footprint_at(layer.columns, x));
      }
      end_columns(table);
    }
  }

  void compose_row(Scratch& scratch, int32_t image, int32_t v) const {
    std::fill(scratch.picture.begin(), scratch.picture.end(), fill);
    float weight = 1.0f;  // of the present picture
    bool mixes = false;
    for (int32_t k = 0; k < count(image); ++k) {
      const Layer& layer = first(image)[k];
      if (k > 0 && layer.weight > 0.0f) {
        if (mixes) {
          mix(scratch.finished, scratch.picture, weight, scratch.finished);
        } else {
          scratch.finished.swap(scratch.picture);
        }
        std::fill(scratch.picture.begin(), scratch.picture.end(), fill);
        weight = layer.weight;
        mixes = true;
      }
      if (v < layer.region[1] || v >= layer.region[3]) continue;
      draw(scratch, layer, static_cast<size_t>(k), v);
    }
    if (mixes) mix(scratch.finished, scratch.picture, weight, scratch.picture);
  }

  void draw(Scratch& scratch, const Layer& layer, size_t k, int32_t v) const {
    Pixel* const picture = scratch.picture.data();
    Pixel* const drawn = scratch.drawn.data();
    if (layer.source == nullptr) {
      const Pixel color = {layer.color[0], layer.color[1], layer.color[2], 0.0f};
      for (int32_t u = layer.region[0]; u < layer.region[2]; ++u) picture[u] = over(picture[u], color, layer.opacity);
      return;
    }
    if (layer.aligned) {
      double x, y;
      layer_point(x, y, layer, 0, v);
      PreprocessScratch& table = scratch.columns[k];
      if (!in_rows(layer, y) || table.last == 0) return;
      sum_rows(table, layer.source, layer.pitch, layer.rows, footprint_at(layer.rows, y));
      sum_columns(drawn, table);
      finish(picture, drawn, layer, table.first, table.last);
      return;
    }
    // The pixels inside the crop are neighbours, as it is convex.
    int32_t begin = layer.region[2], end = layer.region[2];
    for (int32_t u = layer.region[0]; u < layer.region[2]; ++u) {
      double x, y;
      layer_point(x, y, layer, u, v);
      if (!in_columns(layer, x) || !in_rows(layer, y)) {
        if (begin < u) {
          end = u;
          break;
        }
        continue;
      }
      begin = std::min(begin, u);
      float rgb[3];
      sample_layer(rgb, layer, x, y);
      drawn[u] = Pixel{rgb[0], rgb[1], rgb[2], 0.0f};
    }
    finish(picture, drawn, layer, begin, end);
  }

  static void sum_columns(Pixel* drawn, const PreprocessScratch& table) {
    const float* row = table.row.data();
    for (int32_t u = table.first; u < table.last; ++u) {
      const float* p = row + table.offset[static_cast<size_t>(u)];
      const float* w = table.weights.data() + table.weight_at[static_cast<size_t>(u)];
      Pixel value = load_pixel(p) * w[0];
      for (int32_t i = 1; i < table.taps[static_cast<size_t>(u)]; ++i) value += load_pixel(p + 3 * i) * w[i];
      drawn[u] = value;
    }
  }

  // Recolours what was sampled for output columns [begin, end) and draws it.
  static void finish(Pixel* picture, Pixel* drawn, const Layer& layer, int32_t begin, int32_t end) {
    if (layer.recolors || layer.changes_hsv) {
      for (int32_t u = begin; u < end; ++u) {
        float rgb[3] = {drawn[u][0], drawn[u][1], drawn[u][2]};
        recolor(rgb, layer);
        drawn[u] = Pixel{rgb[0], rgb[1], rgb[2], 0.0f};
      }
    }
    for (int32_t u = begin; u < end; ++u) picture[u] = over(picture[u], drawn[u], layer.opacity);
  }

  static Pixel over(Pixel under, Pixel above, float opacity) {
    return opacity == 1.0f ? above : under * (1.0f - opacity) + above * opacity;
  }

  static void mix(const std::vector<Pixel>& finished, const std::vector<Pixel>& picture, float weight,
                  std::vector<Pixel>& out) {
    for (size_t u = 0; u < out.size(); ++u) out[u] = over(finished[u], picture[u], weight);
  }

  void write_row(const Pixel* picture, int32_t image, int32_t v) const {
    const ColorTransform& color = format.color;
    const Pixel scale = {color.scale[0], color.scale[1], color.scale[2], 0.0f};
    const Pixel shift = {color.shift[0], color.shift[1], color.shift[2], 0.0f};
    const bool bgr = color.source[0] == 2;
    dispatch_output(format.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      T* out = reinterpret_cast<T*>(dst + image * format.image_bytes() + v * format.row_bytes());
      for (int32_t u = 0; u < format.out_w; ++u, out += format.out_c) {
        Pixel value = picture[u];
        if (bgr) value = Pixel{value[2], value[1], value[0], 0.0f};
        value = value * scale + shift;
        for (int32_t c = 0; c < 3; ++c) put(out + c, value[c]);
        for (int32_t c = 3; c < format.out_c; ++c) put(out + c, 0.0f);
      }
    });
  }
};

}  // namespace

extern "C" dlfs_status dlfs_augment(dlfs_stream stream, void* dst, const int64_t* sources, const double* layers,
                                    const float* normalisation, int32_t n, int32_t layer_count, int32_t out_h,
                                    int32_t out_w, int32_t out_c, dlfs_dtype dtype, int32_t flags) {
  return on_stream("dlfs_augment", stream, [&](Stream& s) {
    check_pointer(dst, "dst");
    auto batch = std::make_shared<Batch>();
    batch->list = parse_layers(sources, layers, normalisation, n, layer_count, out_h, out_w, out_c, dtype, flags);
    batch->dst = static_cast<char*>(dst);
    batch->format = {out_h, out_w, out_c, dtype, flags, color_transform(normalisation, dtype, flags)};
    const float* fill = batch->list.fill;
    batch->fill = Pixel{fill[0], fill[1], fill[2], 0.0f};
    s.enqueue([batch = std::shared_ptr<const Batch>(batch), n] {
      parallel_for(int64_t{n} * batch->format.out_h, 32, [&](int64_t begin, int64_t end) { batch->run(begin, end); });
    });
  });
}
