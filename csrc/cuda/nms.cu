// Greedy non-maximum suppression of a batch, without a host in the loop and without a mask of all pairs.
//
// 1. nms_order.cuh sorts the candidates and puts those of a class together: classes do not suppress each other.
// 2. suppress: a block takes a tile of 128 candidates of a class, compares them with each other, then with the boxes
//    that the class's earlier tiles keep, as soon as those are known, and publishes what it keeps itself. Tiles are
//    taken in order, by tickets, so that a block only ever waits for blocks that run.
// 3. collect: writes the kept candidates of all classes in the order of their scores.
// A class stops at max_out kept boxes: all of them come before the rest of the class.
#include "cuda/nms_order.cuh"

namespace dlfs {
namespace {

constexpr int threads_per_block = 256;
constexpr int tile_words = tile / 32;
static_assert(threads_per_block == 2 * tile && threads_per_block == buckets, "two threads a candidate, one a bucket");

__device__ __forceinline__ Box to_box(const float4& v) { return {v.x, v.y, v.z, v.w}; }

// What other blocks wrote before they released a value of at least the one that is acquired can be read after it.
__device__ __forceinline__ uint64_t load_acquire(const uint64_t* p) {
  uint64_t value;
  asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(p) : "memory");
  return value;
}

__device__ __forceinline__ void store_release(uint64_t* p, uint64_t value) {
  asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(value) : "memory");
}

struct NmsRules {
  int32_t max_out;
  float iou_threshold;
};

// Boxes of a bucket in shared memory.
struct TileBoxes {
  float4 box[tile];
  float area[tile];
  int32_t label[tile];

  __device__ __forceinline__ void set(int i, const float4& value, int32_t value_label) {
    box[i] = value;
    area[i] = box_area(to_box(value));
    label[i] = value_label;
  }

  // A box that meets none.
  __device__ __forceinline__ void set_none(int i) {
    box[i] = make_float4(INFINITY, INFINITY, -INFINITY, -INFINITY);
    area[i] = 0.0f;
    label[i] = -1;
  }

  // Bit j: box first + j meets b. All 32 are compared at once; few of them then need their overlap.
  __device__ __forceinline__ uint32_t meeting(int first, const Box& b) const {
    uint32_t bits = 0;
#pragma unroll
    for (int j = 0; j < 32; ++j) bits |= static_cast<uint32_t>(boxes_meet(to_box(box[first + j]), b)) << j;
    return bits;
  }

  // Whether box i, if kept, drops another that it meets.
  __device__ __forceinline__ bool suppresses(int i, const Box& b, float area_b, int32_t label_b,
                                             float iou_threshold) const {
    return label[i] == label_b && box_iou(to_box(box[i]), area[i], b, area_b) > iou_threshold;
  }
};

// Decides, in one warp, which of a tile's candidates are kept. gone: a bit for each that is not, whatever the others;
// conflicts: bit j % 32 of [i][j / 32] says that j < i would suppress i. Candidates are decided 32 at a time, in
// rounds: one is dropped where a kept one suppresses it, and kept where none can any more.
__device__ __forceinline__ void resolve_tile(uint32_t (&kept)[tile_words], const uint32_t (&conflicts)[tile][tile_words],
                                             const uint32_t (&gone)[tile_words]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int word = 0; word < tile_words; ++word) {
    const uint32_t* const own = conflicts[word * 32 + lane];
    bool dead = (gone[word] >> lane & 1) != 0;
#pragma unroll
    for (int earlier = 0; earlier < word; ++earlier) dead |= (own[earlier] & kept[earlier]) != 0;
    uint32_t pending = __ballot_sync(full_warp, !dead);
    uint32_t decided = 0;  // to be kept
    while (pending != 0) {
      const bool waits = (pending >> lane & 1) != 0;
      const bool drop = waits && (own[word] & decided) != 0;
      const bool keep = waits && !drop && (own[word] & pending) == 0;
      const uint32_t dropped = __ballot_sync(full_warp, drop);
      const uint32_t added = __ballot_sync(full_warp, keep);
      decided |= added;
      pending &= ~(dropped | added);
    }
    kept[word] = decided;
  }
}

