// The order in which dlfs_nms visits candidates: best first, and those of a class together, so that each class can be
// suppressed by itself. Places are found by counting: no float is compared for its order, and keys (candidate_key:
// score descending, then index ascending) are unique, so the result does not depend on the order of atomics.
//
// 1. bin: counts the candidates by the upper bits of their keys. 2. start: sums the counts up to first places.
// 3. scatter: puts the keys of a bin together. 4. rank: a key's place is its bin's first one plus the number of smaller
//    keys in the bin. The labels of each stretch of 512 places are counted by bucket on the way.
// 5. segment: sums those counts up to places of buckets. 6. partition: copies boxes and labels there, in order.
// A bucket holds the labels that are equal modulo 256: of more classes some share it, so suppression compares labels.
#pragma once

#include "common/detection_arguments.hpp"
#include "cuda/detection.cuh"

namespace dlfs {
namespace {

constexpr int order_threads = 256;
constexpr int start_threads = 1024;
constexpr int buckets = 256;        // one byte, and a thread of the segment kernel each
constexpr int stretch = 512;        // places whose labels are counted together
constexpr int least_bin_bits = 10;  // a bin for each thread of the start kernel
constexpr int most_bin_bits = 16;
constexpr int tile = 128;           // candidates that are suppressed together, of one bucket
constexpr int word_stretch = 1024;  // places of a block of the last kernel of nms.cu: 32 words of bits
constexpr uint64_t no_candidate = ~uint64_t{0};

struct NmsWorkspace {
  // Zeroed before:
  uint32_t* bins;          // (N, 2^bin_bits): counts, then first places
  uint32_t* label_counts;  // (N, stretches, buckets): counts, then the number of earlier candidates of the bucket
  uint32_t* kept;          // (N, words): a bit for each place in the order of keys
  uint64_t* progress;      // (N, buckets): tiles that are done, and below 32 bits of boxes that were kept in them
  uint32_t* next_ticket;   // (1)
  int32_t* most_tiles;     // (1): of an image
  // Written before they are read:
  int32_t* valid;       // (N): candidates with a label >= 0
  uint32_t* slot;       // (N, K): place within the bin
  uint64_t* binned;     // (N, K): keys by bin
  uint64_t* sorted;     // (N, K): keys in order
  int32_t* segment;     // (N, buckets + 1): first place of each bucket in the following arrays
  int32_t* first_tile;  // (N, buckets + 1): of each bucket
  float4* box;          // (N, K) by bucket, in order
  int32_t* label;       // (N, K)
  int32_t* rank;        // (N, K): place in the order of keys
  float4* kept_box;     // (N, K): those that were kept, from each bucket's first place on
  int32_t* kept_label;  // (N, K)
  int32_t bin_bits, stretches, words;
  int64_t bytes, zeroed_bytes;

  NmsWorkspace(void* workspace, int32_t n, int32_t k)
      : bin_bits(least_bin_bits), stretches(ceil_div(k, stretch)), words(ceil_div(k, word_stretch) * 32) {
    while (bin_bits < most_bin_bits && (1 << bin_bits) < 2 * k) ++bin_bits;
    WorkspaceLayout layout(workspace);
    const int64_t images = n;
    const int64_t candidates = images * k;
    bins = layout.take<uint32_t>(images << bin_bits);
    label_counts = layout.take<uint32_t>(images * stretches * buckets);
    kept = layout.take<uint32_t>(images * words);
    progress = layout.take<uint64_t>(images * buckets);
    next_ticket = layout.take<uint32_t>(1);
    most_tiles = layout.take<int32_t>(1);
    zeroed_bytes = layout.bytes();
    valid = layout.take<int32_t>(n);
    slot = layout.take<uint32_t>(candidates);
    binned = layout.take<uint64_t>(candidates);
    sorted = layout.take<uint64_t>(candidates);
    segment = layout.take<int32_t>(images * (buckets + 1));
    first_tile = layout.take<int32_t>(images * (buckets + 1));
    box = layout.take<float4>(candidates);
    label = layout.take<int32_t>(candidates);
    rank = layout.take<int32_t>(candidates);
    kept_box = layout.take<float4>(candidates);
    kept_label = layout.take<int32_t>(candidates);
    bytes = layout.bytes();
  }

