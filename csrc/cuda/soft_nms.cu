// Soft-NMS of a batch. Its turns depend on each other, so one block does all of an image's:
//
// 1. collect: the candidates above min_score, in any order. The result does not depend on it: candidates are compared by
//    unique keys (score descending, then index), and a candidate's decays follow the order of the turns alone.
// 2. pick: each thread owns every 1024th candidate. In a turn the block finds the smallest key, the owner hands its box
//    out, and all threads decay their own candidates, drop those that fall to min_score, and find their next key.
#include "common/detection_arguments.hpp"
#include "cuda/detection.cuh"

namespace dlfs {
namespace {

constexpr int collect_threads = 256;
constexpr int pick_threads = 1024;
constexpr int pick_warps = pick_threads / 32;
constexpr uint64_t no_candidate = ~uint64_t{0};

struct SoftNmsWorkspace {
  int32_t* count;  // (N): collected candidates; zeroed before
  float4* box;     // (N, K)
  float* score;    // (N, K)
  int32_t* label;  // (N, K)
  int32_t* index;  // (N, K)
  int64_t bytes;

  SoftNmsWorkspace(void* workspace, int32_t n, int32_t k) {
    WorkspaceLayout layout(workspace);
    const int64_t candidates = int64_t{n} * k;
    count = layout.take<int32_t>(n);
    box = layout.take<float4>(candidates);
    score = layout.take<float>(candidates);
    label = layout.take<int32_t>(candidates);
    index = layout.take<int32_t>(candidates);
    bytes = layout.bytes();
  }
};

// Grid (K / 256, N). boxes (N, K, 4), scores and labels (N, K).
__global__ void __launch_bounds__(collect_threads)
    collect_kernel(SoftNmsWorkspace workspace, const float* boxes, const float* scores, const int32_t* labels,
                   int32_t k, SoftNmsRules rules, bool aligned) {
  const int32_t i = static_cast<int32_t>(blockIdx.x * collect_threads + threadIdx.x);
  const int64_t row = int64_t{blockIdx.y} * k;
  if (i >= k) return;
  const int32_t label = labels[row + i];
  const float score = scores[row + i];
  if (label < 0 || !(score > rules.min_score)) return;
  const int64_t at = row + atomicAdd(&workspace.count[blockIdx.y], 1);
  const Box box = read_box(boxes, row + i, aligned);
  workspace.box[at] = make_float4(box.x1, box.y1, box.x2, box.y2);
  workspace.score[at] = score;
  workspace.label[at] = rules.class_aware ? label : 0;
  workspace.index[at] = i;
}

// The smallest of a value per lane, in all lanes.
__device__ __forceinline__ uint64_t warp_min(uint64_t value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value = min(value, __shfl_xor_sync(full_warp, value, offset));
  return value;
}

// A candidate that a thread owns, or a box that was taken.
struct Candidate {
  Box box;
  int32_t label;
};

// The candidates of one thread of the pick kernel: entry j is at threadIdx.x + 1024 j of the image's row. Entries that
// drop out are replaced by the last one.
class OwnCandidates {
 public:
  __device__ OwnCandidates(const SoftNmsWorkspace& workspace, int64_t row, int32_t count)
      : box_(workspace.box + row + threadIdx.x),
        score_(workspace.score + row + threadIdx.x),
        label_(workspace.label + row + threadIdx.x),
        index_(workspace.index + row + threadIdx.x),
        size_(count > static_cast<int32_t>(threadIdx.x)
                  ? (count - static_cast<int32_t>(threadIdx.x) + pick_threads - 1) / pick_threads
                  : 0) {}

  // Takes the best of them out; only where key() is not no_candidate.
  __device__ Candidate take() {
    const Candidate taken = candidate(best_entry_);
    remove(best_entry_);
    return taken;
  }

  __device__ uint64_t key() const { return key_; }

  // Decays all of them by their overlap with a box that was taken, unless it is NULL, and finds the best.
  __device__ void decay(const Candidate* taken, float taken_area, const SoftNmsRules& rules) {
    key_ = no_candidate;
    for (int32_t j = 0; j < size_;) {
      const int64_t at = int64_t{j} * pick_threads;
      float score = score_[at];
      if (taken && label_[at] == taken->label) {
        const Box box = candidate(j).box;
        const float factor = rules.decay(fast_iou(taken->box, taken_area, box, box_area(box)));
        if (factor != 1.0f) {
          score *= factor;
          if (!(score > rules.min_score)) {
            remove(j);
            continue;
          }
          score_[at] = score;
        }
      }
      const uint64_t key = candidate_key(score, index_[at]);
      if (key < key_) {
        key_ = key;
        best_entry_ = j;
      }
      ++j;
    }
  }

