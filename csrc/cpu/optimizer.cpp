// Stochastic gradient descent over lists of tensors, the norm of their gradients, and the learning-rate table.
#include <atomic>
#include <cmath>

#include "common/sgd.hpp"
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
  // A run of one tensor's elements: threads share all tensors in one parallel region, which small ones are not worth.
  struct Piece {
    int32_t tensor;
    int64_t begin, end;
  };

  std::shared_ptr<Context> context;
  std::vector<SgdTensor> tensors;
  std::vector<Piece> pieces;
  dlfs_dtype cast_dtype;
};

namespace {

ObjectTable<Sgd, HandleKind::sgd>& sgds() {
  static auto* table = new ObjectTable<Sgd, HandleKind::sgd>;  // outlives threads that end with the process
  return *table;
}

constexpr int64_t kPiece = 8192;  // elements

// Calls body(i, tensor, begin, end) for the pieces i, runs of elements that cover all tensors, in parallel.
template <class Body>
void for_pieces(const Sgd& sgd, const Body& body) {
  parallel_for(static_cast<int64_t>(sgd.pieces.size()), 2, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const Sgd::Piece& piece = sgd.pieces[static_cast<size_t>(i)];
      body(i, sgd.tensors[static_cast<size_t>(piece.tensor)], piece.begin, piece.end);
    }
  });
}

// A sum of squares for each piece.
int64_t norm_workspace(const Sgd& sgd) { return static_cast<int64_t>(sgd.pieces.size() * sizeof(double)); }

std::shared_ptr<const Sgd> find_sgd(const Stream& stream, dlfs_sgd handle) {
  std::shared_ptr<const Sgd> sgd = sgds().find(handle);
  DLFS_CHECK(sgd->context == stream.context, DLFS_ERROR_ARGUMENT,
             "the optimizer belongs to another context than the stream");
  return sgd;
}

