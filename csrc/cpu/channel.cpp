// Operations on the channels of images (n, rows, C): scaling, sums of products over an image's rows, shuffling.
#include "common/rows.hpp"
#include "cpu/numeric.hpp"
#include "cpu/runtime.hpp"

namespace dlfs::cpu {
namespace {

// Rows of one image whose products are summed in fp32 by one thread; the order of sums follows from the sizes alone.
constexpr int64_t kRowsPerBlock = 512;

int64_t row_blocks(int64_t rows) { return (rows + kRowsPerBlock - 1) / kRowsPerBlock; }

// Partial sums (n, blocks, C) where an image has more than one block.
int64_t dot_bytes(int32_t n, int64_t rows, int32_t c) {
  const int64_t blocks = row_blocks(rows);
  return blocks > 1 ? checked_product({n, blocks, c, static_cast<int64_t>(sizeof(float))}, "the workspace") : 0;
}

template <class T>
void channel_scale(T* y, const T* x, const T* s, int64_t n, int64_t rows, int32_t c) {
  parallel_for(n * rows, std::max<int64_t>(1, 16384 / c), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* factor = s + row / rows * c;
      const T* in = x + row * c;
      T* out = y + row * c;
#pragma omp simd
      for (int32_t j = 0; j < c; ++j) out[j] = from_float<T>(to_float(in[j]) * to_float(factor[j]));
    }
  });
}

// Calls write(index of the sum, count, sums) for the sums of a block's rows, a chunk of channels at a time.
template <class T, class Write>
void dot_rows(const T* a, const T* b, int64_t rows, int32_t c, const Write& write) {
  for_each_chunk(c, [&](auto width, int32_t first) {
    const int32_t count = width;
    float sum[channel_chunk] = {};
    for (int64_t row = 0; row < rows; ++row) {
      const T* left = a + row * c + first;
      const T* right = b + row * c + first;
#pragma omp simd
      for (int32_t j = 0; j < count; ++j) sum[j] += to_float(left[j]) * to_float(right[j]);
    }
    write(first, count, sum);
  });
}

template <class T>
void channel_dot(T* out, const T* a, const T* b, float* partial, int64_t n, int64_t rows, int32_t c) {
  const int64_t blocks = row_blocks(rows);
  const int64_t grain = std::max<int64_t>(1, 16384 / (std::min(rows, kRowsPerBlock) * c));
  parallel_for(n * blocks, grain, [=](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit / blocks * rows + unit % blocks * kRowsPerBlock;
      const int64_t count = std::min(kRowsPerBlock, rows - unit % blocks * kRowsPerBlock);
      dot_rows(a + first * c, b + first * c, count, c, [&](int32_t channel, int32_t channels, const float* sum) {
        for (int32_t j = 0; j < channels; ++j) {
          if (blocks > 1) partial[unit * c + channel + j] = sum[j];
          else out[unit * c + channel + j] = from_float<T>(sum[j]);
        }
      });
    }
  });
  if (blocks == 1) return;
  parallel_for(n * c, 4096, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* own = partial + i / c * blocks * c + i % c;
      double sum = 0;
      for (int64_t block = 0; block < blocks; ++block) sum += own[block * c];
      out[i] = from_float<T>(static_cast<float>(sum));
    }
  });
}

template <class T>
void channel_shuffle(T* y, const T* x, int64_t rows, int32_t c, int32_t groups) {
  const int32_t each = c / groups;
  parallel_for(rows, std::max<int64_t>(1, 16384 / c), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* in = x + row * c;
      T* out = y + row * c;
      for (int32_t g = 0; g < groups; ++g) {
        for (int32_t j = 0; j < each; ++j) out[j * groups + g] = in[g * each + j];
      }
    }
  });
}

}  // namespace
}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_channel_scale(dlfs_stream stream, void* y, const void* x, const void* s, int32_t n,
                                          int64_t rows, int32_t c, dlfs_dtype dtype) {
  return on_stream("dlfs_channel_scale", stream, [&](Stream& st) {
    dispatch_float(dtype, [](auto) {});
    if (check_images(n, rows, c) == 0) return;
    check_pointer(y, "y");
    check_pointer(x, "x");
    check_pointer(s, "s");
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      st.enqueue([=] {
        channel_scale(static_cast<T*>(y), static_cast<const T*>(x), static_cast<const T*>(s), n, rows, c);
      });
    });
  });
}

extern "C" dlfs_status dlfs_channel_dot_workspace(dlfs_context ctx, int64_t* out, int32_t n, int64_t rows, int32_t c,
                                                  dlfs_dtype dtype) {
  return guard("dlfs_channel_dot_workspace", [&] {
    require_context(ctx);
    check_pointer(out, "out");
    check_float_dtype(dtype);
    check_images(n, rows, c);
    check_size(rows, "rows");
    *out = dot_bytes(n, rows, c);
  });
}

extern "C" dlfs_status dlfs_channel_dot(dlfs_stream stream, void* out, const void* a, const void* b, void* workspace,
                                        int32_t n, int64_t rows, int32_t c, dlfs_dtype dtype) {
  return on_stream("dlfs_channel_dot", stream, [&](Stream& s) {
    dispatch_float(dtype, [](auto) {});
    check_size(rows, "rows");
    if (check_images(n, rows, c) == 0) return;
    check_pointer(out, "out");
    check_pointer(a, "a");
    check_pointer(b, "b");
    check_workspace(workspace, dot_bytes(n, rows, c));
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([=] {
        channel_dot(static_cast<T*>(out), static_cast<const T*>(a), static_cast<const T*>(b),
                    static_cast<float*>(workspace), n, rows, c);
      });
    });
  });
}

extern "C" dlfs_status dlfs_channel_shuffle(dlfs_stream stream, void* y, const void* x, int64_t rows, int32_t c,
                                            int32_t groups, dlfs_dtype dtype) {
  return on_stream("dlfs_channel_shuffle", stream, [&](Stream& s) {
    dispatch_float(dtype, [](auto) {});
    if (check_shuffle(y, x, rows, c, groups, dtype) == 0) return;
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([=] { channel_shuffle(static_cast<T*>(y), static_cast<const T*>(x), rows, c, groups); });
    });
  });
}
