// Anchors and boxes, one element per thread: the anchor grid of a pyramid level, pairwise IoU, BoxCoder's encode and
// decode.
#include "cuda/detection.cuh"

namespace dlfs {
namespace {

constexpr int threads_per_block = 256;

// out (rows * columns * A, 4) from cell_anchors (A, 4)
__global__ void __launch_bounds__(threads_per_block)
    anchor_grid_kernel(float* out, const float* cell_anchors, int64_t count, int32_t columns, int32_t per_cell,
                       double stride_h, double stride_w, bool aligned) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const int64_t cell = i / per_cell;
    const int32_t row = static_cast<int32_t>(cell / columns);
    const int32_t column = static_cast<int32_t>(cell - int64_t{row} * columns);
    const Box anchor = load_box(cell_anchors + 4 * (i - cell * per_cell));
    write_box(out, i,
              {anchor_coordinate(anchor.x1, column, stride_w), anchor_coordinate(anchor.y1, row, stride_h),
               anchor_coordinate(anchor.x2, column, stride_w), anchor_coordinate(anchor.y2, row, stride_h)},
              aligned);
  }
}

// out (A, B); each block covers 256 boxes of b and strides over those of a.
__global__ void __launch_bounds__(threads_per_block)
    box_iou_kernel(float* out, const float* a, const float* b, int32_t count_a, int32_t count_b, bool aligned_a,
                   bool aligned_b) {
  const int32_t j = static_cast<int32_t>(blockIdx.x) * threads_per_block + static_cast<int32_t>(threadIdx.x);
  if (j >= count_b) return;
  const Box other = read_box(b, j, aligned_b);
  const float other_area = box_area(other);
  for (int64_t i = blockIdx.y; i < count_a; i += gridDim.y) {
    const Box box = read_box(a, i, aligned_a);
    out[i * count_b + j] = box_iou(box, box_area(box), other, other_area);
  }
}

__global__ void __launch_bounds__(threads_per_block)
    box_encode_kernel(float* deltas, const float* boxes, const float* anchors, int64_t count, BoxWeights weights,
                      bool aligned) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const BoxDeltas d = box_encode(read_box(boxes, i, aligned), read_box(anchors, i, aligned), weights);
    write_box(deltas, i, {d.dx, d.dy, d.dw, d.dh}, aligned);
  }
}

__global__ void __launch_bounds__(threads_per_block)
    box_decode_kernel(float* boxes, const float* deltas, const float* anchors, int64_t count, BoxWeights weights,
                      bool aligned) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const Box d = read_box(deltas, i, aligned);
    write_box(boxes, i, box_decode({d.x1, d.y1, d.x2, d.y2}, read_box(anchors, i, aligned), weights), aligned);
  }
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_anchor_grid(dlfs_stream stream, float* out, const float* cell_anchors, int32_t feature_h,
                             int32_t feature_w, int32_t anchors_per_cell, double stride_h, double stride_w) {
  return stream_call("dlfs_anchor_grid", stream, [&](Stream& s) {
    check_pointer(out, "out");
    check_pointer(cell_anchors, "cell_anchors");
    check_size(feature_h, "feature_h");
    check_size(feature_w, "feature_w");
    check_size(anchors_per_cell, "anchors_per_cell");
    check_number(stride_h, "stride_h");
    check_number(stride_w, "stride_w");
    const int64_t count = checked_product({feature_h, feature_w, anchors_per_cell}, "out");
    launch(s, grid_size(*s.context, count, threads_per_block), threads_per_block, 0, anchor_grid_kernel, out,
           cell_anchors, count, feature_w, anchors_per_cell, stride_h, stride_w, aligned16({out}));
  });
}

dlfs_status dlfs_box_iou(dlfs_stream stream, float* out, const float* a, const float* b, int32_t count_a,
                         int32_t count_b) {
  return stream_call("dlfs_box_iou", stream, [&](Stream& s) {
    check_count(count_a, "count_a");
    check_count(count_b, "count_b");
    if (count_a == 0 || count_b == 0) return;
    check_pointer(out, "out");
    check_pointer(a, "a");
    check_pointer(b, "b");
    const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(count_b, threads_per_block)),
                    static_cast<unsigned>(std::min(count_a, 65535)));
    launch(s, grid, threads_per_block, 0, box_iou_kernel, out, a, b, count_a, count_b, aligned16({a}), aligned16({b}));
  });
}

dlfs_status dlfs_box_encode(dlfs_stream stream, float* deltas, const float* boxes, const float* anchors, int64_t count,
                            double wx, double wy, double ww, double wh) {
  return stream_call("dlfs_box_encode", stream, [&](Stream& s) {
    check_count(count, "count");
    const BoxWeights weights = box_weights(wx, wy, ww, wh);
    if (count == 0) return;
    check_pointer(deltas, "deltas");
    check_pointer(boxes, "boxes");
    check_pointer(anchors, "anchors");
    launch(s, grid_size(*s.context, count, threads_per_block), threads_per_block, 0, box_encode_kernel, deltas, boxes,
           anchors, count, weights, aligned16({deltas, boxes, anchors}));
  });
}

dlfs_status dlfs_box_decode(dlfs_stream stream, float* boxes, const float* deltas, const float* anchors, int64_t count,
                            double wx, double wy, double ww, double wh) {
  return stream_call("dlfs_box_decode", stream, [&](Stream& s) {
    check_count(count, "count");
    const BoxWeights weights = box_weights(wx, wy, ww, wh);
    if (count == 0) return;
    check_pointer(boxes, "boxes");
    check_pointer(deltas, "deltas");
    check_pointer(anchors, "anchors");
    launch(s, grid_size(*s.context, count, threads_per_block), threads_per_block, 0, box_decode_kernel, boxes, deltas,
           anchors, count, weights, aligned16({boxes, deltas, anchors}));
  });
}

}  // extern "C"
