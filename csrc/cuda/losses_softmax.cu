// Softmax cross-entropy with its gradient. A block takes tiles of anchors through shared memory, so that rows of any
// number of classes are read and written 16 bytes at a time; a warp takes a row.
//
// Over all anchors that is one pass. With hard negative mining it is three: a pass over the logits leaves each
// background anchor's loss as an integer key (negative_key); one block per image finds the key of the last one that
// counts by radix selection, 11, 10 and 10 bits at a time; and a pass over the gradient writes zeros, reading again
// only the rows that count.
#include "cuda/losses.cuh"

namespace dlfs {
namespace {

constexpr int row_warps = loss_threads / 32;
constexpr int most_tile_rows = 256;
constexpr int64_t tile_floats = 6144;        // about this many logits to a tile
constexpr int64_t most_tile_floats = 10240;  // with its targets below the 48 KB that a block has without asking
static_assert(most_softmax_classes <= most_tile_floats, "a tile holds a row");
constexpr int select_threads = 1024;
constexpr int most_bins = 2048;

enum class Pass {
  all,     // every anchor that is not ignored counts
  keys,    // writes the keys of the background
  chosen,  // the foreground and the background within its image's limit count
};

constexpr int32_t skipped = -2;  // no target: the anchor does not count

struct RowTarget {
  int32_t target;
  float loss_weight, grad_weight;
};

template <class T>
struct SoftmaxInput {
  const T* logits;         // (rows = N A, classes)
  const int32_t* matches;  // (N, A)
  const int32_t* labels;   // (N, M)
  int64_t rows;
  int32_t anchors, classes, max_boxes;
};

// The bits of the CPU for fp32; for 16-bit logits, the special function units' approximation is far more exact than
// these.
__device__ __forceinline__ float softmax_exp(float, float x) { return exp_f32(x); }

template <class T>
__device__ __forceinline__ float softmax_exp(T, float x) {
  return __expf(x);
}

// Turns a row of logits into their exponentials less the maximum, in place; returns the loss and, as inverse, what turns
// those into probabilities. All lanes of a warp call it; lane i owns elements i, i + 32, ...
template <class T>
__device__ __forceinline__ float softmax_row(float* row, int32_t classes, int32_t target, int lane, float* inverse) {
  float most = -INFINITY;
  for (int32_t k = lane; k < classes; k += 32) most = fmaxf(most, row[k]);
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) most = fmaxf(most, __shfl_xor_sync(full_warp, most, offset));
  float sum = 0.0f;
  float picked = 0.0f;
  for (int32_t k = lane; k < classes; k += 32) {
    const float x = row[k] - most;
    const float e = softmax_exp(T{}, x);
    if (k == target) picked = x;
    row[k] = e;
    sum += e;
  }
  sum = warp_sum(sum);
  picked = __shfl_sync(full_warp, picked, target & 31);
  *inverse = 1.0f / sum;
  return log_f32(sum) - (target >= 0 ? picked : NAN);
}

// Blocks stride over tiles of tile_rows anchors, which start at a multiple of V logits. dlogits (rows, classes),
// nullable; keys (rows); limits (N).
template <class T, int V, Pass pass>
__global__ void __launch_bounds__(loss_threads)
    softmax_kernel(double* partial, T* dlogits, int32_t* keys, const NegativeLimit* limits, SoftmaxInput<T> in,
                   LossNormalization normalization, int32_t tile_rows, GradFactor grad_factor) {
  extern __shared__ __align__(16) float tile[];
  __shared__ RowTarget targets[most_tile_rows];
  LossScale scale{};
  if constexpr (pass != Pass::keys) scale = loss_scale(normalization);
  const double factor = grad_factor.value();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  double sum = 0;
  for (int64_t first = int64_t{blockIdx.x} * tile_rows; first < in.rows; first += int64_t{gridDim.x} * tile_rows) {
    const int32_t count = static_cast<int32_t>(min(int64_t{tile_rows}, in.rows - first));
    const int32_t elements = count * in.classes;
    const int64_t base = first * in.classes;
    __syncthreads();  // the last tile has been read
    for (int32_t r = static_cast<int32_t>(threadIdx.x); r < count; r += loss_threads) {
      const int64_t image = (first + r) / in.anchors;
      const int32_t match = in.matches[first + r];
      bool counts = match >= 0 || match == match_background;
      if constexpr (pass == Pass::keys) {
        counts = match == match_background;
        if (!counts) keys[first + r] = no_negative;
      }
      if constexpr (pass == Pass::chosen) {
        if (match == match_background) {
          const int32_t anchor = static_cast<int32_t>(first + r - image * in.anchors);
          counts = limits[image].takes(keys[first + r], anchor);
        }
      }
      RowTarget target{skipped, 0.0f, 0.0f};
      if (counts) {
        target.target = softmax_target(match, in.labels + image * in.max_boxes, in.max_boxes, in.classes);
        if constexpr (pass != Pass::keys) {
          target.loss_weight = static_cast<float>(scale.weight(image, 1.0));
          target.grad_weight = static_cast<float>(scale.weight(image, factor));
        }
      }
      targets[r] = target;
    }
    if constexpr (pass != Pass::chosen) {
      for (int32_t e = static_cast<int32_t>(threadIdx.x) * V; e < elements; e += loss_threads * V) {
        if (e + V <= elements) {
          float x[V];
          load<V>(x, in.logits + base + e);
          store<V>(tile + e, x);
        } else {
          for (int32_t i = e; i < elements; ++i) tile[i] = to_float(in.logits[base + i]);
        }
      }
    }
    __syncthreads();
    for (int32_t r = warp; r < count; r += row_warps) {
      const RowTarget target = targets[r];
      float* const row = tile + r * in.classes;
      if (target.target == skipped) {
        if (pass != Pass::keys && dlogits != nullptr) {
          for (int32_t k = lane; k < in.classes; k += 32) row[k] = 0.0f;
        }
        continue;
      }
      if constexpr (pass == Pass::chosen) {
        for (int32_t k = lane; k < in.classes; k += 32) row[k] = to_float(in.logits[base + r * in.classes + k]);
      }
      float inverse;
      const float loss = softmax_row<T>(row, in.classes, target.target, lane, &inverse);
      if constexpr (pass == Pass::keys) {
        if (lane == 0) keys[first + r] = negative_key(loss);
      } else {
        if (lane == 0) sum += loss * target.loss_weight;
        if (dlogits == nullptr) continue;
        for (int32_t k = lane; k < in.classes; k += 32) {
          const float p = row[k] * inverse;
          row[k] = (k == target.target ? p - 1.0f : p) * target.grad_weight;
        }
      }
    }
    if (pass == Pass::keys || dlogits == nullptr) continue;
    __syncthreads();
    for (int32_t e = static_cast<int32_t>(threadIdx.x) * V; e < elements; e += loss_threads * V) {
      if (e + V <= elements) {
        float x[V];
        load<V>(x, tile + e);
        store<V>(dlogits + base + e, x);
      } else {
        for (int32_t i = e; i < elements; ++i) dlogits[base + i] = from_float<T>(tile[i]);
      }
    }
  }
  if constexpr (pass != Pass::keys) write_partial(partial, sum);
}

// The bin of a histogram at which the count from the highest bin down reaches `wanted`.
struct FoundBin {
  int32_t bin;     // -1: there are fewer
  uint32_t above;  // count of the bins above it
  uint32_t count;  // its own
};

// Called by one warp; lane i takes the i-th of 32 runs of bins, from the highest down.
__device__ void find_bin(FoundBin* found, const uint32_t* bins, int count, uint32_t wanted, int lane) {
  const int run = count / 32;
  const int top = count - 1 - lane * run;
  uint32_t own = 0;
  for (int i = 0; i < run; ++i) own += bins[top - i];
  uint32_t through = own;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint32_t before = __shfl_up_sync(full_warp, through, offset);
    if (lane >= offset) through += before;
  }
  const unsigned reached = __ballot_sync(full_warp, through >= wanted);
  if (reached == 0) {
    if (lane == 0) *found = {-1, 0, 0};
  } else if (lane == __ffs(static_cast<int>(reached)) - 1) {
    uint32_t above = through - own;
    int bin = top;
    while (above + bins[bin] < wanted) above += bins[bin--];
    *found = {bin, above, bins[bin]};
  }
}

