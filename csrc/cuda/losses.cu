// Focal loss and smooth L1 with their gradients. Each reads its input once and writes the gradient in the same pass;
// the loss is summed per thread, then per block into the workspace, then by one block in the order of the blocks: no
// float atomics, so the same bytes each run. Every term carries its image's weight 1 / (N max(1, foreground)) already.
#include "cuda/detection.cuh"

namespace dlfs {
namespace {

constexpr int threads_per_block = 256;
constexpr int most_blocks = 2048;         // of a loss kernel; each leaves one partial sum
constexpr int most_tile_rows = 1024;      // anchors of a focal loss tile
constexpr int64_t tile_elements = 12288;  // about this many logits to a tile

// *loss = the sum of partial (count), in a fixed order.
__global__ void __launch_bounds__(threads_per_block)
    sum_partials_kernel(float* loss, const double* partial, int count) {
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += threads_per_block) sum += partial[i];
  sum = block_sum<threads_per_block>(sum);
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
__global__ void __launch_bounds__(threads_per_block)
    focal_loss_kernel(double* partial, T* dlogits, const T* logits, const int32_t* matches, const int32_t* labels,
                      const int32_t* foreground, int64_t rows, int32_t n, int32_t anchors, uint32_t classes,
                      int32_t max_boxes, int32_t tile_rows, FocalParameters parameters, double grad_factor) {
  __shared__ AnchorTarget targets[most_tile_rows];
  double sum = 0;
  for (int64_t first = int64_t{blockIdx.x} * tile_rows; first < rows; first += int64_t{gridDim.x} * tile_rows) {
    const int32_t count = static_cast<int32_t>(min(int64_t{tile_rows}, rows - first));
    __syncthreads();  // the last tile's targets have been read
    for (int32_t r = static_cast<int32_t>(threadIdx.x); r < count; r += threads_per_block) {
      const int32_t image = static_cast<int32_t>((first + r) / anchors);
      const int32_t match = matches[first + r];
      AnchorTarget target;
      target.positive = match == match_ignored ? skipped : no_class;
      if (match >= 0 && match < max_boxes) target.positive = labels[int64_t{image} * max_boxes + match];
      target.loss_weight = static_cast<float>(image_weight(n, foreground[image], 1.0));
      target.grad_weight = static_cast<float>(image_weight(n, foreground[image], grad_factor));
      targets[r] = target;
    }
    __syncthreads();
    const int64_t base = first * classes;
    const uint32_t elements = static_cast<uint32_t>(count) * classes;
    float tile_sum = 0;
    for (uint32_t e = threadIdx.x * V; e < elements; e += threads_per_block * V) {
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
  sum = block_sum<threads_per_block>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// deltas, ddeltas (rows = N A, 4); a thread per anchor, in 1 or 4 / V accesses.
template <class T, int V>
__global__ void __launch_bounds__(threads_per_block)
    box_loss_kernel(double* partial, T* ddeltas, const T* deltas, const float* anchors, const int32_t* matches,
                    const float* boxes, const int32_t* foreground, int64_t rows, int32_t n, int32_t anchors_count,
                    int32_t max_boxes, BoxWeights weights, float beta, double grad_factor) {
  double sum = 0;
  const int64_t step = int64_t{gridDim.x} * threads_per_block;
  for (int64_t row = int64_t{blockIdx.x} * threads_per_block + threadIdx.x; row < rows; row += step) {
    const int32_t match = matches[row];
    float gradient[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (match >= 0 && match < max_boxes) {
      const int64_t image = row / anchors_count;
      const float* anchor = anchors + 4 * (row - image * anchors_count);
      const float* box = boxes + 4 * (image * max_boxes + match);
      const BoxDeltas target = box_encode(load_box(box), load_box(anchor), weights);
      const float goal[4] = {target.dx, target.dy, target.dw, target.dh};
      const float loss_weight = static_cast<float>(image_weight(n, foreground[image], 1.0));
      const float grad_weight = static_cast<float>(image_weight(n, foreground[image], grad_factor));
      float value[4];
      if constexpr (V == 4) {
        load<4>(value, deltas + 4 * row);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) value[i] = to_float(deltas[4 * row + i]);
      }
      float row_sum = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const LossTerm term = smooth_l1_term(value[i] - goal[i], beta);
        row_sum += term.loss * loss_weight;
        gradient[i] = term.grad * grad_weight;
      }
      sum += row_sum;
    }
    if (ddeltas == nullptr) continue;
    if constexpr (V == 4) {
      store<4>(ddeltas + 4 * row, gradient);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) ddeltas[4 * row + i] = from_float<T>(gradient[i]);
    }
  }
  sum = block_sum<threads_per_block>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

int32_t focal_tile_rows(int32_t classes) {
  return static_cast<int32_t>(std::clamp<int64_t>(tile_elements / classes / 8 * 8, 8, most_tile_rows));
}

}  // namespace
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
    layout.take<double>(most_blocks);
    *out = layout.bytes();
  });
}

