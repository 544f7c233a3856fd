// 1x1 convolutions of stride 1 without padding are matrix products, here by cuBLASLt: linear layers, heads,
// bottlenecks. All use of cuBLASLt's descriptors is in this file.
//
// cuBLASLt's matrices are column-major, so a packed array (rows, columns) is to it a matrix of columns x rows with that
// many columns as its leading dimension. With M = N H W pixels:
//   forward          y (M, K) = x (M, C) w^T     is    K x M = (C x K)^T (C x M)
//   data gradient    dx (M, C) = dy (M, K) w     is    C x M = (C x K) (K x M)
//   weight gradient  dw (K, C) = dy^T x          is    C x K = (C x M) (K x M)^T, in fp32 from inputs of any dtype
#include <cublasLt.h>

#include <algorithm>
#include <cinttypes>
#include <cstring>

#include "common/arguments.hpp"
#include "cuda/conv.hpp"

namespace dlfs {
namespace {

// What tensors are known to be aligned to when an algorithm is chosen.
constexpr uintptr_t tensor_alignment = 16;
constexpr uintptr_t workspace_alignment = 256;
// More buys no speed here: only products that are split along their sum use it.
constexpr int64_t most_workspace = int64_t{64} << 20;

cudaDataType_t lt_type(dlfs_dtype dtype) {
  switch (dtype) {
    case DLFS_BF16: return CUDA_R_16BF;
    case DLFS_F16: return CUDA_R_16F;
    default: return CUDA_R_32F;
  }
}

// True where bias and residual can be part of the product. A bias has the dtype of the result there, which is fp32 only
// for fp32; activations are left to our kernel, since what cuBLASLt's ReLU makes of NaN is not documented, and so are masks.
bool can_fuse(const ConvProblem& problem) {
  return problem.epilogue() && problem.activation == DLFS_ACT_NONE && !problem.relu_mask &&
         (!problem.bias || problem.dtype == DLFS_F32);
}

// The product D = op(A) op(B) (+ C, + bias) as cuBLASLt's descriptors. fused: with bias and residual.
class Product {
 public:
  Product(const ConvProblem& problem, bool fused)
      : bias_(fused && problem.bias),
        residual_(fused && problem.residual),
        compute_(problem.dtype == DLFS_F32 && problem.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F) {
    const ConvGeometry& g = problem.g;
    const int64_t rows = int64_t{g.n} * g.h * g.w;
    const cudaDataType_t type = lt_type(problem.dtype);
    switch (problem.direction) {
      case DLFS_CONV_FORWARD:
        transpose_a_ = CUBLAS_OP_T;
        set(a_, type, g.c, g.k);
        set(b_, type, g.c, rows);
        set(d_, type, g.k, rows);
        break;
      case DLFS_CONV_BACKWARD_DATA:
        set(a_, type, g.c, g.k);
        set(b_, type, g.k, rows);
        set(d_, type, g.c, rows);
        break;
      default:
        transpose_b_ = CUBLAS_OP_T;
        set(a_, type, g.c, rows);
        set(b_, type, g.k, rows);
        set(d_, CUDA_R_32F, g.c, g.k);
    }
  }

  Product(const Product&) = delete;  // nor are layouts
  Product& operator=(const Product&) = delete;

  bool residual() const { return residual_; }

  // Fills in a descriptor, which is not to be copied. bias: its address, of which only the alignment matters where
  // nothing is run.
  void describe(cublasLtMatmulDescOpaque_t& operation, const void* bias) const {
    CUBLAS_CHECK(cublasLtMatmulDescInit(&operation, compute_, CUDA_R_32F));
    const auto attribute = [&operation](cublasLtMatmulDescAttributes_t name, const auto& value) {
      CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(&operation, name, &value, sizeof value));
    };
    attribute(CUBLASLT_MATMUL_DESC_TRANSA, static_cast<int32_t>(transpose_a_));
    attribute(CUBLASLT_MATMUL_DESC_TRANSB, static_cast<int32_t>(transpose_b_));
    if (bias_) {
      attribute(CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<uint32_t>(CUBLASLT_EPILOGUE_BIAS));
      attribute(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    }
  }

