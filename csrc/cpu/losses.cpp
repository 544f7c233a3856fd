// Detection losses on the CPU: sigmoid focal loss on class logits and smooth L1 on box deltas, each with its gradient
// in the same pass. The maths of one element is in common/boxes.hpp.
//
// Sums: every block of block_anchors anchors of an image has one float64 partial sum, itself of fixed lanes, and
// partials are added in order, so the result does not depend on the number of threads.
#include <algorithm>

#include "common/boxes.hpp"
#include "cpu/numeric.hpp"
#include "cpu/runtime.hpp"

using namespace dlfs;
using namespace dlfs::cpu;

namespace {

constexpr int64_t block_anchors = 256;
constexpr int64_t lanes = 16;

int64_t blocks_of(int32_t anchors) { return (int64_t{anchors} + block_anchors - 1) / block_anchors; }

int64_t workspace_bytes(int32_t n, int32_t anchors) {
  check_range(n, 1, INT32_MAX, "n");
  check_range(anchors, 1, INT32_MAX, "anchors");
  return checked_product({n, blocks_of(anchors), sizeof(double)}, "the workspace");
}

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

// *loss = the images' sums of partials (N, blocks), each times its weight, rounded once.
void write_loss(float* loss, const double* partials, const int32_t* foreground, int32_t n, int64_t blocks) {
  double total = 0;
  for (int64_t image = 0; image < n; ++image) {
    double sum = 0;
    for (int64_t i = 0; i < blocks; ++i) sum += partials[image * blocks + i];
    total += sum * image_weight(n, foreground[image], 1.0);
  }
  *loss = static_cast<float>(total);
}

template <class T>
struct FocalLoss {
  float* loss;
  T* dlogits;                 // (N, A, K), nullable
  const T* logits;            // (N, A, K)
  const int32_t* matches;     // (N, A)
  const int32_t* labels;      // (N, M)
  const int32_t* foreground;  // (N)
  double* partials;           // (N, blocks)
  int32_t n, anchors, classes, max_boxes;
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

  // One block of an image. Neighbouring background anchors, most of all, are taken as one run.
  double block(int64_t image, int64_t index) const {
    return parameters.gamma == 2.0f ? block_of<true>(image, index) : block_of<false>(image, index);
  }

