// Convolution on Hopper (sm_90a): an implicit matrix product y (pixels, K) = x (pixels, R S C) w (K, R S C)^T, and what an
// epilogue makes of it. Of this kernel there are variants in bf16 and f16 (conv_sm90.cu) and in 8 bits
// (conv_sm90_quantized.cu).
//
// A block of three warpgroups takes tiles of 128 pixels by `width` output channels, one after the other. Of the first
// warpgroup one thread copies slices of 128 bytes of channels of one filter tap into a ring of stages, by TMA, which gathers
// the pixels under a tap by itself ("im2col"); another copies the residual's tiles. The other two warpgroups multiply 64
// pixels each (wgmma, sums in registers), then round their half of the tile into a staging buffer, from where TMA stores it
// while the next tile is computed. The second lags behind the first, so that one multiplies while the other rounds. All
// sums are in a fixed order.
#pragma once

#include <algorithm>

#include "cuda/conv_sm90.hpp"
#include "cuda/runtime.cuh"
#include "cuda/sm90.cuh"

namespace dlfs {
namespace sm90 {

constexpr int tile_rows = 128;    // pixels of a tile
constexpr int slice_bytes = 128;  // of channels in a stage: the swizzle's width
constexpr int threads = 384;      // a warpgroup that copies and two that compute
constexpr int shared_limit = 232448;

struct Barriers {
  uint64_t full[8], empty[8];  // stages
  uint64_t residual_full[4], residual_empty[4];
};

// How tiles of `width` channels lie in shared memory; operands of type X, results and residual of type Y.
template <class X_, class Y_, int width_>
struct Tiles {
  using X = X_;
  using Y = Y_;
  static constexpr int width = width_;
  static constexpr int slice = slice_bytes / static_cast<int>(sizeof(X));  // channels of a stage
  static constexpr int stage_bytes = (tile_rows + width) * slice_bytes;
  static constexpr int row_bytes = width * static_cast<int>(sizeof(Y));
  static constexpr int staging_bytes = tile_rows * row_bytes;
  // The staging buffer consists of boxes of so many bytes a row, swizzled by as many.
  static constexpr int box_bytes = row_bytes % 128 == 0 ? 128 : row_bytes % 64 == 0 ? 64 : 32;
  static constexpr int box_columns = box_bytes / static_cast<int>(sizeof(Y));
  static constexpr int stagings = width <= 128 ? 3 : 1;
  static constexpr int stages = std::min(8, (shared_limit - 2048 - stagings * staging_bytes) / stage_bytes);
  // 1024: to align the tiles.
  static constexpr int shared_bytes =
      1024 + stages * stage_bytes + stagings * staging_bytes + static_cast<int>(sizeof(Barriers));
  static_assert(shared_bytes <= shared_limit && stages >= 3);
  // A thread's sums are of pairs of channels, but two pairs make a unit of stmatrix where results have 8 bits: there,
  // of 16 columns, column 8 h + 2 q + e holds channel 4 q + 2 h + e (q < 4, h and e < 2), so that a thread has four
  // channels in a row.
  static constexpr bool interleaved = sizeof(Y) == 1;
};

struct Sizes {
  int32_t rows;  // N P Q
  int32_t k;
  int32_t row_tiles, column_tiles;
  int32_t c, c_slices;  // ceil(C / slice)
  int32_t r, s;
  int32_t p, q;
  int32_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  bool rows_are_pixels;  // a matrix product: x is loaded as a matrix
  bool relu;
  bool has_residual;
};

#ifdef DLFS_SM90

// Bytes from the start of a staging buffer to 16 bytes of a row; byte % 16 == 0.
template <class Tiles>
__device__ __forceinline__ uint32_t staging_offset(int row, int byte) {
  constexpr int size = Tiles::box_bytes;
  const int chunk = byte % size / 16;
  const int swizzled = chunk ^ (size == 128 ? row & 7 : size == 64 ? row >> 1 & 3 : row >> 2 & 1);
  return static_cast<uint32_t>(byte / size * (tile_rows * size) + row * size + swizzled * 16);
}

// The tiles of a block, every gridDim.x-th, columns first; without divisions on the way, which small tiles would feel.
struct TileWalk {
  int row_tile, column_tile;

  __device__ explicit TileWalk(const Sizes& z)
      : row_tile(static_cast<int>(blockIdx.x) / z.column_tiles),
        column_tile(static_cast<int>(blockIdx.x) % z.column_tiles),
        row_step_(static_cast<int>(gridDim.x) / z.column_tiles),
        column_step_(static_cast<int>(gridDim.x) % z.column_tiles) {}

  __device__ bool more(const Sizes& z) const { return row_tile < z.row_tiles; }
  __device__ void next(const Sizes& z) {
    row_tile += row_step_;
    column_tile += column_step_;
    if (column_tile >= z.column_tiles) {
      column_tile -= z.column_tiles;
      ++row_tile;
    }
  }

