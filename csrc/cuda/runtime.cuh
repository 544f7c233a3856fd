// Starting kernels: sizes of grids and checked launches. For .cu files.
#pragma once

#include <algorithm>
#include <utility>

#include "cuda/runtime.hpp"

namespace dlfs {

template <class T>
DLFS_HD constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// Blocks for a grid-stride loop over `items` work items: enough to cover them, at most what fills the device `waves`
// times. At least 1. items is what one thread handles in one turn of its loop.
inline unsigned grid_size(const Context& context, int64_t items, int threads, int waves = 4) {
  const int64_t per_sm = std::max(1, context.max_threads_per_sm / threads);
  const int64_t most = static_cast<int64_t>(context.sm_count) * per_sm * waves;
  return static_cast<unsigned>(std::clamp<int64_t>(ceil_div<int64_t>(items, threads), 1, most));
}

// A launch over rows of columns (pixels of channel vectors): blocks of 256 threads, x along the columns, so that short
// rows share a block; both directions are strided loops, see for_rows.
struct RowGrid {
  dim3 grid;
  dim3 block;
};

inline RowGrid row_grid(const Context& context, int64_t rows, int64_t columns) {
  constexpr unsigned threads = 256;
  unsigned x = 1;
  while (x < threads && x < columns) x *= 2;
  const int64_t most = static_cast<int64_t>(context.sm_count) * std::max(1, context.max_threads_per_sm / 256) * 4;
  const int64_t across = std::clamp<int64_t>(ceil_div<int64_t>(columns, x), 1, std::min<int64_t>(most, 65535));
  const int64_t down =
      std::clamp<int64_t>(ceil_div<int64_t>(rows, threads / x), 1, std::max<int64_t>(1, most / across));
  return {dim3(static_cast<unsigned>(down), static_cast<unsigned>(across)), dim3(x, threads / x)};
}

// The loops of a kernel launched on a row_grid: body(row, column) for every pair, consecutive columns on consecutive
// lanes.
template <class Row, class Column, class Body>
__device__ __forceinline__ void for_rows(Row rows, Column columns, Body&& body) {
  const int64_t row_stride = static_cast<int64_t>(gridDim.x) * blockDim.y;
  const int64_t column_stride = static_cast<int64_t>(gridDim.y) * blockDim.x;
  const int64_t first_column = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < rows; row += row_stride) {
    for (int64_t column = first_column; column < columns; column += column_stride) {
      body(static_cast<Row>(row), static_cast<Column>(column));
    }
  }
}

// kernel<<<grid, block, shared_bytes, stream>>>(arguments...), checked by the launch's own result rather than by the
// thread's last error, which an earlier library call may have set. Arguments are converted to the kernel's parameters.
template <class... Parameters, class... Arguments>
void launch(const Stream& stream, dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(Parameters...),
            Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream.stream;
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  if (status != cudaSuccess) {
    throw_cuda(status, format("kernel launch (grid %u x %u x %u, block %u x %u x %u, %zu bytes of shared memory)",
                              grid.x, grid.y, grid.z, block.x, block.y, block.z, shared_bytes)
                           .c_str());
  }
}

}  // namespace dlfs
