// Composing images out of warped and recoloured layers: one kernel from decoded pixels to the batch. A thread computes
// one output pixel: it walks the layers of its image in order, samples those that cover the pixel, and keeps the picture
// in registers until it is normalised and written. Up to 16 images and 64 layers to a launch, their descriptions passed
// by value. The arithmetic is that of common/augmentation.hpp and the file is compiled with -fmad=false, so the result
// has the CPU's bits.
#include "common/augmentation.hpp"

#include "cuda/image_store.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {
namespace {

constexpr int images_per_launch = 16;
constexpr int layers_per_launch = DLFS_MAX_LAYERS;

struct Parameters {
  Layer layers[layers_per_launch];
  int32_t starts[images_per_launch + 1];  // where each image's layers begin
  ColorTransform color;
  float fill[3];
  int32_t out_h, out_w, out_c;
};
static_assert(sizeof(Parameters) <= 32000, "kernel parameters are limited to 32,764 bytes");

// The colour that a layer gives an output pixel; false where it does not reach it.
__device__ __forceinline__ bool layer_pixel(float (&rgb)[3], const Layer& layer, int32_t u, int32_t v) {
  if (u < layer.region[0] || v < layer.region[1] || u >= layer.region[2] || v >= layer.region[3]) return false;
  if (layer.source == nullptr) {
#pragma unroll
    for (int c = 0; c < 3; ++c) rgb[c] = layer.color[c];
    return true;
  }
  double x, y;
  layer_point(x, y, layer, u, v);
  if (!in_columns(layer, x) || !in_rows(layer, y)) return false;
  sample_layer(rgb, layer, x, y);
  recolor(rgb, layer);
  return true;
}

// Grid (columns / 32, rows / 8, images). dst: the first image's slot. C as store_pixel.
template <class T, int C>
__global__ void __launch_bounds__(tile_w* tile_h) augment_kernel(T* dst, const __grid_constant__ Parameters parameters) {
  const int32_t u = static_cast<int32_t>(blockIdx.x) * tile_w + static_cast<int32_t>(threadIdx.x);
  const int32_t v = static_cast<int32_t>(blockIdx.y) * tile_h + static_cast<int32_t>(threadIdx.y);
  float picture[3], finished[3];
#pragma unroll
  for (int c = 0; c < 3; ++c) picture[c] = finished[c] = parameters.fill[c];
  float weight = 1.0f;  // of the present picture
  bool mixes = false;
  const int32_t begin = parameters.starts[blockIdx.z], end = parameters.starts[blockIdx.z + 1];
  for (int32_t k = begin; k < end; ++k) {
    const Layer& layer = parameters.layers[k];
    if (k > begin && layer.weight > 0.0f) {
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        finished[c] = mixes ? blend(finished[c], picture[c], weight) : picture[c];
        picture[c] = parameters.fill[c];
      }
      weight = layer.weight;
      mixes = true;
    }
    float rgb[3];
    if (!layer_pixel(rgb, layer, u, v)) continue;
#pragma unroll
    for (int c = 0; c < 3; ++c) picture[c] = blend(picture[c], rgb[c], layer.opacity);
  }
  float value[3];
  const ColorTransform& color = parameters.color;
#pragma unroll
  for (int c = 0; c < 3; ++c) picture[c] = mixes ? blend(finished[c], picture[c], weight) : picture[c];
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    const float level = color.source[c] == 0 ? picture[0] : color.source[c] == 1 ? picture[1] : picture[2];
    value[c] = level * color.scale[c] + color.shift[c];
  }
  store_pixel<T, C>(dst, value, parameters.out_h, parameters.out_w, parameters.out_c);
}

template <class T>
auto kernel_for(int channels) {
  switch (channels) {
    case 3:
      return augment_kernel<T, 3>;
    case 4:
      return augment_kernel<T, 4>;
    case 8:
      return augment_kernel<T, 8>;
    default:
      return augment_kernel<T, 0>;
  }
}

// Images first to first + images of the list into dst, the whole batch.
template <class T>
void enqueue(const Stream& stream, T* dst, const Parameters& parameters, int32_t first, int32_t images) {
  const int32_t out_h = parameters.out_h, out_w = parameters.out_w, out_c = parameters.out_c;
  T* const slot = dst + int64_t{first} * out_h * out_w * out_c;
  const dim3 grid(static_cast<unsigned>(ceil_div(out_w, tile_w)), static_cast<unsigned>(ceil_div(out_h, tile_h)),
                  static_cast<unsigned>(images));
  launch(stream, grid, dim3(tile_w, tile_h), 0, kernel_for<T>(stored_channels(slot, out_w, out_c)), slot, parameters);
}

template <class T>
void augment(const Stream& stream, T* dst, const LayerList& list, Parameters& parameters, int32_t n) {
  for (int32_t first = 0; first < n;) {
    const int32_t begin = list.starts[first];
    int32_t images = 0;
    parameters.starts[0] = 0;
    while (images < images_per_launch && first + images < n &&
           list.starts[first + images + 1] - begin <= layers_per_launch) {
      ++images;
      parameters.starts[images] = list.starts[first + images] - begin;
    }
    std::copy_n(list.layers.begin() + begin, parameters.starts[images], parameters.layers);
    enqueue(stream, dst, parameters, first, images);
    first += images;
  }
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" dlfs_status dlfs_augment(dlfs_stream stream, void* dst, const int64_t* sources, const double* layers,
                                    const float* normalisation, int32_t n, int32_t layer_count, int32_t out_h,
                                    int32_t out_w, int32_t out_c, dlfs_dtype dtype, int32_t flags) {
  return stream_call("dlfs_augment", stream, [&](Stream& s) {
    check_pointer(dst, "dst");
    const LayerList list = parse_layers(sources, layers, normalisation, n, layer_count, out_h, out_w, out_c, dtype,
                                        flags);
    Parameters parameters{};
    parameters.color = color_transform(normalisation, dtype, flags);
    std::copy_n(list.fill, 3, parameters.fill);
    parameters.out_h = out_h;
    parameters.out_w = out_w;
    parameters.out_c = out_c;
    if (dtype == DLFS_U8) {
      augment(s, static_cast<uint8_t*>(dst), list, parameters, n);
    } else {
      dispatch_float(dtype, [&](auto tag) {
        augment(s, static_cast<typename decltype(tag)::type*>(dst), list, parameters, n);
      });
    }
  });
}
