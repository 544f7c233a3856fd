// Greedy non-maximum suppression of a batch, without a host in the loop and without a mask of all pairs.
//
// 1. sort: each candidate's place is the number of keys (score descending, then index: unique) smaller than its own;
//    boxes and labels are copied there.
// 2. For each chunk of 512 candidates, best first: `test` marks those that a box kept from earlier chunks suppresses
//    and computes the chunk's own pairs as bits, 64 x 64 to a tile; `keep` then walks over the chunk in order, one block
//    per image. Once an image has its max_out boxes, or has no more candidates, its blocks return at once.
// The number of IoUs is that of (candidates x kept boxes) plus 512 x 512 / 2 per chunk.
#include "common/detection_arguments.hpp"
#include "cuda/detection.cuh"

namespace dlfs {
namespace {

constexpr int threads_per_block = 256;
constexpr int sort_tile = 1024;  // keys compared with at a time
constexpr int tile = 64;         // candidates to a word of bits
constexpr int chunk_tiles = 8;
constexpr int chunk = tile * chunk_tiles;
constexpr int least_splits = chunk_tiles;  // of the work on a tile: as many as mask tiles
constexpr int most_splits = 32;
constexpr uint64_t no_candidate = ~uint64_t{0};

struct NmsWorkspace {
  int32_t* valid;       // (N): candidates with a label >= 0
  uint32_t* removed;    // (N, chunks * 512 / 32): suppressed by a box of an earlier chunk; zeroed before
  int32_t* order;       // (N, K): candidate of each place
  float4* box;          // (N, K), sorted
  int32_t* label;       // (N, K), sorted
  float4* kept_box;     // (N, K)
  int32_t* kept_label;  // (N, K)
  uint64_t* mask;       // (N, 512, 8): bit j of word t of row i: i suppresses candidate 64 t + j of the chunk
  int32_t chunks;
  int64_t bytes;

  NmsWorkspace(void* workspace, int32_t n, int32_t k) : chunks(ceil_div(k, chunk)) {
    WorkspaceLayout layout(workspace);
    const int64_t candidates = int64_t{n} * k;
    valid = layout.take<int32_t>(n);
    removed = layout.take<uint32_t>(removed_words() * n);
    order = layout.take<int32_t>(candidates);
    box = layout.take<float4>(candidates);
    label = layout.take<int32_t>(candidates);
    kept_box = layout.take<float4>(candidates);
    kept_label = layout.take<int32_t>(candidates);
    mask = layout.take<uint64_t>(int64_t{n} * chunk * chunk_tiles);
    bytes = layout.bytes();
  }

  DLFS_HD int64_t removed_words() const { return int64_t{chunks} * (chunk / 32); }  // of one image
};

__device__ __forceinline__ Box to_box(const float4& v) { return {v.x, v.y, v.z, v.w}; }

__device__ __forceinline__ uint64_t sort_key(const float* scores, const int32_t* labels, int64_t row, int32_t i) {
  return labels[row + i] < 0 ? no_candidate : candidate_key(scores[row + i], i);
}

// Grid (K / 256, N). boxes (N, K, 4), scores and labels (N, K).
__global__ void __launch_bounds__(threads_per_block)
    sort_kernel(NmsWorkspace workspace, const float* boxes, const float* scores, const int32_t* labels, int32_t k,
                bool aligned) {
  __shared__ uint64_t keys[sort_tile];
  const int64_t row = int64_t{blockIdx.y} * k;
  const int32_t mine = static_cast<int32_t>(blockIdx.x * threads_per_block + threadIdx.x);
  const uint64_t key = mine < k ? sort_key(scores, labels, row, mine) : no_candidate;
  // Blocks of none but left-out candidates have nothing to sort; block 0 counts the candidates.
  if (!__syncthreads_or(key != no_candidate) && blockIdx.x != 0) return;
  int32_t place = 0;
  int32_t valid = 0;
  for (int32_t begin = 0; begin < k; begin += sort_tile) {
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < sort_tile; i += threads_per_block) {
      const uint64_t other = begin + i < k ? sort_key(scores, labels, row, begin + i) : no_candidate;
      keys[i] = other;
      valid += other != no_candidate;
    }
    __syncthreads();
    if (key != no_candidate) {
#pragma unroll 8
      for (int i = 0; i < sort_tile; ++i) place += keys[i] < key;
    }
    __syncthreads();  // the next tile overwrites the keys
  }
  if (key != no_candidate) {
    workspace.order[row + place] = mine;
    const Box box = read_box(boxes, row + mine, aligned);
    workspace.box[row + place] = make_float4(box.x1, box.y1, box.x2, box.y2);
    workspace.label[row + place] = labels[row + mine];
  }
  if (blockIdx.x == 0) {
    const double total = block_sum<threads_per_block>(valid);
    if (threadIdx.x == 0) workspace.valid[blockIdx.y] = static_cast<int32_t>(total);
  }
}

struct NmsRules {
  float iou_threshold;
  bool class_aware;

