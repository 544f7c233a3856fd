// Crop, resize, flip, normalise, cast: one kernel from decoded pixels to a slot of a batch, up to 32 images to a launch
// with their parameters passed by value. A block computes a tile of 32 x 8 output pixels, one to a thread; the
// footprints of its columns and rows, and the triangle filter's weights, are computed once into shared memory. Sums
// follow the order of common/sampling.hpp and the file is compiled with -fmad=false, so the result has the CPU's bits.
#include "cuda/preprocess.hpp"

#include "cuda/image_store.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {
namespace {

constexpr int images_per_launch = 32;
// Weights of footprints wider than this (shrinking more than 31 times) are computed as they are used.
constexpr int cached_taps = 64;

struct Parameters {
  PreprocessSource sources[images_per_launch];
  ColorTransform color;
  int32_t out_h, out_w, out_c;
};
static_assert(sizeof(Parameters) <= 4000, "kernel parameters are limited to 4 KB");

// Per block; weights are indexed [tap][column] and [row][tap] so that a warp reads consecutive or equal words.
struct Footprints {
  Footprint column[tile_w];
  Footprint row[tile_h];
  float column_weight[cached_taps][tile_w];
  float row_weight[tile_h][cached_taps];
};

__device__ __forceinline__ float column_weight(const Footprints& all, const SampleAxis& axis, const Footprint& f,
                                               int j) {
  return j < cached_taps ? all.column_weight[j][threadIdx.x] : footprint_weight(axis, f, j);
}

__device__ __forceinline__ float row_weight(const Footprints& all, const SampleAxis& axis, const Footprint& f, int i) {
  return i < cached_taps ? all.row_weight[threadIdx.y][i] : footprint_weight(axis, f, i);
}

// Fills the footprints of this block's tile; for all of its threads, ends with a barrier.
__device__ void compute_footprints(Footprints& all, const SampleAxis& columns, const SampleAxis& rows, int32_t u0,
                                   int32_t v0) {
  const int thread = static_cast<int>(threadIdx.y * tile_w + threadIdx.x);
  if (thread < tile_w) all.column[thread] = footprint(columns, u0 + thread);
  if (thread >= tile_w && thread < tile_w + tile_h) all.row[thread - tile_w] = footprint(rows, v0 + thread - tile_w);
  __syncthreads();
  const Footprint column = all.column[threadIdx.x];
  const int column_taps = min(column.count, cached_taps);
  for (int j = static_cast<int>(threadIdx.y); j < column_taps; j += tile_h) {
    all.column_weight[j][threadIdx.x] = footprint_weight(columns, column, j);
  }
  const Footprint row = all.row[threadIdx.y];
  const int row_taps = min(row.count, cached_taps);
  for (int i = static_cast<int>(threadIdx.x); i < row_taps; i += tile_w) {
    all.row_weight[threadIdx.y][i] = footprint_weight(rows, row, i);
  }
  __syncthreads();
}

// The sampled pixel: per column the rows are summed first, both ascending.
__device__ __forceinline__ void sample(float (&rgb)[3], const Footprints& all, const PreprocessSource& source) {
  const Footprint column = all.column[threadIdx.x];
  const Footprint row = all.row[threadIdx.y];
  const int64_t stride = int64_t{source.columns.size} * 3;
  const uint8_t* corner = source.pixels + row.first * stride + int64_t{column.first} * 3;
  rgb[0] = rgb[1] = rgb[2] = 0.0f;
  for (int j = 0; j < column.count; ++j) {
    float sum[3] = {0.0f, 0.0f, 0.0f};
    const uint8_t* pixel = corner + 3 * j;
    for (int i = 0; i < row.count; ++i, pixel += stride) {
      const float weight = row_weight(all, source.rows, row, i);
#pragma unroll
      for (int c = 0; c < 3; ++c) sum[c] += weight * static_cast<float>(__ldg(pixel + c));
    }
    const float weight = column_weight(all, source.columns, column, j);
#pragma unroll
    for (int c = 0; c < 3; ++c) rgb[c] += weight * sum[c];
  }
}

__device__ __forceinline__ float pick(const float (&rgb)[3], int32_t channel) {
  return channel == 0 ? rgb[0] : channel == 1 ? rgb[1] : rgb[2];
}

// Grid (columns / 32, rows / 8, images). dst: the first image's slot. C as store_pixel.
template <class T, int C>
__global__ void __launch_bounds__(tile_w * tile_h)
    preprocess_kernel(T* dst, const __grid_constant__ Parameters parameters) {
  __shared__ Footprints all;
  const PreprocessSource& source = parameters.sources[blockIdx.z];
  const int32_t u0 = static_cast<int32_t>(blockIdx.x) * tile_w;
  const int32_t v0 = static_cast<int32_t>(blockIdx.y) * tile_h;
  const ColorTransform& color = parameters.color;
  float value[3] = {color.fill[0], color.fill[1], color.fill[2]};
  if (source.pixels != nullptr) {
    compute_footprints(all, source.columns, source.rows, u0, v0);
    if (all.column[threadIdx.x].count > 0 && all.row[threadIdx.y].count > 0) {
      float rgb[3];
      sample(rgb, all, source);
#pragma unroll
      for (int c = 0; c < 3; ++c) value[c] = pick(rgb, color.source[c]) * color.scale[c] + color.shift[c];
    }
  }
  store_pixel<T, C>(dst, value, parameters.out_h, parameters.out_w, parameters.out_c);
}

template <class T>
auto kernel_for(const PreprocessFormat& format, const void* dst) {
  switch (stored_channels(dst, format.out_w, format.out_c)) {
    case 3:
      return preprocess_kernel<T, 3>;
    case 4:
      return preprocess_kernel<T, 4>;
    case 8:
      return preprocess_kernel<T, 8>;
    default:
      return preprocess_kernel<T, 0>;
  }
}

template <class T>
void enqueue(const Stream& stream, T* dst, const Parameters& parameters, int32_t n, const PreprocessFormat& format) {
  const dim3 grid(static_cast<unsigned>(ceil_div(format.out_w, tile_w)),
                  static_cast<unsigned>(ceil_div(format.out_h, tile_h)), static_cast<unsigned>(n));
  launch(stream, grid, dim3(tile_w, tile_h), 0, kernel_for<T>(format, dst), dst, parameters);
}

}  // namespace