  // Algorithms for this product, best first.
  std::vector<cublasLtMatmulHeuristicResult_t> heuristics(cublasLtHandle_t handle, int64_t workspace_limit,
                                                          int count) const {
    cublasLtMatmulDescOpaque_t operation{};
    describe(operation, some_bias());
    cublasLtMatmulPreferenceOpaque_t preference{};
    CUBLAS_CHECK(cublasLtMatmulPreferenceInit(&preference));
    const auto prefer = [&preference](cublasLtMatmulPreferenceAttributes_t name, const auto& value) {
      CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(&preference, name, &value, sizeof value));
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(workspace_limit));
    // Parts of a split sum are stored in fp32 and added in a fixed order, or there are none.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    for (const auto name : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      prefer(name, static_cast<uint32_t>(tensor_alignment));
    }
    std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(count));
    int found = 0;
    CUBLAS_CHECK(cublasLtMatmulAlgoGetHeuristic(handle, &operation, a(), b(), d(), d(), &preference, count,
                                                results.data(), &found));
    results.resize(static_cast<size_t>(std::clamp(found, 0, count)));
    results.erase(std::remove_if(results.begin(), results.end(),
                                 [](const auto& result) { return result.state != CUBLAS_STATUS_SUCCESS; }),
                  results.end());
    return results;
  }

  // The workspace that an algorithm needs for this product; throws where it cannot compute it.
  size_t check(cublasLtHandle_t handle, const cublasLtMatmulAlgo_t& algorithm) const {
    cublasLtMatmulDescOpaque_t operation{};
    describe(operation, some_bias());
    cublasLtMatmulHeuristicResult_t result{};
    CUBLAS_CHECK(cublasLtMatmulAlgoCheck(handle, &operation, a(), b(), d(), d(), &algorithm, &result));
    return result.workspaceSize;
  }

  // c: the residual, of D's layout; null where the product has none.
  void run(cublasLtHandle_t handle, cudaStream_t stream, const cublasLtMatmulAlgo_t& algorithm, void* result,
           const void* first, const void* second, const void* c, const void* bias, void* workspace,
           size_t workspace_bytes) const {
    cublasLtMatmulDescOpaque_t operation{};
    describe(operation, bias);
    const float alpha = 1.0f, beta = c ? 1.0f : 0.0f;
    CUBLAS_CHECK(cublasLtMatmul(handle, &operation, &alpha, first, a(), second, b(), &beta, c ? c : result, d(), result,
                                d(), &algorithm, workspace, workspace_bytes, stream));
  }

 private:
  static void set(cublasLtMatrixLayoutOpaque_t& layout, cudaDataType_t type, int64_t rows, int64_t columns) {
    CUBLAS_CHECK(cublasLtMatrixLayoutInit(&layout, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(columns),
                                          rows));
  }

  static const void* some_bias() { return reinterpret_cast<const void*>(tensor_alignment); }

  // The library's parameters are not const, but it only reads them.
  static cublasLtMatrixLayout_t mutable_layout(const cublasLtMatrixLayoutOpaque_t& layout) {
    return const_cast<cublasLtMatrixLayoutOpaque_t*>(&layout);
  }
  cublasLtMatrixLayout_t a() const { return mutable_layout(a_); }
  cublasLtMatrixLayout_t b() const { return mutable_layout(b_); }
  cublasLtMatrixLayout_t d() const { return mutable_layout(d_); }

  bool bias_, residual_;
  cublasComputeType_t compute_;
  cublasOperation_t transpose_a_ = CUBLAS_OP_N, transpose_b_ = CUBLAS_OP_N;
  cublasLtMatrixLayoutOpaque_t a_{}, b_{}, d_{};
};

// ---- algorithms ---------------------------------------------------------------------------------------------------

template <class T>
T capability(const cublasLtMatmulAlgo_t& algorithm, cublasLtMatmulAlgoCapAttributes_t name) {
  T value{};
  size_t written = 0;
  CUBLAS_CHECK(cublasLtMatmulAlgoCapGetAttribute(&algorithm, name, &value, sizeof value, &written));
  return value;
}

template <class T>
T setting(const cublasLtMatmulAlgo_t& algorithm, cublasLtMatmulAlgoConfigAttributes_t name) {
  T value{};
  size_t written = 0;
  CUBLAS_CHECK(cublasLtMatmulAlgoConfigGetAttribute(&algorithm, name, &value, sizeof value, &written));
  return value;
}

// Why an algorithm may not be used for a problem; null where it may.
const char* excluded(const ConvProblem& problem, const Product& product, const cublasLtMatmulAlgo_t& algorithm) {
  const auto scheme = setting<uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);
  if (scheme != CUBLASLT_REDUCTION_SCHEME_NONE && scheme != CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE) {
    return "it does not add the parts of a split sum in fp32 and in a fixed order";
  }
  const auto flags = capability<uint64_t>(algorithm, CUBLASLT_ALGO_CAP_NUMERICAL_IMPL_FLAGS);
  if (flags & CUBLASLT_NUMERICAL_IMPL_FLAGS_ACCUMULATOR_16F) return "it does not sum in fp32";
  const uint64_t rounding = CUBLASLT_NUMERICAL_IMPL_FLAGS_INPUT_TF32 | CUBLASLT_NUMERICAL_IMPL_FLAGS_INPUT_16F |
                            CUBLASLT_NUMERICAL_IMPL_FLAGS_INPUT_16BF;
  if (problem.dtype == DLFS_F32 && !problem.tf32 && (flags & rounding)) return "it rounds fp32 inputs and tf32 is off";
  if (product.residual() && !capability<int32_t>(algorithm, CUBLASLT_ALGO_CAP_OUT_OF_PLACE_RESULT_SUPPORT)) {
    return "it adds only what the result's memory holds";
  }
  return nullptr;
}

