// The k best candidates of each image. No float is compared for its order: scores are turned into unique integer keys (candidate_key: score descending, then index ascending), so the result does not depend on the
// order in which blocks find candidates.
//
// 1. filter: one pass over the logits. Those whose score exceeds the threshold are counted, put into a buffer while
//    there is room, and into a histogram of score classes.
// 2. refill: does nothing for an image whose candidates all fit. Else fills the buffer again with only the score
//    classes that can hold the k best.
// 3. select: one block per image. Narrows its candidates to at most 4096 (or k) by radix selection on the keys, sorts
//    these in shared memory and writes the first k. The candidates are in the buffer, or, where even the second filling
//    did not fit (many equal scores), are read from the logits.
// 4. place, for k above 4096 only: writes each selected candidate to its place, the number of keys smaller than its own.
#include <cmath>

#include "common/detection_arguments.hpp"
#include "cuda/detection.cuh"

namespace dlfs {
namespace {

constexpr int filter_threads = 256;
constexpr int filter_turns = 8;  // vectors that a thread of the filter reads
constexpr int select_threads = 1024;
constexpr int select_capacity = 4096;  // keys that are sorted in shared memory
constexpr int32_t buffer_capacity = 32768;

// Score classes: the upper 16 bits of the score as a float (7 bits of mantissa) from 1 down to 2^-16; class 0 holds the
// best scores, the last one everything smaller.
constexpr int score_classes = 2048;

__device__ __forceinline__ int score_class(uint32_t bits) {
  const int below_one = bits >> 31 ? score_classes : 0x3f80 - static_cast<int>(bits >> 16);
  return max(0, min(below_one, score_classes - 1));
}

// The radix selection goes through the keys 11 bits at a time.
constexpr int key_bits = 64;
constexpr int digit_bits = 11;
constexpr int digit_values = 1 << digit_bits;

// What the passes know about one image.
struct TopkState {
  uint32_t found;     // candidates
  uint32_t refilled;  // of them in the score classes that the second filling took
  uint32_t selected;  // entries of TopkWorkspace::selected
};

struct TopkWorkspace {
  TopkState* state;     // (N)
  uint32_t* histogram;  // (N, score_classes)
  uint64_t* buffer;     // (N, capacity)
  uint64_t* selected;   // (N, k) where k > select_capacity
  int32_t capacity;
  int64_t bytes, zeroed_bytes;

  TopkWorkspace(void* workspace, int32_t n, int64_t m, int32_t k)
      : capacity(static_cast<int32_t>(std::min<int64_t>(m, buffer_capacity))) {
    WorkspaceLayout layout(workspace);
    state = layout.take<TopkState>(n);
    histogram = layout.take<uint32_t>(int64_t{n} * score_classes);
    zeroed_bytes = layout.bytes();
    buffer = layout.take<uint64_t>(int64_t{n} * capacity);
    selected = layout.take<uint64_t>(k > select_capacity ? int64_t{n} * k : 0);
    bytes = layout.bytes();
  }
};

// One image's logits and the threshold, as passed to all kernels.
template <class T>
struct TopkInput {
  const T* logits;
  int64_t m, stride;
  bool sigmoid;  // scores are the logits' sigmoids, else the values themselves
  float threshold;
  float floor;  // logits below have scores below the threshold for sure

  // Vectors of V logits that cover image's row, counted from the last 16-byte boundary before it.
  __device__ int64_t vectors(int32_t image) const {
    constexpr int V = vector_width<T>;
    return (misalignment(image) + m + V - 1) / V;
  }

  // Calls take(key, score bits) for each candidate of vector v.
  template <class Take>
  __device__ __forceinline__ void visit(int32_t image, int64_t v, Take&& take) const {
    constexpr int V = vector_width<T>;
    const T* row = logits + int64_t{image} * stride;
    const int64_t first = v * V - misalignment(image);
    float x[V];
    if (first >= 0 && first + V <= m) {
      load<V>(x, row + first);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const int64_t index = first + i;
        x[i] = index >= 0 && index < m ? to_float(row[index]) : NAN;
      }
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (x[i] >= floor) {  // never true of NaN
        const float score = sigmoid ? sigmoid_f32(x[i]) : x[i];
        if (score > threshold) take(candidate_key(score, static_cast<int32_t>(first + i)), float_bits(score));
      }
    }
  }

