// Focal loss with its gradient, and the sum that ends every detection loss.
#include "cuda/losses.cuh"

namespace dlfs {
namespace {

constexpr int most_tile_rows = 1024;      // anchors of a focal loss tile
constexpr int64_t tile_elements = 12288;  // about this many logits to a tile

__global__ void __launch_bounds__(loss_threads) sum_partials_kernel(float* loss, const double* partial, int count) {
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += loss_threads) sum += partial[i];
  sum = block_sum<loss_threads>(sum);
  if (threadIdx.x == 0) *loss = static_cast<float>(sum);
}

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

__device__ __forceinline__ LossTerm focal_term(float, float x, bool positive, const FocalParameters& parameters) {
  return focal_loss_term(x, positive, parameters);
}

template <class T>
__device__ __forceinline__ LossTerm focal_term(T, float x, bool positive, const FocalParameters& parameters) {
  return fast_focal_term(x, positive, parameters);
}

// Which class of an anchor is positive: a class, or one of these.
constexpr int32_t no_class = -1;  // background: all are negative
constexpr int32_t skipped = -2;   // ignored: no loss, no gradient

struct AnchorTarget {
  int32_t positive;
  float loss_weight, grad_weight;
};

// logits, dlogits (rows = N A, K). Blocks stride over tiles of tile_rows anchors, a multiple of V, so that a tile
// starts at a multiple of V logits; its anchors' targets are looked up once, into shared memory. V logits to an access.
template <class T, int V>
__global__ void __launch_bounds__(loss_threads)
    focal_loss_kernel(double* partial, T* dlogits, const T* logits, const int32_t* matches, const int32_t* labels,
                      LossNormalization normalization, int64_t rows, int32_t anchors, uint32_t classes,
                      int32_t max_boxes, int32_t tile_rows, FocalParameters parameters, double grad_factor) {
  __shared__ AnchorTarget targets[most_tile_rows];
  const LossScale scale = loss_scale(normalization);
  double sum = 0;
  for (int64_t first = int64_t{blockIdx.x} * tile_rows; first < rows; first += int64_t{gridDim.x} * tile_rows) {
    const int32_t count = static_cast<int32_t>(min(int64_t{tile_rows}, rows - first));
    __syncthreads();  // the last tile's targets have been read
    for (int32_t r = static_cast<int32_t>(threadIdx.x); r < count; r += loss_threads) {
      const int32_t image = static_cast<int32_t>((first + r) / anchors);
      const int32_t match = matches[first + r];
      AnchorTarget target;
      target.positive = match == match_ignored ? skipped : no_class;
      if (match >= 0 && match < max_boxes) target.positive = labels[int64_t{image} * max_boxes + match];
      target.loss_weight = static_cast<float>(scale.weight(image, 1.0));
      target.grad_weight = static_cast<float>(scale.weight(image, grad_factor));
      targets[r] = target;
    }
    __syncthreads();
    const int64_t base = first * classes;
    const uint32_t elements = static_cast<uint32_t>(count) * classes;
    float tile_sum = 0;
    for (uint32_t e = threadIdx.x * V; e < elements; e += loss_threads * V) {
      uint32_t row = e / classes;
      uint32_t k = e - row * classes;
      const bool whole = e + V <= elements;
      const int size = whole ? V : static_cast<int>(elements - e);
      AnchorTarget target = targets[row];
      float x[V], dx[V];
      if (whole) {
        load<V>(x, logits + base + e);
      } else {
#pragma unroll
        for (int i = 0; i < V; ++i) x[i] = i < size ? to_float(logits[base + e + i]) : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < V; ++i) {
        dx[i] = 0.0f;
        if (i < size) {
          if (target.positive != skipped) {
            const LossTerm term = focal_term(T{}, x[i], static_cast<int32_t>(k) == target.positive, parameters);
            tile_sum += term.loss * target.loss_weight;
            dx[i] = term.grad * target.grad_weight;
          }
          if (++k == classes) {
            k = 0;
            if (++row < static_cast<uint32_t>(count)) target = targets[row];
          }
        }
      }
      if (dlogits == nullptr) continue;
      if (whole) {
        store<V>(dlogits + base + e, dx);
      } else {
#pragma unroll
        for (int i = 0; i < V; ++i) {
          if (i < size) dlogits[base + e + i] = from_float<T>(dx[i]);
        }
      }
    }
    sum += tile_sum;
  }
  write_partial(partial, sum);
}

int32_t focal_tile_rows(int32_t classes) {
  return static_cast<int32_t>(std::clamp<int64_t>(tile_elements / classes / 8 * 8, 8, most_tile_rows));
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

dlfs_status dlfs_focal_loss(dlfs_stream stream, float* loss, void* dlogits, const void* logits, const int32_t* matches,
                            const int32_t* labels, const int32_t* foreground, void* workspace, int32_t n,
                            int32_t anchors, int32_t classes, int32_t max_boxes, dlfs_dtype dtype, double alpha,
                            double gamma, int32_t normalization, double grad_factor) {
  return stream_call("dlfs_focal_loss", stream, [&](Stream& s) {
    check_loss_operands({loss, logits, "logits", matches, labels, "labels", foreground, workspace}, n, anchors,
                        "anchors", max_boxes, normalization, grad_factor);
    check_range(classes, 1, 1 << 24, "classes");
    checked_product({n, anchors, classes}, "logits");
    check_focal_parameters(alpha, gamma);
    const int64_t rows = int64_t{n} * anchors;
    const int32_t tile_rows = focal_tile_rows(classes);
    const int blocks = static_cast<int>(std::min<int64_t>(ceil_div<int64_t>(rows, tile_rows), most_loss_blocks));
    double* const partial = WorkspaceLayout(workspace).take<double>(most_loss_blocks);
    dispatch_vector(dtype, aligned16({logits, dlogits}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      launch(s, static_cast<unsigned>(blocks), loss_threads, 0, focal_loss_kernel<T, decltype(width)::value>, partial,
             static_cast<T*>(dlogits), static_cast<const T*>(logits), matches, labels,
             LossNormalization{foreground, n, normalization}, rows, anchors, static_cast<uint32_t>(classes), max_boxes,
             tile_rows, focal_parameters(alpha, gamma), grad_factor);
    });
    sum_partials(s, loss, partial, blocks);
  });
}

}  // extern "C"
