// Checks of collectives' arguments that both backends make, and what they keep of them.
#pragma once

#include <vector>

#include "common/arguments.hpp"

namespace dlfs {

// How many processes may take part: more than any installation has, and few enough for sizes to fit.
constexpr int32_t max_world = 65536;

inline void check_membership(int32_t rank, int32_t world) {
  check_range(world, 1, max_world, "world");
  DLFS_CHECK(rank >= 0 && rank < world, DLFS_ERROR_ARGUMENT, "expected a rank from 0 to %d, got %d", world - 1, rank);
}

// The buffers of one collective.
struct CommBuffer {
  void* address;
  int64_t size;  // elements, or bytes
};

inline std::vector<CommBuffer> comm_buffers(const int64_t* buffers, const int64_t* sizes, int32_t count) {
  check_range(count, 1, INT32_MAX, "count");
  check_pointer(buffers, "buffers");
  check_pointer(sizes, "sizes");
  std::vector<CommBuffer> list;
  list.reserve(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) {
    DLFS_CHECK(buffers[i] != 0, DLFS_ERROR_ARGUMENT, "buffer %d is NULL", i);
    check_size(sizes[i], "sizes");
    list.push_back({reinterpret_cast<void*>(buffers[i]), sizes[i]});
  }
  return list;
}

inline void check_reduction(dlfs_dtype dtype, int32_t operation) {
  check_float_dtype(dtype);
  DLFS_CHECK(operation == DLFS_REDUCE_SUM || operation == DLFS_REDUCE_AVERAGE, DLFS_ERROR_ARGUMENT,
             "expected operation to be 0 (sum) or 1 (average), got %d", operation);
}

inline void check_label(int32_t label) { check_range(label, 0, INT32_MAX, "label"); }

}  // namespace dlfs
