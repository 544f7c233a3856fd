// The Hopper convolution kernel (conv_sm90.cuh) in bf16 and f16, with bias, residual, ReLU and the moments that batch
// normalization needs in its epilogue; and what all of its variants share on the host.
#include <algorithm>

#include "cuda/conv_sm90.cuh"
#include "cuda/norm.cuh"

namespace dlfs {
namespace {

using namespace sm90;

#ifdef DLFS_SM90

template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  const T pair[2] = {from_float<T>(low), from_float<T>(high)};
  uint32_t bits;
  memcpy(&bits, pair, 4);
  return bits;
}

template <class T>
__device__ __forceinline__ float2 unpack(uint32_t bits) {
  T pair[2];
  memcpy(pair, &bits, 4);
  return {to_float(pair[0]), to_float(pair[1])};
}

// The sums of squares of two neighbouring channels over the rows that one thread adds up.
struct PairStatistics {
  float n = 0, shift[2], sum[2] = {0, 0}, squares[2] = {0, 0};
};

// Adds one tile, as it was rounded, to the statistics: a thread takes two channels of a part of the rows.
template <class Tiles>
__device__ __forceinline__ void add_statistics(PairStatistics& mine, const char* tile, int thread, int rows) {
  using T = typename Tiles::Y;
  constexpr int width = Tiles::width;
  constexpr int pairs = width / 2, parts = 256 / pairs, part_rows = tile_rows / parts;
  const int column = thread % pairs * 2, first = thread / pairs * part_rows;
  const int count = min(part_rows, rows - first);
  if (count <= 0) return;
  const auto value = [&](int row) {
    const char* const at = tile + staging_offset<Tiles>(row, column / 8 * 16) + column % 8 * 2;
    return unpack<T>(*reinterpret_cast<const uint32_t*>(at));
  };
  if (mine.n == 0.0f) {
    const float2 v = value(first);
    mine.shift[0] = v.x;
    mine.shift[1] = v.y;
  }
#pragma unroll 8
  for (int i = 0; i < count; ++i) {
    const float2 v = value(first + i);
    const float x = v.x - mine.shift[0], y = v.y - mine.shift[1];
    mine.sum[0] += x;
    mine.sum[1] += y;
    mine.squares[0] += x * x;
    mine.squares[1] += y * y;
  }
  mine.n += static_cast<float>(count);
}

// Joins the statistics of the block's threads and writes them as part `part` of `used`; those from `used` on to parts get
// zeros. Each block has a part of the rows and a tile of the channels.
template <int width>
__device__ __forceinline__ void write_moments(float* out_moments, int parts, const PairStatistics& mine, char* scratch,
                                              int thread, const Sizes& z) {
  constexpr int pairs = width / 2, groups = 256 / pairs;
  const int column_tile = static_cast<int>(blockIdx.x) % z.column_tiles;
  const int first = static_cast<int>(blockIdx.x) / z.column_tiles, used = static_cast<int>(gridDim.x) / z.column_tiles;
  const int64_t plane = int64_t{parts} * z.k;
  float* const shared = reinterpret_cast<float*>(scratch);  // (groups, pairs, 5): n, mean, m2, mean, m2
  float* const out = shared + thread * 5;
  out[0] = mine.n;
  for (int i = 0; i < 2; ++i) {
    const float offset = mine.n > 0.0f ? mine.sum[i] / mine.n : 0.0f;
    const float m2 = mine.squares[i] - mine.sum[i] * offset;
    out[1 + 2 * i] = mine.n > 0.0f ? mine.shift[i] + offset : 0.0f;
    out[2 + 2 * i] = mine.n > 0.0f ? (m2 < 0.0f ? 0.0f : m2) : 0.0f;  // NaN stays
  }
  named_barrier(1, 256);
  if (thread == 0 && column_tile == 0) {
    for (int part = first; part < parts; part += used) {
      const int64_t rows = part == first ? split_rows(z.rows, first, used, tile_rows) : 0;
      out_moments[2 * plane + part] = static_cast<float>(rows);
    }
  }
  if (thread >= pairs) return;
  for (int i = 0; i < 2; ++i) {
    const int channel = column_tile * width + 2 * thread + i;
    if (channel >= z.k) return;
    Moments sum{0, 0, 0};
    for (int group = 0; group < groups; ++group) {
      const float* const other = shared + (group * pairs + thread) * 5;
      merge(sum, {other[0], other[1 + 2 * i], other[2 + 2 * i]});
    }
    for (int part = first; part < parts; part += used) {
      out_moments[int64_t{part} * z.k + channel] = part == first ? sum.mean : 0.0f;
      out_moments[plane + int64_t{part} * z.k + channel] = part == first ? sum.m2 : 0.0f;
    }
  }
}

#endif

template <class Tiles>
struct Epilogue {
  const float* bias;  // nullable
  float* moments;     // nullable
  int32_t parts;      // of the moments

#ifdef DLFS_SM90
  static constexpr bool has_moments = Tiles::width % 64 == 0;
  using T = typename Tiles::Y;
  using State = PairStatistics;