// Writes the low-precision copy of elements [begin, end).
void write_cast(const SgdTensor& t, dlfs_dtype dtype, int64_t begin, int64_t end) {
  if (!t.cast) return;
  if (dtype == DLFS_BF16) {
    Bf16* out = static_cast<Bf16*>(t.cast);
#pragma omp simd
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

extern "C" dlfs_status dlfs_sgd_create(dlfs_context ctx, dlfs_sgd* out, const int64_t* parameters,
                                       const int64_t* gradients, const int64_t* momenta, const int64_t* casts,
                                       const int64_t* elements, const float* weight_decays, const float* lr_factors,
                                       int32_t count, dlfs_dtype cast_dtype) {
  return guard("dlfs_sgd_create", [&] {
    check_pointer(out, "out");
    for (const void* list :
         {static_cast<const void*>(parameters), static_cast<const void*>(gradients), static_cast<const void*>(momenta),
          static_cast<const void*>(casts), static_cast<const void*>(elements), static_cast<const void*>(weight_decays),
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
      for (int64_t begin = 0; begin < elements[i]; begin += kPiece) {
        sgd->pieces.push_back({i, begin, std::min(begin + kPiece, elements[i])});
      }
    }
    *out = sgds().add(std::move(sgd));
  });
}

extern "C" dlfs_status dlfs_sgd_destroy(dlfs_sgd handle) {
  return guard("dlfs_sgd_destroy", [&] { sgds().remove(handle); });
}

extern "C" dlfs_status dlfs_sgd_grad_norm_workspace(dlfs_sgd handle, int64_t* out) {
  return guard("dlfs_sgd_grad_norm_workspace", [&] {
    check_pointer(out, "out");
    *out = norm_workspace(*sgds().find(handle));
  });
}

extern "C" dlfs_status dlfs_sgd_grad_norm(dlfs_stream stream, dlfs_sgd handle, float* norm, const float* grad_scale,
                                          void* workspace) {
  return on_stream("dlfs_sgd_grad_norm", stream, [&](Stream& s) {
    std::shared_ptr<const Sgd> sgd = find_sgd(s, handle);
    check_pointer(norm, "norm");
    check_workspace(workspace, norm_workspace(*sgd));
    s.enqueue([=] {
      double* const partial = static_cast<double*>(workspace);
      for_pieces(*sgd, [&](int64_t piece, const SgdTensor& t, int64_t begin, int64_t end) {
        const float* const gradient = t.gradient;
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = begin; i < end; ++i) {
          const double g = gradient[i];
          sum += g * g;
        }
        partial[piece] = sum;
      });
      double sum = 0;
      for (size_t i = 0; i < sgd->pieces.size(); ++i) sum += partial[i];
      const double scale = grad_scale ? static_cast<double>(*grad_scale) : 1.0;
      *norm = static_cast<float>(std::sqrt(sum) / scale);
    });
  });
}

extern "C" dlfs_status dlfs_sgd_step(dlfs_stream stream, dlfs_sgd handle, const float* lr, const int32_t* skip,
                                     const float* grad_norm, const float* grad_scale, double momentum, int32_t nesterov,
                                     double grad_factor, double max_norm, double max_value) {
  return on_stream("dlfs_sgd_step", stream, [&](Stream& s) {
    std::shared_ptr<const Sgd> sgd = find_sgd(s, handle);
    check_pointer(lr, "lr");
    check_step_numbers(momentum, grad_factor, max_norm, max_value);
    s.enqueue([=] {
      if (skip && *skip != 0) return;
      const float rate = *lr, mu = static_cast<float>(momentum), given = static_cast<float>(grad_factor);
      const float limit = static_cast<float>(max_value);
      float factor = unscaled_factor(given, grad_scale);
      if (grad_norm) factor *= clip_coefficient(*grad_norm, given, static_cast<float>(max_norm));
      for_pieces(*sgd, [&](int64_t, const SgdTensor& t, int64_t begin, int64_t end) {
        float *parameter = t.parameter, *velocity = t.momentum;
        const float* gradient = t.gradient;
        const float step = rate * t.lr_factor, decay = t.weight_decay;
        const auto update = [=](auto is_nesterov) {
#pragma omp simd
          for (int64_t i = begin; i < end; ++i) {
            const float p = parameter[i];
            const float g = clip_value(gradient[i] * factor, limit) + decay * p;
            const float v = mu * velocity[i] + g;
            velocity[i] = v;
            parameter[i] = p - step * (decltype(is_nesterov)::value ? g + mu * v : v);
          }
        };
        nesterov ? update(std::true_type{}) : update(std::false_type{});
        write_cast(t, sgd->cast_dtype, begin, end);
      });
    });
  });
}

extern "C" dlfs_status dlfs_sgd_refresh_casts(dlfs_stream stream, dlfs_sgd handle) {
  return on_stream("dlfs_sgd_refresh_casts", stream, [&](Stream& s) {
    std::shared_ptr<const Sgd> sgd = find_sgd(s, handle);
    s.enqueue([=] {
      for_pieces(*sgd,
                 [&](int64_t, const SgdTensor& t, int64_t begin, int64_t end) {
                   write_cast(t, sgd->cast_dtype, begin, end);
                 });
    });
  });
}

extern "C" dlfs_status dlfs_sgd_checksums(dlfs_stream stream, dlfs_sgd handle, int64_t* sums) {
  return on_stream("dlfs_sgd_checksums", stream, [&](Stream& s) {
    std::shared_ptr<const Sgd> sgd = find_sgd(s, handle);
    check_pointer(sums, "sums");
    s.enqueue([=] {
      std::vector<std::atomic<uint64_t>> totals(sgd->tensors.size());
      for_pieces(*sgd, [&](int64_t i, const SgdTensor& t, int64_t begin, int64_t end) {
        uint64_t sum = 0;
        for (int64_t j = begin; j < end; ++j) sum += checksum_term(float_bits(t.parameter[j]), j);
        totals[static_cast<size_t>(sgd->pieces[static_cast<size_t>(i)].tensor)] += sum;
      });
      for (size_t i = 0; i < totals.size(); ++i) sums[i] = static_cast<int64_t>(totals[i].load());
    });
  });
}

extern "C" dlfs_status dlfs_loss_scale_step(dlfs_stream stream, float* scale, int32_t* counters, int32_t* failed,
                                            const int32_t* overflow, double growth, double backoff, int32_t interval,
                                            double least, int32_t patience) {
  return on_stream("dlfs_loss_scale_step", stream, [&](Stream& s) {
    check_loss_scale_pointers(scale, counters, failed, overflow);
    const LossScaleRule rule = check_loss_scale_rule(growth, backoff, interval, least, patience);
    s.enqueue([=] { update_loss_scale(scale, counters, failed, *overflow != 0, rule); });
  });
}

extern "C" dlfs_status dlfs_schedule_step(dlfs_stream stream, float* lr, int32_t* step, const float* table,
                                          int64_t length) {
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
