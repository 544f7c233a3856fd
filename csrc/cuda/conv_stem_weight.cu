// Convolution of few input channels, weight gradient: dw[k][tap] = the sum over all results of dy[result][k] times
// window[result][tap]. Tensor cores sum 16 results of a row at a time, with the output channels as the rows of the
// product and the taps as its columns. A block adds up its tiles in registers and leaves one partial sum in the
// workspace; a second kernel adds those in double precision. Every sum has a fixed order.
#include "cuda/conv_stem.cuh"
#include "cuda/norm.cuh"

namespace dlfs {
namespace {

constexpr int32_t weight_tile_p = 4;
constexpr int weight_stages = 3;  // tiles in shared memory: the one in use, and two underway

// How the warps of a block share the product: each has 16 Rows output channels and 16 Pairs taps; Slices warps lie side
// by side along the taps, and the others take other results of the tile. Step: the layout's `step` where it is known
// when the kernel is compiled, else 0.
template <int Rows_, int Pairs_, int Slices_, int Step_ = 0>
struct WeightShape {
  static constexpr int Rows = Rows_, Pairs = Pairs_, Slices = Slices_, Step = Step_;
  static constexpr int channels = 16 * Rows;
  static constexpr int columns = 16 * Pairs * Slices;
  static constexpr int shares = stem_warps / Slices;
  static constexpr int chunks = 2 * Rows;  // of 16 bytes, per result of dy
  static constexpr int results_bytes = weight_tile_p * stem_columns * chunks * 16;
  static constexpr int sums = Rows * Pairs * 8;  // a lane's
};

// Results of eight in a row have their 16-byte chunks in different banks: chunk c of result i lies at place c ^ turn(i).
template <int chunks>
__device__ __forceinline__ int32_t turn(int32_t result) {
  return chunks == 8 ? result % 8 : result / 2 % 4;
}

template <int chunks>
__device__ __forceinline__ int32_t chunk_offset(int32_t result, int32_t chunk) {
  return (result * chunks + (chunk ^ turn<chunks>(result))) * 16;
}

// Brings a tile of dy (N, P, Q, K) to shared memory, the channels from `first` on; zeros beyond P, Q and K. vector: rows
// of K are made of aligned 16-byte chunks.
template <class Shape>
__device__ __forceinline__ void stage_results(char* to, const uint16_t* dy, const ConvGeometry& g,
                                              const StemTile& tile, int32_t first, bool vector) {
  // A thread has one chunk of every `apart`-th result.
  constexpr int chunks = Shape::chunks, apart = stem_threads / chunks;
  const int32_t result = static_cast<int32_t>(threadIdx.x) / chunks, chunk = static_cast<int32_t>(threadIdx.x) % chunks;
  const int32_t k = first + 8 * chunk, q = tile.q + result;
  const uint16_t* const from = dy + (static_cast<int64_t>(tile.n * g.p + tile.p) * g.q + q) * g.k + k;
  char* const place = to + chunk_offset<chunks>(result, chunk);
#pragma unroll
  for (int i = 0; i < weight_tile_p * stem_columns / apart; ++i) {
    const int32_t row = i * apart / stem_columns, column = i * apart % stem_columns;
    const bool inside = tile.p + row < g.p && q + column < g.q && k < g.k;
    const uint16_t* const source = inside ? from + static_cast<int64_t>(row * g.q + column) * g.k : dy;
    char* const target = place + i * apart * chunks * 16;
    if (vector) {
      copy_async<16>(target, source, inside ? 16 : 0);
    } else {
      for (int32_t c = 0; c < 8; ++c) {
        reinterpret_cast<uint16_t*>(target)[c] = inside && k + c < g.k ? source[c] : uint16_t{0};
      }
    }
  }
}

// partial (blocks x, blocks y, channels, columns): the sums over the block's tiles.
template <class T, class Shape>
__global__ void __launch_bounds__(stem_threads, 2)
    stem_weight_kernel(float* partial, const uint16_t* x, const uint16_t* dy, StemLayout l, bool vector) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  constexpr int Rows = Shape::Rows, Pairs = Shape::Pairs;
  extern __shared__ uint4 stem_shared[];
  char* const shared = reinterpret_cast<char*>(stem_shared);
  const ConvGeometry& g = l.g;
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32, lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t i = lane / 4, j = lane % 4;
  const int32_t slice = warp % Shape::Slices, share = warp / Shape::Slices;
  const int32_t first = static_cast<int32_t>(blockIdx.y) * Shape::channels;
  int32_t offsets[Pairs];
#pragma unroll
  for (int pair = 0; pair < Pairs; ++pair) offsets[pair] = l.offset(16 * (slice * Pairs + pair) + 2 * i);

