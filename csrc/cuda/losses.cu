// Focal loss with its gradient, and the sum that ends every detection loss.
#include "cuda/losses.cuh"

namespace dlfs {
namespace {

__global__ void __launch_bounds__(loss_threads) sum_partials_kernel(float* loss, const double* partial, int count) {
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += loss_threads) sum += partial[i];
  sum = block_sum<loss_threads>(sum);
  if (threadIdx.x == 0) *loss = static_cast<float>(sum);
}

// The special function units, without the handling of denormals that expf and others add.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// A logit so small that its loss and gradient as a background's are 0: what ignored anchors and padding are given.
constexpr float no_logit = -1e30f;

// focal_loss_term by the special function units: about 3e-6 relative, far below what 16-bit logits resolve, at a third
// of the instructions. The terms of fp32 logits are those of the CPU, bit by bit.
__device__ __forceinline__ LossTerm fast_focal_term(float x, bool positive, const FocalParameters& parameters) {
  const float z = positive ? x : -x;
  const float e = __expf(-fabsf(z));
  const float large = __fdividef(1.0f, 1.0f + e);
  const float small = e * large;
  const float p = z < 0.0f ? small : large;
  const float q = z < 0.0f ? large : small;
  // log(1 + e) = 2 atanh(s) with s = e / (2 + e) <= 1/3, by its series
  const float s = __fdividef(e, 2.0f + e);
  const float t = s * s;
  float series = __fmaf_rn(t, 2.0f / 9.0f, 2.0f / 7.0f);
  series = __fmaf_rn(t, series, 2.0f / 5.0f);
  series = __fmaf_rn(t, series, 2.0f / 3.0f);
  const float l = s * __fmaf_rn(t, series, 2.0f);
  const float ce = (z < 0.0f ? -z : 0.0f) + l;
  const float modulator =
      parameters.gamma == 2.0f ? q * q : __expf(-parameters.gamma * ((z > 0.0f ? z : 0.0f) + l));  // q = e^-softplus(z)
  const float weight = (positive ? parameters.alpha_positive : parameters.alpha_negative) * modulator;
  const float slope = weight * __fmaf_rn(parameters.gamma * p, ce, q);
  return {weight * ce, positive ? -slope : slope};
}

// The same of a class that is not the anchor's, for gamma 2, which nearly all are: with s = sigmoid(x), r = 1 - s and
// softplus(x) = log(1 + e^x), loss = alpha s^2 softplus(x), slope = alpha s^2 (2 r softplus(x) + s). e^x is limited to
// e^60, where s and softplus have long had their limits, 1 and x.
__device__ __forceinline__ LossTerm fast_background_term(float x, float alpha) {
  const float limited = x > 60.0f ? 60.0f : x;  // NaN stays
  const float u = exp2_approx(limited * 1.44269504f);
  const float d = 1.0f + u;
  const float r = reciprocal_approx(d);
  const float s = u * r;
  // log(1 + u): where 1 + u has lost much of u, by the series.
  const float series = u * __fmaf_rn(u, __fmaf_rn(u, 1.0f / 3.0f, -0.5f), 1.0f);
  const float softplus = u < 0.03125f ? series : log2_approx(d) * 0.69314718f;
  const float weight = alpha * (s * s);
  return {weight * fmaxf(softplus, x), weight * __fmaf_rn(2.0f * r, softplus, s)};
}

template <bool gamma_is_two, class T>
__device__ __forceinline__ LossTerm focal_term(T, float x, bool positive, const FocalParameters& parameters) {
  if (gamma_is_two && !positive) return fast_background_term(x, parameters.alpha_negative);
  return fast_focal_term(x, positive, parameters);
}

template <bool gamma_is_two>
__device__ __forceinline__ LossTerm focal_term(float, float x, bool positive, const FocalParameters& parameters) {
  return focal_loss_term<gamma_is_two>(x, positive, parameters);
}

// A warp's work: neighbouring cells of one level of one image.
struct FocalItems {
  int64_t first[DLFS_MAX_LEVELS];  // item of each level
  int64_t count;
  int32_t cells;  // of an item

  // About this many anchors: so many that all lanes are busy in nearly all turns, few enough for work to spread.
  static constexpr int32_t anchors = 36;

