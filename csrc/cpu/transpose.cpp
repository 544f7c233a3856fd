// Transposition of a batch of matrices, tile by tile, so that both sides are read and written in whole cache lines.
#include "common/rows.hpp"
#include "cpu/numeric.hpp"
#include "cpu/runtime.hpp"

namespace dlfs::cpu {
namespace {

constexpr int64_t kTile = 32;

template <class T>
void transpose(T* dst, const T* src, int64_t n, int64_t rows, int64_t columns) {
  const int64_t down = (rows + kTile - 1) / kTile, across = (columns + kTile - 1) / kTile;
  parallel_for(n * down * across, 16, [=](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t matrix = tile / (down * across), place = tile % (down * across);
      const int64_t row0 = place / across * kTile, column0 = place % across * kTile;
      const int64_t row1 = std::min(rows, row0 + kTile), column1 = std::min(columns, column0 + kTile);
      const T* in = src + matrix * rows * columns;
      T* out = dst + matrix * rows * columns;
      for (int64_t column = column0; column < column1; ++column) {
        for (int64_t row = row0; row < row1; ++row) out[column * rows + row] = in[row * columns + column];
      }
    }
  });
}

}  // namespace
}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_transpose(dlfs_stream stream, void* dst, const void* src, int64_t n, int64_t rows,
                                      int64_t columns, dlfs_dtype dtype) {
  return on_stream("dlfs_transpose", stream, [&](Stream& s) {
    if (check_transpose(dst, src, n, rows, columns, dtype) == 0) return;
    if (dtype_size(dtype) == 4) {
      s.enqueue([=] { transpose(static_cast<uint32_t*>(dst), static_cast<const uint32_t*>(src), n, rows, columns); });
    } else {
      s.enqueue([=] { transpose(static_cast<uint16_t*>(dst), static_cast<const uint16_t*>(src), n, rows, columns); });
    }
  });
}
