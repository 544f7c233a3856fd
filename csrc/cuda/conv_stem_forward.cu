// Convolution of few input channels, forward: y = activation(conv(x, w) + bias + residual), and the algorithm of the
// convolution plans. A warp holds the filters of its 8 Tiles output channels in registers for as long as the kernel
// runs and takes one row of a tile, 32 results, at a time.
#include "cuda/conv_stem.cuh"

namespace dlfs {
namespace {

// v[i] = activation(v[i]), with one decision for all.
template <int N>
__device__ __forceinline__ void activate_all(dlfs_activation activation, float (&v)[N]) {
  if (activation == DLFS_ACT_NONE) return;
  if (activation == DLFS_ACT_RELU) {
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = activate<DLFS_ACT_RELU>(v[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = activate(activation, v[i]);
}

// Where a lane finds the pairs of taps j, j + 1, ... of a window, one of each four in turn: bases[b] for four pairs of
// which those from the b-th on belong to the next kernel row, bases[0] where all belong to one.
template <class Sizes>
struct WindowBases {
  const char* bases[4];

  __device__ __forceinline__ WindowBases(const char* window, int32_t j) {
#pragma unroll
    for (int b = 0; b < 4; ++b) bases[b] = window + 4 * j + (b > 0 && j >= b ? jump : 0);
  }

  // Four pairs from `pair` on, a constant; beyond the last tap anything of the same row.
  __device__ __forceinline__ const char* at(int pair) const {
    const int row = pair / Sizes::row_pairs, left = Sizes::row_pairs - pair % Sizes::row_pairs;
    return bases[left < 4 && row + 1 < Sizes::r ? left : 0] + 4 * pair + row * jump;
  }

 private:
  static constexpr int jump = (Sizes::pitch - Sizes::row_pairs) * 4;
};

// slices: how many groups of 8 Tiles output channels the warps of a block share out among them, 1 or 2. vector: y and
// residual may be accessed by 2 Tiles channels at once. Column i of product j is output channel
// i / 2 * 2 Tiles + 2 j + i % 2 of the warp's group, so that a lane's results are consecutive channels.
template <class T, class Sizes, int Steps, int Tiles>
__global__ void __launch_bounds__(stem_threads, Steps > 10 ? 2 : 3)
    stem_forward_kernel(T* y, const uint16_t* x, const uint16_t* w, const float* bias, const T* residual, StemLayout l,
                        dlfs_activation activation, int32_t slices, bool vector) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  constexpr int per_lane = 2 * Tiles, width = 8 * Tiles;
  extern __shared__ uint4 stem_shared[];
  __shared__ int32_t sources[16 * Steps];
  alignas(16) __shared__ float biases[2 * width];
  const ConvGeometry& g = l.g;
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32, lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t i = lane / 4, j = lane % 4;
  const int32_t block_first = static_cast<int32_t>(blockIdx.y) * slices * width;
  const int32_t slice = warp % slices, first = block_first + slice * width;

  for (int32_t tap = static_cast<int32_t>(threadIdx.x); tap < 16 * Steps; tap += stem_threads) {
    sources[tap] = tap < l.taps() ? l.source(tap) : -1;
  }
  for (int32_t at = static_cast<int32_t>(threadIdx.x); at < slices * width; at += stem_threads) {
    biases[at] = bias && block_first + at < g.k ? bias[block_first + at] : 0.0f;
  }
  __syncthreads();

  uint32_t filters[Steps][Tiles][2];
  [[maybe_unused]] uint32_t offsets[Steps];  // of both pairs of taps of a step, 16 bits each
  const int32_t filter_size = g.r * g.s * g.c;
#pragma unroll
  for (int step = 0; step < Steps; ++step) {
    if constexpr (!Sizes::known) {
      offsets[step] = static_cast<uint32_t>(l.offset(16 * step + 2 * j)) |
                      static_cast<uint32_t>(l.offset(16 * step + 2 * j + 8)) << 16;
    }
#pragma unroll
    for (int column = 0; column < Tiles; ++column) {
      const int32_t channel = first + i / 2 * per_lane + 2 * column + i % 2;
      const uint16_t* const filter = w + static_cast<int64_t>(channel) * filter_size;
      const auto weight = [&](int32_t tap) -> uint32_t {
        const int32_t source = sources[tap];
        return source >= 0 && channel < g.k ? filter[source] : 0;
      };
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int32_t tap = 16 * step + 2 * j + 8 * half;
        filters[step][column][half] = weight(tap) | weight(tap + 1) << 16;
      }
    }
  }

  char* const buffers = reinterpret_cast<char*>(stem_shared);
  const auto stage = [&](int32_t number, int32_t buffer) {
    stage_rows(reinterpret_cast<uint32_t*>(buffers + buffer * l.tile_bytes()), x, l, stem_tile(l, number));
    commit_copies();
  };
  const int32_t tiles = l.tiles(), next = static_cast<int32_t>(gridDim.x);
  const int32_t step_bytes = (Sizes::known ? Sizes::step : l.step) * 2;
  const int32_t pitch_bytes = (Sizes::known ? Sizes::pitch : l.pitch) * 4;
  const int32_t apart = 8 * step_bytes;  // bytes between the windows of results i and i + 8
  const int32_t channel = first + j * per_lane;
  int32_t buffer = 0;
  stage(static_cast<int32_t>(blockIdx.x), buffer);
  for (int32_t number = static_cast<int32_t>(blockIdx.x); number < tiles; number += next) {
    wait_copies<0>();
    __syncthreads();  // this tile is here, and nobody reads the one before it
    if (number < tiles - next) stage(number + next, buffer ^ 1);
    const StemTile tile = stem_tile(l, number);
    const int32_t rows = first < g.k ? min(l.tile_p, g.p - tile.p) : 0;
    for (int32_t row = warp / slices; row < rows; row += stem_warps / slices) {
      const char* const window =
          buffers + buffer * l.tile_bytes() + row * g.stride_h * pitch_bytes + l.lead * 2 + i * step_bytes;
      [[maybe_unused]] const WindowBases<Sizes> bases(window, j);
      float sums[2][Tiles][4] = {};
#pragma unroll
      for (int step = 0; step < Steps; ++step) {
        const char *near, *far;
        if constexpr (Sizes::known) {
          near = bases.at(8 * step);
          far = bases.at(8 * step + 4);
        } else {
          near = window + (offsets[step] & 0xffff);
          far = window + (offsets[step] >> 16);
        }
        uint32_t values[2][4];
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          values[part][0] = pair_at(near, 2 * part * apart);
          values[part][1] = pair_at(near, (2 * part + 1) * apart);
          values[part][2] = pair_at(far, 2 * part * apart);
          values[part][3] = pair_at(far, (2 * part + 1) * apart);
        }
#pragma unroll
        for (int part = 0; part < 2; ++part) {
#pragma unroll
          for (int column = 0; column < Tiles; ++column) {
            multiply_add<T>(sums[part][column], values[part], filters[step][column]);
          }
        }
      }
      if (channel >= g.k) continue;
      const int64_t line = (static_cast<int64_t>(tile.n * g.p + tile.p + row) * g.q + tile.q + i) * g.k + channel;
      float added[per_lane] = {};
      if (bias) load(added, biases + slice * width + j * per_lane);
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        if (tile.q + 8 * part + i >= g.q) break;
        const int64_t at = line + 8 * part * g.k;
        float result[per_lane];
#pragma unroll
        for (int c = 0; c < per_lane; ++c) result[c] = sums[part / 2][c / 2][part % 2 * 2 + c % 2];
        if (bias) {
#pragma unroll
          for (int c = 0; c < per_lane; ++c) result[c] += added[c];
        }
        if (residual) {
          float other[per_lane] = {};
          if (vector) {
            load(other, residual + at);
          } else {
#pragma unroll
            for (int c = 0; c < per_lane; ++c) {
              if (channel + c < g.k) other[c] = to_float(residual[at + c]);
            }
          }
#pragma unroll
          for (int c = 0; c < per_lane; ++c) result[c] += other[c];
        }
        activate_all(activation, result);
        if (vector) {
          Pack<uint32_t, per_lane / 2> packed;
#pragma unroll
          for (int c = 0; c < per_lane; c += 2) packed.value[c / 2] = pack<T>(result[c], result[c + 1]);
          *reinterpret_cast<Pack<uint32_t, per_lane / 2>*>(y + at) = packed;
        } else {
#pragma unroll
          for (int c = 0; c < per_lane; ++c) {
            if (channel + c < g.k) y[at + c] = from_float<T>(result[c]);
          }
        }
      }
    }
    buffer ^= 1;
  }
#endif
}

// Calls body(Width<n>) with the smallest number of steps, of those that kernels exist for, that holds `steps`.
template <class Body>
void dispatch_steps(int32_t steps, Body&& body) {
  if (steps <= 2) return body(Width<2>{});
  if (steps <= 4) return body(Width<4>{});
  if (steps <= 10) return body(Width<10>{});
  body(Width<14>{});
}

constexpr int32_t most_steps = 14;
constexpr unsigned blocks_per_sm = 3;

// Three channels with stride 2: 7x7 with padding 3, and 3x3 with padding 1.
using Stem7x7 = StemSizes<7, 22, 6, 112>;
using Stem3x3 = StemSizes<3, 10, 6, 104>;

bool fits(const StemLayout& l) { return int64_t{2} * l.rows * l.pitch * 4 <= stem_shared_limit; }

// Tiles of 8 rows reread less of x; where those are too large or too few, tiles of 4.
StemLayout forward_layout(const Context& context, const ConvGeometry& g) {
  const StemLayout large = stem_layout(g, 8);
  const int64_t tiles = int64_t{g.n} * large.tiles_p * large.tiles_q;
  return fits(large) && tiles >= int64_t{8} * blocks_per_sm * context.sm_count ? large : stem_layout(g, 4);
}

class StemConv final : public ConvAlgorithm {
 public:
  StemConv(const Context& context, const ConvProblem& problem) : problem_(problem) {
    if (problem.direction == DLFS_CONV_BACKWARD_WEIGHT) bytes_ = stem_weight_workspace(context, problem);
  }

