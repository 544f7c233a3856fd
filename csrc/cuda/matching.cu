// Assigning boxes to anchors (torchvision's Matcher) for a whole batch. IoUs are computed twice and never stored: a
// first pass finds each box's best IoU (only needed for low-quality matches), a second each anchor's match. Both passes
// run the same instructions on the same values, so "equals the box's best IoU" is exact.
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

// best (N, M): the bits of each box's largest IoU, which order as the floats do since IoU >= 0; zeroed before.
__global__ void __launch_bounds__(threads_per_block)
    best_iou_kernel(unsigned* best, const float* anchors, const float* boxes, const int32_t* counts,
                    int32_t anchors_count, int32_t max_boxes, bool aligned) {
  __shared__ BoxChunk chunk;
  __shared__ unsigned chunk_best[boxes_per_chunk];
  const int32_t image = static_cast<int32_t>(blockIdx.y);
  const int32_t count = real_boxes(counts, image, max_boxes);
  const float* image_boxes = boxes + 4 * int64_t{image} * max_boxes;
  unsigned* image_best = best + int64_t{image} * max_boxes;
  ThreadAnchors mine;
  load_anchors(mine, anchors, int64_t{blockIdx.x} * anchors_per_block + threadIdx.x, anchors_count, aligned);
  for (int32_t begin = 0; begin < count; begin += boxes_per_chunk) {
    const int32_t size = min(boxes_per_chunk, count - begin);
    chunk_best[threadIdx.x] = 0;
    load_chunk(chunk, image_boxes, begin, size);
    for (int32_t i = 0; i < size; ++i) {
      const Box box = chunk.box[i];
      const float area = chunk.area[i];
      float largest = 0.0f;
#pragma unroll
      for (int j = 0; j < anchors_per_thread; ++j) {
        const float iou = fast_iou(mine.box[j], mine.area[j], box, area);
        largest = iou > largest ? iou : largest;
      }
      if (__any_sync(full_warp, largest > 0.0f)) {
        const unsigned bits = warp_max(float_bits(largest));
        if (threadIdx.x % 32 == 0) atomicMax(&chunk_best[i], bits);
      }
    }
    __syncthreads();
    if (static_cast<int32_t>(threadIdx.x) < size && chunk_best[threadIdx.x] != 0) {
      atomicMax(&image_best[begin + threadIdx.x], chunk_best[threadIdx.x]);
    }
    __syncthreads();  // the next chunk overwrites what was read
  }
}

// matches (N, A); foreground (N), zeroed before; best (N, M) is read where low_quality.
template <bool low_quality>
__global__ void __launch_bounds__(threads_per_block)
    match_kernel(int32_t* matches, int32_t* foreground, const unsigned* best, const float* anchors, const float* boxes,
                 const int32_t* counts, int32_t anchors_count, int32_t max_boxes, float high, float low, bool aligned) {
  __shared__ BoxChunk chunk;
  __shared__ float chunk_best[boxes_per_chunk];
  __shared__ int block_foreground;
  const int32_t image = static_cast<int32_t>(blockIdx.y);
  const int32_t count = real_boxes(counts, image, max_boxes);
  const float* image_boxes = boxes + 4 * int64_t{image} * max_boxes;
  const int64_t first = int64_t{blockIdx.x} * anchors_per_block + threadIdx.x;
  ThreadAnchors mine;
  load_anchors(mine, anchors, first, anchors_count, aligned);
  float best_value[anchors_per_thread];
  int32_t best_index[anchors_per_thread];
  bool keeps[anchors_per_thread];  // the anchor has some box's best IoU
#pragma unroll
  for (int j = 0; j < anchors_per_thread; ++j) {
    best_value[j] = -1.0f;
    best_index[j] = match_background;
    keeps[j] = false;
  }
  if (threadIdx.x == 0) block_foreground = 0;
  for (int32_t begin = 0; begin < count; begin += boxes_per_chunk) {
    const int32_t size = min(boxes_per_chunk, count - begin);
    if (low_quality && static_cast<int32_t>(threadIdx.x) < size) {
      chunk_best[threadIdx.x] = float_from_bits(best[int64_t{image} * max_boxes + begin + threadIdx.x]);
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
          best_index[j] = begin + i;
        }
        if (low_quality) keeps[j] = keeps[j] || iou == chunk_best[i];
      }
    }
    __syncthreads();  // the next chunk overwrites what was read
  }
  __syncthreads();  // block_foreground is 0, also where there was no chunk
  int positive = 0;
#pragma unroll
  for (int j = 0; j < anchors_per_thread; ++j) {
    const int64_t a = first + j * threads_per_block;
    if (a >= anchors_count) continue;
    int32_t match = best_index[j];
    if (match >= 0 && !keeps[j]) {
      if (best_value[j] < low) {
        match = match_background;
      } else if (best_value[j] < high) {
        match = match_ignored;
      }
    }
    matches[int64_t{image} * anchors_count + a] = match;
    positive += match >= 0;
  }
  if (positive > 0) atomicAdd(&block_foreground, positive);
  __syncthreads();
  if (threadIdx.x == 0 && block_foreground > 0) atomicAdd(&foreground[image], block_foreground);
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
    layout.take<unsigned>(int64_t{n} * max_boxes);
    *out = layout.bytes();
  });
}

dlfs_status dlfs_match_anchors(dlfs_stream stream, int32_t* matches, int32_t* foreground, const float* anchors,
                               const float* boxes, const int32_t* counts, void* workspace, int32_t n,
                               int32_t anchors_count, int32_t max_boxes, double high, double low,
                               int32_t allow_low_quality) {
  return stream_call("dlfs_match_anchors", stream, [&](Stream& s) {
    check_pointer(matches, "matches");
    check_pointer(foreground, "foreground");
    check_pointer(anchors, "anchors");
    check_pointer(counts, "counts");
    check_range(n, 1, max_images, "n");
    check_size(anchors_count, "anchors_count");
    check_count(max_boxes, "max_boxes");
    DLFS_CHECK(low <= high, DLFS_ERROR_ARGUMENT, "expected low <= high, got low %g and high %g", low, high);
    if (max_boxes > 0) {
      check_pointer(boxes, "boxes");
      check_workspace(workspace);
    }
    const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(anchors_count, anchors_per_block)),
                    static_cast<unsigned>(n));
    const bool aligned = aligned16({anchors});
    const bool low_quality = allow_low_quality != 0 && max_boxes > 0;
    unsigned* const best = WorkspaceLayout(workspace).take<unsigned>(int64_t{n} * max_boxes);
    CUDA_CHECK(cudaMemsetAsync(foreground, 0, static_cast<size_t>(n) * sizeof(int32_t), s.stream));
    if (low_quality) {
      CUDA_CHECK(cudaMemsetAsync(best, 0, static_cast<size_t>(n) * max_boxes * sizeof(unsigned), s.stream));
      launch(s, grid, threads_per_block, 0, best_iou_kernel, best, anchors, boxes, counts, anchors_count, max_boxes,
             aligned);
    }
    launch(s, grid, threads_per_block, 0, low_quality ? match_kernel<true> : match_kernel<false>, matches, foreground,
           best, anchors, boxes, counts, anchors_count, max_boxes, static_cast<float>(high), static_cast<float>(low),
           aligned);
  });
}

}  // extern "C"
