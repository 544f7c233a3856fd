// The best candidates of each pyramid level with their boxes and labels, on the CPU. A level's cells are cut into chunks
// whose bests are selected in parallel.
#include <cmath>
#include <vector>

#include "common/selection.hpp"
#include "cpu/runtime.hpp"
#include "cpu/topk.hpp"

using namespace dlfs;
using namespace dlfs::cpu;

namespace {

// The chunks of an image, of all levels, and the workspace.
struct Layout {
  int32_t cells;                        // of a chunk
  int64_t first[DLFS_MAX_LEVELS] = {};  // chunk of each level
  int64_t chunks = 0;                   // of an image
  int64_t capacity;                     // keys that a chunk keeps
  int64_t counts_at;                    // byte offset of the chunks' numbers of keys
  int64_t bytes;

  Layout(const Levels& levels, int32_t n, int32_t k)
      : cells(static_cast<int32_t>(std::max<int64_t>(1, topk_chunk / levels.used()))),
        capacity(std::min<int64_t>(k, int64_t{cells} * levels.used())) {
    for (int32_t level = 0; level < levels.count; ++level) {
      first[level] = chunks;
      chunks += (int64_t{levels.cells[level]} + cells - 1) / cells;
    }
    counts_at = checked_product({n, chunks, capacity, sizeof(uint64_t)}, "the workspace");
    bytes = counts_at + checked_product({n, chunks, sizeof(int64_t)}, "the workspace");
  }

  int32_t level_of(int64_t chunk, int32_t levels) const {
    int32_t level = 0;
    while (level + 1 < levels && chunk >= first[level + 1]) ++level;
    return level;
  }
};

template <class T>
struct Selection {
  SelectionOperands x;
  Layout layout;
  uint64_t* keys;   // (N, chunks, capacity)
  int64_t* counts;  // (N, chunks)
  int32_t n;

  void run() const {
    parallel_for(n * layout.chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) counts[i] = select_chunk(i / layout.chunks, i % layout.chunks);
    });
    const int32_t levels = x.logits.count;
    parallel_for(int64_t{n} * levels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) write(i / levels, static_cast<int32_t>(i % levels));
    });
  }

  // Leaves the keys of a chunk's best candidates in its place; returns their number.
  int64_t select_chunk(int64_t image, int64_t chunk) const {
    const Levels& levels = x.logits;
    const int32_t level = layout.level_of(chunk, levels.count);
    const int32_t first_cell = static_cast<int32_t>(chunk - layout.first[level]) * layout.cells;
    const int32_t last_cell = std::min(first_cell + layout.cells, levels.cells[level]);
    thread_local std::vector<uint64_t> memory;
    memory.resize(static_cast<size_t>(layout.cells) * static_cast<size_t>(levels.used()) + 1);
    uint64_t* const found = memory.data();
    int64_t count = 0;
    for (int32_t cell = first_cell; cell < last_cell; ++cell) {
      const T* const row =
          x.logits_at.of<const T>(level) + image * levels.image_size(level) + int64_t{cell} * levels.pitch[level];
      if (!x.points()) {
        count = add(found, count, row, levels.used(), cell * levels.used(), -1.0f);
        continue;
      }
      for (int32_t own = 0; own < levels.per_cell; ++own) {
        const int32_t anchor = cell * levels.per_cell + own;
        const T* const centre = x.centerness_at.of<const T>(level) + x.centerness.offset(level, image, anchor);
        count = add(found, count, row + own * levels.columns, levels.columns, anchor * levels.columns,
                    dlfs::sigmoid_f32(load(centre)));
      }
    }
    count = select_keys(found, found + count, layout.capacity);
    std::copy_n(found, count, keys + (image * layout.chunks + chunk) * layout.capacity);
    return count;
  }

  // The candidates among `size` logits; factor < 0: scores are sigmoids alone.
  int64_t add(uint64_t* found, int64_t count, const T* logits, int64_t size, int32_t first_index, float factor) const {
    for (int64_t first = 0; first < size; first += topk_block) {
      const int64_t part = std::min(topk_block, size - first);
      float scores[topk_block];
      sigmoid_scores(scores, logits + first, part);
      if (factor >= 0 || factor != factor) {
        for (int64_t i = 0; i < part; ++i) scores[i] = std::sqrt(scores[i] * factor);
      }
      count = append_keys(found, count, scores, part, first_index + static_cast<int32_t>(first), x.threshold);
    }
    return count;
  }

  void write(int64_t image, int32_t level) const {
    const int64_t chunk = image * layout.chunks + layout.first[level];
    const int64_t last = level + 1 < x.logits.count ? layout.first[level + 1] : layout.chunks;
    uint64_t* const best = keys + chunk * layout.capacity;
    const int32_t k = x.kept[level];
    const int64_t count = merge_chunks(best, counts + chunk, last - layout.first[level], layout.capacity, k);
    for (int32_t i = 0; i < k; ++i) {
      const int64_t slot = image * x.row + x.first_kept[level] + i;
      if (i >= count) {
        x.scores[slot] = 0.0f;
        x.labels[slot] = -1;
        store_box(x.boxes + 4 * slot, {0, 0, 0, 0});
        continue;
      }
      const int32_t index = candidate_index(best[i]);
      const int32_t anchor = index / x.logits.columns;
      const T* const d = x.deltas_at.of<const T>(level) + x.deltas.offset(level, image, anchor);
      x.scores[slot] = candidate_score(best[i]);
      x.labels[slot] = index % x.logits.columns;
      store_box(x.boxes + 4 * slot, x.box(image, level, anchor, {load(d), load(d + 1), load(d + 2), load(d + 3)}));
    }
  }
};

}  // namespace

extern "C" dlfs_status dlfs_select_candidates_workspace(dlfs_context ctx, int64_t* out, const int32_t* cells,
                                                        int32_t levels, int32_t n, int32_t per_cell, int32_t classes,
                                                        int32_t k) {
  return guard("dlfs_select_candidates_workspace", [&] {
    require_context(ctx);
    check_pointer(out, "out");
    *out = Layout(selection_levels(cells, levels, n, per_cell, classes, k), n, k).bytes;
  });
}

extern "C" dlfs_status dlfs_select_candidates(dlfs_stream stream, float* boxes, float* scores, int32_t* labels,
                                              const int64_t* logits, const int64_t* centerness, const int64_t* deltas,
                                              const float* anchors, const float* image_sizes, void* workspace,
                                              const int32_t* cells, const int32_t* logits_pitches,
                                              const int32_t* centerness_pitches, const int32_t* deltas_pitches,
                                              int32_t levels, int32_t n, int32_t per_cell, int32_t classes, int32_t k,
                                              int32_t coder, dlfs_dtype dtype, double threshold, double wx, double wy,
                                              double ww, double wh) {
  return on_stream("dlfs_select_candidates", stream, [&](Stream& s) {
    const Levels sizes = selection_levels(cells, levels, n, per_cell, classes, k);
    const SelectionMaps maps{logits, centerness, deltas, logits_pitches, centerness_pitches, deltas_pitches};
    const SelectionOperands operands = selection_operands(boxes, scores, labels, maps, anchors, image_sizes, sizes, n,
                                                          k, coder, threshold, wx, wy, ww, wh);
    const Layout layout(sizes, n, k);
    check_workspace(workspace, layout.bytes);
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      const Selection<T> work{operands, layout, static_cast<uint64_t*>(workspace),
                              reinterpret_cast<int64_t*>(static_cast<char*>(workspace) + layout.counts_at), n};
      s.enqueue([work] { work.run(); });
    });
  });
}
