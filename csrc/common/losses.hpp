// Detection losses: the checks of their arguments, what their terms are divided by, and the maths of one anchor, shared
// by both backends with the rules of boxes.hpp (fp32 in single IEEE operations, so the same bits on both).
#pragma once

#include <cmath>

#include "common/arguments.hpp"
#include "common/boxes.hpp"

namespace dlfs {

// ---- arguments ----

// What every detection loss takes. `values` are the predictions (or the host array of their maps), `truth` what M
// boxes an image have.
struct LossOperands {
  const float* loss;
  const void* values;
  const char* values_name;
  const int32_t* matches;
  const void* truth;
  const char* truth_name;
  const int32_t* foreground;
  const void* workspace;
};

inline void check_loss_operands(const LossOperands& operands, int32_t n, int32_t max_boxes, int32_t normalization,
                                double grad_factor) {
  check_range(n, 1, INT32_MAX, "n");
  check_range(max_boxes, 0, INT32_MAX, "max_boxes");
  check_pointer(operands.loss, "loss");
  check_pointer(operands.values, operands.values_name);
  check_pointer(operands.matches, "matches");
  if (max_boxes > 0) check_pointer(operands.truth, operands.truth_name);
  check_pointer(operands.foreground, "foreground");
  check_workspace(operands.workspace, 1);
  DLFS_CHECK(normalization == DLFS_LOSS_PER_IMAGE || normalization == DLFS_LOSS_WHOLE_BATCH, DLFS_ERROR_ARGUMENT,
             "expected normalization 0 (per image) or 1 (whole batch), got %d", normalization);
  check_number(grad_factor, "grad_factor");
}

inline void check_focal_parameters(double alpha, double gamma) {
  DLFS_CHECK(alpha <= 1, DLFS_ERROR_ARGUMENT, "expected alpha up to 1, or below 0 for none, got %g", alpha);
  DLFS_CHECK(gamma >= 0 && gamma <= 1000, DLFS_ERROR_ARGUMENT, "expected gamma from 0 to 1000, got %g", gamma);
}

// ---- normalization ----

// What the terms of an image are multiplied by.
struct LossScale {
  const int32_t* foreground;  // (N)
  int32_t n;
  int64_t batch_foreground;  // of all images; below 0: each image has its own

  DLFS_HD double weight(int64_t image, double factor) const {
    if (batch_foreground >= 0) return factor / static_cast<double>(batch_foreground > 1 ? batch_foreground : 1);
    const int32_t own = foreground[image];
    return factor / (static_cast<double>(n) * (own > 1 ? own : 1));
  }
};

// What the gradients are multiplied by.
struct GradFactor {
  double factor;
  const float* scale;  // on the device, nullable

