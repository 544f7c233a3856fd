// Convolution on Hopper (sm_90a): an implicit matrix product y (pixels, K) = x (pixels, R S C) w (K, R S C)^T in bf16 or
// f16, with bias, residual, ReLU and the moments that batch normalization needs in its epilogue.
//
// A block of three warpgroups takes tiles of 128 pixels by `width` output channels, one after the other. Of the first
// warpgroup one thread copies slices of 64 channels of one filter tap into a ring of stages, by TMA, which gathers the
// pixels under a tap by itself ("im2col"); another copies the residual's tiles. The other two warpgroups multiply 64
// pixels each (wgmma, sums in registers), then round the tile into a staging buffer, from where TMA stores it while the
// next tile is computed. All sums are in a fixed order.
#include <algorithm>

#include "cuda/conv_sm90.hpp"
#include "cuda/norm.cuh"
#include "cuda/sm90.cuh"

namespace dlfs {
namespace {

constexpr int tile_rows = 128;     // pixels of a tile
constexpr int slice = 64;          // channels of a stage: 128 bytes, the swizzle's width
constexpr int threads = 384;       // a warpgroup that copies and two that compute
constexpr int shared_limit = 232448;
constexpr int taps_limit = 256;

// Columns of a box of the staging buffer: rows of 128 or of 32 bytes, swizzled by as many.
constexpr int box_columns(int width) { return width % 64 == 0 ? 64 : 16; }
constexpr int stage_bytes(int width) { return (tile_rows + width) * slice * 2; }
constexpr int staging_bytes(int width) { return tile_rows * width * 2; }
constexpr int staging_count(int width) { return width <= 128 ? 3 : 1; }
constexpr int stage_count(int width) {
  return (shared_limit - 2048 - staging_count(width) * staging_bytes(width)) / stage_bytes(width);
}

struct Barriers {
  uint64_t full[8], empty[8];          // stages
  uint64_t residual_full[4], residual_empty[4];
};

constexpr int shared_bytes(int width) {
  // 1024: to align the tiles.
  return 1024 + stage_count(width) * stage_bytes(width) + staging_count(width) * staging_bytes(width) +
         static_cast<int>(sizeof(Barriers));
}
static_assert(shared_bytes(256) <= shared_limit && shared_bytes(208) <= shared_limit &&
              shared_bytes(128) <= shared_limit && shared_bytes(64) <= shared_limit && stage_count(64) <= 8);

struct Sizes {
  int64_t rows;         // N P Q
  int32_t k;
  int32_t row_tiles, column_tiles;
  int32_t c_slices;     // ceil(C / 64)
  int32_t r, s;
  int32_t p, q;
  int32_t parts;        // of the moments
  int32_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  bool rows_are_pixels;  // a matrix product: x is loaded as a matrix
  bool relu;
};

#ifdef DLFS_SM90

using namespace sm90;

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

// Bytes from the start of a staging buffer to eight channels of a row; column % 8 == 0.
template <int width>
__device__ __forceinline__ uint32_t staging_offset(int row, int column) {
  constexpr int columns = box_columns(width);
  const int chunk = column % columns / 8;
  const int swizzled = columns == 64 ? chunk ^ (row & 7) : chunk ^ (row >> 2 & 1);
  return static_cast<uint32_t>(column / columns * (tile_rows * columns * 2) + row * (columns * 2) + swizzled * 16);
}

// The sums of squares of two neighbouring channels over the rows that one thread adds up.
struct PairStatistics {
  float n = 0, shift[2], sum[2] = {0, 0}, squares[2] = {0, 0};
};

template <class T, int width>
struct Block {
  static constexpr int stages = stage_count(width), stagings = staging_count(width);
  char* tiles;
  char* staging;
  Barriers* barriers;

