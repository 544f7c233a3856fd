// The best-scoring candidates of each row on the CPU. Rows may have millions of logits: each is cut into chunks.
#include <algorithm>
#include <vector>

#include "common/detection_arguments.hpp"
#include "cpu/runtime.hpp"
#include "cpu/topk.hpp"

using namespace dlfs;
using namespace dlfs::cpu;

namespace {

constexpr int64_t chunk = topk_chunk;

struct Layout {
  int64_t chunks;     // of a row
  int64_t capacity;   // keys that a chunk keeps
  int64_t counts_at;  // byte offset of the chunks' numbers of keys
  int64_t bytes;

  Layout(int32_t n, int64_t m, int32_t k) {
    chunks = (m + chunk - 1) / chunk;
    capacity = std::min({int64_t{k}, chunk, m});
    counts_at = checked_product({n, chunks, capacity, sizeof(uint64_t)}, "the workspace");
    bytes = counts_at + checked_product({n, chunks, sizeof(int64_t)}, "the workspace");
  }
};

Layout layout_of(int32_t n, int64_t m, int32_t k) {
  check_range(n, 1, INT32_MAX, "n");
  check_range(m, 1, INT32_MAX, "m");
  check_range(k, 1, INT32_MAX, "k");
  return Layout(n, m, k);
}

// Writes the keys of the best candidates among logits [begin, end) of a row to `best`; returns their number.
template <class T>
int64_t select_chunk(uint64_t* best, int64_t capacity, const T* row, int64_t begin, int64_t end, bool sigmoid,
                     float threshold) {
  thread_local std::vector<uint64_t> memory(chunk + 1);
  uint64_t* found = memory.data();
  int64_t count = 0;
  for (int64_t first = begin; first < end; first += topk_block) {
    const int64_t size = std::min(topk_block, end - first);
    float scores[topk_block];
    if (sigmoid) {
      sigmoid_scores(scores, row + first, size);
    } else {
      for (int64_t i = 0; i < size; ++i) scores[i] = load(row + first + i);
    }
    count = append_keys(found, count, scores, size, static_cast<int32_t>(first), threshold);
  }
  count = select_keys(found, found + count, capacity);
  std::copy_n(found, count, best);
  return count;
}

template <class T>
struct TopK {
  float* scores;
  int32_t* index;
  const T* logits;
  uint64_t* keys;   // (N, chunks, capacity)
  int64_t* counts;  // (N, chunks)
  Layout layout;
  int32_t n;
  int64_t m, logits_stride;
  int32_t k;
  int64_t row_stride;
  bool sigmoid;
  float threshold;

  void run() const {
    const int64_t chunks = layout.chunks;
    parallel_for(n * chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % chunks * chunk;
        counts[i] = select_chunk(keys + i * layout.capacity, layout.capacity, logits + i / chunks * logits_stride,
                                 first, std::min(first + chunk, m), sigmoid, threshold);
      }
    });
    parallel_for(n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image) merge(image);
    });
  }

  void merge(int64_t image) const {
    uint64_t* const begin = keys + image * layout.chunks * layout.capacity;
    const int64_t count = merge_chunks(begin, counts + image * layout.chunks, layout.chunks, layout.capacity, k);
    for (int64_t i = 0; i < k; ++i) {
      scores[image * row_stride + i] = i < count ? candidate_score(begin[i]) : 0.0f;
      index[image * row_stride + i] = i < count ? candidate_index(begin[i]) : -1;
    }
  }
};

}  // namespace

extern "C" dlfs_status dlfs_topk_workspace(dlfs_context ctx, int64_t* out, int32_t n, int64_t m, int32_t k) {
  return guard("dlfs_topk_workspace", [&] {
    require_context(ctx);
    check_pointer(out, "out");
    *out = layout_of(n, m, k).bytes;
  });
}

extern "C" dlfs_status dlfs_topk(dlfs_stream stream, float* scores, int32_t* index, const void* logits, void* workspace,
                                 int32_t n, int64_t m, int64_t logits_stride, int32_t k, int64_t row_stride,
                                 dlfs_dtype dtype, int32_t kind, double threshold) {
  return on_stream("dlfs_topk", stream, [&](Stream& s) {
    const Layout layout = layout_of(n, m, k);
    check_logits_stride(n, m, logits_stride);
    check_row_stride(n, k, row_stride);
    check_range(kind, DLFS_SCORES_SIGMOID, DLFS_SCORES_VALUES, "kind");
    check_pointer(scores, "scores");
    check_pointer(index, "index");
    check_pointer(logits, "logits");
    check_workspace(workspace, layout.bytes);
    check_number(threshold, "threshold");
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      const TopK<T> work{scores,
                         index,
                         static_cast<const T*>(logits),
                         static_cast<uint64_t*>(workspace),
                         reinterpret_cast<int64_t*>(static_cast<char*>(workspace) + layout.counts_at),
                         layout,
                         n,
                         m,
                         logits_stride,
                         k,
                         row_stride,
                         kind == DLFS_SCORES_SIGMOID,
                         static_cast<float>(threshold)};
      s.enqueue([work] { work.run(); });
    });
  });
}