  __device__ __forceinline__ uint32_t* bins_of(int64_t image) const { return bins + (image << bin_bits); }
  __device__ __forceinline__ uint32_t bin(uint64_t key) const {
    return static_cast<uint32_t>(key >> 32) >> (32 - bin_bits);
  }
};

// What a call is given.
struct NmsInput {
  const float* boxes;     // (N, K, 4)
  const float* scores;    // (N, K)
  const int32_t* labels;  // (N, K)
  int32_t k;
  bool class_aware;
  bool aligned;  // boxes may be read 16 bytes at a time

  __device__ __forceinline__ int32_t label(int64_t at) const { return class_aware ? labels[at] : 0; }
};

// Grid (K / 256, N).
__global__ void __launch_bounds__(order_threads) bin_kernel(NmsWorkspace workspace, NmsInput input) {
  const int32_t i = static_cast<int32_t>(blockIdx.x * order_threads + threadIdx.x);
  if (i >= input.k) return;
  const int64_t at = int64_t{blockIdx.y} * input.k + i;
  if (input.labels[at] < 0) return;
  const uint64_t key = candidate_key(input.scores[at], i);
  workspace.slot[at] = atomicAdd(&workspace.bins_of(blockIdx.y)[workspace.bin(key)], 1u);
}

// Grid (N).
__global__ void __launch_bounds__(start_threads) start_kernel(NmsWorkspace workspace) {
  // A warp's share of the bins, which its lanes go through side by side.
  const int share = (1 << workspace.bin_bits) / (start_threads / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  uint32_t* const own = workspace.bins_of(blockIdx.x) + static_cast<int>(threadIdx.x / 32) * share + lane;
  uint32_t sum = 0;
#pragma unroll 16
  for (int i = 0; i < share; i += 32) sum += own[i];
  uint32_t total;
  uint32_t running = __shfl_sync(full_warp, block_prefix<start_threads>(sum, total), 0);
  constexpr int loads = 8;  // in flight
  for (int first = 0; first < share; first += 32 * loads) {
    uint32_t counts[loads];
#pragma unroll
    for (int i = 0; i < loads; ++i) counts[i] = first + 32 * i < share ? own[first + 32 * i] : 0;
#pragma unroll
    for (int i = 0; i < loads; ++i) {
      const uint32_t inclusive = warp_prefix(counts[i]);
      if (first + 32 * i < share) own[first + 32 * i] = running + inclusive - counts[i];
      running += __shfl_sync(full_warp, inclusive, 31);
    }
  }
  if (threadIdx.x == 0) workspace.valid[blockIdx.x] = static_cast<int32_t>(total);
}

// Grid (K / 256, N).
__global__ void __launch_bounds__(order_threads) scatter_kernel(NmsWorkspace workspace, NmsInput input) {
  const int32_t i = static_cast<int32_t>(blockIdx.x * order_threads + threadIdx.x);
  if (i >= input.k) return;
  const int64_t row = int64_t{blockIdx.y} * input.k;
  if (input.labels[row + i] < 0) return;
  const uint64_t key = candidate_key(input.scores[row + i], i);
  workspace.binned[row + workspace.bins_of(blockIdx.y)[workspace.bin(key)] + workspace.slot[row + i]] = key;
}

// Grid (K / 256, N).
__global__ void __launch_bounds__(order_threads) rank_kernel(NmsWorkspace workspace, NmsInput input) {
  const int32_t place = static_cast<int32_t>(blockIdx.x * order_threads + threadIdx.x);
  const int64_t image = blockIdx.y;
  const int32_t valid = workspace.valid[image];
  if (place >= valid) return;
  const int64_t row = image * input.k;
  const uint64_t* const keys = workspace.binned + row;
  const uint64_t key = keys[place];
  const uint32_t bin = workspace.bin(key);
  const uint32_t* const starts = workspace.bins_of(image);
  const int32_t begin = static_cast<int32_t>(starts[bin]);
  const int32_t end = bin + 1 < 1u << workspace.bin_bits ? static_cast<int32_t>(starts[bin + 1]) : valid;
  int32_t rank = begin;
#pragma unroll 8
  for (int32_t i = begin; i < end; ++i) rank += __ldg(keys + i) < key;
  workspace.sorted[row + rank] = key;
  const int bucket = input.label(row + candidate_index(key)) % buckets;
  atomicAdd(&workspace.label_counts[(image * workspace.stretches + rank / stretch) * buckets + bucket], 1u);
}

// Grid (N).
__global__ void __launch_bounds__(buckets) segment_kernel(NmsWorkspace workspace) {
  const int64_t image = blockIdx.x;
  const int bucket = static_cast<int>(threadIdx.x);
  const int32_t stretches = ceil_div(workspace.valid[image], stretch);
  uint32_t* const counts = workspace.label_counts + image * workspace.stretches * buckets + bucket;
  uint32_t size = 0;
  constexpr int loads = 8;  // in flight
  for (int32_t first = 0; first < stretches; first += loads) {
    uint32_t own[loads];
#pragma unroll
    for (int i = 0; i < loads; ++i) own[i] = first + i < stretches ? counts[int64_t{first + i} * buckets] : 0;
#pragma unroll
    for (int i = 0; i < loads; ++i) {
      if (first + i < stretches) counts[int64_t{first + i} * buckets] = size;
      size += own[i];
    }
  }
  uint32_t candidates, tiles;
  const uint32_t segment = block_prefix<buckets>(size, candidates);
  const uint32_t first_tile = block_prefix<buckets>(ceil_div<uint32_t>(size, tile), tiles);
  int32_t* const segments = workspace.segment + image * (buckets + 1);
  int32_t* const first_tiles = workspace.first_tile + image * (buckets + 1);
  segments[bucket] = static_cast<int32_t>(segment);
  first_tiles[bucket] = static_cast<int32_t>(first_tile);
  if (bucket == 0) {
    segments[buckets] = static_cast<int32_t>(candidates);
    first_tiles[buckets] = static_cast<int32_t>(tiles);
    atomicMax(workspace.most_tiles, static_cast<int32_t>(tiles));
  }
}

// Grid (K / 512, N).
__global__ void __launch_bounds__(stretch) partition_kernel(NmsWorkspace workspace, NmsInput input) {
  __shared__ uint32_t counts[stretch / 32][buckets / 4];  // a byte for each warp and bucket
  const int64_t image = blockIdx.y;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int32_t rank = static_cast<int32_t>(blockIdx.x * stretch + threadIdx.x);
  const int32_t valid = workspace.valid[image];
  if (static_cast<int32_t>(blockIdx.x * stretch) >= valid) return;
  const int64_t row = image * input.k;
  const bool real = rank < valid;
  const int32_t index = real ? candidate_index(workspace.sorted[row + rank]) : 0;
  const int32_t label = real ? input.label(row + index) : 0;
  const int bucket = label % buckets;
  for (int i = thread; i < stretch / 32 * (buckets / 4); i += stretch) counts[0][i] = 0;
  __syncthreads();
  const unsigned alike = __match_any_sync(full_warp, real ? bucket : -1);
  int earlier = __popc(alike & ((1u << (thread % 32)) - 1));  // of the stretch, in the same bucket
  if (real && earlier == 0) reinterpret_cast<uint8_t*>(counts[warp])[bucket] = static_cast<uint8_t>(__popc(alike));
  __syncthreads();
  if (!real) return;
#pragma unroll 4
  for (int i = 0; i < warp; ++i) earlier += reinterpret_cast<const uint8_t*>(counts[i])[bucket];
  const int64_t counted = (image * workspace.stretches + blockIdx.x) * buckets + bucket;
  const int64_t segment = row + workspace.segment[image * (buckets + 1) + bucket];
  const int64_t out = segment + workspace.label_counts[counted] + earlier;
  const Box box = read_box(input.boxes, row + index, input.aligned);
  workspace.box[out] = make_float4(box.x1, box.y1, box.x2, box.y2);
  workspace.label[out] = label;
  workspace.rank[out] = rank;
}

}  // namespace
}  // namespace dlfs
