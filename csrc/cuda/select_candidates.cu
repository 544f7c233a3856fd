// The best candidates of each pyramid level with their boxes and labels: see topk.cuh for how they are selected. One
// launch of each kernel serves all levels and images.
#include "common/selection.hpp"
#include "cuda/topk.cuh"

namespace dlfs {
namespace {

// The logits of level maps, whose padding is skipped.
template <class T>
struct LevelInput {
  using Element = T;

  SelectionOperands x;
  int32_t first_block[DLFS_MAX_LEVELS];  // of the filter's grid
  float floor;  // logits below have scores below the threshold for sure

  __device__ int32_t level_of(int32_t& block) const {
    int32_t level = 0;
    while (level + 1 < x.logits.count && block >= first_block[level + 1]) ++level;
    block -= first_block[level];
    return level;
  }

  __device__ int32_t kept(int32_t level) const { return x.kept[level]; }

  __device__ const T* row(int32_t image, int32_t level) const {
    return x.logits_at.of<const T>(level) + image * x.logits.image_size(level);
  }

  __device__ int64_t size(int32_t level) const { return x.logits.image_size(level); }

  // A centre-ness is at most 1: scores of points have sigmoids of at least their squares.
  __device__ float floor_of(float score) const { return logit_floor(x.points() ? double{score} * score : score); }

  __device__ __forceinline__ uint64_t key(int32_t image, int32_t level, int64_t at, float logit) const {
    const int32_t pitch = x.logits.pitch[level];
    const int32_t used = x.logits.used();
    const int32_t cell = static_cast<int32_t>(at) / pitch;
    const int32_t column = static_cast<int32_t>(at) - cell * pitch;
    if (column >= used) return no_candidate;
    const int32_t index = cell * used + column;
    float score = sigmoid_f32(logit);
    if (x.points()) {
      const T* const centre = x.centerness_at.of<const T>(level);
      score =
          sqrtf(score * sigmoid_f32(to_float(centre[x.centerness.offset(level, image, index / x.logits.columns)])));
    }
    return score > x.threshold ? candidate_key(score, index) : no_candidate;
  }
};

template <class T>
struct LevelOutput {
  SelectionOperands x;

  __device__ void operator()(int32_t image, int32_t level, int32_t i, uint64_t key) const {
    const int64_t out = int64_t{image} * x.row + x.first_kept[level] + i;
    Box box = {0.0f, 0.0f, 0.0f, 0.0f};
    int32_t label = -1;
    float score = 0.0f;
    if (key != no_candidate) {
      const int32_t index = candidate_index(key);
      const int32_t anchor = index / x.logits.columns;
      label = index - anchor * x.logits.columns;
      score = candidate_score(key);
      const T* const d = x.deltas_at.of<const T>(level) + x.deltas.offset(level, image, anchor);
      box = x.box(image, level, anchor, {to_float(d[0]), to_float(d[1]), to_float(d[2]), to_float(d[3])});
    }
    store_box(x.boxes + 4 * out, box);
    x.scores[out] = score;
    x.labels[out] = label;
  }
};

Levels checked_sizes(const int32_t* cells, int32_t levels, int32_t n, int32_t per_cell, int32_t classes, int32_t k) {
  check_range(n, 1, max_images, "n");
  check_range(k, 1, 1 << 30, "k");
  return selection_levels(cells, levels, n, per_cell, classes, k);
}

// The largest number of scores of a level.
int64_t most_candidates(const Levels& sizes) {
  int64_t most = 0;
  for (int32_t level = 0; level < sizes.count; ++level) {
    most = std::max(most, int64_t{sizes.anchors_of(level)} * sizes.columns);
  }
  return most;
}

// The largest number of candidates that a level contributes.
int32_t most_kept(const Levels& sizes, int32_t k) {
  return static_cast<int32_t>(std::min<int64_t>(k, most_candidates(sizes)));
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_select_candidates_workspace(dlfs_context ctx, int64_t* out, const int32_t* cells, int32_t levels,
                                             int32_t n, int32_t per_cell, int32_t classes, int32_t k) {
  return context_call("dlfs_select_candidates_workspace", ctx, [&](Context&) {
    check_pointer(out, "out");
    const Levels sizes = checked_sizes(cells, levels, n, per_cell, classes, k);
    *out = TopkWorkspace(nullptr, n, levels, most_candidates(sizes), most_kept(sizes, k)).bytes;
  });
}

dlfs_status dlfs_select_candidates(dlfs_stream stream, float* boxes, float* scores, int32_t* labels,
                                   const int64_t* logits, const int64_t* centerness, const int64_t* deltas,
                                   const float* anchors, const float* image_sizes, void* workspace,
                                   const int32_t* cells, const int32_t* logits_pitches,
                                   const int32_t* centerness_pitches, const int32_t* deltas_pitches, int32_t levels,
                                   int32_t n, int32_t per_cell, int32_t classes, int32_t k, int32_t coder,
                                   dlfs_dtype dtype, double threshold, double wx, double wy, double ww, double wh) {
  return stream_call("dlfs_select_candidates", stream, [&](Stream& s) {
    const Levels sizes = checked_sizes(cells, levels, n, per_cell, classes, k);
    const SelectionMaps maps{logits, centerness, deltas, logits_pitches, centerness_pitches, deltas_pitches};
    const SelectionOperands operands = selection_operands(boxes, scores, labels, maps, anchors, image_sizes, sizes, n,
                                                          k, coder, threshold, wx, wy, ww, wh);
    for (int32_t level = 0; level < levels; ++level) {
      check_range(operands.logits.image_size(level), 1, INT32_MAX, "the values of an image's map");
    }
    const int32_t most = most_kept(sizes, k);
    const TopkWorkspace ws(workspace, n, levels, most_candidates(sizes), most);
    check_workspace(workspace, ws.bytes);
    dispatch_float(dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      // A centre-ness is at most 1: scores of points above the threshold have sigmoids above its square.
      const double least = operands.points() && threshold > 0 ? threshold * threshold : threshold;
      LevelInput<T> input{operands, {}, logit_floor(least)};
      int64_t blocks = 0;
      for (int32_t level = 0; level < levels; ++level) {
        input.first_block[level] = static_cast<int32_t>(blocks);
        blocks += filter_blocks<T>(operands.logits.image_size(level));
      }
      launch_topk(s, ws, workspace, input, LevelOutput<T>{operands}, blocks, n, most);
    });
  });
}

}  // extern "C"