  FocalItems(const Levels& levels, int32_t n) : first{}, count(0), cells(std::max(1, anchors / levels.per_cell)) {
    for (int32_t level = 0; level < levels.count; ++level) {
      first[level] = count;
      count += ceil_div<int64_t>(levels.cells[level], cells) * n;
    }
  }
};

// What is known of an item's anchors.
struct FocalTargets {
  const int32_t* matches;  // of the item's anchors
  const int32_t* labels;   // of the image's boxes
  int32_t max_boxes;

  __device__ __forceinline__ bool is_positive(int32_t match, int32_t k) const {
    return match >= 0 && match < max_boxes && labels[match] == k;
  }
};

// Takes the loss of the V logits x from `column` on of a cell, leaves the gradients in x. all_background: no anchor of
// the item is anything else. Returns the sum of the terms.
template <class T, bool gamma_is_two, bool all_background, int V>
__device__ __forceinline__ float focal_vector(float (&x)[V], uint32_t column, uint32_t cell, const Levels& levels,
                                              const FocalTargets& targets, const FocalParameters& parameters,
                                              float grad_weight) {
  const uint32_t used = static_cast<uint32_t>(levels.used());
  uint32_t positives = 0;
  if constexpr (!all_background) {
    const uint32_t classes = static_cast<uint32_t>(levels.columns);
    uint32_t own = column / classes;
    uint32_t k = column - own * classes;
    const int32_t* match = targets.matches + cell * static_cast<uint32_t>(levels.per_cell);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (column + i < used) {
        if (match[own] == match_ignored) x[i] = no_logit;
        if (targets.is_positive(match[own], static_cast<int32_t>(k))) positives |= 1u << i;
        if (++k == classes) {
          k = 0;
          ++own;
        }
      }
    }
  }
  if (column + V > used) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (column + i >= used) x[i] = no_logit;
    }
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const bool positive = !all_background && (positives >> i & 1u) != 0;
    const LossTerm term = focal_term<gamma_is_two>(T{}, x[i], positive, parameters);
    sum += term.loss;
    x[i] = term.grad * grad_weight;
  }
  return sum;
}

// All vectors of an item. in, out (cells, pitch), out nullable. Returns this lane's sum.
template <class T, int V, bool gamma_is_two, bool all_background>
__device__ __forceinline__ float focal_item(T* out, const T* in, uint32_t cells, uint32_t pitch, const Levels& levels,
                                            const FocalTargets& targets, const FocalParameters& parameters,
                                            float grad_weight) {
  const uint32_t row = pitch / V;
  const uint32_t vectors = cells * row;
  uint32_t v = threadIdx.x % 32;
  uint32_t cell = v / row;
  uint32_t place = v - cell * row;
  float sum = 0;
  float next[V];
  if (v < vectors) load<V>(next, in + int64_t{v} * V);
  while (v < vectors) {
    float x[V];
#pragma unroll
    for (int i = 0; i < V; ++i) x[i] = next[i];
    const uint32_t after = v + 32;
    if (after < vectors) load<V>(next, in + int64_t{after} * V);  // on its way while this one is worked on
    sum += focal_vector<T, gamma_is_two, all_background>(x, place * V, cell, levels, targets, parameters, grad_weight);
    if (out != nullptr) store<V>(out + int64_t{v} * V, x);
    v = after;
    place += 32;
    while (place >= row) {
      place -= row;
      ++cell;
    }
  }
  return sum;
}