  template <bool gamma_is_two>
  double block_of(int64_t image, int64_t index) const {
    const float weight = static_cast<float>(image_weight(n, foreground[image], grad_factor));
    const int32_t* match = matches + image * anchors;
    const int64_t end = std::min<int64_t>((index + 1) * block_anchors, anchors);
    LaneSum sum;
    for (int64_t a = index * block_anchors; a < end;) {
      const int64_t element = (image * anchors + a) * classes;
      if (match[a] >= 0) {
        run<gamma_is_two>(sum, element, classes, labels[image * max_boxes + match[a]], weight);
        ++a;
      } else if (match[a] == match_background) {
        int64_t last = a + 1;
        while (last < end && match[last] == match_background) ++last;
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

template <class T>
struct BoxLoss {
  float* loss;
  T* ddeltas;                 // (N, A, 4), nullable
  const T* deltas;            // (N, A, 4)
  const float* anchor_boxes;  // (A, 4)
  const int32_t* matches;     // (N, A)
  const float* boxes;         // (N, M, 4)
  const int32_t* foreground;  // (N)
  double* partials;           // (N, blocks)
  int32_t n, anchors, max_boxes;
  BoxWeights weights;
  float beta;
  double grad_factor;

  double block(int64_t image, int64_t index) const {
    const float weight = static_cast<float>(image_weight(n, foreground[image], grad_factor));
    const int64_t end = std::min<int64_t>((index + 1) * block_anchors, anchors);
    double sum = 0;
    for (int64_t a = index * block_anchors; a < end; ++a) {
      const int64_t element = (image * anchors + a) * 4;
      const int32_t match = matches[image * anchors + a];
      float grads[4] = {0, 0, 0, 0};
      if (match >= 0) {
        const BoxDeltas truth =
            box_encode(load_box(boxes + (image * max_boxes + match) * 4), load_box(anchor_boxes + a * 4), weights);
        const float expected[4] = {truth.dx, truth.dy, truth.dw, truth.dh};
        for (int64_t i = 0; i < 4; ++i) {
          const LossTerm term = smooth_l1_term(load(deltas + element + i) - expected[i], beta);
          sum += static_cast<double>(term.loss);
          grads[i] = term.grad * weight;
        }
      }
      for (int64_t i = 0; ddeltas && i < 4; ++i) store(ddeltas + element + i, grads[i]);
    }
    return sum;
  }
};

// Runs all blocks of a FocalLoss or BoxLoss in parallel, then adds up.
template <class Loss>
void run_loss(const Loss& loss) {
  const int64_t blocks = blocks_of(loss.anchors);
  parallel_for(loss.n * blocks, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) loss.partials[i] = loss.block(i / blocks, i % blocks);
  });
  write_loss(loss.loss, loss.partials, loss.foreground, loss.n, blocks);
}

}  // namespace

extern "C" dlfs_status dlfs_detection_loss_workspace(dlfs_context ctx, int64_t* out, int32_t n, int32_t anchors,
                                                     int32_t classes) {
  return guard("dlfs_detection_loss_workspace", [&] {
    require_context(ctx);
    check_pointer(out, "out");
    check_range(classes, 1, INT32_MAX, "classes");
    *out = workspace_bytes(n, anchors);
  });
}

extern "C" dlfs_status dlfs_focal_loss(dlfs_stream stream, float* loss, void* dlogits, const void* logits,
                                       const int32_t* matches, const int32_t* labels, const int32_t* foreground,
                                       void* workspace, int32_t n, int32_t anchors, int32_t classes, int32_t max_boxes,
                                       dlfs_dtype dtype, double alpha, double gamma, double grad_factor) {
  return on_stream("dlfs_focal_loss", stream, [&](Stream& s) {
    workspace_bytes(n, anchors);
    check_range(classes, 1, INT32_MAX, "classes");
    check_range(max_boxes, 0, INT32_MAX, "max_boxes");
    checked_product({n, anchors, classes}, "logits");
    check_pointer(loss, "loss");
    check_pointer(logits, "logits");
    check_pointer(matches, "matches");
    if (max_boxes > 0) check_pointer(labels, "labels");
    check_pointer(foreground, "foreground");
    check_pointer(workspace, "workspace");
    check_number(grad_factor, "grad_factor");
    DLFS_CHECK(alpha <= 1, DLFS_ERROR_ARGUMENT, "expected alpha up to 1, or below 0 for none, got %g", alpha);
    DLFS_CHECK(gamma >= 0 && gamma <= 1000, DLFS_ERROR_ARGUMENT, "expected gamma from 0 to 1000, got %g", gamma);
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      const FocalLoss<T> work{loss,
                              static_cast<T*>(dlogits),
                              static_cast<const T*>(logits),
                              matches,
                              labels,
                              foreground,
                              static_cast<double*>(workspace),
                              n,
                              anchors,
                              classes,
                              max_boxes,
                              focal_parameters(alpha, gamma),
                              grad_factor};
      s.enqueue([work] { run_loss(work); });
    });
  });
}

extern "C" dlfs_status dlfs_box_loss(dlfs_stream stream, float* loss, void* ddeltas, const void* deltas,
                                     const float* anchors, const int32_t* matches, const float* boxes,
                                     const int32_t* foreground, void* workspace, int32_t n, int32_t anchors_count,
                                     int32_t max_boxes, dlfs_dtype dtype, double wx, double wy, double ww, double wh,
                                     double beta, double grad_factor) {
  return on_stream("dlfs_box_loss", stream, [&](Stream& s) {
    workspace_bytes(n, anchors_count);
    check_range(max_boxes, 0, INT32_MAX, "max_boxes");
    check_pointer(loss, "loss");
    check_pointer(deltas, "deltas");
    check_pointer(anchors, "anchors");
    check_pointer(matches, "matches");
    if (max_boxes > 0) check_pointer(boxes, "boxes");
    check_pointer(foreground, "foreground");
    check_pointer(workspace, "workspace");
    check_number(grad_factor, "grad_factor");
    const BoxWeights weights = box_weights(wx, wy, ww, wh);
    DLFS_CHECK(beta >= 0 && beta - beta == 0, DLFS_ERROR_ARGUMENT, "expected a finite beta of at least 0, got %g",
               beta);
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      const BoxLoss<T> work{loss,
                            static_cast<T*>(ddeltas),
                            static_cast<const T*>(deltas),
                            anchors,
                            matches,
                            boxes,
                            foreground,
                            static_cast<double*>(workspace),
                            n,
                            anchors_count,
                            max_boxes,
                            weights,
                            static_cast<float>(beta),
                            grad_factor};
      s.enqueue([work] { run_loss(work); });
    });
  });
}
