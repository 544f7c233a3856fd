// Boxes and labels of the candidates that were selected, on the CPU.
#include "common/detection_arguments.hpp"
#include "cpu/numeric.hpp"
#include "cpu/runtime.hpp"

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_decode_candidates(dlfs_stream stream, float* boxes, int32_t* labels, const int32_t* index,
                                              const void* deltas, const float* anchors, const float* image_sizes,
                                              int32_t n, int32_t k, int64_t row_stride, int64_t deltas_stride,
                                              int32_t classes, int32_t per_class, int32_t coder, dlfs_dtype dtype,
                                              double wx, double wy, double ww, double wh) {
  return on_stream("dlfs_decode_candidates", stream, [&](Stream& s) {
    check_range(n, 1, INT32_MAX, "n");
    check_range(k, 1, INT32_MAX, "k");
    check_row_stride(n, k, row_stride);
    check_range(deltas_stride, 0, max_elements, "deltas_stride");
    const CandidateRules rules = candidate_rules(k, classes, per_class, coder, wx, wy, ww, wh);
    check_pointer(boxes, "boxes");
    check_pointer(labels, "labels");
    check_pointer(index, "index");
    check_pointer(deltas, "deltas");
    check_pointer(anchors, "anchors");
    check_pointer(image_sizes, "image_sizes");
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      const T* typed_deltas = static_cast<const T*>(deltas);
      s.enqueue([=] {
        parallel_for(int64_t{n} * k, 256, [=](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            const int64_t image = i / k;
            const int64_t slot = image * row_stride + i % k;
            if (index[slot] < 0) {
              labels[slot] = -1;
              store_box(boxes + 4 * slot, {0, 0, 0, 0});
              continue;
            }
            const auto [anchor, label] = rules.source(static_cast<int32_t>(i % k), index[slot]);
            const T* d = typed_deltas + image * deltas_stride + int64_t{4} * anchor;
            const BoxDeltas moved{load(d), load(d + 1), load(d + 2), load(d + 3)};
            const Box box = rules.decode(moved, load_box(anchors + int64_t{4} * anchor));
            store_box(boxes + 4 * slot, box_clip(box, image_sizes[2 * image], image_sizes[2 * image + 1]));
            labels[slot] = label;
          }
        });
      });
    });
  });
}
