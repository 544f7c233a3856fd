// Focal loss on the CPU: the sigmoid focal loss of class logits with its gradient in the same pass. The maths of one
// element is in common/boxes.hpp.
#include "cpu/losses.hpp"

using namespace dlfs;
using namespace dlfs::cpu;

namespace {

constexpr int64_t lanes = 16;

// A sum of fp32 terms in float64 over `lanes` accumulators.
struct LaneSum {
  double sums[lanes] = {};

  // Adds terms [0, count) of an array of `lanes`.
  void add(const float* terms, int64_t count) {
    if (count == lanes) {
      for (int64_t i = 0; i < lanes; ++i) sums[i] += static_cast<double>(terms[i]);
    } else {
      for (int64_t i = 0; i < count; ++i) sums[i] += static_cast<double>(terms[i]);
    }
  }

  double total() const {
    double total = 0;
    for (double sum : sums) total += sum;
    return total;
  }
};

template <class T>
struct FocalLoss {
  LevelAddresses dlogits, logits;
  const int32_t* matches;  // (N, A)
  const int32_t* labels;   // (N, M)
  LevelBlocks blocks;
  int32_t max_boxes;
  FocalParameters parameters;
  GradFactor grad_factor;

  // Neighbouring anchors in a map.
  struct Span {
    T* out;  // nullable
    const T* in;
    const int32_t* match;
    int64_t anchors;
  };

  // The `count` logits of `in`, whose true class is none but at `positive` (-1: nowhere).
  template <bool gamma_is_two>
  void run(LaneSum& sum, T* out, const T* in, int64_t count, int64_t positive, float weight) const {
    for (int64_t first = 0; first < count; first += lanes) {
      const int64_t size = std::min(lanes, count - first);
      float x[lanes] = {}, terms[lanes], grads[lanes];
      if (size == lanes) {
        for (int64_t i = 0; i < lanes; ++i) x[i] = load(in + first + i);
      } else {
        for (int64_t i = 0; i < size; ++i) x[i] = load(in + first + i);
      }
      for (int64_t i = 0; i < lanes; ++i) {
        const LossTerm term = focal_loss_term<gamma_is_two>(x[i], false, parameters);
        terms[i] = term.loss;
        grads[i] = term.grad * weight;
      }
      if (const int64_t i = positive - first; i >= 0 && i < size) {
        const LossTerm term = focal_loss_term<gamma_is_two>(x[i], true, parameters);
        terms[i] = term.loss;
        grads[i] = term.grad * weight;
      }
      sum.add(terms, size);
      if (!out) continue;
      if (size == lanes) {
        for (int64_t i = 0; i < lanes; ++i) store(out + first + i, grads[i]);
      } else {
        for (int64_t i = 0; i < size; ++i) store(out + first + i, grads[i]);
      }
    }
  }

  // A match with a box that is not there is none.
  bool is_background(int32_t match) const { return match == match_background || match >= max_boxes; }

  // Neighbouring background anchors, most of all, are taken as one run.
  template <bool gamma_is_two>
  void add(LaneSum& sum, const Span& span, const int32_t* image_labels, float weight) const {
    const int64_t classes = blocks.levels.columns;
    for (int64_t a = 0; a < span.anchors;) {
      const T* const in = span.in + a * classes;
      T* const out = span.out ? span.out + a * classes : nullptr;
      const int32_t match = span.match[a];
      int64_t last = a + 1;
      if (match >= 0 && match < max_boxes) {
        run<gamma_is_two>(sum, out, in, classes, image_labels[match], weight);
      } else if (is_background(match)) {
        while (last < span.anchors && is_background(span.match[last])) ++last;
        run<gamma_is_two>(sum, out, in, (last - a) * classes, -1, weight);
      } else if (out) {
        std::fill_n(out, classes, from_float<T>(0.0f));
      }
      a = last;
    }
  }

  // One block of an image.
  template <bool gamma_is_two>
  double block_of(float weight, int64_t image, int64_t index) const {
    const Levels& levels = blocks.levels;
    const LevelBlocks::Run run = blocks.run(index);
    const int32_t pitch = levels.pitch[run.level];
    const int64_t start = image * levels.image_size(run.level) + int64_t{run.first_cell} * pitch;
    const int32_t first_anchor = levels.first_anchor[run.level] + run.first_cell * levels.per_cell;
    T* const out = dlogits.of<T>(run.level);
    // Without padding, anchors of neighbouring cells are neighbours too.
    const bool packed = pitch == levels.used();
    Span span{out ? out + start : nullptr, logits.of<const T>(run.level) + start,
              matches + image * levels.anchors + first_anchor, packed ? run.cells * levels.per_cell : levels.per_cell};
    LaneSum sum;
    for (int32_t cell = 0; cell < (packed ? 1 : run.cells); ++cell) {
      add<gamma_is_two>(sum, span, labels + image * max_boxes, weight);
      if (span.out && !packed) std::fill_n(span.out + levels.used(), pitch - levels.used(), from_float<T>(0.0f));
      span = {span.out ? span.out + pitch : nullptr, span.in + pitch, span.match + levels.per_cell, span.anchors};
    }
    return sum.total();
  }

  double block(const LossScale& scale, int64_t image, int64_t index) const {
    const float weight = static_cast<float>(scale.weight(image, grad_factor.value()));
    return parameters.gamma == 2.0f ? block_of<true>(weight, image, index) : block_of<false>(weight, image, index);
  }
};

}  // namespace

extern "C" dlfs_status dlfs_detection_loss_workspace(dlfs_context ctx, int64_t* out, int32_t n, int32_t anchors,
                                                     int32_t classes) {
  return guard("dlfs_detection_loss_workspace", [&] {
    require_context(ctx);
    check_pointer(out, "out");
    check_range(classes, 1, INT32_MAX, "classes");
    check_range(n, 1, INT32_MAX, "n");
    check_range(anchors, 1, INT32_MAX, "anchors");
    *out = checked_product({n, LevelBlocks::most(anchors), sizeof(double)}, "the workspace");
  });
}

extern "C" dlfs_status dlfs_focal_loss(dlfs_stream stream, float* loss, const int64_t* dlogits, const int64_t* logits,
                                       const int32_t* matches, const int32_t* labels, const int32_t* foreground,
                                       const float* grad_scale, void* workspace, const int32_t* cells,
                                       const int32_t* pitches, int32_t levels, int32_t n, int32_t per_cell,
                                       int32_t classes, int32_t max_boxes, dlfs_dtype dtype, double alpha, double gamma,
                                       int32_t normalization, double grad_factor) {
  return on_stream("dlfs_focal_loss", stream, [&](Stream& s) {
    check_loss_operands({loss, logits, "logits", matches, labels, "labels", foreground, workspace}, n, max_boxes,
                        normalization, grad_factor);
    const LevelBlocks blocks(make_levels(cells, pitches, levels, n, per_cell, classes));
    check_focal_parameters(alpha, gamma);
    const LevelAddresses in = level_addresses(logits, levels, true, "logits");
    const LevelAddresses out = level_addresses(dlogits, levels, false, "dlogits");
    const LossPass pass{loss, foreground, static_cast<double*>(workspace), n, blocks.count, normalization};
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      const FocalLoss<T> work{out, in, matches, labels, blocks, max_boxes, focal_parameters(alpha, gamma),
                              GradFactor{grad_factor, grad_scale}};
      s.enqueue([pass, work] {
        pass.run([&work](const LossScale& scale, int64_t image, int64_t index) {
          return work.block(scale, image, index);
        });
      });
    });
  });
}
