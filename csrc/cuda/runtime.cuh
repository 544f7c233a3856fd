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

// Blocks for a grid-stride loop over `items` work items: enough to cover them, at most what fills the device `waves` times.
// At least 1. items is what one thread handles in one turn of its loop.
inline unsigned grid_size(const Context& context, int64_t items, int threads, int waves = 4) {
  const int64_t per_sm = std::max(1, context.max_threads_per_sm / threads);
  const int64_t most = static_cast<int64_t>(context.sm_count) * per_sm * waves;
  return static_cast<unsigned>(std::clamp<int64_t>(ceil_div<int64_t>(items, threads), 1, most));
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
    throw_cuda(status, format("kernel launch (grid %u x %u x %u, block %u x %u x %u, %zu bytes of shared memory)", grid.x, grid.y,
                              grid.z, block.x, block.y, block.z, shared_bytes)
                           .c_str());
  }
}

}  // namespace dlfs
