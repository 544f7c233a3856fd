// Detection maths for one element, shared by both backends: exp, log and sigmoid, IoU, box coding, focal loss, smooth
// L1. Everything is fp32 built of single IEEE operations, branch-free where loops are vectorised, and calls no maths
// library, so that the CPU and CUDA give the same bits as long as neither contracts to fused multiply-adds
// (-ffp-contract=off, -fmad=false). Boxes are x1, y1, x2, y2 in pixels, with no +1.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "common/status.hpp"

namespace dlfs {

// matches of dlfs_match_anchors below 0.
constexpr int32_t match_background = -1;
constexpr int32_t match_ignored = -2;

// ---- elementary functions ----

DLFS_HD inline uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

DLFS_HD inline float float_from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// a where the mask is all ones, b where it is 0. Compilers turn conditional expressions back into branches around what
// they select from, which keeps a loop from being vectorised (for fear of the floating-point exceptions of either
// side).
DLFS_HD inline float blend_f32(uint32_t mask, float a, float b) {
  return float_from_bits((float_bits(a) & mask) | (float_bits(b) & ~mask));
}

// e^x to within one unit in the last place; 0, infinity and NaN as expf. e^x = 2^n e^r with |r| <= log(2) / 2, and a
// minimax polynomial for (e^r - 1 - r) / r^2.
DLFS_HD inline float exp_f32(float x) {
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which its low bits then hold
  // Beyond 104 the result is infinity or 0 anyway, and n would not fit.
  const uint32_t magnitude = float_bits(x) & 0x7fffffffu;
  const uint32_t limited = magnitude < 0x42d00000u ? magnitude : 0x42d00000u;
  const uint32_t nan = 0u - static_cast<uint32_t>(magnitude > 0x7f800000u);
  const float t = float_from_bits(limited | (float_bits(x) & 0x80000000u));
  const float shifted = t * 1.44269504f + round;
  const float n = shifted - round;
  const float r = (t - n * 0.693359375f) - n * -2.12194440e-4f;  // log(2) in two parts; the first product is exact
  float p = 0x1.6a2350p-10f;
  p = p * r + 0x1.123a6cp-7f;
  p = p * r + 0x1.5558f4p-5f;
  p = p * r + 0x1.555490p-3f;
  p = p * r + 0x1.fffffcp-2f;
  const float y = (p * (r * r) + r) + 1.0f;
  // 2^n in two factors, as n reaches from -150 (denormals) to 150 (infinity).
  const uint32_t exponent = float_bits(shifted) - float_bits(round);
  const uint32_t half = static_cast<uint32_t>(static_cast<int32_t>(exponent) >> 1);
  const float scaled = y * float_from_bits((half + 127u) << 23) * float_from_bits((exponent - half + 127u) << 23);
  return blend_f32(nan, x, scaled);
}

// log(x) of a normal positive x to within one unit in the last place. x = 2^k (1 + f) with sqrt(1/2) <= 1 + f <
// sqrt(2), s = f / (2 + f), log(1 + f) = f - (f^2 / 2 - s (f^2 / 2 + R(s^2))) with a minimax polynomial R.
DLFS_HD inline float log_normal_f32(float x) {
  const uint32_t root_half = 0x3f3504f3u;  // sqrt(1/2)
  const uint32_t bits = float_bits(x) - root_half;
  const float k = static_cast<float>(static_cast<int32_t>(bits) >> 23);
  const float f = float_from_bits((bits & 0x007fffffu) + root_half) - 1.0f;
  const float s = f / (2.0f + f);
  const float z = s * s;
  const float remainder = z * (0.66666777f + z * (0.39977496f + z * 0.29873075f));
  const float square = 0.5f * f * f;
  // log(2) in two parts; the first product is exact.
  return k * 0.693359375f + (f - (square - (s * (square + remainder) + k * -2.12194440e-4f)));
}

// log(x): -infinity at 0, NaN below.
DLFS_HD inline float log_f32(float x) {
  const float infinity = float_from_bits(0x7f800000u);
  if (x >= 0x1p-126f && x < infinity) return log_normal_f32(x);
  if (x > 0.0f && x < infinity) return log_normal_f32(x * 0x1p25f) - 17.3286795f;  // 25 log(2)
  return x == 0.0f ? -infinity : x == infinity ? infinity : float_from_bits(0x7fc00000u);
}

// log(1 + x) for finite x >= 0, accurate for small x too; NaN for NaN.
DLFS_HD inline float log1p_f32(float x) {
  const float u = 1.0f + x;
  return log_normal_f32(u) + (x - (u - 1.0f)) / u;  // corrected for what rounding 1 + x lost
}

// 1 / (1 + e^-x).
DLFS_HD inline float sigmoid_f32(float x) { return 1.0f / (1.0f + exp_f32(-x)); }

// ---- boxes ----

struct Box {
  float x1, y1, x2, y2;
};

DLFS_HD inline Box load_box(const float* p) { return {p[0], p[1], p[2], p[3]}; }

DLFS_HD inline void store_box(float* p, const Box& b) {
  p[0] = b.x1;
  p[1] = b.y1;
  p[2] = b.x2;
  p[3] = b.y2;
}

DLFS_HD inline float box_area(const Box& b) { return (b.x2 - b.x1) * (b.y2 - b.y1); }

// Intersection over union as torchvision.ops.box_iou, given both areas; 0 where the union is 0.
DLFS_HD inline float box_iou(const Box& a, float area_a, const Box& b, float area_b) {
  const float left = a.x1 > b.x1 ? a.x1 : b.x1;
  const float top = a.y1 > b.y1 ? a.y1 : b.y1;
  const float right = a.x2 < b.x2 ? a.x2 : b.x2;
  const float bottom = a.y2 < b.y2 ? a.y2 : b.y2;
  const float w = right - left > 0.0f ? right - left : 0.0f;
  const float h = bottom - top > 0.0f ? bottom - top : 0.0f;
  const float inter = w * h;
  const float all = area_a + area_b - inter;
  return all == 0.0f ? 0.0f : inter / all;
}

DLFS_HD inline float box_iou(const Box& a, const Box& b) { return box_iou(a, box_area(a), b, box_area(b)); }

// Coordinate of an anchor: the cell anchor's, moved by index strides.
DLFS_HD inline float anchor_coordinate(float cell, int32_t index, double stride) {
  return static_cast<float>(index * stride) + cell;
}

// Weights of torchvision's BoxCoder for x, y, width, height.
struct BoxWeights {
  float x, y, w, h;
};

// Checks the weights of an entry point (host only).
inline BoxWeights box_weights(double wx, double wy, double ww, double wh) {
  for (double weight : {wx, wy, ww, wh}) {
    const float value = static_cast<float>(weight);
    DLFS_CHECK(value > 0 && value - value == 0, DLFS_ERROR_ARGUMENT,
               "expected finite box weights above 0, got %g, %g, %g, %g", wx, wy, ww, wh);
  }
  return {static_cast<float>(wx), static_cast<float>(wy), static_cast<float>(ww), static_cast<float>(wh)};
}

// The weights of a coder; the linear one has none, whatever is given.
inline BoxWeights coder_weights(int32_t coder, double wx, double wy, double ww, double wh) {
  return coder == DLFS_CODER_CENTRE ? box_weights(wx, wy, ww, wh) : BoxWeights{1, 1, 1, 1};
}

struct BoxDeltas {
  float dx, dy, dw, dh;
};

// BoxCoder.encode: the deltas that move `anchor` onto `box`. Both need a positive width and height.
DLFS_HD inline BoxDeltas box_encode(const Box& box, const Box& anchor, const BoxWeights& weights) {
  const float aw = anchor.x2 - anchor.x1;
  const float ah = anchor.y2 - anchor.y1;
  const float ax = anchor.x1 + 0.5f * aw;
  const float ay = anchor.y1 + 0.5f * ah;
  const float gw = box.x2 - box.x1;
  const float gh = box.y2 - box.y1;
  const float gx = box.x1 + 0.5f * gw;
  const float gy = box.y1 + 0.5f * gh;
  return {weights.x * (gx - ax) / aw, weights.y * (gy - ay) / ah, weights.w * log_f32(gw / aw),
          weights.h * log_f32(gh / ah)};
}

// Where BoxCoder.decode clips dw and dh: log(1000 / 16).
constexpr float box_delta_clip = 4.135166556742356f;

// BoxCoder.decode: the anchor moved by the deltas; dw and dh are clipped.
DLFS_HD inline Box box_decode(const BoxDeltas& deltas, const Box& anchor, const BoxWeights& weights) {
  const float aw = anchor.x2 - anchor.x1;
  const float ah = anchor.y2 - anchor.y1;
  const float ax = anchor.x1 + 0.5f * aw;
  const float ay = anchor.y1 + 0.5f * ah;
  const float dx = deltas.dx / weights.x;
  const float dy = deltas.dy / weights.y;
  float dw = deltas.dw / weights.w;
  float dh = deltas.dh / weights.h;
  dw = dw > box_delta_clip ? box_delta_clip : dw;
  dh = dh > box_delta_clip ? box_delta_clip : dh;
  const float x = dx * aw + ax;
  const float y = dy * ah + ay;
  const float half_w = 0.5f * (exp_f32(dw) * aw);
  const float half_h = 0.5f * (exp_f32(dh) * ah);
  return {x - half_w, y - half_h, x + half_w, y + half_h};
}

// torchvision's clip_boxes_to_image: x into [0, width], y into [0, height]. NaN stays NaN.
DLFS_HD inline float clip_coordinate(float value, float most) {
  value = value < 0.0f ? 0.0f : value;
  return value > most ? most : value;
}

DLFS_HD inline Box box_clip(const Box& b, float height, float width) {
  return {clip_coordinate(b.x1, width), clip_coordinate(b.y1, height), clip_coordinate(b.x2, width),
          clip_coordinate(b.y2, height)};
}

// ---- losses ----

// Constants of a focal loss; alpha < 0 means none (both factors 1).
struct FocalParameters {
  float alpha_positive, alpha_negative, gamma;
};

DLFS_HD inline FocalParameters focal_parameters(double alpha, double gamma) {
  if (alpha < 0) return {1.0f, 1.0f, static_cast<float>(gamma)};
  return {static_cast<float>(alpha), static_cast<float>(1.0 - alpha), static_cast<float>(gamma)};
}

struct LossTerm {
  float loss, grad;
};

// Sigmoid focal loss of one logit (Lin et al. 2017) and its derivative by the logit, for gamma >= 0. With z the logit
// towards the truth (x or -x), p = sigmoid(z), q = 1 - p and ce = -log p:
//   loss = alpha q^gamma ce,  d loss / dz = -alpha q^gamma (gamma p ce + q),
// which has no division by q. p, q and the logarithms come from e^-|z|, so nothing overflows or cancels.
// gamma_is_two says that gamma is 2, the usual case, which needs no second exponential.
template <bool gamma_is_two>
DLFS_HD inline LossTerm focal_loss_term(float x, bool positive, const FocalParameters& parameters) {
  const float z = positive ? x : -x;
  const uint32_t bits = float_bits(z);
  const uint32_t negative = 0u - (bits >> 31);  // a mask
  const float e = exp_f32(float_from_bits(bits | 0x80000000u));
  const float large = 1.0f / (1.0f + e);
  const float small = e * large;
  const float p = blend_f32(negative, small, large);
  const float q = blend_f32(negative, large, small);
  const float l = log1p_f32(e);
  const float ce = float_from_bits(bits & negative & 0x7fffffffu) + l;  // max(-z, 0) + l = softplus(-z)
  const float modulator =
      gamma_is_two ? q * q
                   : exp_f32(-parameters.gamma * (float_from_bits(bits & ~negative) + l));  // e^(-gamma softplus(z))
  const float weight = (positive ? parameters.alpha_positive : parameters.alpha_negative) * modulator;
  const float slope = weight * (parameters.gamma * p * ce + q);
  return {weight * ce, positive ? -slope : slope};
}

DLFS_HD inline LossTerm focal_loss_term(float x, bool positive, const FocalParameters& parameters) {
  return parameters.gamma == 2.0f ? focal_loss_term<true>(x, positive, parameters)
                                  : focal_loss_term<false>(x, positive, parameters);
}

// torch.nn.functional.smooth_l1_loss of one difference and its derivative; beta 0 is L1.
DLFS_HD inline LossTerm smooth_l1_term(float difference, float beta) {
  const float d = difference < 0.0f ? -difference : difference;
  if (d < beta) return {0.5f * d * d / beta, difference / beta};
  const float sign = difference > 0.0f ? 1.0f : difference < 0.0f ? -1.0f : 0.0f;
  return {d - 0.5f * beta, difference == difference ? sign : difference};  // a NaN stays one
}

// ---- order of candidates ----

// A key that sorts ascending as (score descending, index ascending) for any scores; NaN comes before infinity as in
// torch.sort(descending=True).
DLFS_HD inline uint64_t candidate_key(float score, int32_t index) {
  const uint32_t bits = float_bits(score == 0.0f ? 0.0f : score);  // -0 equals 0
  const uint32_t ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(~ascending) << 32 | static_cast<uint32_t>(index);
}

DLFS_HD inline int32_t candidate_index(uint64_t key) { return static_cast<int32_t>(key & 0xffffffffu); }

// The score that candidate_key was given (0 for -0).
DLFS_HD inline float candidate_score(uint64_t key) {
  const uint32_t ascending = ~static_cast<uint32_t>(key >> 32);
  return float_from_bits(ascending & 0x80000000u ? ascending & 0x7fffffffu : ~ascending);
}

// ---- points (FCOS) ----

// What FCOS's assignment asks of a point, the centre of a square anchor.
struct PointTarget {
  float x, y;
  float reach;         // how far a box's centre may be along either axis
  float lower, upper;  // bounds of the distance to the box's farthest side
};

// first: the anchor is of the finest level; last: of the coarsest.
DLFS_HD inline PointTarget point_target(const Box& anchor, float radius, bool first, bool last) {
  const float size = anchor.x2 - anchor.x1;
  const float infinity = float_from_bits(0x7f800000u);
  return {(anchor.x1 + anchor.x2) / 2.0f, (anchor.y1 + anchor.y2) / 2.0f, radius * size, first ? 0.0f : size * 4.0f,
          last ? infinity : size * 8.0f};
}

// How well a box suits a point: 1e8 - its area, as torchvision has it in fp32, or 0 where it may not be matched.
// Written without branches, for loops that are vectorised.
DLFS_HD inline float point_match(const PointTarget& point, const Box& box) {
  const float dx = point.x - (box.x1 + box.x2) / 2.0f;
  const float dy = point.y - (box.y1 + box.y2) / 2.0f;
  const float left = point.x - box.x1;
  const float top = point.y - box.y1;
  const float right = box.x2 - point.x;
  const float bottom = box.y2 - point.y;
  const float low_x = left < right ? left : right;
  const float low_y = top < bottom ? top : bottom;
  const float high_x = left > right ? left : right;
  const float high_y = top > bottom ? top : bottom;
  const float nearest = low_x < low_y ? low_x : low_y;
  const float farthest = high_x > high_y ? high_x : high_y;
  const bool near = (dx < point.reach) & (-dx < point.reach) & (dy < point.reach) & (-dy < point.reach);
  const bool suits = near & (nearest > 0.0f) & (farthest > point.lower) & (farthest < point.upper);
  return suits ? 1e8f - box_area(box) : 0.0f;
}

// What point_match must reach for a match.
constexpr float least_point_match = 1e-5f;

// BoxLinearCoder.decode with normalize_by_size: the deltas are the sides' distances left, top, right, bottom from the
// anchor's centre, in anchor sizes.
DLFS_HD inline Box box_decode_linear(const BoxDeltas& deltas, const Box& anchor) {
  const float x = 0.5f * (anchor.x1 + anchor.x2);
  const float y = 0.5f * (anchor.y1 + anchor.y2);
  const float w = anchor.x2 - anchor.x1;
  const float h = anchor.y2 - anchor.y1;
  return {x - deltas.dx * w, y - deltas.dy * h, x + deltas.dw * w, y + deltas.dh * h};
}

// BoxLinearCoder.encode with normalize_by_size.
DLFS_HD inline BoxDeltas box_encode_linear(const Box& box, const Box& anchor) {
  const float x = 0.5f * (anchor.x1 + anchor.x2);
  const float y = 0.5f * (anchor.y1 + anchor.y2);
  const float w = anchor.x2 - anchor.x1;
  const float h = anchor.y2 - anchor.y1;
  return {(x - box.x1) / w, (y - box.y1) / h, (box.x2 - x) / w, (box.y2 - y) / h};
}

// ---- soft non-maximum suppression ----

struct SoftNmsRules {
  bool gaussian;  // else linear
  bool class_aware;
  float iou_threshold, sigma, min_score;

  // What a score is multiplied by; 1 where the IoU is no number.
  DLFS_HD float decay(float iou) const {
    if (gaussian) return iou > 0.0f ? exp_f32(-(iou * iou) / sigma) : 1.0f;
    return iou > iou_threshold ? 1.0f - iou : 1.0f;
  }
};

}  // namespace dlfs
