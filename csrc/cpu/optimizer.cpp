// Stochastic gradient descent over lists of tensors, and the learning-rate table.
#include "cpu/numeric.hpp"
#include "cpu/runtime.hpp"

namespace dlfs::cpu {
namespace {

struct SgdTensor {
  float* parameter;
  const float* gradient;
  float* momentum;
  void* cast;  // nullptr for none
  int64_t elements;
  float weight_decay;
  float lr_factor;
};

}  // namespace

struct Sgd {
  std::shared_ptr<Context> context;
  std::vector<SgdTensor> tensors;
  dlfs_dtype cast_dtype;
};

namespace {

ObjectTable<Sgd, HandleKind::sgd>& sgds() {
  static auto* table = new ObjectTable<Sgd, HandleKind::sgd>;  // outlives threads that end with the process
  return *table;
}

constexpr int64_t kGrain = 16384;

// Writes the low-precision copy of elements [begin, end).
void write_cast(const SgdTensor& t, dlfs_dtype dtype, int64_t begin, int64_t end) {
  if (!t.cast) return;
  if (dtype == DLFS_BF16) {
    Bf16* out = static_cast<Bf16*>(t.cast);
    for (int64_t i = begin; i < end; ++i) out[i] = from_float<Bf16>(t.parameter[i]);
  } else {
    F16* out = static_cast<F16*>(t.cast);
    for (int64_t i = begin; i < end; ++i) out[i] = from_float<F16>(t.parameter[i]);
  }
}

}  // namespace
}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_sgd_create(dlfs_context ctx, dlfs_sgd* out, const int64_t* parameters, const int64_t* gradients,
                                       const int64_t* momenta, const int64_t* casts, const int64_t* elements,
                                       const float* weight_decays, const float* lr_factors, int32_t count,
                                       dlfs_dtype cast_dtype) {
  return guard("dlfs_sgd_create", [&] {
    check_pointer(out, "out");
    for (const void* list : {static_cast<const void*>(parameters), static_cast<const void*>(gradients),
                             static_cast<const void*>(momenta), static_cast<const void*>(casts),
                             static_cast<const void*>(elements), static_cast<const void*>(weight_decays),
                             static_cast<const void*>(lr_factors)}) {
      check_pointer(list, "a list");
    }
    check_range(count, 1, INT32_MAX, "count");
    auto sgd = std::make_shared<Sgd>();
    sgd->context = require_context(ctx);
    sgd->cast_dtype = cast_dtype;
    sgd->tensors.reserve(static_cast<size_t>(count));
    for (int32_t i = 0; i < count; ++i) {
      DLFS_CHECK(parameters[i] != 0 && gradients[i] != 0 && momenta[i] != 0, DLFS_ERROR_ARGUMENT,
                 "tensor %d: parameter, gradient or momentum is NULL", i);
      check_size(elements[i], "elements");
      check_number(weight_decays[i], "weight_decays");
      check_number(lr_factors[i], "lr_factors");
      if (casts[i] != 0) check_dtype(cast_dtype, {DLFS_BF16, DLFS_F16}, "cast_dtype");
      sgd->tensors.push_back({reinterpret_cast<float*>(parameters[i]), reinterpret_cast<const float*>(gradients[i]),
                              reinterpret_cast<float*>(momenta[i]), reinterpret_cast<void*>(casts[i]), elements[i],
                              weight_decays[i], lr_factors[i]});
    }
    *out = sgds().add(std::move(sgd));
  });
}

extern "C" dlfs_status dlfs_sgd_destroy(dlfs_sgd handle) {
  return guard("dlfs_sgd_destroy", [&] { sgds().remove(handle); });
}

extern "C" dlfs_status dlfs_sgd_step(dlfs_stream stream, dlfs_sgd handle, const float* lr, const int32_t* skip,
                                     double momentum, int32_t nesterov, double grad_factor) {
  return on_stream("dlfs_sgd_step", stream, [&](Stream& s) {
    auto sgd = sgds().find(handle);
    check_pointer(lr, "lr");
    check_number(momentum, "momentum");
    check_number(grad_factor, "grad_factor");
    s.enqueue([=] {
      if (skip && *skip != 0) return;
      const float rate = *lr, mu = static_cast<float>(momentum), factor = static_cast<float>(grad_factor);
      for (const SgdTensor& t : sgd->tensors) {
        const float step = rate * t.lr_factor;
        parallel_for(t.elements, kGrain, [&, step](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            const float p = t.parameter[i];
            const float g = t.gradient[i] * factor + t.weight_decay * p;
            const float v = mu * t.momentum[i] + g;
            t.momentum[i] = v;
            t.parameter[i] = p - step * (nesterov ? g + mu * v : v);
          }
          write_cast(t, sgd->cast_dtype, begin, end);
        });
      }
    });
  });
}

extern "C" dlfs_status dlfs_sgd_refresh_casts(dlfs_stream stream, dlfs_sgd handle) {
  return on_stream("dlfs_sgd_refresh_casts", stream, [&](Stream& s) {
    auto sgd = sgds().find(handle);
    s.enqueue([=] {
      for (const SgdTensor& t : sgd->tensors) {
        parallel_for(t.elements, kGrain, [&](int64_t begin, int64_t end) { write_cast(t, sgd->cast_dtype, begin, end); });
      }
    });
  });
}

extern "C" dlfs_status dlfs_schedule_step(dlfs_stream stream, float* lr, int32_t* step, const float* table, int64_t length) {
  return on_stream("dlfs_schedule_step", stream, [&](Stream& s) {
    check_pointer(lr, "lr");
    check_pointer(step, "step");
    check_pointer(table, "table");
    check_size(length, "length");
    s.enqueue([=] {
      *lr = table[std::max<int64_t>(0, std::min<int64_t>(*step, length - 1))];
      ++*step;
    });
  });
}
