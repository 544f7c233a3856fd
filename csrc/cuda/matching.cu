// Assigning boxes to anchors (torchvision's Matcher and SSDMatcher) and to points (its FCOS) for a whole batch. IoUs are
// computed twice and never stored: a first pass finds each box's best IoU or anchor (not needed where thresholds alone
// decide), a second each anchor's match. Both passes run the same instructions on the same values, so "equals the box's
// best IoU" is exact.
#include "common/detection_arguments.hpp"
#include "cuda/detection.cuh"

namespace dlfs {
namespace {

constexpr int threads_per_block = 256;
constexpr int anchors_per_thread = 4;
constexpr int anchors_per_block = threads_per_block * anchors_per_thread;
constexpr int boxes_per_chunk = 256;  // of one image, in shared memory at a time

struct BoxChunk {
  Box box[boxes_per_chunk];
  float area[boxes_per_chunk];
};

// Loads boxes [begin, begin + count) of one image; ends with a barrier.
__device__ void load_chunk(BoxChunk& chunk, const float* boxes, int32_t begin, int32_t count) {
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += threads_per_block) {
    const Box box = load_box(boxes + 4 * int64_t{begin + i});
    chunk.box[i] = box;
    chunk.area[i] = box_area(box);
  }
  __syncthreads();
}

// This thread's anchors: index first + 256 j; those past the end are boxes of no extent, which meet nothing.
struct ThreadAnchors {
  Box box[anchors_per_thread];
  float area[anchors_per_thread];
};

__device__ __forceinline__ void load_anchors(ThreadAnchors& mine, const float* anchors, int64_t first,
                                             int32_t anchors_count, bool aligned) {
#pragma unroll
  for (int j = 0; j < anchors_per_thread; ++j) {
    const int64_t a = first + j * threads_per_block;
    mine.box[j] = a < anchors_count ? read_box(anchors, a, aligned) : Box{0.0f, 0.0f, 0.0f, 0.0f};
    mine.area[j] = box_area(mine.box[j]);
  }
}

__device__ __forceinline__ int32_t real_boxes(const int32_t* counts, int32_t image, int32_t max_boxes) {
  return max(0, min(counts[image], max_boxes));
}

__device__ __forceinline__ unsigned warp_max(unsigned value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(full_warp, value);
#else
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value = max(value, __shfl_xor_sync(full_warp, value, offset));
  return value;
#endif
}

// A box's best anchor: the bits of its IoU, which order as the floats do since IoU >= 0, above the complement of the
// anchor's index, so that the lowest of equals is the largest. 0 stands for no anchor with an IoU above 0.
using BestAnchor = unsigned long long;

__device__ __forceinline__ float best_iou(BestAnchor best) {
  return float_from_bits(static_cast<uint32_t>(best / 0x100000000ull));
}

// The first anchor where all IoUs are 0.
__device__ __forceinline__ int32_t best_index(BestAnchor best) {
  return best == 0 ? 0 : static_cast<int32_t>(~static_cast<uint32_t>(best));
}

// best (N, M), zeroed before.
__global__ void __launch_bounds__(threads_per_block)
    best_anchor_kernel(BestAnchor* best, const float* anchors, const float* boxes, const int32_t* counts,
                       int32_t anchors_count, int32_t max_boxes, bool aligned) {
  constexpr int warps = threads_per_block / 32;
  __shared__ BoxChunk chunk;
  __shared__ BestAnchor warp_best[warps][boxes_per_chunk];
  const int32_t image = static_cast<int32_t>(blockIdx.y);
  const int32_t count = real_boxes(counts, image, max_boxes);
  const float* image_boxes = boxes + 4 * int64_t{image} * max_boxes;
  BestAnchor* image_best = best + int64_t{image} * max_boxes;
  const int64_t first = int64_t{blockIdx.x} * anchors_per_block + threadIdx.x;
  ThreadAnchors mine;
  load_anchors(mine, anchors, first, anchors_count, aligned);
  for (int32_t begin = 0; begin < count; begin += boxes_per_chunk) {
    const int32_t size = min(boxes_per_chunk, count - begin);
    load_chunk(chunk, image_boxes, begin, size);
    for (int32_t i = 0; i < size; ++i) {
      const Box box = chunk.box[i];
      const float area = chunk.area[i];
      float largest = 0.0f;
      int where = 0;
#pragma unroll
      for (int j = 0; j < anchors_per_thread; ++j) {
        const float iou = fast_iou(mine.box[j], mine.area[j], box, area);
        where = iou > largest ? j : where;  // the first of equals, which has the lowest index
        largest = iou > largest ? iou : largest;
      }
      BestAnchor best_of_warp = 0;
      if (__any_sync(full_warp, largest > 0.0f)) {
        const unsigned bits = warp_max(float_bits(largest));
        const unsigned index = static_cast<unsigned>(first + where * threads_per_block);
        const unsigned complement = warp_max(float_bits(largest) == bits ? ~index : 0u);
        best_of_warp = bits * 0x100000000ull + complement;
      }
      if (threadIdx.x % 32 == 0) warp_best[threadIdx.x / 32][i] = best_of_warp;
    }
    __syncthreads();
    if (static_cast<int32_t>(threadIdx.x) < size) {
      BestAnchor best_of_block = 0;
#pragma unroll
      for (int warp = 0; warp < warps; ++warp) best_of_block = max(best_of_block, warp_best[warp][threadIdx.x]);
      if (best_of_block != 0) atomicMax(&image_best[begin + threadIdx.x], best_of_block);
    }
    __syncthreads();  // the next chunk overwrites what was read
  }
}

// Adds the block's matches to the image's foreground. For all threads of the block, once.
__device__ void add_foreground(int32_t* foreground, int positive) {
  const double total = block_sum<threads_per_block>(positive);
  if (threadIdx.x == 0 && total > 0) atomicAdd(foreground, static_cast<int32_t>(total));
}

// matches (N, A); foreground (N), zeroed before; best (N, M) is read unless thresholds alone decide.
template <int matching>
__global__ void __launch_bounds__(threads_per_block)
    match_kernel(int32_t* matches, int32_t* foreground, const BestAnchor* best, const float* anchors,
                 const float* boxes, const int32_t* counts, int32_t anchors_count, int32_t max_boxes, float high,
                 float low, bool aligned) {
  __shared__ BoxChunk chunk;
  __shared__ BestAnchor chunk_best[boxes_per_chunk];
  const int32_t image = static_cast<int32_t>(blockIdx.y);
  const int32_t count = real_boxes(counts, image, max_boxes);
  const float* image_boxes = boxes + 4 * int64_t{image} * max_boxes;
  const int64_t first = int64_t{blockIdx.x} * anchors_per_block + threadIdx.x;
  ThreadAnchors mine;
  load_anchors(mine, anchors, first, anchors_count, aligned);
  float best_value[anchors_per_thread];
  int32_t best_box[anchors_per_thread];
  bool keeps[anchors_per_thread];     // the anchor has some box's best IoU
  int32_t owner[anchors_per_thread];  // the last box whose best anchor it is
#pragma unroll
  for (int j = 0; j < anchors_per_thread; ++j) {
    best_value[j] = -1.0f;
    best_box[j] = match_background;
    keeps[j] = false;
    owner[j] = match_background;
  }
  for (int32_t begin = 0; begin < count; begin += boxes_per_chunk) {
    const int32_t size = min(boxes_per_chunk, count - begin);
    if (matching != DLFS_MATCH_THRESHOLDS && static_cast<int32_t>(threadIdx.x) < size) {
      chunk_best[threadIdx.x] = best[int64_t{image} * max_boxes + begin + threadIdx.x];
    }
    load_chunk(chunk, image_boxes, begin, size);
    for (int32_t i = 0; i < size; ++i) {
      const Box box = chunk.box[i];
      const float area = chunk.area[i];
#pragma unroll
      for (int j = 0; j < anchors_per_thread; ++j) {
        const float iou = fast_iou(mine.box[j], mine.area[j], box, area);
        if (iou > best_value[j]) {  // the first of equals wins
          best_value[j] = iou;
          best_box[j] = begin + i;
        }
        if (matching == DLFS_MATCH_LOW_QUALITY) keeps[j] = keeps[j] || iou == best_iou(chunk_best[i]);
        if (matching == DLFS_MATCH_BEST_ANCHOR && best_index(chunk_best[i]) == first + j * threads_per_block) {
          owner[j] = begin + i;
        }
      }
    }
    __syncthreads();  // the next chunk overwrites what was read
  }
  int positive = 0;
#pragma unroll
  for (int j = 0; j < anchors_per_thread; ++j) {
    const int64_t a = first + j * threads_per_block;
    if (a >= anchors_count) continue;
    int32_t match = best_box[j];
    if (match >= 0 && !keeps[j]) {
      if (best_value[j] < low) {
        match = match_background;
      } else if (best_value[j] < high) {
        match = match_ignored;
      }
    }
    if (owner[j] >= 0) match = owner[j];
    matches[int64_t{image} * anchors_count + a] = match;
    positive += match >= 0;
  }
  add_foreground(foreground + image, positive);
}

// matches (N, A); foreground (N), zeroed before.
__global__ void __launch_bounds__(threads_per_block)
    match_points_kernel(int32_t* matches, int32_t* foreground, const float* anchors, const float* boxes,
                        const int32_t* counts, int32_t anchors_count, int32_t max_boxes, int32_t first_level,
                        int32_t last_level, float radius, bool aligned) {
  __shared__ BoxChunk chunk;
  const int32_t image = static_cast<int32_t>(blockIdx.y);
  const int32_t count = real_boxes(counts, image, max_boxes);
  const float* image_boxes = boxes + 4 * int64_t{image} * max_boxes;
  const int64_t first = int64_t{blockIdx.x} * anchors_per_block + threadIdx.x;
  PointTarget mine[anchors_per_thread];
  float best_value[anchors_per_thread];
  int32_t best_box[anchors_per_thread];
#pragma unroll
  for (int j = 0; j < anchors_per_thread; ++j) {
    const int64_t a = first + j * threads_per_block;
    const Box anchor = a < anchors_count ? read_box(anchors, a, aligned) : Box{0.0f, 0.0f, 0.0f, 0.0f};
    mine[j] = point_target(anchor, radius, a < first_level, a >= anchors_count - last_level);
    best_value[j] = 0.0f;
    best_box[j] = 0;
  }
  for (int32_t begin = 0; begin < count; begin += boxes_per_chunk) {
    const int32_t size = min(boxes_per_chunk, count - begin);
    load_chunk(chunk, image_boxes, begin, size);
    for (int32_t i = 0; i < size; ++i) {
      const Box box = chunk.box[i];
#pragma unroll
      for (int j = 0; j < anchors_per_thread; ++j) {
        const float match = point_match(mine[j], box);
        if (match > best_value[j]) {  // the first of equals wins
          best_value[j] = match;
          best_box[j] = begin + i;
        }
      }
    }
    __syncthreads();  // the next chunk overwrites what was read
  }
  int positive = 0;
#pragma unroll
  for (int j = 0; j < anchors_per_thread; ++j) {
    const int64_t a = first + j * threads_per_block;
    if (a >= anchors_count) continue;
    const int32_t match = best_value[j] >= least_point_match ? best_box[j] : match_background;
    matches[int64_t{image} * anchors_count + a] = match;
    positive += match >= 0;
  }
  add_foreground(foreground + image, positive);
}

// A block for each 1024 anchors of an image.
dim3 match_grid(int32_t n, int32_t anchors_count) {
  return dim3(static_cast<unsigned>(ceil_div<int64_t>(anchors_count, anchors_per_block)), static_cast<unsigned>(n));
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_match_anchors_workspace(dlfs_context ctx, int64_t* out, int32_t n, int32_t anchors,
                                         int32_t max_boxes) {
  return context_call("dlfs_match_anchors_workspace", ctx, [&](Context&) {
    check_pointer(out, "out");
    check_range(n, 1, max_images, "n");
    check_size(anchors, "anchors");
    check_count(max_boxes, "max_boxes");
    WorkspaceLayout layout;
    layout.take<BestAnchor>(int64_t{n} * max_boxes);
    *out = layout.bytes();
  });
}

dlfs_status dlfs_match_anchors(dlfs_stream stream, int32_t* matches, int32_t* foreground, const float* anchors,
                               const float* boxes, const int32_t* counts, void* workspace, int32_t n,
                               int32_t anchors_count, int32_t max_boxes, double high, double low,
                               int32_t matching) {
  return stream_call("dlfs_match_anchors", stream, [&](Stream& s) {
    check_pointer(matches, "matches");
    check_pointer(foreground, "foreground");
    check_pointer(anchors, "anchors");
    check_pointer(counts, "counts");
    check_range(n, 1, max_images, "n");
    check_size(anchors_count, "anchors_count");
    check_count(max_boxes, "max_boxes");
    check_thresholds(high, low);
    check_range(matching, DLFS_MATCH_THRESHOLDS, DLFS_MATCH_BEST_ANCHOR, "matching");
    if (max_boxes > 0) check_pointer(boxes, "boxes");
    WorkspaceLayout layout(workspace);
    BestAnchor* const best = layout.take<BestAnchor>(int64_t{n} * max_boxes);
    check_workspace(workspace, layout.bytes());
    const dim3 grid = match_grid(n, anchors_count);
    const bool aligned = aligned16({anchors});
    CUDA_CHECK(cudaMemsetAsync(foreground, 0, static_cast<size_t>(n) * sizeof(int32_t), s.stream));
    auto* kernel = match_kernel<DLFS_MATCH_THRESHOLDS>;
    if (matching != DLFS_MATCH_THRESHOLDS && max_boxes > 0) {
      kernel = matching == DLFS_MATCH_LOW_QUALITY ? match_kernel<DLFS_MATCH_LOW_QUALITY>
                                                  : match_kernel<DLFS_MATCH_BEST_ANCHOR>;
      CUDA_CHECK(cudaMemsetAsync(best, 0, static_cast<size_t>(n) * max_boxes * sizeof(BestAnchor), s.stream));
      launch(s, grid, threads_per_block, 0, best_anchor_kernel, best, anchors, boxes, counts, anchors_count, max_boxes,
             aligned);
    }
    launch(s, grid, threads_per_block, 0, kernel, matches, foreground, best, anchors, boxes, counts, anchors_count,
           max_boxes, static_cast<float>(high), static_cast<float>(low), aligned);
  });
}

dlfs_status dlfs_match_points(dlfs_stream stream, int32_t* matches, int32_t* foreground, const float* anchors,
                              const float* boxes, const int32_t* counts, int32_t n, int32_t anchors_count,
                              int32_t max_boxes, int32_t first_level, int32_t last_level, double radius) {
  return stream_call("dlfs_match_points", stream, [&](Stream& s) {
    check_pointer(matches, "matches");
    check_pointer(foreground, "foreground");
    check_pointer(anchors, "anchors");
    check_pointer(counts, "counts");
    check_range(n, 1, max_images, "n");
    check_size(anchors_count, "anchors_count");
    check_count(max_boxes, "max_boxes");
    check_levels(anchors_count, first_level, last_level);
    check_radius(radius);
    if (max_boxes > 0) check_pointer(boxes, "boxes");
    CUDA_CHECK(cudaMemsetAsync(foreground, 0, static_cast<size_t>(n) * sizeof(int32_t), s.stream));
    launch(s, match_grid(n, anchors_count), threads_per_block, 0, match_points_kernel, matches, foreground, anchors,
           boxes, counts, anchors_count, max_boxes, first_level, last_level, static_cast<float>(radius),
           aligned16({anchors}));
  });
}

}  // extern "C"