void preprocess(const Stream& stream, void* dst, const PreprocessSource* sources, int32_t n,
                const PreprocessFormat& format) {
  Parameters parameters{};
  parameters.color = format.color;
  parameters.out_h = format.out_h;
  parameters.out_w = format.out_w;
  parameters.out_c = format.out_c;
  for (int32_t first = 0; first < n; first += images_per_launch) {
    const int32_t count = std::min(images_per_launch, n - first);
    std::copy_n(sources + first, count, parameters.sources);
    void* const slot = static_cast<char*>(dst) + first * format.image_bytes();
    if (format.dtype == DLFS_U8) {
      enqueue(stream, static_cast<uint8_t*>(slot), parameters, count, format);
    } else {
      dispatch_float(format.dtype, [&](auto tag) {
        enqueue(stream, static_cast<typename decltype(tag)::type*>(slot), parameters, count, format);
      });
    }
  }
}

namespace {

// Whole images that keep their size: a thread takes 16 values, whose first has channel 16 i mod 3. `vector`: both
// addresses are multiples of 16 bytes.
template <class T>
__global__ void __launch_bounds__(256)
    normalize_kernel(T* dst, const uint8_t* src, int64_t values, ColorTransform color, bool vector) {
  const int64_t step = int64_t{gridDim.x} * 256 * 16;
  for (int64_t first = (int64_t{blockIdx.x} * 256 + threadIdx.x) * 16; first < values; first += step) {
    const int phase = static_cast<int>(first % 3);
    const bool whole = vector && first + 16 <= values;
    Pack<uint8_t, 16> in{};
    if (whole) {
      in = *reinterpret_cast<const Pack<uint8_t, 16>*>(src + first);
    } else {
      for (int i = 0; i < 16 && first + i < values; ++i) in.value[i] = src[first + i];
    }
    float scale[3], shift[3];  // of the channels in the order in which they come
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const int channel = (phase + c) % 3;
      scale[c] = channel == 0 ? color.scale[0] : channel == 1 ? color.scale[1] : color.scale[2];
      shift[c] = channel == 0 ? color.shift[0] : channel == 1 ? color.shift[1] : color.shift[2];
    }
    float out[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) out[i] = static_cast<float>(in.value[i]) * scale[i % 3] + shift[i % 3];
    if (whole) {
      store<16>(dst + first, out);
    } else {
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        if (first + i < values) dst[first + i] = from_float<T>(out[i]);
      }
    }
  }
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" dlfs_status dlfs_normalize_pixels(dlfs_stream stream, void* dst, const uint8_t* src,
                                             const float* normalisation, int64_t pixels, dlfs_dtype dtype) {
  return stream_call("dlfs_normalize_pixels", stream, [&](Stream& s) {
    check_pointer(dst, "dst");
    check_pointer(src, "src");
    const ColorTransform color = pixel_transform(normalisation);
    check_size(pixels, "pixels");
    const int64_t values = checked_product({pixels, 3}, "dst");
    dispatch_float(dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      launch(s, grid_size(*s.context, ceil_div<int64_t>(values, 16), 256), 256, 0, normalize_kernel<T>,
             static_cast<T*>(dst), src, values, color, aligned16({dst, src}));
    });
  });
}

extern "C" dlfs_status dlfs_preprocess(dlfs_stream stream, void* dst, const int64_t* sources, const int32_t* sizes,
                                       const float* transforms, const float* normalisation, int32_t n, int32_t out_h,
                                       int32_t out_w, int32_t out_c, dlfs_dtype dtype, int32_t flags) {
  return stream_call("dlfs_preprocess", stream, [&](Stream& s) {
    check_pointer(dst, "dst");
    check_pointer(sources, "sources");
    check_pointer(sizes, "sizes");
    check_preprocess(transforms, normalisation, n, out_h, out_w, out_c, dtype, flags);
    std::vector<PreprocessSource> images;
    for (int32_t i = 0; i < n; ++i) {
      DLFS_CHECK(sources[i] != 0, DLFS_ERROR_ARGUMENT, "the source of image %d is NULL", i);
      for (int32_t j = 0; j < 2; ++j) check_range(sizes[2 * i + j], 1, max_image_side, j ? "width" : "height");
      const ImageTransform transform = image_transform(transforms, i);
      images.push_back({reinterpret_cast<const uint8_t*>(sources[i]),
                        sample_columns(transform, sizes[2 * i + 1], flags),
                        sample_rows(transform, sizes[2 * i], flags)});
    }
    preprocess(s, dst, images.data(), n,
               {out_h, out_w, out_c, dtype, flags, color_transform(normalisation, dtype, flags)});
  });
}
