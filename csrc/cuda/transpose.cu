// Transposition of a batch of matrices: tiles of 32 x 32 go through shared memory, so that both sides are accessed in
// rows. Elements are moved as bits.
#include "common/rows.hpp"
#include "cuda/numeric.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {
namespace {

constexpr int tile = 32, tile_rows = 8;

template <class T>
__global__ void __launch_bounds__(tile* tile_rows)
    transpose_kernel(T* dst, const T* src, int64_t n, int64_t rows, int64_t columns) {
  __shared__ T part[tile][tile + 1];  // one more, so that a column of it lies in as many banks
  const int64_t down = ceil_div<int64_t>(rows, tile), across = ceil_div<int64_t>(columns, tile);
  const int lane = static_cast<int>(threadIdx.x), line = static_cast<int>(threadIdx.y);
  for (int64_t number = blockIdx.x; number < n * down * across; number += gridDim.x) {
    const int64_t matrix = number / (down * across), place = number % (down * across);
    const int64_t row0 = place / across * tile, column0 = place % across * tile;
    const int64_t base = matrix * rows * columns;
    for (int i = line; i < tile; i += tile_rows) {
      const int64_t row = row0 + i, column = column0 + lane;
      if (row < rows && column < columns) part[i][lane] = src[base + row * columns + column];
    }
    __syncthreads();
    for (int i = line; i < tile; i += tile_rows) {
      const int64_t row = row0 + lane, column = column0 + i;
      if (row < rows && column < columns) dst[base + column * rows + row] = part[lane][i];
    }
    __syncthreads();
  }
}

template <class T>
void transpose(const Stream& s, void* dst, const void* src, int64_t n, int64_t rows, int64_t columns) {
  const int64_t tiles = n * ceil_div<int64_t>(rows, tile) * ceil_div<int64_t>(columns, tile);
  launch(s, grid_size(*s.context, tiles * tile * tile_rows, tile * tile_rows), dim3(tile, tile_rows), 0,
         transpose_kernel<T>, static_cast<T*>(dst), static_cast<const T*>(src), n, rows, columns);
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" dlfs_status dlfs_transpose(dlfs_stream stream, void* dst, const void* src, int64_t n, int64_t rows,
                                      int64_t columns, dlfs_dtype dtype) {
  return stream_call("dlfs_transpose", stream, [&](Stream& s) {
    const int64_t elements = check_transpose(dst, src, n, rows, columns, dtype);
    if (elements == 0) return;
    if (rows == 1 || columns == 1) {
      CUDA_CHECK(cudaMemcpyAsync(dst, src, static_cast<size_t>(elements) * dtype_size(dtype), cudaMemcpyDeviceToDevice,
                                 s.stream));
    } else if (dtype_size(dtype) == 4) {
      transpose<uint32_t>(s, dst, src, n, rows, columns);
    } else {
      transpose<uint16_t>(s, dst, src, n, rows, columns);
    }
  });
}
