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
  int32_t lead;      // values before a tile's first window, so that rows can be copied in chunks of 16 bytes
  int32_t row_taps;  // values of a kernel row, even
  int32_t step;      // values between the windows of neighbouring results
  int32_t tile_p;    // rows of results of a tile
  int32_t rows;      // rows of x that they cover
  int32_t pitch;     // pairs of values of such a row in shared memory, a multiple of 4
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
  // Rows are aligned like the image's, of which 32 windows' worth is a multiple of 8 values.
  l.lead = l.widened() ? 0 : (8 - (g.pad_w * g.c + l.shift) % 8) % 8;
  // Where windows are contiguous, three pairs beyond a kernel row may be read, see window_pair().
  const int32_t reach = l.pixel % 2 == 0 ? ((g.s - 1) * g.dilation_w + 1) * l.pixel : l.row_taps + 6;
  l.pitch = ceil_div(l.lead + (stem_columns - 1) * l.step + reach, 8) * 4;
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
// whose chunks of 16 bytes or pairs are aligned are copied asynchronously, others (images of odd width, widened pixels)
// by way of registers.
__device__ __forceinline__ void stage_rows(uint32_t* to, const uint16_t* x, const StemLayout& l, const StemTile& tile) {
  const ConvGeometry& g = l.g;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t width = g.w * g.c, chunks = l.pitch / 4;
  const int32_t top = tile.p * g.stride_h - g.pad_h, left = tile.q * g.stride_w - g.pad_w;
  const int32_t first = left * g.c - l.shift - l.lead;  // in the image's row, a multiple of 8 unless widened
  // How many bytes of `size` from value `at` on lie in the image: all or none, for rows of whole pieces.
  const auto inside = [&](int32_t at, int32_t size) { return at < 0 ? 0 : min(max(width - at, 0), size / 2) * 2; };
  const int32_t my_bytes = lane < chunks ? inside(first + 8 * lane, 16) : 0;
  const int32_t my_first = my_bytes > 0 ? first + 8 * lane : 0;
  for (int32_t row = static_cast<int32_t>(threadIdx.x) / 32; row < l.rows; row += stem_warps) {
    uint32_t* const line = to + row * l.pitch;
    const int32_t h = top + row;
    if (h < 0 || h >= g.h) {
      for (int32_t chunk = lane; chunk < chunks; chunk += 32) {
        *reinterpret_cast<uint4*>(line + 4 * chunk) = make_uint4(0, 0, 0, 0);
      }
      continue;
    }
    const uint16_t* const from = x + static_cast<int64_t>(tile.n * g.h + h) * width;
    const uintptr_t odd = l.widened() ? 1 : reinterpret_cast<uintptr_t>(from);
    // Rows of whole pieces alone: a piece is then copied whole or is zeros, and nothing behind the image is read.
    if (odd % 16 == 0 && width % 8 == 0) {
      if (lane < chunks) copy_async<16>(line + 4 * lane, from + my_first, my_bytes);
      for (int32_t chunk = lane + 32; chunk < chunks; chunk += 32) {
        const int32_t bytes = inside(first + 8 * chunk, 16);
        copy_async<16>(line + 4 * chunk, bytes > 0 ? from + first + 8 * chunk : from, bytes);
      }
      continue;
    }
    if (odd % 4 == 0 && width % 2 == 0) {
      for (int32_t word = lane; word < l.pitch; word += 32) {
        const int32_t bytes = inside(first + 2 * word, 4);
        copy_async<4>(line + word, bytes > 0 ? from + first + 2 * word : from, bytes);
      }
      continue;
    }
    const auto value = [&](int32_t i) -> uint32_t {
      int32_t at = first + i;
      if (l.widened()) {
        const int32_t column = left + i / l.pixel, c = i % l.pixel;
        if (c >= g.c || column < 0) return 0;
        at = column * g.c + c;
      }
      return at >= 0 && at < width ? from[at] : 0;
    };
#pragma unroll 4
    for (int32_t word = lane; word < l.pitch; word += 32) line[word] = value(2 * word) | value(2 * word + 1) << 16;
  }
}

// Sizes of a layout that are known when a kernel is compiled, which saves it most of its address arithmetic: kernel rows
// of row_taps consecutive values, without dilation. All 0: none is known.
template <int R, int RowTaps, int Step, int Pitch>
struct StemSizes {
  static constexpr bool known = R > 0;
  static constexpr int r = R, row_pairs = RowTaps / 2, step = Step, pitch = Pitch;
  static bool fit(const StemLayout& l) {
    return l.pixel % 2 == 1 && l.g.dilation_h == 1 && l.g.r == R && l.row_taps == RowTaps && l.step == Step &&
           l.pitch == Pitch;
  }
};

// The pair of values at a byte offset from a window.
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
