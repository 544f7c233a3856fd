// Exponential moving averages of a list of tensors, in one launch.
#include <memory>
#include <vector>

#include "common/arguments.hpp"
#include "cuda/pieces.cuh"

namespace dlfs {
namespace {

struct AverageTensor {
  float* average;
  const float* value;
  int64_t elements;
  int64_t vector;  // 1 where both addresses allow accesses of four values
};

struct Average {
  std::shared_ptr<Context> context;
  DeviceBuffer tensors;  // AverageTensor[]
  DeviceBuffer pieces;   // Piece[]
  unsigned blocks = 0;
};

using AverageTable = HandleTable<Average, HandleKind::average>;

AverageTable& averages_table() {
  static auto* const table = new AverageTable();
  return *table;
}

__global__ void __launch_bounds__(piece_threads)
    average_kernel(const AverageTensor* tensors, const Piece* pieces, const float* decay, const int32_t* skip) {
  if (skip && *skip != 0) return;
  const Piece piece = pieces[blockIdx.x];
  const AverageTensor tensor = tensors[piece.tensor];
  const float kept = *decay, added = 1.0f - kept;
  for_piece(tensor, piece, [&](auto width, int64_t i) {
    constexpr int V = decltype(width)::value;
    float a[V], v[V];
    load(a, tensor.average + i);
    load(v, tensor.value + i);
#pragma unroll
    for (int j = 0; j < V; ++j) a[j] = kept * a[j] + added * v[j];
    store(tensor.average + i, a);
  });
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_average_create(dlfs_context ctx, dlfs_average* out, const int64_t* averages, const int64_t* values,
                                const int64_t* elements, int32_t count) {
  return context_call("dlfs_average_create", ctx, [&](Context& context) {
    check_pointer(out, "out");
    check_range(count, 1, INT32_MAX, "count");
    check_pointer(averages, "averages");
    check_pointer(values, "values");
    check_pointer(elements, "elements");
    std::vector<AverageTensor> tensors(static_cast<size_t>(count));
    std::vector<Piece> pieces;
    for (int32_t i = 0; i < count; ++i) {
      check_size(elements[i], "elements");
      AverageTensor& t = tensors[static_cast<size_t>(i)];
      t.elements = elements[i];
      t.average = piece_address<float>(averages[i], "average", i);
      t.value = piece_address<float>(values[i], "value", i);
      t.vector = aligned16({t.average, t.value});
      add_pieces(pieces, t.elements, i);
    }
    auto average = std::make_shared<Average>();
    average->context = context.shared_from_this();
    average->tensors = upload(context, tensors, "the list of averages");
    average->pieces = upload(context, pieces, "the list of averages");
    average->blocks = static_cast<unsigned>(pieces.size());
    *out = adopt(averages_table(), context, std::move(average));
  });
}

dlfs_status dlfs_average_destroy(dlfs_average average) {
  return guard("dlfs_average_destroy", [&] {
    std::shared_ptr<Average> object = disown(averages_table(), average);
    const std::shared_ptr<Context> context = object->context;
    context->release(std::move(object));
  });
}

dlfs_status dlfs_average_step(dlfs_stream stream, dlfs_average average, const float* decay, const int32_t* skip) {
  return stream_call("dlfs_average_step", stream, [&](Stream& s) {
    const std::shared_ptr<Average> object = averages_table().find(average);
    DLFS_CHECK(object->context == s.context, DLFS_ERROR_ARGUMENT, "the averages belong to another context");
    check_pointer(decay, "decay");
    s.retain(object);
    launch(s, object->blocks, piece_threads, 0, average_kernel, object->tensors.as<AverageTensor>(),
           object->pieces.as<Piece>(), decay, skip);
  });
}

}  // extern "C"
