// dlfs_topk: see topk.cuh for how candidates are selected.
#include "cuda/topk.cuh"

namespace dlfs {
namespace {

// Rows of logits; the only level of each image.
template <class T>
struct RowInput {
  using Element = T;

  const T* logits;
  int64_t m, stride;
  int32_t k;
  bool sigmoid;  // scores are the logits' sigmoids, else the values themselves
  float threshold;
  float floor;  // logits below have scores below the threshold for sure

  __device__ int32_t level_of(int32_t&) const { return 0; }
  __device__ int32_t kept(int32_t) const { return k; }
  __device__ const T* row(int32_t image, int32_t) const { return logits + image * stride; }
  __device__ int64_t size(int32_t) const { return m; }

  __device__ float floor_of(float score) const { return sigmoid ? logit_floor(score) : score; }

  __device__ __forceinline__ uint64_t key(int32_t, int32_t, int64_t at, float x) const {
    const float score = sigmoid ? sigmoid_f32(x) : x;
    return score > threshold ? candidate_key(score, static_cast<int32_t>(at)) : no_candidate;
  }
};

// scores, index: k entries of a row of row_stride.
struct RowOutput {
  float* scores;
  int32_t* index;
  int64_t row_stride;

  __device__ void operator()(int32_t image, int32_t, int32_t i, uint64_t key) const {
    const int64_t out = image * row_stride + i;
    scores[out] = key != no_candidate ? candidate_score(key) : 0.0f;
    index[out] = key != no_candidate ? candidate_index(key) : -1;
  }
};

void check_topk(int32_t n, int64_t m, int32_t k) {
  check_range(n, 1, max_images, "n");
  check_range(m, 1, INT32_MAX, "m");
  check_range(k, 1, 1 << 30, "k");
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_topk_workspace(dlfs_context ctx, int64_t* out, int32_t n, int64_t m, int32_t k) {
  return context_call("dlfs_topk_workspace", ctx, [&](Context&) {
    check_pointer(out, "out");
    check_topk(n, m, k);
    *out = TopkWorkspace(nullptr, n, 1, m, k).bytes;
  });
}

dlfs_status dlfs_topk(dlfs_stream stream, float* scores, int32_t* index, const void* logits, void* workspace, int32_t n,
                      int64_t m, int64_t logits_stride, int32_t k, int64_t row_stride, dlfs_dtype dtype, int32_t kind,
                      double threshold) {
  return stream_call("dlfs_topk", stream, [&](Stream& s) {
    check_pointer(scores, "scores");
    check_pointer(index, "index");
    check_pointer(logits, "logits");
    check_topk(n, m, k);
    check_logits_stride(n, m, logits_stride);
    check_row_stride(n, k, row_stride);
    check_range(kind, DLFS_SCORES_SIGMOID, DLFS_SCORES_VALUES, "kind");
    check_number(threshold, "threshold");
    const bool sigmoid = kind == DLFS_SCORES_SIGMOID;
    const TopkWorkspace ws(workspace, n, 1, m, k);
    check_workspace(workspace, ws.bytes);
    dispatch_float(dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      const RowInput<T> input{static_cast<const T*>(logits), m, logits_stride, k, sigmoid,
                              static_cast<float>(threshold),
                              sigmoid ? logit_floor(threshold) : static_cast<float>(threshold)};
      launch_topk(s, ws, workspace, input, RowOutput{scores, index, row_stride}, filter_blocks<T>(m), n, k);
    });
  });
}

}  // extern "C"