 private:
  __device__ __forceinline__ int64_t misalignment(int32_t image) const {
    const T* row = logits + int64_t{image} * stride;
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
  }
};

// Appends a key to the image's buffer; *count goes on counting past its end.
__device__ __forceinline__ void append(uint64_t* buffer, uint32_t* count, int32_t capacity, uint64_t key) {
  // The lanes that got here at the same time take their places with one atomic.
  const unsigned lanes = __activemask();
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int leader = __ffs(static_cast<int>(lanes)) - 1;
  uint32_t place = 0;
  if (lane == leader) place = atomicAdd(count, static_cast<uint32_t>(__popc(lanes)));
  place = __shfl_sync(lanes, place, leader) + static_cast<uint32_t>(__popc(lanes & ((1u << lane) - 1)));
  if (place < static_cast<uint32_t>(capacity)) buffer[place] = key;
}

template <class T>
__global__ void __launch_bounds__(filter_threads) filter_kernel(TopkWorkspace workspace, TopkInput<T> input) {
  __shared__ uint32_t histogram[score_classes];
  const int32_t image = static_cast<int32_t>(blockIdx.y);
  for (int i = static_cast<int>(threadIdx.x); i < score_classes; i += filter_threads) histogram[i] = 0;
  __syncthreads();
  TopkState* state = workspace.state + image;
  uint64_t* buffer = workspace.buffer + int64_t{image} * workspace.capacity;
  const int64_t vectors = input.vectors(image);
  const int64_t first = int64_t{blockIdx.x} * (filter_threads * filter_turns) + threadIdx.x;
  bool any = false;
  for (int turn = 0; turn < filter_turns; ++turn) {
    const int64_t v = first + turn * filter_threads;
    if (v >= vectors) break;
    input.visit(image, v, [&](uint64_t key, uint32_t bits) {
      any = true;
      atomicAdd(&histogram[score_class(bits)], 1u);
      append(buffer, &state->found, workspace.capacity, key);
    });
  }
  if (!__syncthreads_or(any)) return;
  for (int i = static_cast<int>(threadIdx.x); i < score_classes; i += filter_threads) {
    if (histogram[i] != 0) atomicAdd(&workspace.histogram[int64_t{image} * score_classes + i], histogram[i]);
  }
}

// The smallest bin at which the running sum of counts (bins) reaches `wanted`, and the sum before it. For all threads
// of a block of `threads`, bins a multiple of it; wanted is at most the sum of all. Ends with a barrier.
template <int threads, int bins>
__device__ void find_bin(const uint32_t* counts, uint32_t wanted, int& bin, uint32_t& before) {
  constexpr int per_thread = bins / threads;
  static_assert(bins % threads == 0, "whole shares");
  __shared__ uint32_t warp_sums[threads / 32];
  __shared__ int found_bin;
  __shared__ uint32_t found_before;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  uint32_t own[per_thread];
  uint32_t sum = 0;
#pragma unroll
  for (int i = 0; i < per_thread; ++i) {
    own[i] = counts[static_cast<int>(threadIdx.x) * per_thread + i];
    sum += own[i];
  }
  uint32_t inclusive = sum;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint32_t other = __shfl_up_sync(full_warp, inclusive, offset);
    if (lane >= offset) inclusive += other;
  }
  if (lane == 31) warp_sums[warp] = inclusive;
  __syncthreads();
  uint32_t running = inclusive - sum;
  for (int i = 0; i < warp; ++i) running += warp_sums[i];
#pragma unroll
  for (int i = 0; i < per_thread; ++i) {
    if (running < wanted && running + own[i] >= wanted) {  // true of exactly one bin
      found_bin = static_cast<int>(threadIdx.x) * per_thread + i;
      found_before = running;
    }
    running += own[i];
  }
  __syncthreads();
  bin = found_bin;
  before = found_before;
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(filter_threads)
    refill_kernel(TopkWorkspace workspace, TopkInput<T> input, int32_t k) {
  const int32_t image = static_cast<int32_t>(blockIdx.y);
  TopkState* state = workspace.state + image;
  if (state->found <= static_cast<uint32_t>(workspace.capacity) || k > workspace.capacity) return;
  int last_class;
  uint32_t before;
  find_bin<filter_threads, score_classes>(workspace.histogram + int64_t{image} * score_classes,
                                          static_cast<uint32_t>(k), last_class, before);
  uint64_t* buffer = workspace.buffer + int64_t{image} * workspace.capacity;
  const int64_t vectors = input.vectors(image);
  const int64_t first = int64_t{blockIdx.x} * (filter_threads * filter_turns) + threadIdx.x;
  for (int turn = 0; turn < filter_turns; ++turn) {
    const int64_t v = first + turn * filter_threads;
    if (v >= vectors) break;
    input.visit(image, v, [&](uint64_t key, uint32_t bits) {
      if (score_class(bits) <= last_class) append(buffer, &state->refilled, workspace.capacity, key);
    });
  }
}

// scores, index: k entries of a row of row_stride; written for k up to select_capacity, else selected is
template <class T>
__global__ void __launch_bounds__(select_threads) select_kernel(float* scores, int32_t* index, TopkWorkspace workspace,
                                                                TopkInput<T> input, int32_t k, int64_t row_stride) {
  __shared__ uint64_t keys[select_capacity];
  __shared__ uint32_t digits[digit_values];
  __shared__ uint32_t collected;
  const int32_t image = static_cast<int32_t>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  const TopkState state = workspace.state[image];
  const uint32_t capacity = static_cast<uint32_t>(workspace.capacity);
  const uint64_t* buffer = workspace.buffer + int64_t{image} * workspace.capacity;
  const bool buffered = state.found <= capacity || (state.refilled > 0 && state.refilled <= capacity);
  const uint32_t candidates = state.found <= capacity ? state.found : buffered ? state.refilled : state.found;

  const auto for_each_key = [&](auto&& take) {
    if (buffered) {
      for (uint32_t i = threadIdx.x; i < candidates; i += select_threads) take(buffer[i]);
    } else {
      const int64_t vectors = input.vectors(image);
      for (int64_t v = thread; v < vectors; v += select_threads) {
        input.visit(image, v, [&](uint64_t key, uint32_t) { take(key); });
      }
    }
  };

  // Keys with key >> shift <= limit are kept: at first all, after each round of the radix selection those up to the
  // digit at which the k-th best lies. It is the `wanted`-th best of those with key >> shift == limit.
  int shift = key_bits;
  uint64_t limit = 0;
  const auto upper = [&shift](uint64_t key) { return shift == key_bits ? uint64_t{0} : key >> shift; };
  uint32_t kept = candidates;
  uint32_t wanted = static_cast<uint32_t>(k);
  const uint32_t room = static_cast<uint32_t>(max(k, select_capacity));
  while (kept > room) {
    const int next = max(shift - digit_bits, 0);
    const uint64_t digit_mask = (uint64_t{1} << (shift - next)) - 1;
    for (int i = thread; i < digit_values; i += select_threads) digits[i] = 0;
    __syncthreads();
    for_each_key([&](uint64_t key) {
      if (upper(key) == limit) atomicAdd(&digits[key >> next & digit_mask], 1u);
    });
    __syncthreads();
    int digit;
    uint32_t before;
    find_bin<select_threads, digit_values>(digits, wanted, digit, before);
    limit = limit << (shift - next) | static_cast<uint64_t>(digit);
    // Kept from now on: what was before this round's keys, those of smaller digits, and those of this digit.
    kept = static_cast<uint32_t>(k) - wanted + before + digits[digit];
    wanted -= before;
    shift = next;
    __syncthreads();  // digits are zeroed in the next round
  }

  if (thread == 0) collected = 0;
  __syncthreads();
  uint64_t* target = k > select_capacity ? workspace.selected + int64_t{image} * k : keys;
  for_each_key([&](uint64_t key) {
    if (upper(key) <= limit) target[atomicAdd(&collected, 1u)] = key;
  });
  __syncthreads();
  if (k > select_capacity) {
    if (thread == 0) workspace.state[image].selected = collected;
    return;
  }
  const int count = static_cast<int>(collected);
  int size = 1;  // a power of two to sort
  while (size < count) size *= 2;
  for (int i = count + thread; i < size; i += select_threads) keys[i] = ~uint64_t{0};
  __syncthreads();
  // Bitonic sort, ascending.
  for (int width = 2; width <= size; width *= 2) {
    for (int distance = width / 2; distance > 0; distance /= 2) {
      for (int i = thread; i < size / 2; i += select_threads) {
        const int low = (i & ~(distance - 1)) * 2 + (i & (distance - 1));
        const int high = low + distance;
        const uint64_t a = keys[low];
        const uint64_t b = keys[high];
        const bool ascending = (low & width) == 0;
        if ((a > b) == ascending) {
          keys[low] = b;
          keys[high] = a;
        }
      }
      __syncthreads();
    }
  }
  for (int i = thread; i < k; i += select_threads) {
    const int64_t out = int64_t{image} * row_stride + i;
    scores[out] = i < count ? candidate_score(keys[i]) : 0.0f;
    index[out] = i < count ? candidate_index(keys[i]) : -1;
  }
}

// Grid (k / 256, N): sorts workspace.selected, for k above select_capacity.
__global__ void __launch_bounds__(filter_threads)
    place_kernel(float* scores, int32_t* index, TopkWorkspace workspace, int32_t k, int64_t row_stride) {
  constexpr int tile = 1024;  // keys compared with at a time
  __shared__ uint64_t keys[tile];
  const int64_t image = blockIdx.y;
  const uint64_t* selected = workspace.selected + image * k;
  const int32_t count = static_cast<int32_t>(workspace.state[image].selected);
  const int32_t mine = static_cast<int32_t>(blockIdx.x * filter_threads + threadIdx.x);
  const uint64_t key = mine < count ? selected[mine] : 0;
  int32_t place = 0;
  for (int32_t begin = 0; begin < count; begin += tile) {
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < tile; i += filter_threads) {
      keys[i] = begin + i < count ? selected[begin + i] : ~uint64_t{0};
    }
    __syncthreads();
#pragma unroll 8
    for (int i = 0; i < tile; ++i) place += keys[i] < key;
    __syncthreads();  // the next tile overwrites the keys
  }
  if (mine >= k) return;
  const int64_t out = image * row_stride + (mine < count ? place : mine);
  scores[out] = mine < count ? candidate_score(key) : 0.0f;
  index[out] = mine < count ? candidate_index(key) : -1;
}