  DLFS_HD double value() const { return scale ? factor * static_cast<double>(*scale) : factor; }
};

// ---- boxes ----

struct BoxLossParameters {
  int32_t kind, coder;
  BoxWeights weights;
  float beta;
};

// Checks what an entry point was given (host only).
inline BoxLossParameters box_loss_parameters(int32_t kind, int32_t coder, double wx, double wy, double ww, double wh,
                                             double beta) {
  DLFS_CHECK(kind >= DLFS_BOX_LOSS_SMOOTH_L1 && kind <= DLFS_BOX_LOSS_DIOU, DLFS_ERROR_ARGUMENT,
             "expected a box loss of kind 0 (smooth L1), 1 (GIoU), 2 (CIoU), 3 (IoU) or 4 (DIoU), got %d", kind);
  DLFS_CHECK(coder == DLFS_CODER_CENTRE || coder == DLFS_CODER_LINEAR, DLFS_ERROR_ARGUMENT,
             "expected box coder 0 (centre) or 1 (linear), got %d", coder);
  DLFS_CHECK(beta >= 0 && beta - beta == 0, DLFS_ERROR_ARGUMENT, "expected a finite beta of at least 0, got %g", beta);
  return {kind, coder, coder_weights(coder, wx, wy, ww, wh), static_cast<float>(beta)};
}

// Loss of one anchor and its derivatives by N predicted values.
template <int N>
struct AnchorTerm {
  float loss;
  float grad[N];
};

// atan(x) to about two units in the last place (Moshier, Cephes' atanf); pi / 2 for infinity.
DLFS_HD inline float atan_f32(float x) {
  const float magnitude = x < 0.0f ? -x : x;
  float base = 0.0f;
  float t = magnitude;
  if (magnitude > 2.414213562f) {  // tan(3 pi / 8)
    base = 1.570796327f;
    t = -1.0f / magnitude;
  } else if (magnitude > 0.4142135624f) {  // tan(pi / 8)
    base = 0.7853981634f;
    t = (magnitude - 1.0f) / (magnitude + 1.0f);
  }
  const float z = t * t;
  float p = 8.05374449538e-2f * z - 1.38776856032e-1f;
  p = p * z + 1.99777106478e-1f;
  p = p * z - 3.33329491539e-1f;
  const float y = base + (p * z * t + t);
  return x < 0.0f ? -y : y;
}

// Derivatives of max(a, b) and min(a, b) by a, shared equally between equals as torch.max and torch.min do.
DLFS_HD inline float max_slope(float a, float b) { return a > b ? 1.0f : a == b ? 0.5f : 0.0f; }
DLFS_HD inline float min_slope(float a, float b) { return a < b ? 1.0f : a == b ? 0.5f : 0.0f; }

// Width over height as an angle; 0 for a box without extent.
DLFS_HD inline float aspect_angle(float w, float h) { return w == 0.0f && h == 0.0f ? 0.0f : atan_f32(w / h); }

// 1 - IoU with the penalty that `kind` adds, and its derivatives by the box's x1, y1, x2, y2. Finite for finite
// coordinates up to 1e9, degenerate boxes and boxes turned inside out included.
DLFS_HD inline AnchorTerm<4> iou_loss_term(const Box& box, const Box& truth, int32_t kind) {
  const float eps = 1e-7f;
  const float w = box.x2 - box.x1;
  const float h = box.y2 - box.y1;
  const float truth_w = truth.x2 - truth.x1;
  const float truth_h = truth.y2 - truth.y1;
  const float inter_w = (box.x2 < truth.x2 ? box.x2 : truth.x2) - (box.x1 > truth.x1 ? box.x1 : truth.x1);
  const float inter_h = (box.y2 < truth.y2 ? box.y2 : truth.y2) - (box.y1 > truth.y1 ? box.y1 : truth.y1);
  const bool meet = inter_w > 0.0f && inter_h > 0.0f;
  const float inter = meet ? inter_w * inter_h : 0.0f;
  const float all = w * h + truth_w * truth_h - inter;
  // Without an intersection nothing is divided: the union of a box turned inside out may be 0.
  const float iou = meet ? inter / (all + eps) : 0.0f;
  float loss = 1.0f - iou;
  // Derivatives by the intersection (which the union contains too), by the box's area and by quantities below.
  float by_area = meet ? iou / (all + eps) : 0.0f;
  float by_inter = meet ? -1.0f / (all + eps) - by_area : 0.0f;
  float by_w = 0.0f, by_h = 0.0f, by_hull_w = 0.0f, by_hull_h = 0.0f, by_x = 0.0f, by_y = 0.0f;
  if (kind != DLFS_BOX_LOSS_IOU) {
    // The smallest box around both.
    const float hull_w = (box.x2 > truth.x2 ? box.x2 : truth.x2) - (box.x1 < truth.x1 ? box.x1 : truth.x1);
    const float hull_h = (box.y2 > truth.y2 ? box.y2 : truth.y2) - (box.y1 < truth.y1 ? box.y1 : truth.y1);
    if (kind == DLFS_BOX_LOSS_GIOU) {
      const float hull = hull_w * hull_h;
      loss += (hull - all) / (hull + eps);
      const float by_union = -1.0f / (hull + eps);
      by_area += by_union;
      by_inter -= by_union;
      const float by_hull = (all + eps) / (hull + eps) / (hull + eps);
      by_hull_w = by_hull * hull_h;
      by_hull_h = by_hull * hull_w;
    } else {
      const float diagonal = hull_w * hull_w + hull_h * hull_h + eps;
      const float x = (box.x2 + box.x1) / 2.0f - (truth.x1 + truth.x2) / 2.0f;
      const float y = (box.y2 + box.y1) / 2.0f - (truth.y1 + truth.y2) / 2.0f;
      const float distance = (x * x + y * y) / diagonal;
      loss += distance;
      by_x = 2.0f * x / diagonal;
      by_y = 2.0f * y / diagonal;
      by_hull_w = -2.0f * hull_w * distance / diagonal;
      by_hull_h = -2.0f * hull_h * distance / diagonal;
      if (kind == DLFS_BOX_LOSS_CIOU) {
        const float scale = 0.405284735f;  // 4 / pi^2
        const float difference = aspect_angle(truth_w, truth_h) - aspect_angle(w, h);
        const float v = scale * (difference * difference);
        const float rest = 1.0f - iou;  // rounding may leave it below 0 for two boxes that are nearly the same
        const float alpha = v / ((rest > 0.0f ? rest : 0.0f) + v + eps);
        loss += alpha * v;
        // h / (w^2 + h^2) and w / (w^2 + h^2), whose squares would underflow
        const float abs_w = w < 0.0f ? -w : w;
        const float abs_h = h < 0.0f ? -h : h;
        const float extent = abs_w > abs_h ? abs_w : abs_h;
        if (extent > 1e-30f) {
          const float part_w = w / extent;
          const float part_h = h / extent;
          const float slope = 2.0f * alpha * scale * difference / (part_w * part_w + part_h * part_h) / extent;
          by_w = -slope * part_h;
          by_h = slope * part_w;
        }
      }
    }
  }
  by_w += by_area * h;
  by_h += by_area * w;
  const float by_inter_w = meet ? by_inter * inter_h : 0.0f;
  const float by_inter_h = meet ? by_inter * inter_w : 0.0f;
  AnchorTerm<4> term{loss, {}};
  term.grad[0] = 0.5f * by_x - by_w - by_inter_w * max_slope(box.x1, truth.x1) -
                 by_hull_w * min_slope(box.x1, truth.x1);
  term.grad[1] = 0.5f * by_y - by_h - by_inter_h * max_slope(box.y1, truth.y1) -
                 by_hull_h * min_slope(box.y1, truth.y1);
  term.grad[2] = 0.5f * by_x + by_w + by_inter_w * min_slope(box.x2, truth.x2) +
                 by_hull_w * max_slope(box.x2, truth.x2);
  term.grad[3] = 0.5f * by_y + by_h + by_inter_h * min_slope(box.y2, truth.y2) +
                 by_hull_h * max_slope(box.y2, truth.y2);
  return term;
}

// A decoded coordinate as the losses see it: products of two stay far from infinity.
DLFS_HD inline float limit_coordinate(float value) {
  const float most = 1e9f;
  value = value > most ? most : value;
  return value < -most ? -most : value;
}

// A function of the decoded box, differentiated by the deltas.
DLFS_HD inline AnchorTerm<4> decoded_loss_term(const BoxDeltas& deltas, const Box& anchor, const Box& truth,
                                               const BoxLossParameters& parameters) {
  const bool linear = parameters.coder == DLFS_CODER_LINEAR;
  const BoxWeights& weights = parameters.weights;
  const Box decoded = linear ? box_decode_linear(deltas, anchor) : box_decode(deltas, anchor, weights);
  const Box box{limit_coordinate(decoded.x1), limit_coordinate(decoded.y1), limit_coordinate(decoded.x2),
                limit_coordinate(decoded.y2)};
  AnchorTerm<4> term = iou_loss_term(box, truth, parameters.kind);
  // A NaN reaches the loss, although comparisons may have lost it.
  const float sum = box.x1 + box.y1 + box.x2 + box.y2;
  if (sum != sum) return {sum, {sum, sum, sum, sum}};
  const float x1 = box.x1 == decoded.x1 ? term.grad[0] : 0.0f;
  const float y1 = box.y1 == decoded.y1 ? term.grad[1] : 0.0f;
  const float x2 = box.x2 == decoded.x2 ? term.grad[2] : 0.0f;
  const float y2 = box.y2 == decoded.y2 ? term.grad[3] : 0.0f;
  const float w = anchor.x2 - anchor.x1;
  const float h = anchor.y2 - anchor.y1;
  if (linear) return {term.loss, {-x1 * w, -y1 * h, x2 * w, y2 * h}};
  const float dw = deltas.dw / weights.w;
  const float dh = deltas.dh / weights.h;
  const float half_w = dw > box_delta_clip ? 0.0f : 0.5f * (exp_f32(dw) * w) / weights.w;
  const float half_h = dh > box_delta_clip ? 0.0f : 0.5f * (exp_f32(dh) * h) / weights.h;
  return {term.loss, {(x1 + x2) * (w / weights.x), (y1 + y2) * (h / weights.y), (x2 - x1) * half_w, (y2 - y1) * half_h}};
}

// A box loss of one foreground anchor.
DLFS_HD inline AnchorTerm<4> box_loss_term(const float (&deltas)[4], const Box& anchor, const Box& truth,
                                           const BoxLossParameters& parameters) {
  if (parameters.kind != DLFS_BOX_LOSS_SMOOTH_L1) {
    return decoded_loss_term({deltas[0], deltas[1], deltas[2], deltas[3]}, anchor, truth, parameters);
  }
  const BoxDeltas target = parameters.coder == DLFS_CODER_LINEAR ? box_encode_linear(truth, anchor)
                                                                 : box_encode(truth, anchor, parameters.weights);
  const float goal[4] = {target.dx, target.dy, target.dw, target.dh};
  AnchorTerm<4> sum{};
  for (int i = 0; i < 4; ++i) {
    const LossTerm term = smooth_l1_term(deltas[i] - goal[i], parameters.beta);
    sum.loss += term.loss;
    sum.grad[i] = term.grad;
  }
  return sum;
}

// ---- centre-ness ----

// FCOS's centre-ness target of an anchor (Tian et al. 2019): sqrt(min(l, r) / max(l, r) min(t, b) / max(t, b)) of its
// centre's distances from the sides of the box; 0 where the centre does not lie inside.
DLFS_HD inline float centerness_target(const Box& anchor, const Box& truth) {
  const BoxDeltas sides = box_encode_linear(truth, anchor);
  const float low_x = sides.dx < sides.dw ? sides.dx : sides.dw;
  const float high_x = sides.dx < sides.dw ? sides.dw : sides.dx;
  const float low_y = sides.dy < sides.dh ? sides.dy : sides.dh;
  const float high_y = sides.dy < sides.dh ? sides.dh : sides.dy;
  return low_x > 0.0f && low_y > 0.0f ? sqrtf((low_x / high_x) * (low_y / high_y)) : 0.0f;
}

// Binary cross-entropy of sigmoid(x) with a target from 0 to 1.
DLFS_HD inline AnchorTerm<1> binary_cross_entropy_term(float x, float target) {
  const float e = exp_f32(x < 0.0f ? x : -x);
  const float large = 1.0f / (1.0f + e);
  const float p = x < 0.0f ? e * large : large;
  return {(x > 0.0f ? x : 0.0f) - x * target + log1p_f32(e), {p - target}};
}

// ---- softmax cross-entropy ----

constexpr int32_t most_softmax_classes = 10240;  // of which a block of a GPU holds a row

inline void check_cross_entropy(int32_t n, int32_t anchors, int32_t classes, double negative_ratio) {
  check_range(anchors, 1, INT32_MAX, "anchors");
  check_range(classes, 2, most_softmax_classes, "classes");
  checked_product({n, anchors, classes}, "logits");
  check_number(negative_ratio, "negative_ratio");
}

// The order in which background anchors are taken: a key of their loss, larger first, NaN foremost; then the lower index.
constexpr int32_t no_negative = -1;  // the key of anchors that are not of the background

DLFS_HD inline int32_t negative_key(float loss) {
  return loss == loss ? static_cast<int32_t>(float_bits(loss) & 0x7fffffffu) : 0x7fc00000;
}

// The last background anchor of an image that counts, in that order.
struct NegativeLimit {
  int32_t key, index;

  DLFS_HD bool takes(int32_t other_key, int32_t other_index) const {
    return other_key > key || (other_key == key && other_index <= index);
  }
};

constexpr NegativeLimit take_all_negatives{0, INT32_MAX};
constexpr NegativeLimit take_no_negatives{INT32_MAX, -1};

// How many background anchors an image may have: those of rank (from 0) below ratio times its foreground, as fp32.
DLFS_HD inline int32_t wanted_negatives(float ratio, int32_t foreground) {
  if (foreground <= 0) return 0;  // of a ratio that is infinite in fp32 too
  const float wanted = ratio * static_cast<float>(foreground);
  if (wanted >= 2147483520.0f) return INT32_MAX;
  const int32_t whole = static_cast<int32_t>(wanted);
  return whole + (static_cast<float>(whole) < wanted ? 1 : 0);
}

// The class that an anchor should have, 0 for the background; -1 where its label is none of them (the loss is then NaN).
DLFS_HD inline int32_t softmax_target(int32_t match, const int32_t* labels, int32_t max_boxes, int32_t classes) {
  if (match < 0) return 0;
  const int32_t label = match < max_boxes ? labels[match] : -1;
  return label >= 0 && label < classes - 1 ? label + 1 : -1;
}

}  // namespace dlfs