  __device__ bool whole() const { return moments != nullptr; }

  __device__ __forceinline__ void round(float* sums, uint32_t (&bits)[4], int column, int quarter,
                                        const Sizes& z) const {
    if (bias) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = column + 8 * half + 2 * quarter;
        const float2 b = at < z.k ? __ldg(reinterpret_cast<const float2*>(bias + at)) : make_float2(0, 0);
        sums[4 * half] += b.x;
        sums[4 * half + 1] += b.y;
        sums[4 * half + 2] += b.x;
        sums[4 * half + 3] += b.y;
      }
    }
    if (z.has_residual) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 v = unpack<T>(bits[i]);
        sums[2 * i] += v.x;
        sums[2 * i + 1] += v.y;
      }
    }
    if (z.relu) {
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[i] = activate<DLFS_ACT_RELU>(sums[i]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) bits[i] = pack<T>(sums[2 * i], sums[2 * i + 1]);
  }

  __device__ __forceinline__ void look(State& state, const char* staging, int thread, int rows) const {
    if constexpr (has_moments) {
      if (moments) add_statistics<Tiles>(state, staging, thread, rows);
    }
  }

  __device__ __forceinline__ void end(const State& state, char* scratch, int thread, const Sizes& z) const {
    if constexpr (has_moments) {
      if (moments) write_moments<Tiles::width>(moments, parts, state, scratch, thread, z);
    }
  }
#endif
};

// Blocks of a launch; with moments every block keeps to one tile of channels.
int64_t grid_blocks(const Context& context, int64_t column_tiles, int64_t tiles, bool moments) {
  const int64_t most = std::min<int64_t>(context.sm_count, tiles);
  return moments ? std::max<int64_t>(1, most / column_tiles) * column_tiles : most;
}

template <class T, int width>
void launch_width(Stream& s, const ConvGeometry& g, dlfs_dtype dtype, bool relu, const Sm90Tensors& t) {
  using Tiling = Tiles<T, T, width>;
  const int64_t column_tiles = ceil_div(g.k, width), tiles = column_tiles * ceil_div<int64_t>(rows_of(g), tile_rows);
  launch_tiles<Tiling>(s, g, dtype, dtype, relu, t, Epilogue<Tiling>{t.bias, t.moments, s.context->sm_count},
                       grid_blocks(*s.context, column_tiles, tiles, t.moments != nullptr));
}

void run_16_bits(Stream& stream, const ConvGeometry& g, dlfs_dtype dtype, bool relu, int tile_width,
                 const Sm90Tensors& tensors) {
  const auto run = [&](auto tag) {
    using T = typename decltype(tag)::type;
    switch (tile_width) {
      case 64: return launch_width<T, 64>(stream, g, dtype, relu, tensors);
      case 128: return launch_width<T, 128>(stream, g, dtype, relu, tensors);
      case 208: return launch_width<T, 208>(stream, g, dtype, relu, tensors);
      default: return launch_width<T, 256>(stream, g, dtype, relu, tensors);
    }
  };
  if (dtype == DLFS_BF16) {
    run(TypeTag<bf16>{});
  } else {
    run(TypeTag<f16>{});
  }
}