dlfs_status dlfs_focal_loss(dlfs_stream stream, float* loss, void* dlogits, const void* logits, const int32_t* matches,
                            const int32_t* labels, const int32_t* foreground, void* workspace, int32_t n,
                            int32_t anchors, int32_t classes, int32_t max_boxes, dlfs_dtype dtype, double alpha,
                            double gamma, double grad_factor) {
  return stream_call("dlfs_focal_loss", stream, [&](Stream& s) {
    check_pointer(loss, "loss");
    check_pointer(logits, "logits");
    check_pointer(matches, "matches");
    check_pointer(foreground, "foreground");
    check_workspace(workspace);
    check_size(n, "n");
    check_size(anchors, "anchors");
    check_range(classes, 1, 1 << 24, "classes");
    check_count(max_boxes, "max_boxes");
    if (max_boxes > 0) check_pointer(labels, "labels");
    check_number(grad_factor, "grad_factor");
    DLFS_CHECK(alpha <= 1, DLFS_ERROR_ARGUMENT, "expected alpha up to 1, or below 0 for none, got %g", alpha);
    DLFS_CHECK(gamma >= 0 && gamma <= 1000, DLFS_ERROR_ARGUMENT, "expected gamma from 0 to 1000, got %g", gamma);
    checked_product({n, anchors, classes}, "logits");
    const int64_t rows = int64_t{n} * anchors;
    const int32_t tile_rows = focal_tile_rows(classes);
    const int blocks = static_cast<int>(std::min<int64_t>(ceil_div<int64_t>(rows, tile_rows), most_blocks));
    double* const partial = WorkspaceLayout(workspace).take<double>(most_blocks);
    dispatch_vector(dtype, aligned16({logits, dlogits}), [&](auto tag, auto width) {
      using T = typename decltype(tag)::type;
      launch(s, static_cast<unsigned>(blocks), threads_per_block, 0, focal_loss_kernel<T, decltype(width)::value>,
             partial, static_cast<T*>(dlogits), static_cast<const T*>(logits), matches, labels, foreground, rows, n,
             anchors, static_cast<uint32_t>(classes), max_boxes, tile_rows, focal_parameters(alpha, gamma),
             grad_factor);
    });
    launch(s, 1, threads_per_block, 0, sum_partials_kernel, loss, partial, blocks);
  });
}

dlfs_status dlfs_box_loss(dlfs_stream stream, float* loss, void* ddeltas, const void* deltas, const float* anchors,
                          const int32_t* matches, const float* boxes, const int32_t* foreground, void* workspace,
                          int32_t n, int32_t anchors_count, int32_t max_boxes, dlfs_dtype dtype, double wx, double wy,
                          double ww, double wh, double beta, double grad_factor) {
  return stream_call("dlfs_box_loss", stream, [&](Stream& s) {
    check_pointer(loss, "loss");
    check_pointer(deltas, "deltas");
    check_pointer(anchors, "anchors");
    check_pointer(matches, "matches");
    check_pointer(foreground, "foreground");
    check_workspace(workspace);
    check_size(n, "n");
    check_size(anchors_count, "anchors_count");
    check_count(max_boxes, "max_boxes");
    if (max_boxes > 0) check_pointer(boxes, "boxes");
    const BoxWeights weights = box_weights(wx, wy, ww, wh);
    DLFS_CHECK(beta >= 0 && beta - beta == 0, DLFS_ERROR_ARGUMENT, "expected a finite beta of at least 0, got %g",
               beta);
    check_number(grad_factor, "grad_factor");
    const int64_t rows = int64_t{n} * anchors_count;
    const int blocks = static_cast<int>(std::min<int64_t>(ceil_div<int64_t>(rows, threads_per_block), most_blocks));
    double* const partial = WorkspaceLayout(workspace).take<double>(most_blocks);
    dispatch_float(dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      launch(s, static_cast<unsigned>(blocks), threads_per_block, 0,
             aligned16({deltas, ddeltas}) ? box_loss_kernel<T, 4> : box_loss_kernel<T, 1>, partial,
             static_cast<T*>(ddeltas), static_cast<const T*>(deltas), anchors, matches, boxes, foreground, rows, n,
             anchors_count, max_boxes, weights, static_cast<float>(beta), grad_factor);
    });
    launch(s, 1, threads_per_block, 0, sum_partials_kernel, loss, partial, blocks);
  });
}

}  // extern "C"
