// The k best candidates of each segment: a row of dlfs_topk, a level of an image of dlfs_select_candidates. No float is
// compared for its order: scores are turned into unique integer keys (candidate_key: score descending, then index
// ascending), so the result does not depend on the order in which blocks find candidates.
//
// 1. filter: one pass over the logits. Those whose score exceeds the threshold are counted, put into a buffer while
//    there is room, and into a histogram of score classes.
// 2. refill: does nothing for a segment whose candidates all fit. Else fills the buffer again with only the score
//    classes that can hold the k best.
// 3. select: one block per segment. Narrows its candidates to at most 4096 (or k) by radix selection on the keys, sorts
//    these in shared memory and writes the first k. The candidates are in the buffer, or, where even the second filling
//    did not fit (many equal scores), are read from the logits.
// 4. place, for k above 4096 only: writes each selected candidate to its place, the number of keys smaller than its own.
// In a namespace without a name: each file that includes this has kernels of its own.
#pragma once

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
constexpr uint64_t no_candidate = ~uint64_t{0};  // no key

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

// What the passes know about one segment: a row of dlfs_topk, a level of an image.
struct TopkState {
  uint32_t found;     // candidates
  uint32_t refilled;  // of them in the score classes that the second filling took
  uint32_t selected;  // entries of TopkWorkspace::selected
};

struct TopkWorkspace {
  TopkState* state;     // (segments)
  uint32_t* histogram;  // (segments, score_classes)
  uint64_t* buffer;     // (segments, capacity)
  uint64_t* selected;   // (segments, k) where k > select_capacity
  int32_t capacity;
  int32_t levels;  // segments of an image
  int64_t bytes, zeroed_bytes;

  // most: the largest number of candidates of a segment.
  TopkWorkspace(void* workspace, int32_t n, int32_t levels, int64_t most, int32_t k)
      : capacity(static_cast<int32_t>(std::min<int64_t>(most, buffer_capacity))), levels(levels) {
    WorkspaceLayout layout(workspace);
    const int64_t segments = int64_t{n} * levels;
    state = layout.take<TopkState>(segments);
    histogram = layout.take<uint32_t>(segments * score_classes);
    zeroed_bytes = layout.bytes();
    buffer = layout.take<uint64_t>(segments * capacity);
    selected = layout.take<uint64_t>(k > select_capacity ? segments * k : 0);
    bytes = layout.bytes();
  }
};

// How many of V elements, from the last 16-byte boundary before p, lie before p.
template <class T>
__device__ __forceinline__ int64_t misalignment(const T* p) {
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(p) % 16 / sizeof(T));
}

// Vectors of 16 bytes that cover m elements from p on, counted from the last 16-byte boundary before p.
template <class T>
__device__ __forceinline__ int64_t covering_vectors(const T* p, int64_t m) {
  return (misalignment(p) + m + vector_width<T> - 1) / vector_width<T>;
}

// Calls take(i, value) for the elements i of vector v that are at least `floor`; never for NaN.
template <class T, class Take>
__device__ __forceinline__ void visit_vector(const T* p, int64_t m, int64_t v, float floor, Take&& take) {
  constexpr int V = vector_width<T>;
  const int64_t first = v * V - misalignment(p);
  float x[V];
  if (first >= 0 && first + V <= m) {
    load<V>(x, p + first);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const int64_t index = first + i;
      x[i] = index >= 0 && index < m ? to_float(p[index]) : NAN;
    }
  }
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if (x[i] >= floor) take(first + i, x[i]);
  }
}

// Appends a key to the segment's buffer; *count goes on counting past its end.
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

