// Losses of foreground anchors, with their gradients: of boxes (smooth L1 and the family of IoU losses) and of
// centre-ness. The maths of one anchor is in common/losses.hpp; what they cost is reading the matches and writing zeros
// to the background.
#include "cuda/losses.cuh"

namespace dlfs {
namespace {

// values, dvalues (rows = N A, N); a thread per anchor, whose values are read and written in as few accesses as T
// allows where `vector` says that the arrays are aligned. term(values, anchor, box) is an AnchorTerm<N>.
template <class T, bool vector, int N, class Term>
__global__ void __launch_bounds__(loss_threads)
    anchor_loss_kernel(double* partial, T* dvalues, const T* values, const float* anchors, const int32_t* matches,
                       const float* boxes, LossNormalization normalization, int64_t rows, int32_t anchors_count,
                       int32_t max_boxes, Term term, double grad_factor) {
  const LossScale scale = loss_scale(normalization);
  double sum = 0;
  const int64_t step = int64_t{gridDim.x} * loss_threads;
  for (int64_t row = int64_t{blockIdx.x} * loss_threads + threadIdx.x; row < rows; row += step) {
    const int32_t match = matches[row];
    float gradient[N] = {};
    if (match >= 0 && match < max_boxes) {
      const int64_t image = row / anchors_count;
      float x[N];
      if constexpr (vector) {
        load<N>(x, values + N * row);
      } else {
#pragma unroll
        for (int i = 0; i < N; ++i) x[i] = to_float(values[N * row + i]);
      }
      const AnchorTerm<N> own = term(x, load_box(anchors + 4 * (row - image * anchors_count)),
                                     load_box(boxes + 4 * (image * max_boxes + match)));
      const float grad_weight = static_cast<float>(scale.weight(image, grad_factor));
      sum += own.loss * static_cast<float>(scale.weight(image, 1.0));
#pragma unroll
      for (int i = 0; i < N; ++i) gradient[i] = own.grad[i] * grad_weight;
    }
    if (dvalues == nullptr) continue;
    if constexpr (vector) {
      store<N>(dvalues + N * row, gradient);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) dvalues[N * row + i] = from_float<T>(gradient[i]);
    }
  }
  write_partial(partial, sum);
}

// Terms are named types: a kernel cannot be instantiated with a lambda of a function without linkage.
struct BoxTerm {
  BoxLossParameters parameters;

  __device__ AnchorTerm<4> operator()(const float (&x)[4], const Box& anchor, const Box& box) const {
    return box_loss_term(x, anchor, box, parameters);
  }
};

struct CenternessTerm {
  __device__ AnchorTerm<1> operator()(const float (&x)[1], const Box& anchor, const Box& box) const {
    return binary_cross_entropy_term(x[0], centerness_target(anchor, box));
  }
};

// Enqueues the loss of N values per anchor.
template <int N, class Term>
void launch_anchor_loss(Stream& s, float* loss, void* dvalues, const void* values, const float* anchors,
                        const int32_t* matches, const float* boxes, void* workspace,
                        const LossNormalization& normalization, int32_t anchors_count, int32_t max_boxes,
                        dlfs_dtype dtype, const Term& term, double grad_factor) {
  const int64_t rows = int64_t{normalization.n} * anchors_count;
  const int blocks = static_cast<int>(std::min<int64_t>(ceil_div<int64_t>(rows, loss_threads), most_loss_blocks));
  double* const partial = WorkspaceLayout(workspace).take<double>(most_loss_blocks);
  dispatch_float(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(s, static_cast<unsigned>(blocks), loss_threads, 0,
           aligned16({values, dvalues}) ? anchor_loss_kernel<T, true, N, Term> : anchor_loss_kernel<T, false, N, Term>,
           partial, static_cast<T*>(dvalues), static_cast<const T*>(values), anchors, matches, boxes, normalization,
           rows, anchors_count, max_boxes, term, grad_factor);
  });
  sum_partials(s, loss, partial, blocks);
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_box_loss(dlfs_stream stream, float* loss, void* ddeltas, const void* deltas, const float* anchors,
                          const int32_t* matches, const float* boxes, const int32_t* foreground, void* workspace,
                          int32_t n, int32_t anchors_count, int32_t max_boxes, dlfs_dtype dtype, int32_t kind,
                          int32_t coder, double wx, double wy, double ww, double wh, double beta,
                          int32_t normalization, double grad_factor) {
  return stream_call("dlfs_box_loss", stream, [&](Stream& s) {
    check_loss_operands({loss, deltas, "deltas", matches, boxes, "boxes", foreground, workspace}, n, anchors_count,
                        "anchors_count", max_boxes, normalization, grad_factor);
    check_pointer(anchors, "anchors");
    const BoxTerm term{box_loss_parameters(kind, coder, wx, wy, ww, wh, beta)};
    launch_anchor_loss<4>(s, loss, ddeltas, deltas, anchors, matches, boxes, workspace,
                          LossNormalization{foreground, n, normalization}, anchors_count, max_boxes, dtype, term,
                          grad_factor);
  });
}

dlfs_status dlfs_centerness_loss(dlfs_stream stream, float* loss, void* dlogits, const void* logits,
                                 const float* anchors, const int32_t* matches, const float* boxes,
                                 const int32_t* foreground, void* workspace, int32_t n, int32_t anchors_count,
                                 int32_t max_boxes, dlfs_dtype dtype, int32_t normalization, double grad_factor) {
  return stream_call("dlfs_centerness_loss", stream, [&](Stream& s) {
    check_loss_operands({loss, logits, "logits", matches, boxes, "boxes", foreground, workspace}, n, anchors_count,
                        "anchors_count", max_boxes, normalization, grad_factor);
    check_pointer(anchors, "anchors");
    launch_anchor_loss<1>(s, loss, dlogits, logits, anchors, matches, boxes, workspace,
                          LossNormalization{foreground, n, normalization}, anchors_count, max_boxes, dtype,
                          CenternessTerm{}, grad_factor);
  });
}

}  // extern "C"