class Sm90Conv final : public ConvAlgorithm {
 public:
  Sm90Conv(const ConvProblem& problem, int tile_width) : problem_(problem), tile_width_(tile_width) {}

  int64_t workspace_bytes() const override { return 0; }
  std::string pick() const override { return format("sm90 %d", tile_width_); }

  void run(Stream& s, const ConvTensors& t, void*) const override {
    const bool aligned = aligned16({t.x, t.w, t.y, t.scale, t.bias, t.residual});
    DLFS_CHECK(aligned || !problem_.moments, DLFS_ERROR_ARGUMENT, "with moments, x, w and y must be 16-byte aligned");
    if (!aligned) return run_direct(s, problem_, t);
    run_sm90(s, problem_, tile_width_, {t.x, t.w, t.y, t.scale, t.bias, t.residual, t.moments});
  }

 private:
  const ConvProblem problem_;
  const int tile_width_;
};

template <class Function>
Function driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status{};
  CUDA_CHECK(cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &status));
  DLFS_CHECK(status == cudaDriverEntryPointSuccess, DLFS_ERROR_UNSUPPORTED, "the driver has no %s", name);
  return reinterpret_cast<Function>(found);
}

// Numbers of 8 bits are bytes to TMA.
CUtensorMapDataType map_type(dlfs_dtype dtype) {
  switch (dtype) {
    case DLFS_BF16: return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DLFS_F16: return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    default: return CU_TENSOR_MAP_DATA_TYPE_UINT8;
  }
}

void check_driver(CUresult status, const char* what) {
  DLFS_CHECK(status == CUDA_SUCCESS, DLFS_ERROR_CUDA, "%s failed: CUDA driver error %d", what,
             static_cast<int>(status));
}

}  // namespace