class LtConv final : public ConvAlgorithm {
 public:
  LtConv(Context& context, const ConvProblem& problem, bool fused, const cublasLtMatmulAlgo_t& algorithm,
         size_t workspace_bytes)
      : problem_(problem),
        fused_(fused),
        product_(problem, fused),
        algorithm_(algorithm),
        workspace_bytes_(workspace_bytes),
        handle_(context.cublaslt()) {
    // The settings are for people; the algorithm itself is opaque, and may be kept for the same version of the library.
    pick_ = format("lt:%zu sm%d f%d w%zu tile%u stages%u split%d ", cublasLtGetVersion(), context.compute_capability,
                   fused_, workspace_bytes_, setting<uint32_t>(algorithm_, CUBLASLT_ALGO_CONFIG_TILE_ID),
                   setting<uint32_t>(algorithm_, CUBLASLT_ALGO_CONFIG_STAGES_ID),
                   setting<int32_t>(algorithm_, CUBLASLT_ALGO_CONFIG_SPLITK_NUM));
    for (const uint64_t word : algorithm_.data) pick_ += format("%016" PRIx64, word);
  }

  int64_t workspace_bytes() const override { return static_cast<int64_t>(workspace_bytes_); }
  std::string pick() const override { return pick_; }

  void run(Stream& s, const ConvTensors& t, void* workspace) const override {
    const auto odd = [](const void* p, uintptr_t alignment) { return reinterpret_cast<uintptr_t>(p) % alignment != 0; };
    for (const void* const tensor : {static_cast<const void*>(t.x), static_cast<const void*>(t.w),
                                     static_cast<const void*>(t.y), static_cast<const void*>(t.bias), t.residual, t.mask}) {
      if (odd(tensor, tensor_alignment)) return run_direct(s, problem_, t);
    }
    if (workspace_bytes_ > 0 && odd(workspace, workspace_alignment)) return run_direct(s, problem_, t);
    const auto multiply = [&](void* result, const void* a, const void* b, const void* c, const void* bias) {
      product_.run(handle_, s.stream, algorithm_, result, a, b, c, bias, workspace, workspace_bytes_);
    };
    if (problem_.direction == DLFS_CONV_BACKWARD_DATA) return multiply(t.x, t.w, t.y, t.residual, nullptr);
    if (problem_.direction == DLFS_CONV_BACKWARD_WEIGHT) return multiply(t.w, t.x, t.y, nullptr, nullptr);
    multiply(t.y, t.w, t.x, fused_ ? t.residual : nullptr, fused_ ? t.bias : nullptr);
    if (!fused_ && problem_.epilogue()) {
      const ConvGeometry& g = problem_.g;
      conv_epilogue(s, t.y, t.y, t.bias, t.residual, int64_t{g.n} * g.p * g.q, g.k, g.k, problem_.dtype, problem_.dtype,
                    problem_.activation);
    }
  }

 private:
  const ConvProblem problem_;
  const bool fused_;
  const Product product_;
  const cublasLtMatmulAlgo_t algorithm_;
  const size_t workspace_bytes_;
  cublasLtContext* const handle_;  // of the context, which outlives the plan
  std::string pick_;
};

// The algorithms named for a product, best first; none where cuBLASLt has nothing for it.
std::vector<cublasLtMatmulHeuristicResult_t> heuristics(Context& context, const ConvProblem& problem, bool fused,
                                                        int64_t workspace_limit, int count) {
  try {
    return Product(problem, fused).heuristics(context.cublaslt(), workspace_limit, count);
  } catch (const Error& error) {
    ignore_unless_fatal(error);
    return {};
  }
}

// The sixteen hexadecimal digits at `text`; false where they are something else.
bool parse_word(const char* text, uint64_t& word) {
  word = 0;
  for (int i = 0; i < 16; ++i) {
    const char* const digits = "0123456789abcdef";
    const char* const digit = text[i] ? std::strchr(digits, text[i]) : nullptr;
    if (!digit) return false;
    word = word << 4 | static_cast<uint64_t>(digit - digits);
  }
  return true;
}

}  // namespace

