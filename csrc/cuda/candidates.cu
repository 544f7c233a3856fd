// Boxes and labels of the candidates that were selected.
#include "common/detection_arguments.hpp"
#include "cuda/detection.cuh"

namespace dlfs {
namespace {

constexpr int threads_per_block = 256;

// boxes (N, row_stride, 4), labels and index (N, row_stride); deltas rows deltas_stride elements apart
template <class T>
__global__ void __launch_bounds__(threads_per_block)
    decode_candidates_kernel(float* boxes, int32_t* labels, const int32_t* index, const T* deltas, const float* anchors,
                             const float* image_sizes, int32_t k, int64_t row_stride, int64_t deltas_stride,
                             CandidateRules rules) {
  const int32_t i = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= k) return;
  const int32_t image = static_cast<int32_t>(blockIdx.y);
  const int64_t out = int64_t{image} * row_stride + i;
  const int32_t candidate = index[out];
  Box box = {0.0f, 0.0f, 0.0f, 0.0f};
  int32_t label = -1;
  if (candidate >= 0) {
    const CandidateRules::Source source = rules.source(i, candidate);
    label = source.label;
    const T* d = deltas + image * deltas_stride + 4 * int64_t{source.anchor};
    const BoxDeltas moved = {to_float(d[0]), to_float(d[1]), to_float(d[2]), to_float(d[3])};
    box = rules.decode(moved, load_box(anchors + 4 * int64_t{source.anchor}));
    box = box_clip(box, image_sizes[2 * image], image_sizes[2 * image + 1]);
  }
  store_box(boxes + 4 * out, box);
  labels[out] = label;
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_decode_candidates(dlfs_stream stream, float* boxes, int32_t* labels, const int32_t* index,
                                   const void* deltas, const float* anchors, const float* image_sizes, int32_t n,
                                   int32_t k, int64_t row_stride, int64_t deltas_stride, int32_t classes,
                                   int32_t per_class, int32_t coder, dlfs_dtype dtype, double wx, double wy, double ww,
                                   double wh) {
  return stream_call("dlfs_decode_candidates", stream, [&](Stream& s) {
    check_pointer(boxes, "boxes");
    check_pointer(labels, "labels");
    check_pointer(index, "index");
    check_pointer(deltas, "deltas");
    check_pointer(anchors, "anchors");
    check_pointer(image_sizes, "image_sizes");
    check_range(n, 1, max_images, "n");
    check_size(k, "k");
    check_row_stride(n, k, row_stride);
    check_count(deltas_stride, "deltas_stride");
    const CandidateRules rules = candidate_rules(k, classes, per_class, coder, wx, wy, ww, wh);
    dispatch_float(dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(k, threads_per_block)), static_cast<unsigned>(n));
      launch(s, grid, threads_per_block, 0, decode_candidates_kernel<T>, boxes, labels, index,
             static_cast<const T*>(deltas), anchors, image_sizes, k, row_stride, deltas_stride, rules);
    });
  });
}

}  // extern "C"