 private:
  int row_step_, column_step_;
};

template <class Tiles>
struct Block {
  char* tiles;
  char* staging;
  Barriers* barriers;

  __device__ char* x_tile(int stage) const { return tiles + stage * Tiles::stage_bytes; }
  __device__ char* w_tile(int stage) const { return x_tile(stage) + tile_rows * slice_bytes; }
  __device__ char* staging_tile(int which) const { return staging + which * Tiles::staging_bytes; }
};

template <class Tiles>
__device__ void copy_operands(const Block<Tiles>& block, const CUtensorMap* x_map, const CUtensorMap* w_map,
                              const Sizes& z) {
  int stage = 0;
  uint32_t parity = 1;
  for (TileWalk tile(z); tile.more(z); tile.next(z)) {
    const int first = tile.row_tile * tile_rows, column = tile.column_tile * Tiles::width;
    int image = 0, h = 0, w = 0;
    if (!z.rows_are_pixels) {
      image = first / (z.p * z.q);
      const int pixel = first % (z.p * z.q);
      h = pixel / z.q * z.stride_h - z.pad_h;
      w = pixel % z.q * z.stride_w - z.pad_w;
    }
    for (int tap = 0; tap < z.r * z.s; ++tap) {
      const uint16_t offset_h = static_cast<uint16_t>(tap / z.s * z.dilation_h);
      const uint16_t offset_w = static_cast<uint16_t>(tap % z.s * z.dilation_w);
      for (int i = 0; i < z.c_slices; ++i) {
        const int c = i * Tiles::slice;
        barrier_wait(&block.barriers->empty[stage], parity);
        uint64_t* const full = &block.barriers->full[stage];
        barrier_expect(full, Tiles::stage_bytes);
        if (z.rows_are_pixels) {
          load_box(block.x_tile(stage), x_map, full, c, first);
        } else {
          load_pixels(block.x_tile(stage), x_map, full, c, w, h, image, offset_w, offset_h);
        }
        if constexpr (Tiles::interleaved) {
          load_box(block.w_tile(stage), w_map, full, tap * z.c + c, 0, 0, 0, column / 16);
        } else {
          load_box(block.w_tile(stage), w_map, full, c, tap, column);
        }
        if (++stage == Tiles::stages) {
          stage = 0;
          parity ^= 1;
        }
      }
    }
  }
}

template <class Tiles>
__device__ void copy_residual(const Block<Tiles>& block, const CUtensorMap* map, const Sizes& z) {
  int which = 0;
  uint32_t parity = 1;
  for (TileWalk tile(z); tile.more(z); tile.next(z)) {
    const int row = tile.row_tile * tile_rows, column = tile.column_tile * Tiles::width;
    barrier_wait(&block.barriers->residual_empty[which], parity);
    uint64_t* const full = &block.barriers->residual_full[which];
    barrier_expect(full, Tiles::staging_bytes);
    for (int i = 0; i < Tiles::width; i += Tiles::box_columns) {
      load_box(block.staging_tile(which) + i / Tiles::box_columns * tile_rows * Tiles::box_bytes, map, full, column + i,
               row);
    }
    if (++which == Tiles::stagings) {
      which = 0;
      parity ^= 1;
    }
  }
}

// Multiplies one tile's slices as they come; `stage` and `parity` go on from tile to tile.
template <class Tiles>
__device__ __forceinline__ void multiply(SumOf<typename Tiles::X> (&sums)[Tiles::width / 2], const Block<Tiles>& block,
                                         int group, bool first, int& stage, uint32_t& parity, const Sizes& z) {
  const int steps = z.r * z.s * z.c_slices;
  const bool leads = threadIdx.x % 128 == 0;
  int previous = -1;
  for (int step = 0; step < steps; ++step) {
    barrier_wait(&block.barriers->full[stage], parity);
    products_begin();
    const uint64_t a = tile_descriptor(block.x_tile(stage) + group * 64 * slice_bytes);
    const uint64_t b = tile_descriptor(block.w_tile(stage));
#pragma unroll
    for (int i = 0; i < slice_bytes / 32; ++i) {
      // 32 bytes are two units of a descriptor.
      Product<typename Tiles::X, Tiles::width>::add(sums, a + i * 2, b + i * 2, step + i > 0);
    }
    products_commit();
    // The second warpgroup starts when the first has multiplied two slices.
    if (first && group == 0 && step == min(1, steps - 1)) barrier_arrive_named(4, 256);
    products_wait<1>();
    if (previous >= 0 && leads) barrier_arrive(&block.barriers->empty[previous]);
    previous = stage;
    if (++stage == Tiles::stages) {
      stage = 0;
      parity ^= 1;
    }
  }
  products_wait<0>();
  if (leads) barrier_arrive(&block.barriers->empty[previous]);
}

template <class Tiles, class Epilogue>
__device__ void compute(const Block<Tiles>& block, const CUtensorMap* y_map, const Epilogue& epilogue, const Sizes& z) {
  using X = typename Tiles::X;
  constexpr int unit_columns = 32 / static_cast<int>(sizeof(typename Tiles::Y)), stagings = Tiles::stagings;
  const int thread = static_cast<int>(threadIdx.x) - 128, group = thread / 128, lane = thread % 32;
  // The row of a matrix and the 16 of 32 bytes that this thread addresses in the staging buffer.
  const int staging_row = group * 64 + thread % 128 / 32 * 16 + (lane & 15), staging_byte = lane / 16 * 16;
  const bool leads = thread % 128 == 0;
  // What a warpgroup rounds it stores by itself, unless the epilogue looks at whole tiles.
  const bool whole = epilogue.whole();
  const auto together = [&] {
    if (whole) {
      named_barrier(1, 256);
    } else {
      named_barrier(2 + group, 128);
    }
  };
  int stage = 0, which = 0;
  uint32_t parity = 0, residual_parity = 0;
  int done = 0;
  typename Epilogue::State state;
  if (group == 1 && !whole) named_barrier(4, 256);
  for (TileWalk tile(z); tile.more(z); tile.next(z)) {
    const int row = tile.row_tile * tile_rows, column = tile.column_tile * Tiles::width;
    SumOf<X> sums[Tiles::width / 2];
    multiply(sums, block, group, done == 0 && !whole, stage, parity, z);

    char* const staging = block.staging_tile(which);
    const uint32_t staging_address = shared_address(staging);
    if (z.has_residual) barrier_wait(&block.barriers->residual_full[which], residual_parity);
    // The staging buffer has been read: its leader waited for the store, all for what the epilogue does with it.
    together();
#pragma unroll
    for (int j = 0; j < Tiles::width / unit_columns; ++j) {
      const uint32_t address = staging_address + staging_offset<Tiles>(staging_row, 32 * j + staging_byte);
      uint32_t bits[4];
      if (z.has_residual) load_matrices(bits, address);
      epilogue.round(sums + j * (unit_columns / 2), bits, column + j * unit_columns, lane % 4, z);
      store_matrices(address, bits);
    }
    fence_async();
    together();
    if (leads) {
      for (int i = 0; i < Tiles::width; i += Tiles::box_columns) {
        if (column + i >= z.k) break;
        const int first_row = i / Tiles::box_columns * tile_rows + 64 * group;
        store_box(y_map, staging + first_row * Tiles::box_bytes, column + i, row + 64 * group);
      }
      commit_stores();
      wait_stores_read<stagings - 1>();
      if (z.has_residual && done + 1 >= stagings) {
        barrier_arrive(&block.barriers->residual_empty[(which + 1) % stagings]);
      }
    }
    epilogue.look(state, staging, thread, min(tile_rows, z.rows - row));
    ++done;
    if (++which == stagings) {
      which = 0;
      residual_parity ^= 1;
    }
  }
  // The stages are free: every copy that was started has been multiplied.
  epilogue.end(state, block.tiles, thread, z);
  // Shared memory must not go before the stores have read it.
  if (leads) wait_stores_read<0>();
}

#endif

// Tiles: an instance of the template above. Epilogue: a struct with
//   State         what a thread keeps from tile to tile
//   whole()       whether `look` needs all threads' parts of a tile, the same for all threads
//   round(sums, bits, column, quarter, sizes)
//                 makes the four registers of an stmatrix unit, two times 16 bytes of columns from `column` on, out of the
//                 thread's sums; `quarter` is its place among the four threads of a row, and `bits` hold the residual
//   look(state, staging, thread, rows), end(state, scratch, thread, sizes)
//                 after each tile, and after all
template <class Tiles, class Epilogue>
__global__ void __launch_bounds__(threads, 1)
    conv_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                const __grid_constant__ CUtensorMap y_map, const __grid_constant__ CUtensorMap residual_map,
                const __grid_constant__ Epilogue epilogue, const __grid_constant__ Sizes z) {
#ifdef DLFS_SM90
  extern __shared__ char shared[];
  Block<Tiles> block;
  block.tiles = shared + (1024 - (shared_address(shared) & 1023)) % 1024;
  block.staging = block.tiles + Tiles::stages * Tiles::stage_bytes;
  block.barriers = reinterpret_cast<Barriers*>(block.staging + Tiles::stagings * Tiles::staging_bytes);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 8; ++i) {
      barrier_init(&block.barriers->full[i], 1);
      barrier_init(&block.barriers->empty[i], 2);  // a thread of each computing warpgroup
    }
    for (int i = 0; i < 4; ++i) {
      barrier_init(&block.barriers->residual_full[i], 1);
      barrier_init(&block.barriers->residual_empty[i], 2);
    }
    barrier_init_done();
    prefetch_map(&x_map);
    prefetch_map(&w_map);
    prefetch_map(&y_map);
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<40>();
    if (threadIdx.x == 0) copy_operands(block, &x_map, &w_map, z);
    if (threadIdx.x == 32 && z.has_residual) copy_residual(block, &residual_map, z);
  } else {
    take_registers<232>();
    compute(block, &y_map, epilogue, z);
  }
