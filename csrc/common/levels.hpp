// The level maps that detection losses and the selection of candidates read (see dlfs.h): their sizes, checked, and where
// an anchor's values lie.
#pragma once

#include "common/arguments.hpp"
#include "common/boxes.hpp"

namespace dlfs {

// Sizes of the maps of one head.
struct Levels {
  int32_t count;     // of levels
  int32_t per_cell;  // anchors of a cell
  int32_t columns;   // values of an anchor
  int32_t anchors;   // of an image, on all levels
  int32_t cells[DLFS_MAX_LEVELS];
  int32_t pitch[DLFS_MAX_LEVELS];         // values of a cell with its padding
  int32_t first_anchor[DLFS_MAX_LEVELS];  // of an image

  DLFS_HD int32_t used() const { return per_cell * columns; }
  DLFS_HD int32_t anchors_of(int32_t level) const { return per_cell * cells[level]; }
  DLFS_HD int64_t image_size(int32_t level) const { return int64_t{cells[level]} * pitch[level]; }

  DLFS_HD int32_t level_of(int32_t anchor) const {
    int32_t level = 0;
    while (level + 1 < count && anchor >= first_anchor[level + 1]) ++level;
    return level;
  }

  // Where, in the map of `level`, the values of an anchor start that is the `own`-th of its level.
  DLFS_HD int64_t offset(int32_t level, int64_t image, int32_t own) const {
    const int32_t cell = own / per_cell;
    return image * image_size(level) + int64_t{cell} * pitch[level] + (own - cell * per_cell) * columns;
  }
};

// Checks the sizes that an entry point was given (host only).
inline Levels make_levels(const int32_t* cells, const int32_t* pitches, int32_t levels, int32_t n, int32_t per_cell,
                          int32_t columns) {
  check_range(levels, 1, DLFS_MAX_LEVELS, "levels");
  check_pointer(cells, "cells");
  check_pointer(pitches, "pitches");
  check_range(n, 1, INT32_MAX, "n");
  check_range(per_cell, 1, INT32_MAX, "per_cell");
  check_range(columns, 1, INT32_MAX, "columns");
  const int64_t used = int64_t{per_cell} * columns;
  check_range(used, 1, INT32_MAX, "per_cell times the values of an anchor");
  Levels made{levels, per_cell, columns, 0, {}, {}, {}};
  int64_t anchors = 0;
  for (int32_t level = 0; level < levels; ++level) {
    check_range(cells[level], 1, INT32_MAX, "cells of a level");
    DLFS_CHECK(pitches[level] >= used, DLFS_ERROR_SHAPE, "level %d: expected a pitch of at least %lld values, got %d",
               level, static_cast<long long>(used), pitches[level]);
    checked_product({n, cells[level], pitches[level]}, "a level's map");
    made.cells[level] = cells[level];
    made.pitch[level] = pitches[level];
    made.first_anchor[level] = static_cast<int32_t>(anchors);
    anchors += int64_t{cells[level]} * per_cell;
    check_range(anchors, 1, INT32_MAX, "the levels' anchors");
  }
  made.anchors = static_cast<int32_t>(anchors);
  return made;
}

// The addresses of one head's maps, of values or of their gradients.
struct LevelAddresses {
  char* at[DLFS_MAX_LEVELS];

  template <class T>
  DLFS_HD T* of(int32_t level) const {
    return reinterpret_cast<T*>(at[level]);
  }
};

// Takes addresses from a host array (host only); `required`: none may be 0.
inline LevelAddresses level_addresses(const int64_t* addresses, int32_t levels, bool required, const char* name) {
  check_pointer(addresses, name);
  LevelAddresses made{};
  for (int32_t level = 0; level < levels; ++level) {
    DLFS_CHECK(addresses[level] != 0 || !required, DLFS_ERROR_ARGUMENT, "%s of level %d is NULL", name, level);
    made.at[level] = reinterpret_cast<char*>(static_cast<uintptr_t>(addresses[level]));
  }
  return made;
}

}  // namespace dlfs
