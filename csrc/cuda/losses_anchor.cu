// Losses of foreground anchors, with their gradients: of boxes (smooth L1 and the family of IoU losses) and of
// centre-ness. The maths of one anchor is in common/losses.hpp; what they cost is reading the matches and writing zeros
// to the background.
#include "cuda/losses.cuh"

namespace dlfs {
namespace {

constexpr int most_anchor_loss_blocks = 2048;

// A thread per anchor, level by level, so that neighbouring threads have neighbouring values, which are read and written
// in as few accesses as T allows where `vector` says that the maps are aligned. The thread of a cell's last anchor
// clears the gradient's padding. term(values, anchor, box) is an AnchorTerm<N>.
template <class T, bool vector, int N, class Term>
__global__ void __launch_bounds__(loss_threads)
    anchor_loss_kernel(double* partial, LevelAddresses dvalues, LevelAddresses values, Levels levels,
                       const float* anchors, const int32_t* matches, const float* boxes,
                       LossNormalization normalization, int32_t max_boxes, Term term, GradFactor grad_factor) {
  const LossScale scale = loss_scale(normalization);
  const double factor = grad_factor.value();
  double sum = 0;
  const int64_t step = int64_t{gridDim.x} * loss_threads;
  const int64_t first = int64_t{blockIdx.x} * loss_threads + threadIdx.x;
  for (int32_t level = 0; level < levels.count; ++level) {
    const int32_t level_anchors = levels.anchors_of(level);
    const int64_t rows = int64_t{level_anchors} * normalization.n;
    const T* const in = values.of<const T>(level);
    T* const out = dvalues.of<T>(level);
    for (int64_t row = first; row < rows; row += step) {
      const int64_t image = row / level_anchors;
      const int32_t own = static_cast<int32_t>(row - image * level_anchors);
      const int64_t anchor = levels.first_anchor[level] + int64_t{own};
      const int64_t at = levels.offset(level, image, own);
      const int32_t match = matches[image * levels.anchors + anchor];
      float gradient[N] = {};
      if (match >= 0 && match < max_boxes) {
        float x[N];
        if constexpr (vector) {
          load<N>(x, in + at);
        } else {
#pragma unroll
          for (int i = 0; i < N; ++i) x[i] = to_float(in[at + i]);
        }
        const AnchorTerm<N> result =
            term(x, load_box(anchors + 4 * anchor), load_box(boxes + 4 * (image * max_boxes + match)));
        const float grad_weight = static_cast<float>(scale.weight(image, factor));
        sum += result.loss * static_cast<float>(scale.weight(image, 1.0));
#pragma unroll
        for (int i = 0; i < N; ++i) gradient[i] = result.grad[i] * grad_weight;
      }
      if (out == nullptr) continue;
      if constexpr (vector) {
        store<N>(out + at, gradient);
      } else {
#pragma unroll
        for (int i = 0; i < N; ++i) out[at + i] = from_float<T>(gradient[i]);
      }
      if (levels.pitch[level] > levels.used() && own % levels.per_cell == levels.per_cell - 1) {
        for (int32_t i = N; i < N + levels.pitch[level] - levels.used(); ++i) out[at + i] = from_float<T>(0.0f);
      }
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

// What both entry points take.
struct AnchorOperands {
  LevelAddresses dvalues, values;
  Levels levels;
  const float* anchors;
  const int32_t* matches;
  const float* boxes;
  LossNormalization normalization;
  int32_t max_boxes;
  dlfs_dtype dtype;
  GradFactor grad_factor;
};

// Whether an anchor's N values are one access: the maps and the cells' first values are aligned so.
template <int N>
bool anchor_vectors(const AnchorOperands& x) {
  bool vector = true;
  for (int32_t level = 0; level < x.levels.count; ++level) {
    vector &= x.levels.pitch[level] % N == 0 && aligned16({x.values.at[level], x.dvalues.at[level]});
  }
  return vector;
}

// Enqueues the loss of N values per anchor.
template <int N, class Term>
void launch_anchor_loss(Stream& s, float* loss, void* workspace, const AnchorOperands& x, const Term& term) {
  int64_t most = 0;
  for (int32_t level = 0; level < x.levels.count; ++level) {
    most = std::max(most, int64_t{x.levels.anchors_of(level)} * x.normalization.n);
  }
  const int blocks =
      static_cast<int>(std::min<int64_t>(ceil_div<int64_t>(most, loss_threads), most_anchor_loss_blocks));
  double* const partial = WorkspaceLayout(workspace).take<double>(most_loss_blocks);
  dispatch_float(x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(s, static_cast<unsigned>(blocks), loss_threads, 0,
           anchor_vectors<N>(x) ? anchor_loss_kernel<T, true, N, Term> : anchor_loss_kernel<T, false, N, Term>, partial,
           x.dvalues, x.values, x.levels, x.anchors, x.matches, x.boxes, x.normalization, x.max_boxes, term,
           x.grad_factor);
  });
  sum_partials(s, loss, partial, blocks);
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_box_loss(dlfs_stream stream, float* loss, const int64_t* ddeltas, const int64_t* deltas,
                          const float* anchors, const int32_t* matches, const float* boxes, const int32_t* foreground,
                          const float* grad_scale, void* workspace, const int32_t* cells, const int32_t* pitches,
                          int32_t levels, int32_t n, int32_t per_cell, int32_t max_boxes, dlfs_dtype dtype,
                          int32_t kind, int32_t coder, double wx, double wy, double ww, double wh, double beta,
                          int32_t normalization, double grad_factor) {
  return stream_call("dlfs_box_loss", stream, [&](Stream& s) {
    check_loss_operands({loss, deltas, "deltas", matches, boxes, "boxes", foreground, workspace}, n, max_boxes,
                        normalization, grad_factor);
    check_pointer(anchors, "anchors");
    const Levels sizes = make_levels(cells, pitches, levels, n, per_cell, 4);
    const BoxTerm term{box_loss_parameters(kind, coder, wx, wy, ww, wh, beta)};
    launch_anchor_loss<4>(s, loss, workspace,
                          AnchorOperands{level_addresses(ddeltas, levels, false, "ddeltas"),
                                         level_addresses(deltas, levels, true, "deltas"), sizes, anchors, matches,
                                         boxes, LossNormalization{foreground, n, normalization}, max_boxes, dtype,
                                         GradFactor{grad_factor, grad_scale}},
                          term);
  });
}

dlfs_status dlfs_centerness_loss(dlfs_stream stream, float* loss, const int64_t* dlogits, const int64_t* logits,
                                 const float* anchors, const int32_t* matches, const float* boxes,
                                 const int32_t* foreground, const float* grad_scale, void* workspace,
                                 const int32_t* cells, const int32_t* pitches, int32_t levels, int32_t n,
                                 int32_t per_cell, int32_t max_boxes, dlfs_dtype dtype, int32_t normalization,
                                 double grad_factor) {
  return stream_call("dlfs_centerness_loss", stream, [&](Stream& s) {
    check_loss_operands({loss, logits, "logits", matches, boxes, "boxes", foreground, workspace}, n, max_boxes,
                        normalization, grad_factor);
    check_pointer(anchors, "anchors");
    const Levels sizes = make_levels(cells, pitches, levels, n, per_cell, 1);
    launch_anchor_loss<1>(s, loss, workspace,
                          AnchorOperands{level_addresses(dlogits, levels, false, "dlogits"),
                                         level_addresses(logits, levels, true, "logits"), sizes, anchors, matches,
                                         boxes, LossNormalization{foreground, n, normalization}, max_boxes, dtype,
                                         GradFactor{grad_factor, grad_scale}},
                          CenternessTerm{});
  });
}

}  // extern "C"
