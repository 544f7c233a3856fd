// The k best candidates of each segment: a row of dlfs_topk, a level of an image of dlfs_select_candidates. No float is
// compared for its order: scores are turned into unique integer keys (candidate_key: score descending, then index
// ascending), so the result does not depend on the order in which blocks find candidates.
//
// 1. filter: one pass over the logits. Those whose score exceeds the threshold are counted, put into a buffer while
//    there is room, and into a histogram of score classes. A block first lists its logits that can pass, then works on
//    these with all threads and takes their places in the buffer at once: in most warps a single thread passes, and
//    atomics on one address wait for each other.
// 2. refill: does nothing for a segment whose candidates all fit. Else fills the buffer again with only the score
//    classes that can hold the k best.
// 3. select: one block per segment. Narrows its candidates to at most 4096 (or k) by the histogram, or where that does
//    not do by radix selection on the keys, sorts these in shared memory and writes the first k. The candidates are in
//    the buffer, or, where even the second filling did not fit (many equal scores), are read from the logits.
// 4. place, for k above 4096 only: writes each selected candidate to its place, the number of keys smaller than its own.
// In a namespace without a name: each file that includes this has kernels of its own.
#pragma once

#include <cmath>

#include "common/detection_arguments.hpp"
#include "cuda/detection.cuh"