  int32_t my_chunks[Rows];  // where the rows of dy that this lane passes to load_transposed() lie, of 16 results
#pragma unroll
  for (int row = 0; row < Rows; ++row) {
    my_chunks[row] = chunk_offset<Shape::chunks>(lane / 16 * 8 + lane % 8, 2 * row + lane / 8 % 2);
  }

  const int32_t stage_bytes = l.tile_bytes() + Shape::results_bytes;
  const int32_t tiles = l.tiles(), next = static_cast<int32_t>(gridDim.x);
  int32_t coming = static_cast<int32_t>(blockIdx.x), slot = 0;  // the tile to bring next, and where to
  const auto stage = [&] {
    if (coming < tiles) {
      const StemTile tile = stem_tile(l, coming);
      char* const to = shared + slot * stage_bytes;
      stage_results<Shape>(to, dy, g, tile, first, vector);
      stage_rows(reinterpret_cast<uint32_t*>(to + Shape::results_bytes), x, l, tile);
      coming = coming < tiles - next ? coming + next : tiles;
    }
    slot = slot + 1 < weight_stages ? slot + 1 : 0;
    commit_copies();  // an empty group too, so that waiting can count them
  };
  for (int i = 1; i < weight_stages; ++i) stage();

  float sums[Rows][Pairs][2][4] = {};
  const int32_t step = (Shape::Step > 0 ? Shape::Step : l.step) * 2;  // bytes between the windows of neighbouring results
  int32_t current = 0;
  for (int32_t number = static_cast<int32_t>(blockIdx.x);;) {
    wait_copies<weight_stages - 2>();
    __syncthreads();  // this tile is here, and nobody reads the one before it
    stage();
    const char* const results = shared + current * stage_bytes;
    const int32_t rows = min(l.tile_p, g.p - number / l.tiles_q % l.tiles_p * l.tile_p);
    for (int32_t part = share; part < 2 * rows; part += Shape::shares) {
      uint32_t gradients[Rows][4];
#pragma unroll
      for (int row = 0; row < Rows; ++row) {
        load_transposed(gradients[row], results + part * 16 * Shape::chunks * 16 + my_chunks[row]);
      }
      const char* const window = results + Shape::results_bytes + part / 2 * g.stride_h * l.pitch * 4 + l.lead * 2 +
                                 (part % 2 * 16 + 2 * j) * step;
#pragma unroll
      for (int pair = 0; pair < Pairs; ++pair) {
        const char* const taps = window + offsets[pair];
        const uint32_t a = pair_at(taps, 0), b = pair_at(taps, step);
        const uint32_t c = pair_at(taps, 8 * step), d = pair_at(taps, 9 * step);
        // The lower values are one product's column, the upper ones another's.
        const uint32_t lower[2] = {__byte_perm(a, b, 0x5410), __byte_perm(c, d, 0x5410)};
        const uint32_t upper[2] = {__byte_perm(a, b, 0x7632), __byte_perm(c, d, 0x7632)};
#pragma unroll
        for (int row = 0; row < Rows; ++row) {
          multiply_add<T>(sums[row][pair][0], gradients[row], lower);
          multiply_add<T>(sums[row][pair][1], gradients[row], upper);
        }
      }
    }
    current = current + 1 < weight_stages ? current + 1 : 0;
    if (number >= tiles - next) break;
    number += next;
  }

  // The shares of the block, in order.
  wait_copies<0>();
  float* const exchange = reinterpret_cast<float*>(shared) + slice * 32 + lane;
  float* const flat = &sums[0][0][0][0];
  for (int32_t other = 1; other < Shape::shares; ++other) {
    __syncthreads();
    if (share == other) {
#pragma unroll
      for (int at = 0; at < Shape::sums; ++at) exchange[at * 32 * Shape::Slices] = flat[at];
    }
    __syncthreads();
    if (share == 0) {
#pragma unroll
      for (int at = 0; at < Shape::sums; ++at) flat[at] += exchange[at * 32 * Shape::Slices];
    }
  }
  if (share != 0) return;
  float* const out = partial + (static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y) * Shape::channels *
                                   Shape::columns;
#pragma unroll
  for (int row = 0; row < Rows; ++row) {
#pragma unroll
    for (int pair = 0; pair < Pairs; ++pair) {
      const float(&sum)[2][4] = sums[row][pair];
      const int32_t column = 16 * (slice * Pairs + pair) + 4 * j;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        *reinterpret_cast<float4*>(out + (16 * row + 8 * half + i) * Shape::columns + column) =
            make_float4(sum[0][2 * half], sum[1][2 * half], sum[0][2 * half + 1], sum[1][2 * half + 1]);
      }
    }
  }
#endif
}