// Any grid. Tickets go through the first tiles of all images, then through the second, ...
__global__ void __launch_bounds__(threads_per_block) suppress_kernel(NmsWorkspace workspace, int32_t n, int32_t k,
                                                                     NmsRules rules) {
  __shared__ TileBoxes own, others;
  __shared__ uint32_t conflicts[tile][tile_words];
  __shared__ uint32_t gone[tile_words], kept_words[tile_words];
  __shared__ uint32_t ticket;
  __shared__ int32_t tile_bucket;
  __shared__ uint64_t reached;
  const int thread = static_cast<int>(threadIdx.x);
  const int i = thread % tile;     // candidate
  const int part = thread / tile;  // of what it is compared with
  const uint32_t most_tiles = static_cast<uint32_t>(*workspace.most_tiles);
  for (;;) {
    __syncthreads();  // the last turn's reads are over
    if (thread == 0) ticket = atomicAdd(workspace.next_ticket, 1u);
    if (thread < tile_words) gone[thread] = 0;
    __syncthreads();
    const int64_t image = ticket % n;
    const int32_t index = static_cast<int32_t>(ticket / n);
    if (index >= static_cast<int32_t>(most_tiles)) return;
    const int32_t* const first_tile = workspace.first_tile + image * (buckets + 1);
    if (index >= first_tile[buckets]) continue;
    if (first_tile[thread] <= index && index < first_tile[thread + 1]) tile_bucket = thread;
    __syncthreads();
    const int32_t bucket = tile_bucket;
    const int32_t* const segments = workspace.segment + image * (buckets + 1);
    const int64_t segment = image * k + segments[bucket];
    const int32_t size = segments[bucket + 1] - segments[bucket];
    const int32_t earlier_tiles = index - first_tile[bucket];
    const int32_t first = earlier_tiles * tile;
    const int32_t count = min(tile, size - first);
    uint64_t* const progress = workspace.progress + image * buckets + bucket;

    const bool real = i < count;
    const int32_t rank = real ? workspace.rank[segment + first + i] : 0;
    if (part == 0) {
      if (real) {
        own.set(i, workspace.box[segment + first + i], workspace.label[segment + first + i]);
      } else {
        own.set_none(i);
      }
    }
    __syncthreads();
    const Box box = to_box(own.box[i]);
    const float area = own.area[i];
    const int32_t label = own.label[i];
    for (int word = part; word <= i / 32; word += 2) {
      uint32_t meeting = own.meeting(word * 32, box);
      if (word == i / 32) meeting &= (1u << (i % 32)) - 1;
      uint32_t bits = 0;
      for (; meeting != 0; meeting &= meeting - 1) {
        const int j = __ffs(static_cast<int>(meeting)) - 1;
        if (own.suppresses(word * 32 + j, box, area, label, rules.iou_threshold)) bits |= 1u << j;
      }
      conflicts[i][word] = bits;
    }

    bool removed = !real;
    int32_t seen = 0;  // boxes of earlier tiles
    int32_t done = 0;  // earlier tiles
    while (done < earlier_tiles && seen < rules.max_out) {
      if (thread == 0) {
        uint64_t now = load_acquire(progress);
        while (static_cast<int32_t>(now >> 32) < earlier_tiles && static_cast<int32_t>(now) == seen) {
          __nanosleep(40);
          now = load_acquire(progress);
        }
        reached = now;
      }
      __syncthreads();
      done = static_cast<int32_t>(reached >> 32);
      const int32_t known = static_cast<int32_t>(reached);
      for (; seen < known; seen = min(seen + tile, known)) {
        const int32_t batch = min(tile, known - seen);
        if (part == 0) {
          const int64_t at = segment + seen + i;
          if (i < batch) {
            others.set(i, __ldcg(workspace.kept_box + at), __ldcg(workspace.kept_label + at));
          } else {
            others.set_none(i);
          }
        }
        __syncthreads();
        for (int word = part; word * 32 < batch && !removed; word += 2) {
          uint32_t meeting = others.meeting(word * 32, box);
          for (; meeting != 0 && !removed; meeting &= meeting - 1) {
            const int j = word * 32 + __ffs(static_cast<int>(meeting)) - 1;
            removed = others.suppresses(j, box, area, label, rules.iou_threshold);
          }
        }
        __syncthreads();
      }
    }
    if (seen >= rules.max_out) continue;  // so do all later tiles

    const uint32_t bits = __ballot_sync(full_warp, removed);
    if (thread % 32 == 0 && bits != 0) atomicOr(&gone[i / 32], bits);
    __syncthreads();
    if (thread < 32) {
      uint32_t words[tile_words];
      resolve_tile(words, conflicts, gone);
      if (thread == 0) {
#pragma unroll
        for (int word = 0; word < tile_words; ++word) kept_words[word] = words[word];
      }
    }
    __syncthreads();
    const bool kept = part == 0 && (kept_words[i / 32] >> (i % 32) & 1) != 0;
    if (first + tile < size) {  // later tiles wait
      int32_t before = seen;
      int32_t all = seen;
      for (int word = 0; word < tile_words; ++word) {
        const int32_t of_word = __popc(kept_words[word]);
        if (word < i / 32) before += of_word;
        all += of_word;
      }
      before += __popc(kept_words[i / 32] & ((1u << (i % 32)) - 1));
      if (kept) {
        workspace.kept_box[segment + before] = own.box[i];
        workspace.kept_label[segment + before] = label;
      }
      __syncthreads();
      if (thread == 0) {
        store_release(progress, static_cast<uint64_t>(earlier_tiles + 1) << 32 | static_cast<uint32_t>(all));
      }
    }
    if (kept) atomicOr(&workspace.kept[image * workspace.words + rank / 32], 1u << (rank % 32));
  }
}