std::vector<std::shared_ptr<const ConvAlgorithm>> cublaslt_candidates(Context& context, const ConvProblem& problem,
                                                                      int64_t workspace_limit, bool all) {
  std::vector<std::shared_ptr<const ConvAlgorithm>> candidates;
  if (!problem.g.matrix_product() || problem.quantized()) return candidates;
  const int64_t limit = std::min(workspace_limit, most_workspace);
  for (const bool fused : {true, false}) {
    if (fused ? !can_fuse(problem) : problem.gradient_epilogue()) continue;
    if (!fused && !all && !candidates.empty()) continue;
    for (const cublasLtMatmulHeuristicResult_t& one : heuristics(context, problem, fused, limit, all ? 8 : 4)) {
      try {
        const Product product(problem, fused);
        if (one.workspaceSize > static_cast<size_t>(limit) || excluded(problem, product, one.algo)) continue;
        candidates.push_back(std::make_shared<LtConv>(context, problem, fused, one.algo, one.workspaceSize));
      } catch (const Error& error) {  // it does not tell its settings
        ignore_unless_fatal(error);
      }
    }
  }
  return candidates;
}

std::shared_ptr<const ConvAlgorithm> cublaslt_from_pick(Context& context, const ConvProblem& problem,
                                                        const std::string& pick, int64_t workspace_limit) {
  DLFS_CHECK(problem.g.matrix_product(), DLFS_ERROR_ARGUMENT, "pick '%.200s' is of a matrix product, this is %s",
             pick.c_str(), problem.g.text().c_str());
  size_t version = 0, workspace = 0;
  int capability = 0, fused = 0, split = 0, length = 0;
  unsigned index = 0, tile = 0, stages = 0;
  if (sscanf(pick.c_str(), "lt:%u%n", &index, &length) == 1 && pick.size() == static_cast<size_t>(length)) {
    const auto candidates = cublaslt_candidates(context, problem, workspace_limit, true);
    DLFS_CHECK(index < candidates.size(), DLFS_ERROR_ARGUMENT, "pick '%.200s': cuBLASLt has %zu candidates for %s",
               pick.c_str(), candidates.size(), problem.g.text().c_str());
    return candidates[index];
  }
  const int fields = sscanf(pick.c_str(), "lt:%zu sm%d f%d w%zu tile%u stages%u split%d %n", &version, &capability,
                            &fused, &workspace, &tile, &stages, &split, &length);
  cublasLtMatmulAlgo_t algorithm{};
  const size_t words = std::size(algorithm.data);
  bool parsed = fields == 7 && length > 0 && pick.size() == static_cast<size_t>(length) + 16 * words;
  for (size_t i = 0; parsed && i < words; ++i) {
    parsed = parse_word(pick.c_str() + length + 16 * i, algorithm.data[i]);
  }
  DLFS_CHECK(parsed, DLFS_ERROR_ARGUMENT, "pick '%.200s' is not one of dlfs_conv_pick", pick.c_str());
  DLFS_CHECK(version == cublasLtGetVersion(), DLFS_ERROR_ARGUMENT, "the pick is of cuBLASLt %zu, this is %zu", version,
             cublasLtGetVersion());
  DLFS_CHECK(capability == context.compute_capability, DLFS_ERROR_ARGUMENT,
             "the pick is of a device of compute capability %d.%d, this one has %d.%d", capability / 10,
             capability % 10, context.compute_capability / 10, context.compute_capability % 10);
  DLFS_CHECK(fused ? can_fuse(problem) : !problem.gradient_epilogue(), DLFS_ERROR_ARGUMENT,
             "pick '%.200s' is of another epilogue than %s", pick.c_str(), problem.g.text().c_str());
  try {
    const Product product(problem, fused != 0);
    const size_t needed = product.check(context.cublaslt(), algorithm);
    DLFS_CHECK(needed <= workspace && workspace <= static_cast<size_t>(most_workspace), DLFS_ERROR_ARGUMENT,
               "pick '%.200s' has a workspace of %zu bytes, expected %zu", pick.c_str(), workspace, needed);
    const char* const why_not = excluded(problem, product, algorithm);
    DLFS_CHECK(!why_not, DLFS_ERROR_ARGUMENT, "the pick's algorithm is excluded: %s", why_not);
    auto restored = std::make_shared<LtConv>(context, problem, fused != 0, algorithm, workspace);
    DLFS_CHECK(restored->pick() == pick, DLFS_ERROR_ARGUMENT, "pick '%.200s' is damaged", pick.c_str());
    return restored;
  } catch (const Error& error) {
    if (error.code != DLFS_ERROR_CUBLAS) throw;
    throw Error(DLFS_ERROR_ARGUMENT, format("pick '%.200s' does not fit: %s", pick.c_str(), error.what()));
  }
}

std::string cublaslt_build_info() {
  const size_t version = cublasLtGetVersion();
  return format("cublaslt=%zu.%zu.%zu\n", version / 10000, version % 10000 / 100, version % 100);
}

}  // namespace dlfs