// A logit below which scores are below the threshold for sure, with a margin far above the rounding of sigmoid_f32.
float logit_floor(double threshold) {
  if (threshold <= 0) return -INFINITY;
  if (threshold >= 1) return INFINITY;
  const double logit = std::log(threshold / (1 - threshold));
  return static_cast<float>(logit - 1e-3 * (1 + std::abs(logit)));
}

void check_topk(int32_t n, int64_t m, int32_t k) {
  check_range(n, 1, max_images, "n");
  check_range(m, 1, INT32_MAX, "m");
  check_range(k, 1, 1 << 30, "k");
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_topk_workspace(dlfs_context ctx, int64_t* out, int32_t n, int64_t m, int32_t k) {
  return context_call("dlfs_topk_workspace", ctx, [&](Context&) {
    check_pointer(out, "out");
    check_topk(n, m, k);
    *out = TopkWorkspace(nullptr, n, m, k).bytes;
  });
}

dlfs_status dlfs_topk(dlfs_stream stream, float* scores, int32_t* index, const void* logits, void* workspace, int32_t n,
                      int64_t m, int64_t logits_stride, int32_t k, int64_t row_stride, dlfs_dtype dtype, int32_t kind,
                      double threshold) {
  return stream_call("dlfs_topk", stream, [&](Stream& s) {
    check_pointer(scores, "scores");
    check_pointer(index, "index");
    check_pointer(logits, "logits");
    check_topk(n, m, k);
    check_logits_stride(n, m, logits_stride);
    check_row_stride(n, k, row_stride);
    check_range(kind, DLFS_SCORES_SIGMOID, DLFS_SCORES_VALUES, "kind");
    check_number(threshold, "threshold");
    const bool sigmoid = kind == DLFS_SCORES_SIGMOID;
    const TopkWorkspace ws(workspace, n, m, k);
    check_workspace(workspace, ws.bytes);
    CUDA_CHECK(cudaMemsetAsync(workspace, 0, static_cast<size_t>(ws.zeroed_bytes), s.stream));
    dispatch_float(dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      const TopkInput<T> input{static_cast<const T*>(logits), m, logits_stride, sigmoid, static_cast<float>(threshold),
                               sigmoid ? logit_floor(threshold) : static_cast<float>(threshold)};
      // One more vector than the logits fill, as a row may start between two boundaries.
      const int64_t vectors = m / vector_width<T> + 2;
      const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(vectors, filter_threads * filter_turns)),
                      static_cast<unsigned>(n));
      launch(s, grid, filter_threads, 0, filter_kernel<T>, ws, input);
      launch(s, grid, filter_threads, 0, refill_kernel<T>, ws, input, k);
      launch(s, static_cast<unsigned>(n), select_threads, 0, select_kernel<T>, scores, index, ws, input, k, row_stride);
    });
    if (k > select_capacity) {
      const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(k, filter_threads)), static_cast<unsigned>(n));
      launch(s, grid, filter_threads, 0, place_kernel, scores, index, ws, k, row_stride);
    }
  });
}

}  // extern "C"