// Grid (K / 1024, N). keep (N, max_out), filled before; keep_counts (N).
__global__ void __launch_bounds__(word_stretch)
    collect_kernel(int32_t* keep, int32_t* keep_counts, NmsWorkspace workspace, int32_t k, int32_t max_out) {
  const int64_t image = blockIdx.y;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const uint32_t* const words = workspace.kept + image * workspace.words;
  const int32_t first_word = static_cast<int32_t>(blockIdx.x) * 32;
  uint32_t sum = 0;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < first_word; i += word_stretch) {
    sum += static_cast<uint32_t>(__popc(words[i]));
  }
  uint32_t earlier;  // kept in earlier words than this block's
  block_prefix<word_stretch>(sum, earlier);
  // Each warp has a word, and in all warps each lane counts one of the block's.
  const uint32_t inclusive = warp_prefix(static_cast<uint32_t>(__popc(words[first_word + lane])));
  const uint32_t total = earlier + __shfl_sync(full_warp, inclusive, 31);
  const uint32_t through = earlier + __shfl_sync(full_warp, inclusive, warp);
  const uint32_t word = words[first_word + warp];
  const uint32_t place = through - static_cast<uint32_t>(__popc(word >> lane));
  if ((word >> lane & 1) != 0 && place < static_cast<uint32_t>(max_out)) {
    const uint64_t key = workspace.sorted[image * k + (first_word + warp) * 32 + lane];
    keep[image * max_out + place] = candidate_index(key);
  }
  if (blockIdx.x + 1 == gridDim.x && threadIdx.x == 0) {
    keep_counts[image] = static_cast<int32_t>(min(total, static_cast<uint32_t>(max_out)));
  }
}

