// Convolutions of few input channels (the first layer of a network) as an implicit matrix product on tensor cores: what
// the forward kernel (conv_stem_forward.cu) and the weight gradient (conv_stem_weight.cu) share.
//
// A block walks over tiles of tile_p x 32 results. The rows of x that a tile's windows cover lie in shared memory as
// they do in global memory, zeros around the image included, so that the values of one kernel row are consecutive: C S
// of them, and the window of the next column begins C stride_w later. Tensor cores take their operands in pairs of
// values, so windows must begin at even places: where the padding makes them odd, a kernel row is begun one value
// early, with a weight of 0; where C and the stride are both odd, or pairs would span the gap of a dilation, pixels are
// widened to 2 or 4 channels. The sum over a window thus runs over `taps`, R rows of row_taps values.
#pragma once

#include "cuda/conv.hpp"
#include "cuda/mma.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {

constexpr int stem_threads = 128;
constexpr int stem_warps = stem_threads / 32;
constexpr int stem_columns = 32;  // results of a tile's row
// Shared memory that every device grants without being asked; the tables and biases take the rest of the 48 KiB.
constexpr int64_t stem_shared_limit = 44 * 1024;

struct StemLayout {
  ConvGeometry g;
  int32_t pixel;     // values per pixel in shared memory: C, or 2 or 4 where widened
  int32_t shift;     // 0 or 1: values before a kernel row that have no weight
  int32_t row_taps;  // values of a kernel row, even
  int32_t step;      // values between the windows of neighbouring results
  int32_t tile_p;    // rows of results of a tile
  int32_t rows;      // rows of x that they cover, of which each holds `words` pairs, `pitch` pairs apart
  int32_t words;
  int32_t pitch;
  int32_t tiles_p, tiles_q;

  DLFS_HD int32_t taps() const { return g.r * row_taps; }
  DLFS_HD int32_t tiles() const { return g.n * tiles_p * tiles_q; }
  DLFS_HD bool widened() const { return pixel != g.c; }
  DLFS_HD int32_t tile_bytes() const { return rows * pitch * 4; }
  // Steps of 16 taps, which one tensor core instruction sums.
  DLFS_HD int32_t steps() const { return (taps() + 15) / 16; }

  // Byte offset of the pair of taps (tap, tap + 1), tap even, from the window's first; 0 beyond the last tap.
  __device__ int32_t offset(int32_t tap) const {
    if (tap >= taps()) return 0;
    const int32_t r = tap / row_taps;
    int32_t i = tap % row_taps;
    if (pixel % 2 == 0) i = i / pixel * g.dilation_w * pixel + i % pixel;
    return r * g.dilation_h * pitch * 4 + i * 2;
  }

  // A tap's place in a filter (R, S, C), or -1 where it has none.
  __device__ int32_t source(int32_t tap) const {
    const int32_t r = tap / row_taps, i = tap % row_taps - shift;
    const int32_t s = i / pixel, c = i % pixel;
    return r < g.r && i >= 0 && s < g.s && c < g.c ? (r * g.s + s) * g.c + c : -1;
  }
};

// The layout for tiles of tile_p rows. All sizes are below 2^30 where stem_supports() says so.
inline StemLayout stem_layout(const ConvGeometry& g, int32_t tile_p) {
  StemLayout l{};
  l.g = g;
  const bool even = g.c % 2 == 0 || (g.stride_w % 2 == 0 && (g.dilation_w == 1 || g.s == 1));
  l.pixel = even ? g.c : g.c + 1;
  l.shift = l.pixel % 2 * (g.pad_w % 2);
  l.row_taps = (l.shift + g.s * l.pixel + 1) / 2 * 2;
  l.step = g.stride_w * l.pixel;
  l.tile_p = tile_p;
  l.rows = (tile_p - 1) * g.stride_h + (g.r - 1) * g.dilation_h + 1;
  const int32_t reach = l.pixel % 2 == 0 ? ((g.s - 1) * g.dilation_w + 1) * l.pixel : l.row_taps;
  l.words = ((stem_columns - 1) * l.step + reach + 1) / 2;
  // Kernel rows follow each other in the banks of shared memory as the values within a row do, so that reading 16
  // consecutive taps never meets a bank twice.
  l.pitch = l.words + ((l.row_taps / 2 - l.words) % 32 + 32) % 32;
  l.tiles_p = ceil_div(g.p, tile_p);
  l.tiles_q = ceil_div(g.q, stem_columns);
  return l;
}

// The first result of a tile.
struct StemTile {
  int32_t n, p, q;
};

__device__ __forceinline__ StemTile stem_tile(const StemLayout& l, int32_t number) {
  const int32_t row = number / l.tiles_q;
  return {row / l.tiles_p, row % l.tiles_p * l.tile_p, number % l.tiles_q * stem_columns};
}

// Brings the rows of x (N, H, W, C), 16-bit values, that a tile needs to shared memory: to[rows][pitch] of pairs. Rows
// whose pairs are aligned are copied asynchronously, others (images of odd width, widened pixels) by way of registers.
__device__ __forceinline__ void stage_rows(uint32_t* to, const uint16_t* x, const StemLayout& l, const StemTile& tile) {
  const ConvGeometry& g = l.g;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t width = g.w * g.c;
  const int32_t top = tile.p * g.stride_h - g.pad_h, left = tile.q * g.stride_w - g.pad_w;
  for (int32_t row = static_cast<int32_t>(threadIdx.x) / 32; row < l.rows; row += stem_warps) {
    uint32_t* const line = to + row * l.pitch;
    const int32_t h = top + row;
    if (h < 0 || h >= g.h) {
      for (int32_t word = lane; word < l.words; word += 32) line[word] = 0;
      continue;
    }
    const uint16_t* const from = x + (static_cast<int64_t>(tile.n) * g.h + h) * width;
    if (!l.widened() && reinterpret_cast<uintptr_t>(from) % 4 == 0) {
      const int32_t first = left * g.c - l.shift;
      for (int32_t word = lane; word < l.words; word += 32) {
        const int32_t at = first + 2 * word;
        const int32_t bytes = at < 0 ? 0 : min(max(width - at, 0), 2) * 2;
        copy_async<4>(line + word, bytes > 0 ? from + at : from, bytes);
      }
      continue;
    }
    const auto value = [&](int32_t i) -> uint32_t {
      int32_t at = left * g.c - l.shift + i;
      if (l.widened()) {
        const int32_t column = left + i / l.pixel, c = i % l.pixel;
        if (c >= g.c || column < 0) return 0;
        at = column * g.c + c;
      }
      return at >= 0 && at < width ? from[at] : 0;
    };
#pragma unroll 4
    for (int32_t word = lane; word < l.words; word += 32) line[word] = value(2 * word) | value(2 * word + 1) << 16;
  }
}

// The pair of values at a byte offset.
__device__ __forceinline__ uint32_t pair_at(const char* window, int32_t offset) {
  return *reinterpret_cast<const uint32_t*>(window + offset);
}

// y = activation(conv(x, w) + bias + residual).
void run_stem_forward(Stream& stream, const ConvProblem& problem, const ConvTensors& tensors);

// dw, with partial sums in the workspace, and the shared memory that it needs per block.
void run_stem_weight(Stream& stream, const ConvProblem& problem, const ConvTensors& tensors, void* workspace);
int64_t stem_weight_workspace(const Context& context, const ConvProblem& problem);
int64_t stem_weight_shared_bytes(const ConvProblem& problem);

}  // namespace dlfs