  // True where a kept box drops another.
  __device__ __forceinline__ bool suppresses(const Box& a, float area_a, int32_t label_a, const Box& b, float area_b,
                                             int32_t label_b) const {
    return (!class_aware || label_a == label_b) && fast_iou(a, area_a, b, area_b) > iou_threshold;
  }
};

// Grid (8 tiles of the chunk, splits, N). Block (t, s) tests the 64 candidates of tile t against every splits-th of the
// boxes kept so far, and, for s <= t, computes the bits of tile s's rows for tile t.
__global__ void __launch_bounds__(threads_per_block)
    test_kernel(NmsWorkspace workspace, const int32_t* keep_counts, int32_t k, int32_t max_out, int32_t chunk_index,
                NmsRules rules) {
  __shared__ Box boxes[tile];
  __shared__ float areas[tile];
  __shared__ int32_t labels[tile];
  const int64_t image = blockIdx.z;
  const int32_t valid = workspace.valid[image];
  const int32_t kept = keep_counts[image];
  const int32_t start = chunk_index * chunk;
  const int32_t first = start + static_cast<int32_t>(blockIdx.x) * tile;
  if (first >= valid || kept >= max_out) return;
  const int32_t i = static_cast<int32_t>(threadIdx.x % tile);
  const int32_t group = static_cast<int32_t>(threadIdx.x / tile);  // of four
  const float4* sorted_box = workspace.box + image * k;
  const int32_t* sorted_label = workspace.label + image * k;
  if (group == 0) {
    const bool real = first + i < valid;
    const Box box = real ? to_box(sorted_box[first + i]) : Box{0.0f, 0.0f, 0.0f, 0.0f};
    boxes[i] = box;
    areas[i] = box_area(box);
    labels[i] = real ? sorted_label[first + i] : -1;
  }
  __syncthreads();

  const Box box = boxes[i];
  const float area = areas[i];
  const int32_t label = labels[i];
  bool removed = false;
  if (label >= 0) {
    const float4* kept_box = workspace.kept_box + image * k;
    const int32_t* kept_label = workspace.kept_label + image * k;
    const int32_t step = static_cast<int32_t>(gridDim.y) * 4;
    for (int32_t j = static_cast<int32_t>(blockIdx.y) * 4 + group; j < kept && !removed; j += step) {
      const Box other = to_box(kept_box[j]);
      removed = rules.suppresses(other, box_area(other), kept_label[j], box, area, label);
    }
  }
  const unsigned bits = __ballot_sync(full_warp, removed);
  if (threadIdx.x % 32 == 0 && bits != 0) {
    atomicOr(&workspace.removed[image * workspace.removed_words() + (first + i) / 32], bits);
  }

  if (blockIdx.y > blockIdx.x) return;
  const int32_t row = static_cast<int32_t>(blockIdx.y) * tile + i;  // in the chunk; this thread does 16 of its 64 pairs
  if (start + row >= valid) return;
  const Box row_box = to_box(sorted_box[start + row]);
  const float row_area = box_area(row_box);
  const int32_t row_label = sorted_label[start + row];
  unsigned pairs = 0;
  for (int32_t j = 0; j < 16; ++j) {
    const int32_t column = group * 16 + j;
    const bool later = first + column > start + row && first + column < valid;
    if (later && rules.suppresses(row_box, row_area, row_label, boxes[column], areas[column], labels[column])) {
      pairs |= 1u << j;
    }
  }
  // A quarter of the 64-bit word; devices and hosts of CUDA are little-endian.
  uint16_t* quarters = reinterpret_cast<uint16_t*>(workspace.mask + (image * chunk + row) * chunk_tiles + blockIdx.x);
  quarters[group] = static_cast<uint16_t>(pairs);
}

// The bits first, first + 1, ... of 32. (With a 64-bit shift of all ones by 0 to 64, ptxas 13.0 gave 0 for 1 to 63 on sm_90.)
__device__ __forceinline__ uint32_t bits_from(int32_t first) {
  return first <= 0 ? full_warp : first >= 32 ? 0u : full_warp << first;
}

// Grid (N). keep (N, max_out), keep_counts (N).
__global__ void __launch_bounds__(threads_per_block)
    keep_kernel(int32_t* keep, int32_t* keep_counts, NmsWorkspace workspace, int32_t k, int32_t max_out,
                int32_t chunk_index) {
  __shared__ uint64_t mask[chunk * chunk_tiles];
  __shared__ int32_t picked[chunk];
  __shared__ int32_t picked_count;
  const int64_t image = blockIdx.x;
  const int32_t valid = workspace.valid[image];
  const int32_t kept = keep_counts[image];
  const int32_t start = chunk_index * chunk;
  if (start >= valid || kept >= max_out) return;
  const int32_t rows = min(chunk, valid - start);
  const uint64_t* image_mask = workspace.mask + image * (chunk * chunk_tiles);
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < chunk * chunk_tiles; i += threads_per_block) {
    const int32_t row = i / chunk_tiles;
    const int32_t word = i % chunk_tiles;
    // Words left of the row's own tile, or past the last candidate, have not been computed.
    const bool computed = row < rows && word >= row / tile && word * tile < rows;
    mask[i] = computed ? image_mask[i] : 0;
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x);
    uint64_t gone = ~uint64_t{0};  // of this lane's word of 64 candidates: suppressed, or none at all
    if (lane < chunk_tiles) {
      const uint32_t* words =
          workspace.removed + image * workspace.removed_words() + int64_t{chunk_index} * (chunk / 32) + 2 * lane;
      const int32_t real = max(0, min(tile, rows - lane * tile));
      const uint64_t unreal = uint64_t{bits_from(real - 32)} << 32 | bits_from(real);
      gone = (uint64_t{words[1]} << 32 | words[0]) | unreal;
    }
    const int32_t wanted = max_out - kept;
    int32_t count = 0;
    for (int32_t word = 0; word < chunk_tiles && count < wanted; ++word) {
      uint64_t alive = ~__shfl_sync(full_warp, gone, word);
      while (alive != 0 && count < wanted) {
        const int32_t bit = __ffsll(static_cast<long long>(alive)) - 1;
        const int32_t row = word * tile + bit;
        const uint64_t drops = lane < chunk_tiles ? mask[row * chunk_tiles + lane] : 0;
        if (lane == 0) picked[count] = row;
        ++count;
        gone |= drops;
        alive &= alive - 1;
        alive &= ~__shfl_sync(full_warp, drops, word);
      }
    }
    if (lane == 0) picked_count = count;
  }
  __syncthreads();
  const int32_t count = picked_count;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += threads_per_block) {
    const int64_t place = image * k + start + picked[i];
    keep[image * max_out + kept + i] = workspace.order[place];
    workspace.kept_box[image * k + kept + i] = workspace.box[place];
    workspace.kept_label[image * k + kept + i] = workspace.label[place];
  }
  if (threadIdx.x == 0) keep_counts[image] = kept + count;
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
    const NmsRules rules{static_cast<float>(iou_threshold), class_aware != 0};
    const unsigned images = static_cast<unsigned>(n);
    CUDA_CHECK(cudaMemsetAsync(keep, 0xff, static_cast<size_t>(n) * max_out * sizeof(int32_t), s.stream));  // -1
    CUDA_CHECK(cudaMemsetAsync(keep_counts, 0, static_cast<size_t>(n) * sizeof(int32_t), s.stream));
    CUDA_CHECK(
        cudaMemsetAsync(ws.removed, 0, static_cast<size_t>(ws.removed_words()) * n * sizeof(uint32_t), s.stream));
    launch(s, dim3(static_cast<unsigned>(ceil_div(k, threads_per_block)), images), threads_per_block, 0, sort_kernel,
           ws, boxes, scores, labels, k, aligned16({boxes}));
    // Few images share their tiles among more blocks.
    const unsigned splits = static_cast<unsigned>(std::clamp(256 / n, least_splits, most_splits));
    for (int32_t i = 0; i < ws.chunks; ++i) {
      launch(s, dim3(chunk_tiles, splits, images), threads_per_block, 0, test_kernel, ws, keep_counts, k, max_out, i,
             rules);
      launch(s, images, threads_per_block, 0, keep_kernel, keep, keep_counts, ws, k, max_out, i);
    }
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
