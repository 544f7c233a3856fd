// Anchors and element-wise box operations on the CPU: anchor grids, IoU matrices, box encoding and decoding. The maths
// of one box is in common/boxes.hpp.
#include "common/boxes.hpp"
#include "cpu/runtime.hpp"

using namespace dlfs;
using namespace dlfs::cpu;

namespace {

constexpr int64_t grain = 2048;  // boxes that a thread takes at least

}  // namespace

extern "C" dlfs_status dlfs_anchor_grid(dlfs_stream stream, float* out, const float* cell_anchors, int32_t feature_h,
                                        int32_t feature_w, int32_t anchors_per_cell, double stride_h, double stride_w) {
  return on_stream("dlfs_anchor_grid", stream, [&](Stream& s) {
    check_pointer(out, "out");
    check_pointer(cell_anchors, "cell_anchors");
    check_range(feature_h, 1, INT32_MAX, "feature_h");
    check_range(feature_w, 1, INT32_MAX, "feature_w");
    check_range(anchors_per_cell, 1, INT32_MAX, "anchors_per_cell");
    check_number(stride_h, "stride_h");
    check_number(stride_w, "stride_w");
    checked_product({feature_h, feature_w, anchors_per_cell, 4}, "out");
    s.enqueue([=] {
      const int64_t row_anchors = int64_t{feature_w} * anchors_per_cell;
      parallel_for(feature_h, grain / row_anchors + 1, [=](int64_t begin, int64_t end) {
        float* p = out + begin * row_anchors * 4;
        for (int32_t row = static_cast<int32_t>(begin); row < end; ++row) {
          for (int32_t column = 0; column < feature_w; ++column) {
            for (int32_t a = 0; a < anchors_per_cell; ++a, p += 4) {
              const Box cell = load_box(cell_anchors + int64_t{4} * a);
              store_box(p, {anchor_coordinate(cell.x1, column, stride_w), anchor_coordinate(cell.y1, row, stride_h),
                            anchor_coordinate(cell.x2, column, stride_w), anchor_coordinate(cell.y2, row, stride_h)});
            }
          }
        }
      });
    });
  });
}

extern "C" dlfs_status dlfs_box_iou(dlfs_stream stream, float* out, const float* a, const float* b, int32_t count_a,
                                    int32_t count_b) {
  return on_stream("dlfs_box_iou", stream, [&](Stream& s) {
    check_count(count_a, "count_a");
    check_count(count_b, "count_b");
    if (count_a == 0 || count_b == 0) return;
    check_pointer(out, "out");
    check_pointer(a, "a");
    check_pointer(b, "b");
    s.enqueue([=] {
      parallel_for(count_a, grain / count_b + 1, [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const Box box = load_box(a + 4 * i);
          const float area = box_area(box);
          float* row = out + i * count_b;
          for (int64_t j = 0; j < count_b; ++j) {
            const Box other = load_box(b + 4 * j);
            row[j] = box_iou(box, area, other, box_area(other));
          }
        }
      });
    });
  });
}

extern "C" dlfs_status dlfs_box_encode(dlfs_stream stream, float* deltas, const float* boxes, const float* anchors,
                                       int64_t count, double wx, double wy, double ww, double wh) {
  return on_stream("dlfs_box_encode", stream, [&](Stream& s) {
    check_count(count, "count");
    const BoxWeights weights = box_weights(wx, wy, ww, wh);
    if (count == 0) return;
    check_pointer(deltas, "deltas");
    check_pointer(boxes, "boxes");
    check_pointer(anchors, "anchors");
    s.enqueue([=] {
      parallel_for(count, grain, [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const BoxDeltas d = box_encode(load_box(boxes + 4 * i), load_box(anchors + 4 * i), weights);
          store_box(deltas + 4 * i, {d.dx, d.dy, d.dw, d.dh});
        }
      });
    });
  });
}

extern "C" dlfs_status dlfs_box_decode(dlfs_stream stream, float* boxes, const float* deltas, const float* anchors,
                                       int64_t count, double wx, double wy, double ww, double wh) {
  return on_stream("dlfs_box_decode", stream, [&](Stream& s) {
    check_count(count, "count");
    const BoxWeights weights = box_weights(wx, wy, ww, wh);
    if (count == 0) return;
    check_pointer(boxes, "boxes");
    check_pointer(deltas, "deltas");
    check_pointer(anchors, "anchors");
    s.enqueue([=] {
      parallel_for(count, grain, [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const float* d = deltas + 4 * i;
          store_box(boxes + 4 * i, box_decode({d[0], d[1], d[2], d[3]}, load_box(anchors + 4 * i), weights));
        }
      });
    });
  });
}