namespace sm90 {

CUtensorMap box_map(const void* data, dlfs_dtype dtype, int rank, const int64_t* sizes, const int64_t* strides,
                    const int* box, int swizzle_bytes) {
  static const auto encode = driver_function<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  const CUtensorMapSwizzle swizzle = swizzle_bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : swizzle_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                           : CU_TENSOR_MAP_SWIZZLE_32B;
  cuuint64_t dims[5], step_bytes[5] = {};
  cuuint32_t box_sizes[5], steps[5];
  for (int i = 0; i < rank; ++i) {
    dims[i] = static_cast<cuuint64_t>(sizes[i]);
    if (i + 1 < rank) step_bytes[i] = static_cast<cuuint64_t>(strides[i]);
    box_sizes[i] = static_cast<cuuint32_t>(box[i]);
    steps[i] = 1;
  }
  CUtensorMap map;
  check_driver(encode(&map, map_type(dtype), static_cast<cuuint32_t>(rank), const_cast<void*>(data), dims, step_bytes,
                      box_sizes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
               "cuTensorMapEncodeTiled");
  return map;
}

CUtensorMap pixel_map(const void* x, dlfs_dtype dtype, const ConvGeometry& g) {
  static const auto encode = driver_function<decltype(&cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  const cuuint64_t c = static_cast<cuuint64_t>(g.c), w = static_cast<cuuint64_t>(g.w), h = static_cast<cuuint64_t>(g.h);
  const cuuint64_t dims[4] = {c, w, h, static_cast<cuuint64_t>(g.n)}, size = static_cast<cuuint64_t>(dtype_size(dtype));
  const cuuint64_t strides[3] = {c * size, w * c * size, h * w * c * size};
  // The first pixel under tap (0, 0), and how far from the last pixel of the image the last output's is.
  const int lower[2] = {-g.pad_w, -g.pad_h};
  const int upper[2] = {g.pad_w - (g.s - 1) * g.dilation_w, g.pad_h - (g.r - 1) * g.dilation_h};
  const cuuint32_t steps[4] = {1, static_cast<cuuint32_t>(g.stride_w), static_cast<cuuint32_t>(g.stride_h), 1};
  CUtensorMap map;
  check_driver(encode(&map, map_type(dtype), 4, const_cast<void*>(x), dims, strides, lower, upper,
                      static_cast<cuuint32_t>(slice_bytes / size), tile_rows, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
               "cuTensorMapEncodeIm2col");
  return map;
}

}  // namespace sm90

std::vector<int> sm90_tile_widths(const Context& context, const ConvProblem& problem) {
  constexpr int taps_limit = 256;
  const ConvGeometry& g = problem.g;
  const auto in_16_bits = [](dlfs_dtype dtype) { return dtype == DLFS_BF16 || dtype == DLFS_F16; };
  const bool dtypes = problem.quantized() ? problem.y_dtype == problem.dtype || in_16_bits(problem.y_dtype)
                                          : in_16_bits(problem.dtype);
  const bool relu = problem.activation == DLFS_ACT_NONE || problem.activation == DLFS_ACT_RELU;
  const auto near = [](int64_t value) { return value >= -128 && value < 128; };
  // What the descriptors of TMA can say: sizes in multiples of 16 bytes, corners of 8 bits, offsets of 8 bits.
  const bool describable = g.c * dtype_size(problem.dtype) % 16 == 0 && g.k * dtype_size(problem.y_dtype) % 16 == 0 &&
                           g.stride_h <= 8 && g.stride_w <= 8 && near(-g.pad_h) && near(-g.pad_w) &&
                           near(g.pad_h - int64_t{g.r - 1} * g.dilation_h) &&
                           near(g.pad_w - int64_t{g.s - 1} * g.dilation_w) && int64_t{g.r - 1} * g.dilation_h < 256 &&
                           int64_t{g.s - 1} * g.dilation_w < 256 && int64_t{g.r} * g.s <= taps_limit;
  if (context.compute_capability != 90 || problem.direction != DLFS_CONV_FORWARD || !dtypes || !relu || g.groups != 1 ||
      !describable || rows_of(g) > INT32_MAX - tile_rows) {
    return {};
  }
  const bool narrow = is_quantized(problem.y_dtype);
  std::vector<int> widths;
  if (g.k > 128) widths.push_back(256);
  if (g.k > 64) widths.push_back(128);
  widths.push_back(64);
  // 208 where it wastes no more than multiples of 64 would.
  const auto wasted = [&](int width) { return ceil_div(g.k, width) * width - g.k; };
  if (g.k > 128 && !problem.moments && !narrow && wasted(208) <= wasted(64)) widths.insert(widths.begin(), 208);
  if (problem.moments) return widths;
  // Each wave of tiles takes about as long as width + 32 says, tiles of 64 channels as those of 96: measured on an H100.
  const auto cost = [&](int width) {
    const int64_t tiles = ceil_div<int64_t>(rows_of(g), tile_rows) * ceil_div(g.k, width);
    return ceil_div<int64_t>(tiles, context.sm_count) * (std::max(width, 96) + 32);
  };
  std::stable_sort(widths.begin(), widths.end(), [&](int a, int b) { return cost(a) < cost(b); });
  return widths;
}

void run_sm90(Stream& stream, const ConvProblem& problem, int tile_width, const Sm90Tensors& tensors) {
  if (problem.quantized()) return run_sm90_quantized(stream, problem, tile_width, tensors);
  run_16_bits(stream, problem.g, problem.dtype, problem.activation == DLFS_ACT_RELU, tile_width, tensors);
}

std::shared_ptr<const ConvAlgorithm> sm90_algorithm(const ConvProblem& problem, int tile_width) {
  return std::make_shared<Sm90Conv>(problem, tile_width);
}

}  // namespace dlfs