  __device__ char* x_tile(int stage) const { return tiles + stage * stage_bytes(width); }
  __device__ char* w_tile(int stage) const { return x_tile(stage) + tile_rows * slice * 2; }
  __device__ char* staging_tile(int which) const { return staging + which * staging_bytes(width); }
};

template <class T, int width>
__device__ void copy_operands(const Block<T, width>& block, const CUtensorMap* x_map, const CUtensorMap* w_map,
                              const Sizes& z) {
  int stage = 0;
  uint32_t parity = 1;
  for (int64_t tile = blockIdx.x; tile < static_cast<int64_t>(z.row_tiles) * z.column_tiles; tile += gridDim.x) {
    const int row_tile = static_cast<int>(tile / z.column_tiles);
    const int column = static_cast<int>(tile % z.column_tiles) * width;
    const int first = row_tile * tile_rows;
    const int image = first / (z.p * z.q), pixel = first % (z.p * z.q);
    const int h = pixel / z.q * z.stride_h - z.pad_h, w = pixel % z.q * z.stride_w - z.pad_w;
    for (int tap = 0; tap < z.r * z.s; ++tap) {
      const uint16_t offset_h = static_cast<uint16_t>(tap / z.s * z.dilation_h);
      const uint16_t offset_w = static_cast<uint16_t>(tap % z.s * z.dilation_w);
      for (int c = 0; c < z.c_slices; ++c) {
        barrier_wait(&block.barriers->empty[stage], parity);
        uint64_t* const full = &block.barriers->full[stage];
        barrier_expect(full, stage_bytes(width));
        if (z.rows_are_pixels) {
          load_box(block.x_tile(stage), x_map, full, c * slice, first);
        } else {
          load_pixels(block.x_tile(stage), x_map, full, c * slice, w, h, image, offset_w, offset_h);
        }
        load_box(block.w_tile(stage), w_map, full, c * slice, tap, column);
        if (++stage == Block<T, width>::stages) {
          stage = 0;
          parity ^= 1;
        }
      }
    }
  }
}

template <class T, int width>
__device__ void copy_residual(const Block<T, width>& block, const CUtensorMap* map, const Sizes& z) {
  constexpr int columns = box_columns(width), stagings = Block<T, width>::stagings;
  int which = 0;
  uint32_t parity = 1;
  for (int64_t tile = blockIdx.x; tile < static_cast<int64_t>(z.row_tiles) * z.column_tiles; tile += gridDim.x) {
    const int row = static_cast<int>(tile / z.column_tiles) * tile_rows;
    const int column = static_cast<int>(tile % z.column_tiles) * width;
    barrier_wait(&block.barriers->residual_empty[which], parity);
    uint64_t* const full = &block.barriers->residual_full[which];
    barrier_expect(full, staging_bytes(width));
    for (int i = 0; i < width; i += columns) {
      load_box(block.staging_tile(which) + i * tile_rows * 2, map, full, column + i, row);
    }
    if (++which == stagings) {
      which = 0;
      parity ^= 1;
    }
  }
}

// Adds one tile, as it was rounded, to the statistics: a thread takes two channels of a part of the rows.
template <class T, int width>
__device__ __forceinline__ void add_statistics(PairStatistics& mine, const char* tile, int thread, int rows) {
  constexpr int pairs = width / 2, parts = 256 / pairs, part_rows = tile_rows / parts;
  const int column = thread % pairs * 2, first = thread / pairs * part_rows;
  const int count = min(part_rows, rows - first);
  if (count <= 0) return;
  const auto value = [&](int row) {
    const char* const at = tile + staging_offset<width>(row, column / 8 * 8) + column % 8 * 2;
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

// Joins the statistics of the block's threads and writes them as part `part` of `used`; those from `used` on to z.parts get
// zeros. Each block has a part of the rows and a tile of the channels.
template <int width>
__device__ __forceinline__ void write_moments(float* out_moments, const PairStatistics& mine, char* scratch, int thread,
                                              const Sizes& z) {
  constexpr int pairs = width / 2, groups = 256 / pairs;
  const int column_tile = static_cast<int>(blockIdx.x) % z.column_tiles;
  const int first = static_cast<int>(blockIdx.x) / z.column_tiles, used = static_cast<int>(gridDim.x) / z.column_tiles;
  const int64_t plane = int64_t{z.parts} * z.k;
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
    for (int part = first; part < z.parts; part += used) {
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
    for (int part = first; part < z.parts; part += used) {
      out_moments[int64_t{part} * z.k + channel] = part == first ? sum.mean : 0.0f;
      out_moments[plane + int64_t{part} * z.k + channel] = part == first ? sum.m2 : 0.0f;
    }
  }
}

template <class T, int width>
__device__ void compute(const Block<T, width>& block, const CUtensorMap* y_map, const float* bias, bool has_residual,
                        float* moments, const Sizes& z) {
  constexpr int columns = box_columns(width), stages = Block<T, width>::stages, stagings = Block<T, width>::stagings;
  const int thread = static_cast<int>(threadIdx.x) - 128, group = thread / 128, lane = thread % 32;
  // The rows of matrices that this thread addresses in the staging buffer, and the columns that it holds sums of.
  const int staging_row = group * 64 + thread % 128 / 32 * 16 + (lane & 15);
  const int staging_column = lane / 16 * 8, held_column = lane % 4 * 2;
  const int steps = z.r * z.s * z.c_slices;
  int stage = 0, which = 0;
  uint32_t parity = 0, residual_parity = 0;
  int64_t done = 0;
  PairStatistics pair;
  for (int64_t tile = blockIdx.x; tile < static_cast<int64_t>(z.row_tiles) * z.column_tiles; tile += gridDim.x) {
    const int row = static_cast<int>(tile / z.column_tiles) * tile_rows;
    const int column = static_cast<int>(tile % z.column_tiles) * width;
    float sums[width / 2];
    int previous = -1;
    for (int step = 0; step < steps; ++step) {
      barrier_wait(&block.barriers->full[stage], parity);
      products_begin();
      const uint64_t a = tile_descriptor(block.x_tile(stage) + group * 64 * slice * 2);
      const uint64_t b = tile_descriptor(block.w_tile(stage));
#pragma unroll
      for (int i = 0; i < slice / 16; ++i) {
        Product<T, width>::add(sums, a + i * 2, b + i * 2, step + i > 0);  // 16 values are two units of 16 bytes
      }
      products_commit();
      products_wait<1>();
      if (previous >= 0 && thread % 128 == 0) barrier_arrive(&block.barriers->empty[previous]);
      previous = stage;
      if (++stage == stages) {
        stage = 0;
        parity ^= 1;
      }
    }
    products_wait<0>();
    if (thread % 128 == 0) barrier_arrive(&block.barriers->empty[previous]);

    char* const staging = block.staging_tile(which);
    const uint32_t staging_address = shared_address(staging);
    if (has_residual) barrier_wait(&block.barriers->residual_full[which], residual_parity);
    // The staging buffer has been read: thread 0 waited for its store, all for their statistics.
    named_barrier(1, 256);
#pragma unroll
    for (int j = 0; j < width / 16; ++j) {
      float* const part = sums + 8 * j;
      const uint32_t address = staging_address + staging_offset<width>(staging_row, 16 * j + staging_column);
      if (bias) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int at = column + 16 * j + 8 * half + held_column;
          const float2 b = at < z.k ? __ldg(reinterpret_cast<const float2*>(bias + at)) : make_float2(0, 0);
          part[4 * half] += b.x;
          part[4 * half + 1] += b.y;
          part[4 * half + 2] += b.x;
          part[4 * half + 3] += b.y;
        }
      }
      uint32_t bits[4];
      if (has_residual) {
        load_matrices(bits, address);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 v = unpack<T>(bits[i]);
          part[2 * i] += v.x;
          part[2 * i + 1] += v.y;
        }
      }
      if (z.relu) {
#pragma unroll
        for (int i = 0; i < 8; ++i) part[i] = activate<DLFS_ACT_RELU>(part[i]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) bits[i] = pack<T>(part[2 * i], part[2 * i + 1]);
      store_matrices(address, bits);
    }
    fence_async();
    named_barrier(1, 256);
    if (thread == 0) {
      for (int i = 0; i < width; i += columns) {
        if (column + i < z.k) store_box(y_map, staging + i * tile_rows * 2, column + i, row);
      }
      commit_stores();
      wait_stores_read<stagings - 1>();
      if (has_residual && done + 1 >= stagings) {
        barrier_arrive(&block.barriers->residual_empty[(which + 1) % stagings]);
      }
    }
    if constexpr (columns == 64) {
      if (moments) {
        add_statistics<T, width>(pair, staging, thread, static_cast<int>(min(int64_t{tile_rows}, z.rows - row)));
      }
    }
    ++done;
    if (++which == stagings) {
      which = 0;
      residual_parity ^= 1;
    }
  }
  if constexpr (columns == 64) {
    if (moments) {
      // The stages are free: every copy that was started has been multiplied.
      write_moments<width>(moments, pair, block.tiles, thread, z);
    }
  }
  // Shared memory must not go before the stores have read it.
  if (thread == 0) wait_stores_read<0>();
}

#endif

template <class T, int width>
__global__ void __launch_bounds__(threads, 1)
    conv_sm90_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                     const __grid_constant__ CUtensorMap y_map, const __grid_constant__ CUtensorMap residual_map,
                     const float* bias, bool has_residual, float* moments, const __grid_constant__ Sizes z) {
#ifdef DLFS_SM90
  extern __shared__ char shared[];
  Block<T, width> block;
  block.tiles = shared + (1024 - (shared_address(shared) & 1023)) % 1024;
  block.staging = block.tiles + stage_count(width) * stage_bytes(width);
  block.barriers = reinterpret_cast<Barriers*>(block.staging + staging_count(width) * staging_bytes(width));
  if (threadIdx.x == 0) {
    for (int i = 0; i < 8; ++i) {
      barrier_init(&block.barriers->full[i], 1);
      barrier_init(&block.barriers->empty[i], 2);  // a thread of each computing warpgroup
    }
    for (int i = 0; i < 4; ++i) {
      barrier_init(&block.barriers->residual_full[i], 1);
      barrier_init(&block.barriers->residual_empty[i], 1);
    }
    barrier_init_done();
    prefetch_map(&x_map);
    prefetch_map(&w_map);
    prefetch_map(&y_map);
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<40>();
    if (threadIdx.x == 0) copy_operands<T, width>(block, &x_map, &w_map, z);
    if (threadIdx.x == 32 && has_residual) copy_residual<T, width>(block, &residual_map, z);
  } else {
    take_registers<232>();
    compute<T, width>(block, &y_map, bias, has_residual, moments, z);
  }
#endif
}

// ---- host -----------------------------------------------------------------------------------------------------------

template <class Function>
Function driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status{};
  CUDA_CHECK(cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &status));
  DLFS_CHECK(status == cudaDriverEntryPointSuccess, DLFS_ERROR_UNSUPPORTED, "the driver has no %s", name);
  return reinterpret_cast<Function>(found);
}