// Warps stride over the items. V logits to an access; pitches are multiples of V.
template <class T, int V, bool gamma_is_two>
__global__ void __launch_bounds__(loss_threads)
    focal_loss_kernel(double* partial, LevelAddresses dlogits, LevelAddresses logits, Levels levels, FocalItems items,
                      const int32_t* matches, const int32_t* labels, LossNormalization normalization,
                      int32_t max_boxes, FocalParameters parameters, GradFactor grad_factor) {
  const LossScale scale = loss_scale(normalization);
  const double factor = grad_factor.value();
  constexpr int warps = loss_threads / 32;
  double sum = 0;
  for (int64_t item = int64_t{blockIdx.x} * warps + threadIdx.x / 32; item < items.count;
       item += int64_t{gridDim.x} * warps) {
    int32_t level = 0;
    while (level + 1 < levels.count && item >= items.first[level + 1]) ++level;
    const uint32_t level_cells = static_cast<uint32_t>(levels.cells[level]);
    const uint32_t pitch = static_cast<uint32_t>(levels.pitch[level]);
    const uint32_t per_image = ceil_div<uint32_t>(level_cells, static_cast<uint32_t>(items.cells));
    const int64_t within = item - items.first[level];
    const int64_t image = within / per_image;
    const uint32_t first_cell = static_cast<uint32_t>(within - image * per_image) * items.cells;
    const uint32_t cells = min(static_cast<uint32_t>(items.cells), level_cells - first_cell);
    const FocalTargets targets{
        matches + image * levels.anchors + levels.first_anchor[level] + int64_t{first_cell} * levels.per_cell,
        labels + image * max_boxes, max_boxes};
    bool other = false;
    for (uint32_t a = threadIdx.x % 32; a < cells * levels.per_cell; a += 32) {
      other |= targets.matches[a] != match_background;
    }
    const int64_t start = image * levels.image_size(level) + int64_t{first_cell} * pitch;
    const T* in = logits.of<const T>(level) + start;
    T* out = dlogits.of<T>(level);
    if (out != nullptr) out += start;
    const double weight = scale.weight(image, 1.0);
    const float grad_weight = static_cast<float>(weight * factor);
    const float own =
        __any_sync(full_warp, other)
            ? focal_item<T, V, gamma_is_two, false>(out, in, cells, pitch, levels, targets, parameters, grad_weight)
            : focal_item<T, V, gamma_is_two, true>(out, in, cells, pitch, levels, targets, parameters, grad_weight);
    sum += own * weight;
  }
  write_partial(partial, sum);
}

}  // namespace

void sum_partials(Stream& s, float* loss, const double* partial, int count) {
  launch(s, 1, loss_threads, 0, sum_partials_kernel, loss, partial, count);
}

}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_detection_loss_workspace(dlfs_context ctx, int64_t* out, int32_t n, int32_t anchors, int32_t classes) {
  return context_call("dlfs_detection_loss_workspace", ctx, [&](Context&) {
    check_pointer(out, "out");
    check_size(n, "n");
    check_size(anchors, "anchors");
    check_size(classes, "classes");
    WorkspaceLayout layout;
    layout.take<double>(most_loss_blocks);
    *out = layout.bytes();
  });
}

dlfs_status dlfs_focal_loss(dlfs_stream stream, float* loss, const int64_t* dlogits, const int64_t* logits,
                            const int32_t* matches, const int32_t* labels, const int32_t* foreground,
                            const float* grad_scale, void* workspace, const int32_t* cells, const int32_t* pitches,
                            int32_t levels, int32_t n, int32_t per_cell, int32_t classes, int32_t max_boxes,
                            dlfs_dtype dtype, double alpha, double gamma, int32_t normalization, double grad_factor) {
  return stream_call("dlfs_focal_loss", stream, [&](Stream& s) {
    check_loss_operands({loss, logits, "logits", matches, labels, "labels", foreground, workspace}, n, max_boxes,
                        normalization, grad_factor);
    const Levels sizes = make_levels(cells, pitches, levels, n, per_cell, classes);
    for (int32_t level = 0; level < levels; ++level) check_range(pitches[level], 1, 1 << 24, "pitches");
    check_focal_parameters(alpha, gamma);
    const LevelAddresses in = level_addresses(logits, levels, true, "logits");
    const LevelAddresses out = level_addresses(dlogits, levels, false, "dlogits");
    const FocalItems items(sizes, n);
    const int blocks = static_cast<int>(std::min<int64_t>(ceil_div<int64_t>(items.count, loss_threads / 32),
                                                          most_loss_blocks));
    double* const partial = WorkspaceLayout(workspace).take<double>(most_loss_blocks);
    dispatch_vector(dtype, vector_maps(sizes, dtype, {in, out}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      constexpr int V = decltype(width)::value;
      launch(s, static_cast<unsigned>(blocks), loss_threads, 0,
             gamma == 2.0 ? focal_loss_kernel<T, V, true> : focal_loss_kernel<T, V, false>, partial, out, in, sizes,
             items, matches, labels, LossNormalization{foreground, n, normalization}, max_boxes,
             focal_parameters(alpha, gamma), GradFactor{grad_factor, grad_scale});
    });
    sum_partials(s, loss, partial, blocks);
  });
}

}  // extern "C"
