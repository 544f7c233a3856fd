// Copies of rows between buffers of different pitch: the channel slices of concatenation and its backward pass.
#include "common/arguments.hpp"
#include "cuda/numeric.cuh"
#include "cuda/runtime.cuh"

namespace dlfs {
namespace {

// Unit: what one thread moves, 1 to 16 bytes; all sizes count units.
template <class Unit>
__global__ void __launch_bounds__(256)
    copy_rows_kernel(Unit* dst, const Unit* src, int64_t rows, int64_t columns, int64_t dst_pitch, int64_t src_pitch) {
  for_rows(rows, columns,
           [&](int64_t row, int64_t column) { dst[row * dst_pitch + column] = src[row * src_pitch + column]; });
}

template <class Unit>
void copy_rows(const Stream& s, void* dst, const void* src, int64_t rows, int64_t row_bytes, int64_t dst_pitch,
               int64_t src_pitch) {
  constexpr int64_t unit = sizeof(Unit);
  const RowGrid g = row_grid(*s.context, rows, row_bytes / unit);
  launch(s, g.grid, g.block, 0, copy_rows_kernel<Unit>, static_cast<Unit*>(dst), static_cast<const Unit*>(src), rows,
         row_bytes / unit, dst_pitch / unit, src_pitch / unit);
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" dlfs_status dlfs_copy_2d(dlfs_stream stream, void* dst, const void* src, int64_t rows, int64_t row_bytes,
                                    int64_t dst_pitch, int64_t src_pitch) {
  return stream_call("dlfs_copy_2d", stream, [&](Stream& s) {
    check_count(rows, "rows");
    check_count(row_bytes, "row_bytes");
    if (rows == 0 || row_bytes == 0) return;
    check_range(dst_pitch, row_bytes, max_elements, "dst_pitch");
    check_range(src_pitch, row_bytes, max_elements, "src_pitch");
    checked_product({rows, std::max(dst_pitch, src_pitch)}, "the buffer");
    check_pointer(dst, "dst");
    check_pointer(src, "src");
    if (rows == 1 || (dst_pitch == row_bytes && src_pitch == row_bytes)) {
      CUDA_CHECK(cudaMemcpyAsync(dst, src, static_cast<size_t>(rows * row_bytes), cudaMemcpyDeviceToDevice, s.stream));
      return;
    }
    const uint64_t bits = reinterpret_cast<uintptr_t>(dst) | reinterpret_cast<uintptr_t>(src) |
                          static_cast<uint64_t>(row_bytes) | static_cast<uint64_t>(dst_pitch) |
                          static_cast<uint64_t>(src_pitch);
    if (bits % 16 == 0) {
      copy_rows<uint4>(s, dst, src, rows, row_bytes, dst_pitch, src_pitch);
    } else if (bits % 8 == 0) {
      copy_rows<uint2>(s, dst, src, rows, row_bytes, dst_pitch, src_pitch);
    } else if (bits % 4 == 0) {
      copy_rows<uint32_t>(s, dst, src, rows, row_bytes, dst_pitch, src_pitch);
    } else if (bits % 2 == 0) {
      copy_rows<uint16_t>(s, dst, src, rows, row_bytes, dst_pitch, src_pitch);
    } else {
      copy_rows<uint8_t>(s, dst, src, rows, row_bytes, dst_pitch, src_pitch);
    }
  });
}
