// Conversions to and from numbers of 8 bits, and the counts of magnitudes that calibration looks at.
#include <vector>

#include "common/quantized.hpp"
#include "cpu/numeric.hpp"
#include "cpu/runtime.hpp"

namespace dlfs::cpu {
namespace {

constexpr int64_t kGrain = 4096;

template <class T, class Wide>
void quantize(T* dst, const Wide* src, int64_t n, float factor) {
  parallel_for(n, kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) dst[i] = to_quantized<T>(to_float(src[i]) * factor);
  });
}

template <class Wide, class T>
void dequantize(Wide* dst, const T* src, int64_t n, float factor) {
  parallel_for(n, kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) dst[i] = from_float<Wide>(to_float(src[i]) * factor);
  });
}

template <class T, class Wide>
void quantize_channels(T* dst, float* scale, const Wide* src, int64_t k, int64_t per_channel) {
  parallel_for(k, 1, [=](int64_t begin, int64_t end) {
    for (int64_t channel = begin; channel < end; ++channel) {
      const Wide* const from = src + channel * per_channel;
      float largest = 0.0f;
      for (int64_t i = 0; i < per_channel; ++i) largest = std::max(largest, std::fabs(to_float(from[i])));
      const float step = largest > 0.0f ? largest / quantized_limit<T> : 1.0f;
      T* const to = dst + channel * per_channel;
      for (int64_t i = 0; i < per_channel; ++i) to[i] = to_quantized<T>(to_float(from[i]) / step);
      scale[channel] = step;
    }
  });
}

template <class Wide>
void count_magnitudes(int64_t* counts, const Wide* src, int64_t n) {
  std::mutex mutex;
  parallel_for(n, int64_t{1} << 16, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> own(DLFS_MAGNITUDE_BINS);
    for (int64_t i = begin; i < end; ++i) ++own[static_cast<size_t>(magnitude_bin(to_float(src[i])))];
    const std::lock_guard lock(mutex);
    for (size_t bin = 0; bin < own.size(); ++bin) counts[bin] += own[bin];
  });
}

// Calls body(tag of the 8-bit type, tag of the wide type).
template <class Body>
void dispatch_pair(dlfs_dtype quantized, dlfs_dtype wide, const Body& body) {
  dispatch_quantized(quantized, [&](auto narrow) { dispatch_float(wide, [&](auto type) { body(narrow, type); }); });
}

}  // namespace
}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_quantize(dlfs_stream stream, void* dst, const void* src, int64_t n, dlfs_dtype dst_dtype,
                                     dlfs_dtype src_dtype, double factor) {
  return on_stream("dlfs_quantize", stream, [&](Stream& s) {
    check_quantize(dst, src, n, dst_dtype, src_dtype, factor);
    dispatch_pair(dst_dtype, src_dtype, [&](auto narrow, auto type) {
      using T = typename decltype(narrow)::type;
      using Wide = typename decltype(type)::type;
      s.enqueue([=] { quantize(static_cast<T*>(dst), static_cast<const Wide*>(src), n, static_cast<float>(factor)); });
    });
  });
}

extern "C" dlfs_status dlfs_dequantize(dlfs_stream stream, void* dst, const void* src, int64_t n, dlfs_dtype dst_dtype,
                                       dlfs_dtype src_dtype, double factor) {
  return on_stream("dlfs_dequantize", stream, [&](Stream& s) {
    check_quantize(dst, src, n, src_dtype, dst_dtype, factor);
    dispatch_pair(src_dtype, dst_dtype, [&](auto narrow, auto type) {
      using T = typename decltype(narrow)::type;
      using Wide = typename decltype(type)::type;
      s.enqueue([=] {
        dequantize(static_cast<Wide*>(dst), static_cast<const T*>(src), n, static_cast<float>(factor));
      });
    });
  });
}

extern "C" dlfs_status dlfs_quantize_channels(dlfs_stream stream, void* dst, float* scale, const void* src, int32_t k,
                                              int64_t per_channel, dlfs_dtype dst_dtype, dlfs_dtype src_dtype) {
  return on_stream("dlfs_quantize_channels", stream, [&](Stream& s) {
    check_quantize_channels(dst, scale, src, k, per_channel, dst_dtype, src_dtype);
    dispatch_pair(dst_dtype, src_dtype, [&](auto narrow, auto type) {
      using T = typename decltype(narrow)::type;
      using Wide = typename decltype(type)::type;
      s.enqueue([=] {
        quantize_channels(static_cast<T*>(dst), scale, static_cast<const Wide*>(src), k, per_channel);
      });
    });
  });
}

extern "C" dlfs_status dlfs_count_magnitudes(dlfs_stream stream, int64_t* counts, const void* src, int64_t n,
                                             dlfs_dtype src_dtype) {
  return on_stream("dlfs_count_magnitudes", stream, [&](Stream& s) {
    check_count_magnitudes(counts, src, n, src_dtype);
    dispatch_float(src_dtype, [&](auto type) {
      using Wide = typename decltype(type)::type;
      s.enqueue([=] { count_magnitudes(counts, static_cast<const Wide*>(src), n); });
    });
  });
}
