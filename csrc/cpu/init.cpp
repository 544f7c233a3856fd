// Weight initialisation from Philox blocks (common/philox.hpp): the same numbers whatever the number of threads.
#include "common/philox.hpp"
#include "cpu/runtime.hpp"

namespace dlfs::cpu {
namespace {

// Calls draw(block index, words' place) for each block of four elements; `write` stores up to four values.
template <class Draw>
void for_blocks(float* dst, int64_t n, const Draw& draw) {
  parallel_for((n + 3) / 4, 1024, [=](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      float values[4];
      draw(block, values);
      const int64_t count = std::min<int64_t>(4, n - 4 * block);
      std::copy(values, values + count, dst + 4 * block);
    }
  });
}

}  // namespace
}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_init_uniform(dlfs_stream stream, float* dst, int64_t n, int64_t seed, int64_t offset,
                                         double low, double high) {
  return on_stream("dlfs_init_uniform", stream, [&](Stream& s) {
    check_count(n, "n");
    check_number(low, "low");
    check_number(high, "high");
    DLFS_CHECK(low <= high, DLFS_ERROR_ARGUMENT, "expected low <= high, got %g and %g", low, high);
    if (n == 0) return;
    check_pointer(dst, "dst");
    s.enqueue([=] {
      const float from = static_cast<float>(low), to = static_cast<float>(high);
      for_blocks(dst, n, [=](int64_t block, float* values) {
        const PhiloxBlock words =
            philox4x32_10(static_cast<uint64_t>(seed), static_cast<uint64_t>(block), static_cast<uint64_t>(offset));
        for (int i = 0; i < 4; ++i) values[i] = philox_uniform(words.word[i], from, to);
      });
    });
  });
}

extern "C" dlfs_status dlfs_init_normal(dlfs_stream stream, float* dst, int64_t n, int64_t seed, int64_t offset,
                                        double mean, double std) {
  return on_stream("dlfs_init_normal", stream, [&](Stream& s) {
    check_count(n, "n");
    check_number(mean, "mean");
    check_number(std, "std");
    DLFS_CHECK(std >= 0, DLFS_ERROR_ARGUMENT, "expected std >= 0, got %g", std);
    if (n == 0) return;
    check_pointer(dst, "dst");
    s.enqueue([=] {
      for_blocks(dst, n, [=](int64_t block, float* values) {
        philox_normal_block(
            philox4x32_10(static_cast<uint64_t>(seed), static_cast<uint64_t>(block), static_cast<uint64_t>(offset)),
            mean, std, values);
      });
    });
  });
}
