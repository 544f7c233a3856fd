// Copying what is not read again soon: past the caches, so that the processor need not read each line before it is
// overwritten, and what the caches hold stays there.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace dlfs::cpu {

// Copies `bytes` bytes. Other threads may read them after stream_fence() and whatever synchronises with them.
inline void stream_copy(void* to, const void* from, int64_t bytes) {
#if defined(__SSE2__)
  char* out = static_cast<char*>(to);
  const char* in = static_cast<const char*>(from);
  const int64_t head = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(out) & 15);
  if (bytes >= 64) {
    std::memcpy(out, in, static_cast<size_t>(head));
    int64_t at = head;
    for (; at + 16 <= bytes; at += 16) {
      const __m128i piece = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + at));
      _mm_stream_si128(reinterpret_cast<__m128i*>(out + at), piece);
    }
    std::memcpy(out + at, in + at, static_cast<size_t>(bytes - at));
    return;
  }
#endif
  std::memcpy(to, from, static_cast<size_t>(bytes));
}

inline void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace dlfs::cpu