// Grid (blocks of all levels, N). An Input says which logits there are:
//   int32_t level_of(int32_t& block): the level of a block of the grid, made the block's number within the level;
//   int64_t vectors(image, level), visit(image, level, v, take): calls take(key, score bits) for each candidate of
//   vector v; int32_t kept(level): how many are wanted.
template <class Input>
__global__ void __launch_bounds__(filter_threads) filter_kernel(TopkWorkspace workspace, Input input) {
  __shared__ uint32_t histogram[score_classes];
  const int32_t image = static_cast<int32_t>(blockIdx.y);
  int32_t block = static_cast<int32_t>(blockIdx.x);
  const int32_t level = input.level_of(block);
  const int64_t segment = int64_t{image} * workspace.levels + level;
  for (int i = static_cast<int>(threadIdx.x); i < score_classes; i += filter_threads) histogram[i] = 0;
  __syncthreads();
  TopkState* state = workspace.state + segment;
  uint64_t* buffer = workspace.buffer + segment * workspace.capacity;
  const int64_t vectors = input.vectors(image, level);
  const int64_t first = int64_t{block} * (filter_threads * filter_turns) + threadIdx.x;
  bool any = false;
#pragma unroll
  for (int turn = 0; turn < filter_turns; ++turn) {
    const int64_t v = first + turn * filter_threads;
    if (v >= vectors) break;
    input.visit(image, level, v, [&](uint64_t key, uint32_t bits) {
      any = true;
      atomicAdd(&histogram[score_class(bits)], 1u);
      append(buffer, &state->found, workspace.capacity, key);
    });
  }
  if (!__syncthreads_or(any)) return;
  for (int i = static_cast<int>(threadIdx.x); i < score_classes; i += filter_threads) {
    if (histogram[i] != 0) atomicAdd(&workspace.histogram[segment * score_classes + i], histogram[i]);
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

template <class Input>
__global__ void __launch_bounds__(filter_threads) refill_kernel(TopkWorkspace workspace, Input input) {
  const int32_t image = static_cast<int32_t>(blockIdx.y);
  int32_t block = static_cast<int32_t>(blockIdx.x);
  const int32_t level = input.level_of(block);
  const int64_t segment = int64_t{image} * workspace.levels + level;
  TopkState* state = workspace.state + segment;
  const int32_t k = input.kept(level);
  if (state->found <= static_cast<uint32_t>(workspace.capacity) || k > workspace.capacity) return;
  int last_class;
  uint32_t before;
  find_bin<filter_threads, score_classes>(workspace.histogram + segment * score_classes, static_cast<uint32_t>(k),
                                          last_class, before);
  uint64_t* buffer = workspace.buffer + segment * workspace.capacity;
  const int64_t vectors = input.vectors(image, level);
  const int64_t first = int64_t{block} * (filter_threads * filter_turns) + threadIdx.x;
  for (int turn = 0; turn < filter_turns; ++turn) {
    const int64_t v = first + turn * filter_threads;
    if (v >= vectors) break;
    input.visit(image, level, v, [&](uint64_t key, uint32_t bits) {
      if (score_class(bits) <= last_class) append(buffer, &state->refilled, workspace.capacity, key);
    });
  }
}

// Grid (levels, N). Hands the results to output(image, level, i, key), i from 0, where the level's k is at most
// select_capacity; no_candidate past the last. Else fills `selected`, k the largest of all levels.
template <class Input, class Output>
__global__ void __launch_bounds__(select_threads)
    select_kernel(Output output, TopkWorkspace workspace, Input input, int32_t most_kept) {
  __shared__ uint64_t keys[select_capacity];
  __shared__ uint32_t digits[digit_values];
  __shared__ uint32_t collected;
  const int32_t level = static_cast<int32_t>(blockIdx.x);
  const int32_t image = static_cast<int32_t>(blockIdx.y);
  const int64_t segment = int64_t{image} * workspace.levels + level;
  const int32_t k = input.kept(level);
  const int thread = static_cast<int>(threadIdx.x);
  const TopkState state = workspace.state[segment];
  const uint32_t capacity = static_cast<uint32_t>(workspace.capacity);
  const uint64_t* buffer = workspace.buffer + segment * workspace.capacity;
  const bool buffered = state.found <= capacity || (state.refilled > 0 && state.refilled <= capacity);
  const uint32_t candidates = state.found <= capacity ? state.found : buffered ? state.refilled : state.found;

  const auto for_each_key = [&](auto&& take) {
    if (buffered) {
      for (uint32_t i = threadIdx.x; i < candidates; i += select_threads) take(buffer[i]);
    } else {
      const int64_t vectors = input.vectors(image, level);
      for (int64_t v = thread; v < vectors; v += select_threads) {
        input.visit(image, level, v, [&](uint64_t key, uint32_t) { take(key); });
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
  uint64_t* target = k > select_capacity ? workspace.selected + segment * most_kept : keys;
  for_each_key([&](uint64_t key) {
    if (upper(key) <= limit) target[atomicAdd(&collected, 1u)] = key;
  });
  __syncthreads();
  if (k > select_capacity) {
    if (thread == 0) workspace.state[segment].selected = collected;
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
    output(image, level, i, i < count ? keys[i] : no_candidate);
  }
}

// Grid (k / 256, levels, N): sorts workspace.selected, for levels whose k is above select_capacity.
template <class Input, class Output>
__global__ void __launch_bounds__(filter_threads)
    place_kernel(Output output, TopkWorkspace workspace, Input input, int32_t most_kept) {
  constexpr int tile = 1024;  // keys compared with at a time
  __shared__ uint64_t keys[tile];
  const int32_t level = static_cast<int32_t>(blockIdx.y);
  const int32_t image = static_cast<int32_t>(blockIdx.z);
  const int64_t segment = int64_t{image} * workspace.levels + level;
  const int32_t k = input.kept(level);
  if (k <= select_capacity) return;
  const uint64_t* selected = workspace.selected + segment * most_kept;
  const int32_t count = static_cast<int32_t>(workspace.state[segment].selected);
  const int32_t mine = static_cast<int32_t>(blockIdx.x * filter_threads + threadIdx.x);
  const uint64_t key = mine < count ? selected[mine] : no_candidate;
  int32_t place = 0;
  for (int32_t begin = 0; begin < count; begin += tile) {
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < tile; i += filter_threads) {
      keys[i] = begin + i < count ? selected[begin + i] : no_candidate;
    }
    __syncthreads();
#pragma unroll 8
    for (int i = 0; i < tile; ++i) place += keys[i] < key;
    __syncthreads();  // the next tile overwrites the keys
  }
  if (mine < k) output(image, level, mine < count ? place : mine, key);
}

// A logit below which scores are below the threshold for sure, with a margin far above the rounding of sigmoid_f32.
inline float logit_floor(double threshold) {
  if (threshold <= 0) return -INFINITY;
  if (threshold >= 1) return INFINITY;
  const double logit = std::log(threshold / (1 - threshold));
  return static_cast<float>(logit - 1e-3 * (1 + std::abs(logit)));
}

// Blocks of the filter for m elements: one more vector than they fill, as a row may start between two boundaries.
template <class T>
int64_t filter_blocks(int64_t m) {
  return ceil_div<int64_t>(m / vector_width<T> + 2, filter_threads * filter_turns);
}

// Enqueues the selection. blocks: of the filter, for all levels together; k: the largest of all levels.
template <class Input, class Output>
void launch_topk(Stream& s, const TopkWorkspace& ws, void* workspace, const Input& input, const Output& output,
                 int64_t blocks, int32_t n, int32_t k) {
  CUDA_CHECK(cudaMemsetAsync(workspace, 0, static_cast<size_t>(ws.zeroed_bytes), s.stream));
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(n));
  launch(s, grid, filter_threads, 0, filter_kernel<Input>, ws, input);
  launch(s, grid, filter_threads, 0, refill_kernel<Input>, ws, input);
  const unsigned levels = static_cast<unsigned>(ws.levels);
  launch(s, dim3(levels, static_cast<unsigned>(n)), select_threads, 0, select_kernel<Input, Output>, output, ws, input,
         k);
  if (k > select_capacity) {
    const dim3 places(static_cast<unsigned>(ceil_div<int64_t>(k, filter_threads)), levels, static_cast<unsigned>(n));
    launch(s, places, filter_threads, 0, place_kernel<Input, Output>, output, ws, input, k);
  }
}

}  // namespace
}  // namespace dlfs