#endif
}

// ---- host -----------------------------------------------------------------------------------------------------------

// Boxes of a tensor, innermost size first; strides in bytes of all dimensions but the innermost.
CUtensorMap box_map(const void* data, dlfs_dtype dtype, int rank, const int64_t* sizes, const int64_t* strides,
                    const int* box, int swizzle_bytes);

// The pixels of x (N, H, W, C) under one tap of the filter, for consecutive outputs.
CUtensorMap pixel_map(const void* x, dlfs_dtype dtype, const ConvGeometry& g);

inline int64_t rows_of(const ConvGeometry& g) { return int64_t{g.n} * g.p * g.q; }

// Launches the kernel; blocks: how many at most.
template <class Tiles, class Epilogue>
void launch_tiles(Stream& s, const ConvGeometry& g, dlfs_dtype dtype, dlfs_dtype y_dtype, bool relu,
                  const Sm90Tensors& t, const Epilogue& epilogue, int64_t blocks) {
  const int64_t rows = rows_of(g);
  constexpr int slice = Tiles::slice, x_size = sizeof(typename Tiles::X), y_size = sizeof(typename Tiles::Y);
  Sizes z{};
  z.rows = static_cast<int32_t>(rows);
  z.k = g.k;
  z.row_tiles = static_cast<int32_t>(ceil_div<int64_t>(rows, tile_rows));
  z.column_tiles = ceil_div(g.k, Tiles::width);
  z.c = g.c;
  z.c_slices = ceil_div(g.c, slice);
  z.r = g.r;
  z.s = g.s;
  z.p = g.p;
  z.q = g.q;
  z.stride_h = g.stride_h;
  z.stride_w = g.stride_w;
  z.pad_h = g.pad_h;
  z.pad_w = g.pad_w;
  z.dilation_h = g.dilation_h;
  z.dilation_w = g.dilation_w;
  z.rows_are_pixels = g.matrix_product();
  z.relu = relu;
  z.has_residual = t.residual != nullptr;

  const auto matrix = [&](const void* data, dlfs_dtype type, int64_t columns, int size, int box_columns, int box_rows,
                          int swizzle) {
    const int64_t sizes[2] = {columns, rows}, strides[1] = {columns * size};
    const int box[2] = {box_columns, box_rows};
    return box_map(data, type, 2, sizes, strides, box, swizzle);
  };
  const CUtensorMap x =
      z.rows_are_pixels ? matrix(t.x, dtype, g.c, x_size, slice, tile_rows, slice_bytes) : pixel_map(t.x, dtype, g);
  const CUtensorMap y = matrix(t.y, y_dtype, g.k, y_size, Tiles::box_columns, 64, Tiles::box_bytes);
  const CUtensorMap residual =
      t.residual ? matrix(t.residual, y_dtype, g.k, y_size, Tiles::box_columns, tile_rows, Tiles::box_bytes) : y;
  const int64_t taps = int64_t{g.r} * g.s, channel = taps * g.c * x_size;
  CUtensorMap w;
  if constexpr (Tiles::interleaved) {
    // Channels in the order (16 channels, h, q, e) of Tiles; a slice may reach into the next tap, where x counts as 0.
    const int64_t sizes[5] = {taps * g.c, 2, 4, 2, g.k / 16};
    const int64_t strides[4] = {channel, 4 * channel, 2 * channel, 16 * channel};
    const int box[5] = {slice, 2, 4, 2, Tiles::width / 16};
    w = box_map(t.w, dtype, 5, sizes, strides, box, slice_bytes);
  } else {
    const int64_t sizes[3] = {g.c, taps, g.k}, strides[2] = {int64_t{g.c} * x_size, channel};
    const int box[3] = {slice, 1, Tiles::width};
    w = box_map(t.w, dtype, 3, sizes, strides, box, slice_bytes);
  }
  const auto kernel = conv_kernel<Tiles, Epilogue>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tiles::shared_bytes));
  launch(s, dim3(static_cast<unsigned>(std::min(blocks, int64_t{z.row_tiles} * z.column_tiles))), dim3(threads),
         static_cast<size_t>(Tiles::shared_bytes), kernel, x, w, y, residual, epilogue, z);
}

}  // namespace sm90
}  // namespace dlfs
