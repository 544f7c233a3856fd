// The arguments of dlfs_select_candidates, checked, and what both backends make of them.
#pragma once

#include "common/levels.hpp"

namespace dlfs {

// Sizes of the class maps but for their pitches.
inline Levels selection_levels(const int32_t* cells, int32_t levels, int32_t n, int32_t per_cell, int32_t classes,
                               int32_t k) {
  check_range(k, 1, INT32_MAX, "k");
  check_range(levels, 1, DLFS_MAX_LEVELS, "levels");
  check_range(int64_t{per_cell} * classes, 1, INT32_MAX, "per_cell times classes");
  int32_t packed[DLFS_MAX_LEVELS];
  for (int32_t& pitch : packed) pitch = per_cell * classes;
  const Levels made = make_levels(cells, packed, levels, n, per_cell, classes);
  int64_t row = 0;
  for (int32_t level = 0; level < levels; ++level) {
    const int64_t candidates = int64_t{cells[level]} * per_cell * classes;
    check_range(candidates, 1, INT32_MAX, "the scores of a level");
    row += candidates < k ? candidates : k;
  }
  check_range(row, 1, INT32_MAX, "the candidates of an image");
  return made;
}

// The host arrays of an entry point.
struct SelectionMaps {
  const int64_t *logits, *centerness, *deltas;
  const int32_t *logits_pitches, *centerness_pitches, *deltas_pitches;
};

struct SelectionOperands {
  float* boxes;         // (N, row, 4)
  float* scores;        // (N, row)
  int32_t* labels;      // (N, row)
  Levels logits;        // maps of classes
  Levels centerness;    // of 1 column
  Levels deltas;        // of 4
  LevelAddresses logits_at, centerness_at, deltas_at;
  const float* anchors;      // (A, 4)
  const float* image_sizes;  // (N, 2)
  int32_t kept[DLFS_MAX_LEVELS];        // candidates that a level contributes
  int32_t first_kept[DLFS_MAX_LEVELS];  // its first column
  int32_t row;                          // candidates of an image
  int32_t coder;
  BoxWeights weights;
  float threshold;

  // Whether scores take the centre-ness in, as FCOS's.
  DLFS_HD bool points() const { return centerness_at.at[0] != nullptr; }

  // The box of an anchor, the `own`-th of its level.
  DLFS_HD Box box(int64_t image, int32_t level, int32_t own, const BoxDeltas& moved) const {
    const Box anchor = load_box(anchors + 4 * int64_t{logits.first_anchor[level] + own});
    const Box decoded =
        coder == DLFS_CODER_LINEAR ? box_decode_linear(moved, anchor) : box_decode(moved, anchor, weights);
    return box_clip(decoded, image_sizes[2 * image], image_sizes[2 * image + 1]);
  }
};

// Checks what an entry point was given (host only). `sizes` are selection_levels' of the same arguments.
inline SelectionOperands selection_operands(float* boxes, float* scores, int32_t* labels, const SelectionMaps& maps,
                                            const float* anchors, const float* image_sizes, const Levels& sizes,
                                            int32_t n, int32_t k, int32_t coder, double threshold, double wx, double wy,
                                            double ww, double wh) {
  check_pointer(boxes, "boxes");
  check_pointer(scores, "scores");
  check_pointer(labels, "labels");
  check_pointer(anchors, "anchors");
  check_pointer(image_sizes, "image_sizes");
  check_range(coder, DLFS_CODER_CENTRE, DLFS_CODER_LINEAR, "coder");
  check_number(threshold, "threshold");
  const int32_t levels = sizes.count;
  SelectionOperands made{};
  made.boxes = boxes;
  made.scores = scores;
  made.labels = labels;
  made.logits = make_levels(sizes.cells, maps.logits_pitches, levels, n, sizes.per_cell, sizes.columns);
  made.deltas = make_levels(sizes.cells, maps.deltas_pitches, levels, n, sizes.per_cell, 4);
  made.logits_at = level_addresses(maps.logits, levels, true, "logits");
  made.deltas_at = level_addresses(maps.deltas, levels, true, "deltas");
  check_pointer(maps.centerness, "centerness");
  if (maps.centerness[0] != 0) {
    made.centerness = make_levels(sizes.cells, maps.centerness_pitches, levels, n, sizes.per_cell, 1);
    made.centerness_at = level_addresses(maps.centerness, levels, true, "centerness");
  }
  made.anchors = anchors;
  made.image_sizes = image_sizes;
  for (int32_t level = 0; level < levels; ++level) {
    const int64_t candidates = int64_t{sizes.anchors_of(level)} * sizes.columns;
    made.kept[level] = static_cast<int32_t>(candidates < k ? candidates : k);
    made.first_kept[level] = made.row;
    made.row += made.kept[level];
  }
  made.coder = coder;
  made.weights = coder_weights(coder, wx, wy, ww, wh);
  made.threshold = static_cast<float>(threshold);
  return made;
}

}  // namespace dlfs