CUtensorMapDataType map_type(dlfs_dtype dtype) {
  return dtype == DLFS_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
}

void check_driver(CUresult status, const char* what) {
  DLFS_CHECK(status == CUDA_SUCCESS, DLFS_ERROR_CUDA, "%s failed: CUDA driver error %d", what,
             static_cast<int>(status));
}

// Boxes of a packed tensor of 16-bit values, innermost size first.
template <int rank>
CUtensorMap box_map(const void* data, dlfs_dtype dtype, const int64_t (&sizes)[rank], const int (&box)[rank],
                    CUtensorMapSwizzle swizzle) {
  static const auto encode = driver_function<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  cuuint64_t dims[rank], strides[rank];
  cuuint32_t box_sizes[rank], steps[rank];
  uint64_t bytes = 2;
  for (int i = 0; i < rank; ++i) {
    dims[i] = static_cast<cuuint64_t>(sizes[i]);
    bytes *= dims[i];
    strides[i] = bytes;
    box_sizes[i] = static_cast<cuuint32_t>(box[i]);
    steps[i] = 1;
  }
  CUtensorMap map;
  check_driver(encode(&map, map_type(dtype), rank, const_cast<void*>(data), dims, strides, box_sizes, steps,
                      CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
               "cuTensorMapEncodeTiled");
  return map;
}

// The pixels of x (N, H, W, C) under one tap of the filter, for consecutive outputs.
CUtensorMap pixel_map(const void* x, dlfs_dtype dtype, const ConvGeometry& g) {
  static const auto encode = driver_function<decltype(&cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  const cuuint64_t c = static_cast<cuuint64_t>(g.c), w = static_cast<cuuint64_t>(g.w), h = static_cast<cuuint64_t>(g.h);
  const cuuint64_t dims[4] = {c, w, h, static_cast<cuuint64_t>(g.n)};
  const cuuint64_t strides[3] = {c * 2, w * c * 2, h * w * c * 2};
  // The first pixel under tap (0, 0), and how far from the last pixel of the image the last output's is.
  const int lower[2] = {-g.pad_w, -g.pad_h};
  const int upper[2] = {g.pad_w - (g.s - 1) * g.dilation_w, g.pad_h - (g.r - 1) * g.dilation_h};
  const cuuint32_t steps[4] = {1, static_cast<cuuint32_t>(g.stride_w), static_cast<cuuint32_t>(g.stride_h), 1};
  CUtensorMap map;
  check_driver(encode(&map, map_type(dtype), 4, const_cast<void*>(x), dims, strides, lower, upper, slice, tile_rows,
                      steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
               "cuTensorMapEncodeIm2col");
  return map;
}

int64_t rows_of(const ConvGeometry& g) { return int64_t{g.n} * g.p * g.q; }

// Blocks of a launch; with moments every block keeps to one tile of channels.
unsigned grid_blocks(const Context& context, int64_t row_tiles, int64_t column_tiles, bool moments) {
  const int64_t most = std::min<int64_t>(context.sm_count, row_tiles * column_tiles);
  if (!moments) return static_cast<unsigned>(most);
  return static_cast<unsigned>(std::max<int64_t>(1, most / column_tiles) * column_tiles);
}

template <class T, int width>
void launch_tiles(Stream& s, const ConvGeometry& g, dlfs_dtype dtype, bool relu, const Sm90Tensors& t) {
  const int64_t rows = rows_of(g);
  Sizes z{};
  z.rows = rows;
  z.k = g.k;
  z.row_tiles = static_cast<int32_t>(ceil_div<int64_t>(rows, tile_rows));
  z.column_tiles = ceil_div(g.k, width);
  z.c_slices = ceil_div(g.c, slice);
  z.r = g.r;
  z.s = g.s;
  z.p = g.p;
  z.q = g.q;
  z.parts = s.context->sm_count;
  z.stride_h = g.stride_h;
  z.stride_w = g.stride_w;
  z.pad_h = g.pad_h;
  z.pad_w = g.pad_w;
  z.dilation_h = g.dilation_h;
  z.dilation_w = g.dilation_w;
  z.rows_are_pixels = g.matrix_product();
  z.relu = relu;
  constexpr int columns = box_columns(width);
  const CUtensorMapSwizzle swizzle = columns == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_32B;
  const CUtensorMap x = z.rows_are_pixels ? box_map<2>(t.x, dtype, {g.c, rows}, {slice, tile_rows},
                                                       CU_TENSOR_MAP_SWIZZLE_128B)
                                          : pixel_map(t.x, dtype, g);
  const CUtensorMap w =
      box_map<3>(t.w, dtype, {g.c, int64_t{g.r} * g.s, g.k}, {slice, 1, width}, CU_TENSOR_MAP_SWIZZLE_128B);
  const CUtensorMap y = box_map<2>(t.y, dtype, {g.k, rows}, {columns, tile_rows}, swizzle);
  const CUtensorMap residual =
      t.residual ? box_map<2>(t.residual, dtype, {g.k, rows}, {columns, tile_rows}, swizzle) : y;
  const auto kernel = conv_sm90_kernel<T, width>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes(width)));
  launch(s, dim3(grid_blocks(*s.context, z.row_tiles, z.column_tiles, t.moments != nullptr)), dim3(threads),
         static_cast<size_t>(shared_bytes(width)), kernel, x, w, y, residual, t.bias, t.residual != nullptr,
         t.moments, z);
}

class Sm90Conv final : public ConvAlgorithm {
 public:
  Sm90Conv(const ConvProblem& problem, int tile_width) : problem_(problem), tile_width_(tile_width) {}

  int64_t workspace_bytes() const override { return 0; }
  std::string pick() const override { return format("sm90 %d", tile_width_); }

  void run(Stream& s, const ConvTensors& t, void*) const override {
    const bool aligned = aligned16({t.x, t.w, t.y, t.bias, t.residual});
    DLFS_CHECK(aligned || !problem_.moments, DLFS_ERROR_ARGUMENT, "with moments, x, w and y must be 16-byte aligned");
    if (!aligned) return run_direct(s, problem_, t);
    run_sm90(s, problem_.g, problem_.dtype, problem_.activation == DLFS_ACT_RELU, tile_width_,
             {t.x, t.w, t.y, t.bias, t.residual, t.moments});
  }

 private:
  const ConvProblem problem_;
  const int tile_width_;
};

}  // namespace