// detections (N, max_out, 6)
__global__ void __launch_bounds__(threads_per_block)
    gather_kernel(float* detections, const float* boxes, const float* scores, const int32_t* labels,
                  const int32_t* keep, const float* keep_scores, int64_t count, int32_t k, int32_t max_out) {
  const int64_t step = int64_t{gridDim.x} * threads_per_block;
  for (int64_t i = int64_t{blockIdx.x} * threads_per_block + threadIdx.x; i < count; i += step) {
    const int32_t candidate = keep[i];
    float* out = detections + 6 * i;
    if (candidate < 0 || candidate >= k) {
      for (int j = 0; j < 6; ++j) out[j] = 0.0f;
      continue;
    }
    const int64_t source = i / max_out * k + candidate;
    store_box(out, load_box(boxes + 4 * source));
    out[4] = keep_scores ? keep_scores[i] : scores[source];
    out[5] = static_cast<float>(labels[source]);
  }
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_nms_workspace(dlfs_context ctx, int64_t* out, int32_t n, int32_t k) {
  return context_call("dlfs_nms_workspace", ctx, [&](Context&) {
    check_pointer(out, "out");
    check_range(n, 1, max_images, "n");
    check_range(k, 1, 1 << 24, "k");
    *out = NmsWorkspace(nullptr, n, k).bytes;
  });
}

dlfs_status dlfs_nms(dlfs_stream stream, int32_t* keep, int32_t* keep_counts, const float* boxes, const float* scores,
                     const int32_t* labels, void* workspace, int32_t n, int32_t k, int32_t max_out,
                     double iou_threshold, int32_t class_aware) {
  return stream_call("dlfs_nms", stream, [&](Stream& s) {
    check_pointer(keep, "keep");
    check_pointer(keep_counts, "keep_counts");
    check_pointer(boxes, "boxes");
    check_pointer(scores, "scores");
    check_pointer(labels, "labels");
    check_range(n, 1, max_images, "n");
    check_range(k, 1, 1 << 24, "k");
    check_size(max_out, "max_out");
    check_iou_threshold(iou_threshold);
    const NmsWorkspace ws(workspace, n, k);
    check_workspace(workspace, ws.bytes);
    const NmsInput input{boxes, scores, labels, k, class_aware != 0, aligned16({boxes})};
    const NmsRules rules{max_out, static_cast<float>(iou_threshold)};
    const unsigned images = static_cast<unsigned>(n);
    const dim3 per_candidate(static_cast<unsigned>(ceil_div(k, order_threads)), images);
    CUDA_CHECK(cudaMemsetAsync(keep, 0xff, static_cast<size_t>(n) * max_out * sizeof(int32_t), s.stream));  // -1
    CUDA_CHECK(cudaMemsetAsync(workspace, 0, static_cast<size_t>(ws.zeroed_bytes), s.stream));
    launch(s, per_candidate, order_threads, 0, bin_kernel, ws, input);
    launch(s, images, start_threads, 0, start_kernel, ws);
    launch(s, per_candidate, order_threads, 0, scatter_kernel, ws, input);
    launch(s, per_candidate, order_threads, 0, rank_kernel, ws, input);
    launch(s, images, buckets, 0, segment_kernel, ws);
    launch(s, dim3(static_cast<unsigned>(ws.stretches), images), stretch, 0, partition_kernel, ws, input);
    const int64_t tiles = int64_t{n} * (ceil_div(k, tile) + std::min(k, buckets));
    launch(s, grid_size(*s.context, tiles * threads_per_block, threads_per_block, 1), threads_per_block, 0,
           suppress_kernel, ws, n, k, rules);
    launch(s, dim3(static_cast<unsigned>(ws.words / 32), images), word_stretch, 0, collect_kernel, keep, keep_counts,
           ws, k, max_out);
  });
}

dlfs_status dlfs_gather_detections(dlfs_stream stream, float* detections, const float* boxes, const float* scores,
                                   const int32_t* labels, const int32_t* keep, const float* keep_scores, int32_t n,
                                   int32_t k, int32_t max_out) {
  return stream_call("dlfs_gather_detections", stream, [&](Stream& s) {
    check_pointer(detections, "detections");
    check_pointer(boxes, "boxes");
    check_pointer(scores, "scores");
    check_pointer(labels, "labels");
    check_pointer(keep, "keep");
    check_range(n, 1, max_images, "n");
    check_size(k, "k");
    check_size(max_out, "max_out");
    const int64_t count = int64_t{n} * max_out;
    launch(s, grid_size(*s.context, count, threads_per_block), threads_per_block, 0, gather_kernel, detections, boxes,
           scores, labels, keep, keep_scores, count, k, max_out);
  });
}

}  // extern "C"
