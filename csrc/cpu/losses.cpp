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
  T* dlogits;              // (N, A, K), nullable
  const T* logits;         // (N, A, K)
  const int32_t* matches;  // (N, A)
  const int32_t* labels;   // (N, M)
  int32_t anchors, classes, max_boxes;
  FocalParameters parameters;
  double grad_factor;

  // Elements [begin, begin + count), whose true class is none but at begin + positive (-1: nowhere).
  template <bool gamma_is_two>
  void run(LaneSum& sum, int64_t begin, int64_t count, int64_t positive, float weight) const {
    for (int64_t first = 0; first < count; first += lanes) {
      const int64_t size = std::min(lanes, count - first);
      const T* in = logits + begin + first;
      float x[lanes] = {}, terms[lanes], grads[lanes];
      if (size == lanes) {
        for (int64_t i = 0; i < lanes; ++i) x[i] = load(in + i);
      } else {
        for (int64_t i = 0; i < size; ++i) x[i] = load(in + i);
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
      if (!dlogits) continue;
      T* out = dlogits + begin + first;
      if (size == lanes) {
        for (int64_t i = 0; i < lanes; ++i) store(out + i, grads[i]);
      } else {
        for (int64_t i = 0; i < size; ++i) store(out + i, grads[i]);
      }
    }
  }

  // A match with a box that is not there is none.
  bool is_background(int32_t match) const { return match == match_background || match >= max_boxes; }

  // One block of an image. Neighbouring background anchors, most of all, are taken as one run.
  double block(const LossScale& scale, int64_t image, int64_t index) const {
    const float weight = static_cast<float>(scale.weight(image, grad_factor));
    return parameters.gamma == 2.0f ? block_of<true>(weight, image, index) : block_of<false>(weight, image, index);
  }

  template <bool gamma_is_two>
  double block_of(float weight, int64_t image, int64_t index) const {
    const int32_t* match = matches + image * anchors;
    const int64_t end = std::min<int64_t>((index + 1) * block_anchors, anchors);
    LaneSum sum;
    for (int64_t a = index * block_anchors; a < end;) {
      const int64_t element = (image * anchors + a) * classes;
      if (match[a] >= 0 && match[a] < max_boxes) {
        run<gamma_is_two>(sum, element, classes, labels[image * max_boxes + match[a]], weight);
        ++a;
      } else if (is_background(match[a])) {
        int64_t last = a + 1;
        while (last < end && is_background(match[last])) ++last;
        run<gamma_is_two>(sum, element, (last - a) * classes, -1, weight);
        a = last;
      } else {
        for (int64_t k = 0; dlogits && k < classes; ++k) store(dlogits + element + k, 0.0f);
        ++a;
      }
    }
    return sum.total();
  }
};

}  // namespace

extern "C" dlfs_status dlfs_detection_loss_workspace(dlfs_context ctx, int64_t* out, int32_t n, int32_t anchors,
                                                     int32_t classes) {
  return guard("dlfs_detection_loss_workspace", [&] {
    require_context(ctx);
    check_pointer(out, "out");
    check_range(classes, 1, INT32_MAX, "classes");
    *out = partials_bytes(n, anchors);
  });
}

extern "C" dlfs_status dlfs_focal_loss(dlfs_stream stream, float* loss, void* dlogits, const void* logits,
                                       const int32_t* matches, const int32_t* labels, const int32_t* foreground,
                                       void* workspace, int32_t n, int32_t anchors, int32_t classes, int32_t max_boxes,
                                       dlfs_dtype dtype, double alpha, double gamma, int32_t normalization,
                                       double grad_factor) {
  return on_stream("dlfs_focal_loss", stream, [&](Stream& s) {
    check_loss_operands({loss, logits, "logits", matches, labels, "labels", foreground, workspace}, n, anchors,
                        "anchors", max_boxes, normalization, grad_factor);
    check_range(classes, 1, INT32_MAX, "classes");
    checked_product({n, anchors, classes}, "logits");
    check_focal_parameters(alpha, gamma);
    const LossPass pass{loss, foreground, static_cast<double*>(workspace), n, anchors, normalization};
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      const FocalLoss<T> work{static_cast<T*>(dlogits),
                              static_cast<const T*>(logits),
                              matches,
                              labels,
                              anchors,
                              classes,
                              max_boxes,
                              focal_parameters(alpha, gamma),
                              grad_factor};
      s.enqueue([pass, work] {
        pass.run([&work](const LossScale& scale, int64_t image, int64_t index) {
          return work.block(scale, image, index);
        });
      });
    });
  });
}