  int64_t workspace_bytes() const override { return bytes_; }
  std::string pick() const override { return "stem"; }

  void run(Stream& stream, const ConvTensors& tensors, void* workspace) const override {
    if (problem_.direction == DLFS_CONV_FORWARD) return run_stem_forward(stream, problem_, tensors);
    run_stem_weight(stream, problem_, tensors, workspace);
  }

 private:
  const ConvProblem problem_;
  int64_t bytes_ = 0;
};

}  // namespace

void run_stem_forward(Stream& stream, const ConvProblem& problem, const ConvTensors& t) {
  const StemLayout l = forward_layout(*stream.context, problem.g);
  const int32_t k = problem.g.k;
  const auto run = [&](auto tag, auto sizes, auto steps, auto tiles) {
    using T = typename decltype(tag)::type;
    constexpr int Steps = decltype(steps)::value, Tiles = decltype(tiles)::value;
    const int32_t groups = ceil_div(k, 8 * Tiles), slices = std::min(groups, 2);
    const unsigned across = static_cast<unsigned>(ceil_div(groups, slices));
    const unsigned most = std::max(1u, static_cast<unsigned>(stream.context->sm_count) * blocks_per_sm / across);
    launch(stream, dim3(std::min(static_cast<unsigned>(l.tiles()), most), across), stem_threads,
           static_cast<size_t>(2 * l.tile_bytes()), stem_forward_kernel<T, decltype(sizes), Steps, Tiles>, static_cast<T*>(t.y),
           static_cast<const uint16_t*>(t.x), static_cast<const uint16_t*>(t.w), t.bias,
           static_cast<const T*>(t.residual), l, problem.activation, slices,
           k % (2 * Tiles) == 0 && aligned16({t.y, t.residual}));
  };
  const auto of_sizes = [&](auto tag, auto sizes, auto steps) {
    if (k <= 16) {
      run(tag, sizes, steps, Width<2>{});
    } else {
      run(tag, sizes, steps, Width<4>{});
    }
  };
  const auto of_type = [&](auto tag) {
    if (Stem7x7::fit(l)) return of_sizes(tag, Stem7x7{}, Width<10>{});
    if (Stem3x3::fit(l)) return of_sizes(tag, Stem3x3{}, Width<2>{});
    dispatch_steps(l.steps(), [&](auto steps) { of_sizes(tag, StemSizes<0, 0, 0, 0>{}, steps); });
  };
  if (problem.dtype == DLFS_BF16) {
    of_type(TypeTag<bf16>{});
  } else {
    of_type(TypeTag<f16>{});
  }
}

