// Losses of foreground anchors on the CPU: of boxes (smooth L1 and the family of IoU losses) and of centre-ness, with
// their gradients in the same pass. The maths of one anchor is in common/losses.hpp.
#include "cpu/losses.hpp"

using namespace dlfs;
using namespace dlfs::cpu;

namespace {

// `term` gives the AnchorTerm<N> of an anchor's N values: term(values, anchor, box).
template <class T, int N, class Term>
struct AnchorLoss {
  LevelAddresses dvalues, values;
  const float* anchor_boxes;  // (A, 4)
  const int32_t* matches;     // (N, A)
  const float* boxes;         // (N, M, 4)
  LevelBlocks blocks;
  int32_t max_boxes;
  GradFactor grad_factor;
  Term term;

  double block(const LossScale& scale, int64_t image, int64_t index) const {
    const float weight = static_cast<float>(scale.weight(image, grad_factor.value()));
    const Levels& levels = blocks.levels;
    const LevelBlocks::Run run = blocks.run(index);
    const int32_t pitch = levels.pitch[run.level];
    T* const gradients = dvalues.of<T>(run.level);
    double sum = 0;
    for (int32_t cell = run.first_cell; cell < run.first_cell + run.cells; ++cell) {
      const int64_t start = image * levels.image_size(run.level) + int64_t{cell} * pitch;
      const T* const in = values.of<const T>(run.level) + start;
      T* const out = gradients ? gradients + start : nullptr;
      for (int32_t own = 0; own < levels.per_cell; ++own) {
        const int64_t a = levels.first_anchor[run.level] + int64_t{cell} * levels.per_cell + own;
        const int32_t match = matches[image * levels.anchors + a];
        const bool foreground = match >= 0 && match < max_boxes;
        AnchorTerm<N> result{};
        if (foreground) {
          float x[N];
          for (int i = 0; i < N; ++i) x[i] = load(in + own * N + i);
          result = term(x, load_box(anchor_boxes + a * 4), load_box(boxes + (image * max_boxes + match) * 4));
          sum += static_cast<double>(result.loss);
        }
        for (int i = 0; out && i < N; ++i) store(out + own * N + i, foreground ? result.grad[i] * weight : 0.0f);
      }
      if (out) std::fill_n(out + levels.used(), pitch - levels.used(), from_float<T>(0.0f));
    }
    return sum;
  }
};

// What both entry points take.
struct AnchorOperands {
  LevelAddresses dvalues, values;
  const float* anchors;
  const int32_t* matches;
  const float* boxes;
  LevelBlocks blocks;
  int32_t max_boxes;
  dlfs_dtype dtype;
  GradFactor grad_factor;
};

// Runs the loss of N values per anchor on a stream.
template <int N, class Term>
void enqueue_anchor_loss(Stream& s, const LossPass& pass, const AnchorOperands& x, const Term& term) {
  dispatch_float(x.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const AnchorLoss<T, N, Term> work{x.dvalues, x.values,    x.anchors,     x.matches, x.boxes,
                                      x.blocks,  x.max_boxes, x.grad_factor, term};
    s.enqueue([pass, work] {
      pass.run(
          [&work](const LossScale& scale, int64_t image, int64_t index) { return work.block(scale, image, index); });
    });
  });
}

}  // namespace

extern "C" dlfs_status dlfs_box_loss(dlfs_stream stream, float* loss, const int64_t* ddeltas, const int64_t* deltas,
                                     const float* anchors, const int32_t* matches, const float* boxes,
                                     const int32_t* foreground, const float* grad_scale, void* workspace,
                                     const int32_t* cells, const int32_t* pitches, int32_t levels, int32_t n,
                                     int32_t per_cell, int32_t max_boxes, dlfs_dtype dtype, int32_t kind, int32_t coder,
                                     double wx, double wy, double ww, double wh, double beta, int32_t normalization,
                                     double grad_factor) {
  return on_stream("dlfs_box_loss", stream, [&](Stream& s) {
    check_loss_operands({loss, deltas, "deltas", matches, boxes, "boxes", foreground, workspace}, n, max_boxes,
                        normalization, grad_factor);
    check_pointer(anchors, "anchors");
    const LevelBlocks blocks(make_levels(cells, pitches, levels, n, per_cell, 4));
    const AnchorOperands operands{level_addresses(ddeltas, levels, false, "ddeltas"),
                                  level_addresses(deltas, levels, true, "deltas"),
                                  anchors, matches, boxes, blocks, max_boxes, dtype, {grad_factor, grad_scale}};
    const BoxLossParameters parameters = box_loss_parameters(kind, coder, wx, wy, ww, wh, beta);
    const LossPass pass{loss, foreground, static_cast<double*>(workspace), n, blocks.count, normalization};
    enqueue_anchor_loss<4>(s, pass, operands, [parameters](const float(&x)[4], const Box& anchor, const Box& box) {
      return box_loss_term(x, anchor, box, parameters);
    });
  });
}

extern "C" dlfs_status dlfs_centerness_loss(dlfs_stream stream, float* loss, const int64_t* dlogits,
                                            const int64_t* logits, const float* anchors, const int32_t* matches,
                                            const float* boxes, const int32_t* foreground, const float* grad_scale,
                                            void* workspace, const int32_t* cells, const int32_t* pitches,
                                            int32_t levels, int32_t n, int32_t per_cell, int32_t max_boxes,
                                            dlfs_dtype dtype, int32_t normalization, double grad_factor) {
  return on_stream("dlfs_centerness_loss", stream, [&](Stream& s) {
    check_loss_operands({loss, logits, "logits", matches, boxes, "boxes", foreground, workspace}, n, max_boxes,
                        normalization, grad_factor);
    check_pointer(anchors, "anchors");
    const LevelBlocks blocks(make_levels(cells, pitches, levels, n, per_cell, 1));
    const AnchorOperands operands{level_addresses(dlogits, levels, false, "dlogits"),
                                  level_addresses(logits, levels, true, "logits"),
                                  anchors, matches, boxes, blocks, max_boxes, dtype, {grad_factor, grad_scale}};
    const LossPass pass{loss, foreground, static_cast<double*>(workspace), n, blocks.count, normalization};
    enqueue_anchor_loss<1>(s, pass, operands, [](const float(&x)[1], const Box& anchor, const Box& box) {
      return binary_cross_entropy_term(x[0], centerness_target(anchor, box));
    });
  });
}
