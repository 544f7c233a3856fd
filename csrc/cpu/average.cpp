// Exponential moving averages of a list of tensors.
#include "common/arguments.hpp"
#include "cpu/numeric.hpp"
#include "cpu/runtime.hpp"

namespace dlfs::cpu {
namespace {

// A run of one tensor's elements: threads share all tensors in one parallel region, which small ones are not worth.
struct Piece {
  float* average;
  const float* value;
  int64_t elements;
};

constexpr int64_t piece_elements = 8192;

}  // namespace

struct Average {
  std::shared_ptr<Context> context;
  std::vector<Piece> pieces;
};

namespace {

ObjectTable<Average, HandleKind::average>& averages_table() {
  static auto* table = new ObjectTable<Average, HandleKind::average>;  // outlives threads that end with the process
  return *table;
}

}  // namespace
}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_average_create(dlfs_context ctx, dlfs_average* out, const int64_t* averages,
                                           const int64_t* values, const int64_t* elements, int32_t count) {
  return guard("dlfs_average_create", [&] {
    check_pointer(out, "out");
    check_range(count, 1, INT32_MAX, "count");
    check_pointer(averages, "averages");
    check_pointer(values, "values");
    check_pointer(elements, "elements");
    auto average = std::make_shared<Average>();
    average->context = require_context(ctx);
    for (int32_t i = 0; i < count; ++i) {
      DLFS_CHECK(averages[i] != 0 && values[i] != 0, DLFS_ERROR_ARGUMENT, "tensor %d: average or value is NULL", i);
      check_size(elements[i], "elements");
      float* const to = reinterpret_cast<float*>(averages[i]);
      const float* const from = reinterpret_cast<const float*>(values[i]);
      for (int64_t first = 0; first < elements[i]; first += piece_elements) {
        average->pieces.push_back({to + first, from + first, std::min(piece_elements, elements[i] - first)});
      }
    }
    *out = averages_table().add(std::move(average));
  });
}

extern "C" dlfs_status dlfs_average_destroy(dlfs_average average) {
  return guard("dlfs_average_destroy", [&] { averages_table().remove(average); });
}

extern "C" dlfs_status dlfs_average_step(dlfs_stream stream, dlfs_average average, const float* decay,
                                         const int32_t* skip) {
  return on_stream("dlfs_average_step", stream, [&](Stream& s) {
    std::shared_ptr<const Average> object = averages_table().find(average);
    DLFS_CHECK(object->context == s.context, DLFS_ERROR_ARGUMENT, "the averages belong to another context");
    check_pointer(decay, "decay");
    s.enqueue([=] {
      if (skip && *skip != 0) return;
      const float kept = *decay, added = 1.0f - kept;
      parallel_for(static_cast<int64_t>(object->pieces.size()), 2, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
          const Piece& piece = object->pieces[static_cast<size_t>(p)];
          float* const a = piece.average;
          const float* const v = piece.value;
#pragma omp simd
          for (int64_t i = 0; i < piece.elements; ++i) a[i] = kept * a[i] + added * v[i];
        }
      });
    });
  });
}