 private:
  __device__ Candidate candidate(int32_t j) const {
    const float4 v = box_[int64_t{j} * pick_threads];
    return {{v.x, v.y, v.z, v.w}, label_[int64_t{j} * pick_threads]};
  }

  __device__ void remove(int32_t j) {
    --size_;
    const int64_t to = int64_t{j} * pick_threads;
    const int64_t from = int64_t{size_} * pick_threads;
    box_[to] = box_[from];
    score_[to] = score_[from];
    label_[to] = label_[from];
    index_[to] = index_[from];
  }

  float4* box_;
  float* score_;
  int32_t* label_;
  int32_t* index_;
  int32_t size_;
  int32_t best_entry_ = 0;
  uint64_t key_ = no_candidate;
};

// Grid (N). keep, keep_scores (N, max_out), filled before; keep_counts (N).
__global__ void __launch_bounds__(pick_threads)
    pick_kernel(int32_t* keep, int32_t* keep_counts, float* keep_scores, SoftNmsWorkspace workspace, int32_t k,
                int32_t max_out, SoftNmsRules rules) {
  __shared__ uint64_t warp_keys[pick_warps];
  __shared__ Candidate taken;
  const int64_t image = blockIdx.x;
  OwnCandidates own(workspace, image * k, workspace.count[image]);
  own.decay(nullptr, 0.0f, rules);
  int32_t count = 0;
  for (; count < max_out; ++count) {
    const uint64_t warp_key = warp_min(own.key());
    if (threadIdx.x % 32 == 0) warp_keys[threadIdx.x / 32] = warp_key;
    __syncthreads();
    const uint64_t key = warp_min(warp_keys[threadIdx.x % pick_warps]);
    if (key == no_candidate) break;  // of all threads
    if (own.key() == key) {          // of one thread
      taken = own.take();
      keep[image * max_out + count] = candidate_index(key);
      keep_scores[image * max_out + count] = candidate_score(key);
    }
    __syncthreads();
    const Candidate box = taken;
    own.decay(&box, box_area(box.box), rules);
  }
  if (threadIdx.x == 0) keep_counts[image] = count;
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_soft_nms_workspace(dlfs_context ctx, int64_t* out, int32_t n, int32_t k) {
  return context_call("dlfs_soft_nms_workspace", ctx, [&](Context&) {
    check_pointer(out, "out");
    check_range(n, 1, max_images, "n");
    check_range(k, 1, 1 << 24, "k");
    *out = SoftNmsWorkspace(nullptr, n, k).bytes;
  });
}

dlfs_status dlfs_soft_nms(dlfs_stream stream, int32_t* keep, int32_t* keep_counts, float* keep_scores,
                          const float* boxes, const float* scores, const int32_t* labels, void* workspace, int32_t n,
                          int32_t k, int32_t max_out, int32_t method, double iou_threshold, double sigma,
                          double min_score, int32_t class_aware) {
  return stream_call("dlfs_soft_nms", stream, [&](Stream& s) {
    check_pointer(keep, "keep");
    check_pointer(keep_counts, "keep_counts");
    check_pointer(keep_scores, "keep_scores");
    check_pointer(boxes, "boxes");
    check_pointer(scores, "scores");
    check_pointer(labels, "labels");
    check_range(n, 1, max_images, "n");
    check_range(k, 1, 1 << 24, "k");
    check_size(max_out, "max_out");
    const SoftNmsRules rules = soft_nms_rules(method, iou_threshold, sigma, min_score, class_aware);
    const SoftNmsWorkspace ws(workspace, n, k);
    check_workspace(workspace, ws.bytes);
    const unsigned images = static_cast<unsigned>(n);
    const size_t places = static_cast<size_t>(n) * max_out;
    CUDA_CHECK(cudaMemsetAsync(keep, 0xff, places * sizeof(int32_t), s.stream));  // -1
    CUDA_CHECK(cudaMemsetAsync(keep_scores, 0, places * sizeof(float), s.stream));
    CUDA_CHECK(cudaMemsetAsync(ws.count, 0, static_cast<size_t>(n) * sizeof(int32_t), s.stream));
    launch(s, dim3(static_cast<unsigned>(ceil_div(k, collect_threads)), images), collect_threads, 0, collect_kernel, ws,
           boxes, scores, labels, k, rules, aligned16({boxes}));
    launch(s, images, pick_threads, 0, pick_kernel, keep, keep_counts, keep_scores, ws, k, max_out, rules);
  });
}

}  // extern "C"