// dw (K, R, S, C) from partial (splits, channels, columns), channels being at least K.
__global__ void __launch_bounds__(1024)
    stem_finish_kernel(float* dw, const float* partial, int32_t splits, int32_t channels, int32_t columns,
                       StemLayout l) {
  const ConvGeometry& g = l.g;
  const int32_t weight = static_cast<int32_t>(blockIdx.x * 32 + threadIdx.x), filter = g.r * g.s * g.c;
  const bool active = weight < g.k * filter;
  const int32_t r = weight % filter / (g.s * g.c), s = weight / g.c % g.s, c = weight % g.c;
  const int64_t at = static_cast<int64_t>(weight / filter) * columns + r * l.row_taps + l.shift + s * l.pixel + c;
  const double sum = sum_splits(splits, active, [&](int64_t split) {
    return static_cast<double>(partial[split * channels * columns + at]);
  });
  if (active && threadIdx.y == 0) dw[weight] = static_cast<float>(sum);
}

// Calls body(WeightShape) with the shape for a problem.
template <class Body>
void dispatch_weight_shape(const StemLayout& l, Body&& body) {
  const int32_t steps = l.steps();
  const auto of_rows = [&](auto rows) {
    constexpr int Rows = decltype(rows)::value, rgb = 6;  // three channels with stride 2
    if (steps <= 2) return l.step == rgb ? body(WeightShape<Rows, 2, 1, rgb>{}) : body(WeightShape<Rows, 2, 1>{});
    if (steps <= 4) return body(WeightShape<Rows, 4, 1>{});
    if (steps <= 10) return l.step == rgb ? body(WeightShape<Rows, 5, 2, rgb>{}) : body(WeightShape<Rows, 5, 2>{});
    body(WeightShape<Rows, 4, 4>{});
  };
  if (l.g.k <= 32) {
    of_rows(Width<2>{});
  } else {
    of_rows(Width<4>{});
  }
}

// Bytes of a block: the tiles underway, and after them the sums that its warps exchange.
template <class Shape>
int32_t weight_shared_bytes(const StemLayout& l) {
  const int32_t exchange = Shape::shares > 1 ? Shape::sums * 32 * Shape::Slices * 4 : 0;
  return std::max(weight_stages * (l.tile_bytes() + Shape::results_bytes), exchange);
}

// Blocks along the tiles and along the output channels.
template <class Shape>
dim3 weight_blocks(const Context& context, const StemLayout& l) {
  const unsigned across = static_cast<unsigned>(ceil_div(l.g.k, Shape::channels));
  const unsigned most = std::max(1u, static_cast<unsigned>(context.sm_count) * 2 / across);
  return dim3(std::min(static_cast<unsigned>(l.tiles()), most), across);
}

}  // namespace

int64_t stem_weight_workspace(const Context& context, const ConvProblem& problem) {
  const StemLayout l = stem_layout(problem.g, weight_tile_p);
  int64_t bytes = 0;
  dispatch_weight_shape(l, [&](auto shape) {
    using Shape = decltype(shape);
    const dim3 blocks = weight_blocks<Shape>(context, l);
    bytes = int64_t{blocks.x} * blocks.y * Shape::channels * Shape::columns * static_cast<int64_t>(sizeof(float));
  });
  return bytes;
}

int64_t stem_weight_shared_bytes(const ConvProblem& problem) {
  const StemLayout l = stem_layout(problem.g, weight_tile_p);
  int64_t bytes = 0;
  dispatch_weight_shape(l, [&](auto shape) { bytes = weight_shared_bytes<decltype(shape)>(l); });
  return bytes;
}

void run_stem_weight(Stream& stream, const ConvProblem& problem, const ConvTensors& t, void* workspace) {
  const ConvGeometry& g = problem.g;
  const StemLayout l = stem_layout(g, weight_tile_p);
  float* const partial = static_cast<float*>(workspace);
  dispatch_weight_shape(l, [&](auto shape) {
    using Shape = decltype(shape);
    const dim3 blocks = weight_blocks<Shape>(*stream.context, l);
    const int32_t shared = weight_shared_bytes<Shape>(l);
    const bool vector = g.k % 8 == 0 && aligned16({t.y});
    const auto sum = [&](auto tag) {
      using T = typename decltype(tag)::type;
      auto* const kernel = stem_weight_kernel<T, Shape>;
      CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
      launch(stream, blocks, stem_threads, static_cast<size_t>(shared), kernel, partial,
             static_cast<const uint16_t*>(t.x), static_cast<const uint16_t*>(t.y), l, vector);
    };
    if (problem.dtype == DLFS_BF16) {
      sum(TypeTag<bf16>{});
    } else {
      sum(TypeTag<f16>{});
    }
    launch(stream, dim3(static_cast<unsigned>(ceil_div<int64_t>(g.w_elements(), 32))), finish_block, 0,
           stem_finish_kernel, static_cast<float*>(t.w), static_cast<const float*>(partial),
           static_cast<int32_t>(blocks.x), static_cast<int32_t>(blocks.y) * Shape::channels, Shape::columns, l);
  });
}

}  // namespace dlfs