std::vector<int> sm90_tile_widths(const Context& context, const ConvProblem& problem) {
  const ConvGeometry& g = problem.g;
  const bool low = problem.dtype == DLFS_BF16 || problem.dtype == DLFS_F16;
  const bool relu = problem.activation == DLFS_ACT_NONE || problem.activation == DLFS_ACT_RELU;
  const auto near = [](int64_t value) { return value >= -128 && value < 128; };
  // What the descriptors of TMA can say: sizes in multiples of 16 bytes, corners of 8 bits, offsets of 8 bits.
  const bool describable = g.c % 8 == 0 && g.k % 8 == 0 && g.stride_h <= 8 && g.stride_w <= 8 && near(-g.pad_h) &&
                           near(-g.pad_w) && near(g.pad_h - int64_t{g.r - 1} * g.dilation_h) &&
                           near(g.pad_w - int64_t{g.s - 1} * g.dilation_w) && int64_t{g.r - 1} * g.dilation_h < 256 &&
                           int64_t{g.s - 1} * g.dilation_w < 256 && int64_t{g.r} * g.s <= taps_limit;
  if (context.compute_capability != 90 || problem.direction != DLFS_CONV_FORWARD || !low || !relu || g.groups != 1 ||
      !describable || rows_of(g) > INT32_MAX - tile_rows) {
    return {};
  }
  std::vector<int> widths;
  if (g.k > 128) widths.push_back(256);
  if (g.k > 64) widths.push_back(128);
  widths.push_back(64);
  // 208 where it wastes no more than multiples of 64 would.
  const auto wasted = [&](int width) { return ceil_div(g.k, width) * width - g.k; };
  if (g.k > 128 && !problem.moments && wasted(208) <= wasted(64)) widths.insert(widths.begin(), 208);
  return widths;
}

void run_sm90(Stream& stream, const ConvGeometry& g, dlfs_dtype dtype, bool relu, int tile_width,
              const Sm90Tensors& tensors) {
  const auto run = [&](auto tag) {
    using T = typename decltype(tag)::type;
    switch (tile_width) {
      case 64: return launch_tiles<T, 64>(stream, g, dtype, relu, tensors);
      case 128: return launch_tiles<T, 128>(stream, g, dtype, relu, tensors);
      case 208: return launch_tiles<T, 208>(stream, g, dtype, relu, tensors);
      default: return launch_tiles<T, 256>(stream, g, dtype, relu, tensors);
    }
  };
  if (dtype == DLFS_BF16) {
    run(TypeTag<bf16>{});
  } else {
    run(TypeTag<f16>{});
  }
}

std::shared_ptr<const ConvAlgorithm> sm90_algorithm(const ConvProblem& problem, int tile_width) {
  return std::make_shared<Sm90Conv>(problem, tile_width);
}

}  // namespace dlfs