namespace dlfs {
namespace {

constexpr int filter_threads = 256;
constexpr int filter_turns = 4;  // vectors that a thread of the filter reads
constexpr unsigned refill_blocks = 64;  // of an image: the second filling is rare
constexpr int select_threads = 1024;
constexpr int select_capacity = 4096;  // keys that are sorted in shared memory
constexpr int32_t buffer_capacity = 32768;
constexpr uint64_t no_candidate = ~uint64_t{0};  // no key

// Score classes: the upper 16 bits of the score as a float (7 bits of mantissa) from 1 down to 2^-16; class 0 holds the
// best scores, the last one everything smaller.
constexpr int score_classes = 2048;

// Classes follow the keys, whose upper 16 bits are 0x407f for a score of 1.
constexpr int class_bits = 16;
constexpr int best_class = 0x407f;

__device__ __forceinline__ int score_class(uint64_t key) {
  return max(0, min(static_cast<int>(key >> (64 - class_bits)) - best_class, score_classes - 1));
}

// The smallest score of a class but the last.
__device__ __forceinline__ float least_score(int of_class) {
  return float_from_bits(static_cast<uint32_t>(0x3f80 - of_class) << 16);
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

// A logit below which scores are below the threshold for sure, with a margin far above the rounding of sigmoid_f32.
DLFS_HD inline float logit_floor(double threshold) {
  if (threshold <= 0) return -INFINITY;
  if (threshold >= 1) return INFINITY;
  const double logit = log(threshold / (1 - threshold));
  return static_cast<float>(logit - 1e-3 * (1 + fabs(logit)));
}

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

// Vector v of m elements from p on, with NaN for what lies outside.
template <class T>
__device__ __forceinline__ Pack<T, vector_width<T>> covering_vector(const T* p, int64_t m, int64_t v) {
  constexpr int V = vector_width<T>;
  const int64_t first = v * V - misalignment(p);
  if (first >= 0 && first + V <= m) return load_pack<V>(p + first);
  Pack<T, V> pack;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const int64_t index = first + i;
    pack.value[i] = index >= 0 && index < m ? p[index] : from_float<T>(NAN);
  }
  return pack;
}

// The place of this thread in a list that the threads of a block append to, with one atomic on *count for all of them;
// any value where `appends` is false. For all threads of the block; `total` is in shared memory, 0 before and after.
__device__ __forceinline__ uint32_t block_append(bool appends, uint32_t* count, uint32_t* total) {
  const unsigned lanes = __ballot_sync(full_warp, appends);
  const int lane = static_cast<int>(threadIdx.x % 32);
  uint32_t place = 0;
  if (lane == 0 && lanes != 0) place = atomicAdd(total, static_cast<uint32_t>(__popc(lanes)));
  place = __shfl_sync(full_warp, place, 0) + static_cast<uint32_t>(__popc(lanes & ((1u << lane) - 1)));
  __shared__ uint32_t first;
  __syncthreads();
  if (threadIdx.x == 0) {
    first = *total != 0 ? atomicAdd(count, *total) : 0;
    *total = 0;
  }
  __syncthreads();
  return first + place;
}

// The smallest bin at which the running sum of counts (bins) reaches `wanted`, and the sum before it. For all threads
// of a block of `threads`, bins a multiple of it; wanted is at most the sum of all. Ends with a barrier.
template <int threads, int bins>
__device__ void find_bin(const uint32_t* counts, uint32_t wanted, int& bin, uint32_t& before) {
  constexpr int per_thread = bins / threads;
  static_assert(bins % threads == 0, "whole shares");
  __shared__ int found_bin;
  __shared__ uint32_t found_before;
  uint32_t own[per_thread];
  uint32_t sum = 0;
#pragma unroll
  for (int i = 0; i < per_thread; ++i) {
    own[i] = counts[static_cast<int>(threadIdx.x) * per_thread + i];
    sum += own[i];
  }
  uint32_t total;
  uint32_t running = block_prefix<threads>(sum, total);
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

// Grid (blocks of all levels, or fewer, N). An Input says which logits there are:
//   Element: their type; row(image, level), size(level): where they are, and how many;
//   int32_t level_of(int32_t& block): the level of a block of the filter, made the block's number within the level;
//   float floor: logits below are no candidates; floor_of(score): a logit below which scores are smaller for sure;
//   key(image, level, at, logit): the key of logit `at` of a row, or no_candidate;
//   int32_t kept(level): how many are wanted.
template <bool refill, class Input>
__global__ void __launch_bounds__(filter_threads, 4)
    filter_kernel(TopkWorkspace workspace, Input input, int32_t blocks) {
  using T = typename Input::Element;
  constexpr int V = vector_width<T>;
  constexpr int row_elements = filter_threads * V;  // of a turn
  static_assert(filter_turns * V <= 32 && filter_turns * row_elements <= 65536, "a bit and 16 bits for each element");
  __shared__ uint16_t passed[filter_turns * row_elements];
  __shared__ uint32_t passed_count, appended;
  __shared__ uint32_t histogram[score_classes];
  const int32_t image = static_cast<int32_t>(blockIdx.y);
  const int thread = static_cast<int>(threadIdx.x);
  if (refill) {
    uint32_t most = 0;
    for (int32_t level = 0; level < workspace.levels; ++level) {
      most = max(most, workspace.state[int64_t{image} * workspace.levels + level].found);
    }
    if (most <= static_cast<uint32_t>(workspace.capacity)) return;
  }
  for (int32_t turn = static_cast<int32_t>(blockIdx.x); turn < blocks; turn += static_cast<int32_t>(gridDim.x)) {
    int32_t block = turn;
    const int32_t level = input.level_of(block);
    const int64_t segment = int64_t{image} * workspace.levels + level;
    TopkState* state = workspace.state + segment;
    uint32_t* counts = workspace.histogram + segment * score_classes;
    int last_class = score_classes - 1;
    float floor = input.floor;
    if (refill) {
      const int32_t k = input.kept(level);
      if (state->found <= static_cast<uint32_t>(workspace.capacity) || k > workspace.capacity) continue;
      uint32_t before;
      find_bin<filter_threads, score_classes>(counts, static_cast<uint32_t>(k), last_class, before);
      if (last_class > 0 && last_class < score_classes - 1) {
        floor = fmaxf(floor, input.floor_of(least_score(last_class)));
      }
    }
    if (thread == 0) passed_count = appended = 0;
    __syncthreads();
    const T* const row = input.row(image, level);
    const int64_t vectors = covering_vectors(row, input.size(level));
    const int64_t first = int64_t{block} * (filter_threads * filter_turns);
    Pack<T, V> packs[filter_turns];
#pragma unroll
    for (int i = 0; i < filter_turns; ++i) {
      const int64_t v = first + i * filter_threads + thread;
      if (v < vectors) packs[i] = covering_vector(row, input.size(level), v);
    }
    uint32_t mask = 0;
#pragma unroll
    for (int i = 0; i < filter_turns; ++i) {
      if (first + i * filter_threads + thread >= vectors) break;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        mask |= static_cast<uint32_t>(to_float(packs[i].value[j]) >= floor) << (i * V + j);  // never for NaN
      }
    }
    if (mask != 0) {
      uint32_t at = atomicAdd(&passed_count, static_cast<uint32_t>(__popc(mask)));
      for (; mask != 0; mask &= mask - 1) {
        const int bit = __ffs(static_cast<int>(mask)) - 1;
        passed[at++] = static_cast<uint16_t>(bit / V * row_elements + thread * V + bit % V);
      }
    }
    __syncthreads();
    const int count = static_cast<int>(passed_count);
    if (count != 0) {
      const bool many = count > filter_threads;  // else they are counted at once, without a histogram of the block
      if (!refill && many) {
        for (int i = thread; i < score_classes; i += filter_threads) histogram[i] = 0;
        __syncthreads();
      }
      const int64_t origin = first * V - misalignment(row);
      for (int begin = 0; begin < count; begin += filter_threads) {
        uint64_t key = no_candidate;
        if (begin + thread < count) {
          const int64_t at = origin + passed[begin + thread];
          key = input.key(image, level, at, to_float(row[at]));
        }
        const bool taken = key != no_candidate && score_class(key) <= last_class;
        if (!refill && taken) {
          if (many) {
            atomicAdd(&histogram[score_class(key)], 1u);
          } else {
            atomicAdd(&counts[score_class(key)], 1u);
          }
        }
        const uint32_t place = block_append(taken, refill ? &state->refilled : &state->found, &appended);
        if (taken && place < static_cast<uint32_t>(workspace.capacity)) {
          workspace.buffer[segment * workspace.capacity + place] = key;
        }
      }
      if (!refill && many) {
        for (int i = thread; i < score_classes; i += filter_threads) {
          if (histogram[i] != 0) atomicAdd(&counts[i], histogram[i]);
        }
      }
    }
    __syncthreads();  // the next turn overwrites what is shared
  }
}

// Grid (N, levels): the largest levels, which come first, start first. Hands the results to output(image, level, i,
// key), i from 0, where the level's k is at most select_capacity; no_candidate past the last. Else fills `selected`, k
// the largest of all levels.
template <class Input, class Output>
__global__ void __launch_bounds__(select_threads)
    select_kernel(Output output, TopkWorkspace workspace, Input input, int32_t most_kept) {
  __shared__ uint64_t keys[select_capacity];
  __shared__ uint32_t digits[digit_values];
  __shared__ uint32_t collected;
  const int32_t image = static_cast<int32_t>(blockIdx.x);
  const int32_t level = static_cast<int32_t>(blockIdx.y);
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
      constexpr uint32_t loads = 4;  // in flight
      for (uint32_t begin = threadIdx.x; begin < candidates; begin += loads * select_threads) {
        uint64_t own[loads];
#pragma unroll
        for (uint32_t i = 0; i < loads; ++i) {
          const uint32_t at = begin + i * select_threads;
          own[i] = at < candidates ? buffer[at] : no_candidate;
        }
#pragma unroll
        for (uint32_t i = 0; i < loads; ++i) {
          if (own[i] != no_candidate) take(own[i]);
        }
      }
    } else {
      const auto* const row = input.row(image, level);
      constexpr int V = vector_width<typename Input::Element>;
      const int64_t size = input.size(level);
      const int64_t vectors = covering_vectors(row, size);
      for (int64_t v = thread; v < vectors; v += select_threads) {
        const auto pack = covering_vector(row, size, v);
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const float logit = to_float(pack.value[i]);
          if (!(logit >= input.floor)) continue;
          const uint64_t key = input.key(image, level, v * V - misalignment(row) + i, logit);
          if (key != no_candidate) take(key);
        }
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
  if (kept > room) {
    const uint32_t* counts = workspace.histogram + segment * score_classes;
    int last_class;
    uint32_t before;
    find_bin<select_threads, score_classes>(counts, wanted, last_class, before);
    const uint32_t up_to_class = before + counts[last_class];
    if (last_class < score_classes - 1 && up_to_class <= room) {
      shift = key_bits - class_bits;
      limit = static_cast<uint64_t>(best_class + last_class);
      kept = up_to_class;
    }
  }
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
      // Up to a distance of 32, a warp exchanges among 64 keys that are its own.
      if (distance > 32 || (distance == 1 && width > 32)) {
        __syncthreads();
      } else {
        __syncwarp();
      }
    }
  }
  __syncthreads();
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
  const unsigned images = static_cast<unsigned>(n);
  const unsigned all = static_cast<unsigned>(blocks);
  const unsigned few = std::min(all, refill_blocks);
  const int32_t count = static_cast<int32_t>(blocks);
  launch(s, dim3(all, images), filter_threads, 0, filter_kernel<false, Input>, ws, input, count);
  launch(s, dim3(few, images), filter_threads, 0, filter_kernel<true, Input>, ws, input, count);
  const unsigned levels = static_cast<unsigned>(ws.levels);
  launch(s, dim3(images, levels), select_threads, 0, select_kernel<Input, Output>, output, ws, input,
         k);
  if (k > select_capacity) {
    const dim3 places(static_cast<unsigned>(ceil_div<int64_t>(k, filter_threads)), levels, images);
    launch(s, places, filter_threads, 0, place_kernel<Input, Output>, output, ws, input, k);
  }
}

}  // namespace
}  // namespace dlfs