// A block per image. keys (N, A).
__global__ void __launch_bounds__(select_threads)
    select_negatives_kernel(NegativeLimit* limits, const int32_t* keys, const int32_t* foreground, int32_t anchors,
                            float negative_ratio) {
  __shared__ uint32_t bins[most_bins];
  __shared__ FoundBin found;
  __shared__ uint32_t warp_counts[select_threads / 32];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int32_t* const own = keys + int64_t{blockIdx.x} * anchors;
  NegativeLimit limit = take_no_negatives;
  uint32_t wanted = static_cast<uint32_t>(wanted_negatives(negative_ratio, foreground[blockIdx.x]));
  bool tied = false;
  if (wanted > 0) {
    uint32_t prefix = 0;
    int shift = 31;
    limit.index = INT32_MAX;
    do {
      const int bits = shift == 31 ? 11 : 10;
      const uint32_t mask = (1u << bits) - 1;
      for (int i = static_cast<int>(threadIdx.x); i <= static_cast<int>(mask); i += select_threads) bins[i] = 0;
      __syncthreads();
      for (int32_t a = static_cast<int32_t>(threadIdx.x); a < anchors; a += select_threads) {
        const int32_t key = own[a];
        const uint32_t value = static_cast<uint32_t>(key);
        if (key >= 0 && value >> shift == prefix) atomicAdd(&bins[value >> (shift - bits) & mask], 1u);
      }
      __syncthreads();
      if (warp == 0) find_bin(&found, bins, static_cast<int>(mask) + 1, wanted, lane);
      __syncthreads();
      const FoundBin here = found;
      if (here.bin < 0) break;  // of the first digit only: fewer anchors than wanted
      prefix = prefix << bits | static_cast<uint32_t>(here.bin);
      wanted -= here.above;
      shift -= bits;
      tied = here.count > wanted;
    } while (shift > 0);
    limit.key = static_cast<int32_t>(prefix);  // take_all_negatives where there are fewer than wanted
  }
  if (!tied) {
    if (threadIdx.x == 0) limits[blockIdx.x] = limit;
    return;
  }
  // More anchors have the last key than are wanted: the first ones of them count.
  uint32_t seen = 0;
  for (int32_t first = 0; first < anchors; first += select_threads) {
    const int32_t a = first + static_cast<int32_t>(threadIdx.x);
    const bool equal = a < anchors && own[a] == limit.key;
    const uint32_t count = static_cast<uint32_t>(__syncthreads_count(equal));
    if (seen + count >= wanted) {
      const unsigned lanes = __ballot_sync(full_warp, equal);
      if (lane == 0) warp_counts[warp] = static_cast<uint32_t>(__popc(lanes));
      __syncthreads();
      uint32_t rank = seen + static_cast<uint32_t>(__popc(lanes & ((1u << lane) - 1)));
      for (int i = 0; i < warp; ++i) rank += warp_counts[i];
      if (equal && rank == wanted - 1) limits[blockIdx.x] = {limit.key, a};
      return;
    }
    seen += count;
  }
}