bool stem_supports(const Context& context, const ConvProblem& problem) {
  const ConvGeometry& g = problem.g;
  if (context.compute_capability < 80 || problem.dtype == DLFS_F32 || problem.quantized() ||
      problem.direction == DLFS_CONV_BACKWARD_DATA ||
      g.groups != 1 || g.c > 4 || g.k > 256 || g.pointwise()) {
    return false;
  }
  // Coordinates in 32 bits, with padding; taps and rows within what kernels exist for.
  const int64_t reach = std::max(int64_t{g.h} + 2 * int64_t{g.pad_h} + int64_t{g.r} * g.dilation_h,
                                 int64_t{g.w} + 2 * int64_t{g.pad_w} + int64_t{g.s} * g.dilation_w);
  const int64_t strides = std::max(g.stride_h, g.stride_w), taps = int64_t{g.r} * g.s;
  if (reach >= int64_t{1} << 26 || strides > 64 || taps > 16 * most_steps ||
      int64_t{g.n} * g.p * g.q > INT32_MAX || int64_t{g.n} * g.h > INT32_MAX) {
    return false;
  }
  const StemLayout l = forward_layout(context, g);
  if (l.steps() > most_steps || !fits(l)) return false;
  return problem.direction == DLFS_CONV_FORWARD || stem_weight_shared_bytes(problem) <= context.shared_bytes_per_block;
}

std::shared_ptr<const ConvAlgorithm> stem_algorithm(Context& context, const ConvProblem& problem) {
  return std::make_shared<StemConv>(context, problem);
}

}  // namespace dlfs
