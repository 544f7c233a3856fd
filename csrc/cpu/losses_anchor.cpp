// Losses of foreground anchors on the CPU: of boxes (smooth L1 and the family of IoU losses) and of centre-ness, with
// their gradients in the same pass. The maths of one anchor is in common/losses.hpp.
#include "cpu/losses.hpp"

using namespace dlfs;
using namespace dlfs::cpu;

namespace {

// `term` gives the AnchorTerm<N> of an anchor's N values: term(values, anchor, box).
template <class T, int N, class Term>
struct AnchorLoss {
  T* dvalues;                 // (N, A, values), nullable
  const T* values;            // (N, A, values)
  const float* anchor_boxes;  // (A, 4)
  const int32_t* matches;     // (N, A)
  const float* boxes;         // (N, M, 4)
  int32_t anchors, max_boxes;
  double grad_factor;
  Term term;

  double block(const LossScale& scale, int64_t image, int64_t index) const {
    const float weight = static_cast<float>(scale.weight(image, grad_factor));
    const int64_t end = std::min<int64_t>((index + 1) * block_anchors, anchors);
    double sum = 0;
    for (int64_t a = index * block_anchors; a < end; ++a) {
      const int64_t element = (image * anchors + a) * N;
      const int32_t match = matches[image * anchors + a];
      const bool foreground = match >= 0 && match < max_boxes;
      AnchorTerm<N> own{};
      if (foreground) {
        float x[N];
        for (int i = 0; i < N; ++i) x[i] = load(values + element + i);
        own = term(x, load_box(anchor_boxes + a * 4), load_box(boxes + (image * max_boxes + match) * 4));
        sum += static_cast<double>(own.loss);
      }
      for (int i = 0; dvalues && i < N; ++i) store(dvalues + element + i, foreground ? own.grad[i] * weight : 0.0f);
    }
    return sum;
  }
};

// Runs the loss of N values per anchor on a stream.
template <int N, class Term>
void enqueue_anchor_loss(Stream& s, const LossPass& pass, void* dvalues, const void* values, const float* anchors,
                         const int32_t* matches, const float* boxes, int32_t max_boxes, dlfs_dtype dtype,
                         double grad_factor, const Term& term) {
  dispatch_float(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const AnchorLoss<T, N, Term> work{static_cast<T*>(dvalues),
                                      static_cast<const T*>(values),
                                      anchors,
                                      matches,
                                      boxes,
                                      pass.anchors,
                                      max_boxes,
                                      grad_factor,
                                      term};
    s.enqueue([pass, work] {
      pass.run(
          [&work](const LossScale& scale, int64_t image, int64_t index) { return work.block(scale, image, index); });
    });
  });
}

}  // namespace

extern "C" dlfs_status dlfs_box_loss(dlfs_stream stream, float* loss, void* ddeltas, const void* deltas,
                                     const float* anchors, const int32_t* matches, const float* boxes,
                                     const int32_t* foreground, void* workspace, int32_t n, int32_t anchors_count,
                                     int32_t max_boxes, dlfs_dtype dtype, int32_t kind, int32_t coder, double wx,
                                     double wy, double ww, double wh, double beta, int32_t normalization,
                                     double grad_factor) {
  return on_stream("dlfs_box_loss", stream, [&](Stream& s) {
    check_loss_operands({loss, deltas, "deltas", matches, boxes, "boxes", foreground, workspace}, n, anchors_count,
                        "anchors_count", max_boxes, normalization, grad_factor);
    check_pointer(anchors, "anchors");
    const BoxLossParameters parameters = box_loss_parameters(kind, coder, wx, wy, ww, wh, beta);
    const LossPass pass{loss, foreground, static_cast<double*>(workspace), n, anchors_count, normalization};
    enqueue_anchor_loss<4>(s, pass, ddeltas, deltas, anchors, matches, boxes, max_boxes, dtype, grad_factor,
                           [parameters](const float(&x)[4], const Box& anchor, const Box& box) {
                             return box_loss_term(x, anchor, box, parameters);
                           });
  });
}

extern "C" dlfs_status dlfs_centerness_loss(dlfs_stream stream, float* loss, void* dlogits, const void* logits,
                                            const float* anchors, const int32_t* matches, const float* boxes,
                                            const int32_t* foreground, void* workspace, int32_t n,
                                            int32_t anchors_count, int32_t max_boxes, dlfs_dtype dtype,
                                            int32_t normalization, double grad_factor) {
  return on_stream("dlfs_centerness_loss", stream, [&](Stream& s) {
    check_loss_operands({loss, logits, "logits", matches, boxes, "boxes", foreground, workspace}, n, anchors_count,
                        "anchors_count", max_boxes, normalization, grad_factor);
    check_pointer(anchors, "anchors");
    const LossPass pass{loss, foreground, static_cast<double*>(workspace), n, anchors_count, normalization};
    enqueue_anchor_loss<1>(s, pass, dlogits, logits, anchors, matches, boxes, max_boxes, dtype, grad_factor,
                           [](const float(&x)[1], const Box& anchor, const Box& box) {
                             return binary_cross_entropy_term(x[0], centerness_target(anchor, box));
                           });
  });
}
