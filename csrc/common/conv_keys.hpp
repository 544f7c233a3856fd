// The arguments of dlfs_conv_create_many, taken apart.
#pragma once

#include <cstring>
#include <vector>

#include "common/arguments.hpp"

namespace dlfs {

// The start of each of `count` picks, which lie one after the other, NUL-terminated, in bytes in all.
inline std::vector<const char*> split_picks(const char* picks, int64_t bytes, int32_t count) {
  std::vector<const char*> starts;
  const char* const end = picks + bytes;
  for (const char* p = picks; static_cast<int32_t>(starts.size()) < count;) {
    const void* const terminator = p < end ? std::memchr(p, 0, static_cast<size_t>(end - p)) : nullptr;
    DLFS_CHECK(terminator, DLFS_ERROR_ARGUMENT, "expected %d NUL-terminated picks in %lld bytes, got %zu", count,
               static_cast<long long>(bytes), starts.size());
    starts.push_back(p);
    p = static_cast<const char*>(terminator) + 1;
  }
  return starts;
}

// One plan by its row of DLFS_CONV_KEY numbers; 0 where it cannot be made.
inline dlfs_conv create_by_key(dlfs_context ctx, const char* pick, const int32_t* key) {
  dlfs_conv conv = 0;
  const dlfs_status status =
      dlfs_conv_create(ctx, &conv, pick, key[0], key[1], key[2], key[3], key[4], key[5], key[6], key[7], key[8], key[9],
                       key[10], key[11], key[12], key[13], key[14], key[15], key[16], key[17]);
  return status == DLFS_OK ? conv : 0;
}

}  // namespace dlfs