struct SoftmaxWorkspace {
  double* partial;        // (most_loss_blocks)
  int32_t* keys;          // (N, A) where negatives are mined
  NegativeLimit* limits;  // (N) there
  int64_t bytes;

  SoftmaxWorkspace(void* workspace, int32_t n, int32_t anchors, double negative_ratio) {
    WorkspaceLayout layout(workspace);
    partial = layout.take<double>(most_loss_blocks);
    keys = layout.take<int32_t>(negative_ratio >= 0 ? int64_t{n} * anchors : 0);
    limits = layout.take<NegativeLimit>(negative_ratio >= 0 ? n : 0);
    bytes = layout.bytes();
  }
};

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_cross_entropy_loss_workspace(dlfs_context ctx, int64_t* out, int32_t n, int32_t anchors,
                                              double negative_ratio) {
  return context_call("dlfs_cross_entropy_loss_workspace", ctx, [&](Context&) {
    check_pointer(out, "out");
    check_range(n, 1, INT32_MAX, "n");
    check_range(anchors, 1, INT32_MAX, "anchors");
    checked_product({n, anchors}, "the workspace");
    *out = SoftmaxWorkspace(nullptr, n, anchors, negative_ratio).bytes;
  });
}

dlfs_status dlfs_cross_entropy_loss(dlfs_stream stream, float* loss, void* dlogits, const void* logits,
                                    const int32_t* matches, const int32_t* labels, const int32_t* foreground,
                                    const float* grad_scale, void* workspace, int32_t n, int32_t anchors,
                                    int32_t classes, int32_t max_boxes, dlfs_dtype dtype, double negative_ratio,
                                    int32_t normalization, double grad_factor) {
  return stream_call("dlfs_cross_entropy_loss", stream, [&](Stream& s) {
    check_loss_operands({loss, logits, "logits", matches, labels, "labels", foreground, workspace}, n, max_boxes,
                        normalization, grad_factor);
    check_cross_entropy(n, anchors, classes, negative_ratio);
    const SoftmaxWorkspace memory(workspace, n, anchors, negative_ratio);
    const LossNormalization by{foreground, n, normalization};
    const int64_t rows = int64_t{n} * anchors;
    // Tiles of 8 rows start 16-byte aligned; rows that are too long for that are taken one value at a time.
    const bool vector = aligned16({logits, dlogits}) && int64_t{8} * classes <= most_tile_floats;
    const int64_t wanted_rows = tile_floats / classes / 8 * 8;
    const int32_t tile_rows = static_cast<int32_t>(
        vector ? std::clamp<int64_t>(wanted_rows, 8, most_tile_rows)
               : std::clamp<int64_t>(most_tile_floats / classes, 1, most_tile_rows));
    const size_t bytes = static_cast<size_t>(tile_rows) * static_cast<size_t>(classes) * sizeof(float);
    const int blocks = static_cast<int>(std::min<int64_t>(ceil_div<int64_t>(rows, tile_rows), most_loss_blocks));
    dispatch_vector(dtype, vector, [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width)::value;
      const SoftmaxInput<T> in{static_cast<const T*>(logits), matches, labels, rows, anchors, classes, max_boxes};
      const auto run = [&](auto kernel) {
        launch(s, static_cast<unsigned>(blocks), loss_threads, bytes, kernel, memory.partial,
               static_cast<T*>(dlogits), memory.keys, static_cast<const NegativeLimit*>(memory.limits), in, by,
               tile_rows, GradFactor{grad_factor, grad_scale});
      };
      if (negative_ratio < 0) return run(softmax_kernel<T, V, Pass::all>);
      run(softmax_kernel<T, V, Pass::keys>);
      launch(s, static_cast<unsigned>(n), select_threads, 0, select_negatives_kernel, memory.limits,
             static_cast<const int32_t*>(memory.keys), foreground, anchors, static_cast<float>(negative_ratio));
      run(softmax_kernel<T, V, Pass::chosen>);
    });
    sum_partials(s, loss, memory.partial, blocks);
  });
}

}  // extern "C"
