// Softmax cross-entropy on the CPU, over all anchors or with hard negative mining. The sum of a row's exponentials has
// the lanes and the order of a GPU's warp, so that both backends rank fp32 losses alike.
#include <limits>
#include <vector>

#include "cpu/losses.hpp"

using namespace dlfs;
using namespace dlfs::cpu;

namespace {

constexpr int64_t lanes = 32;

struct Workspace {
  double* partials;       // (N, blocks)
  int32_t* keys;          // (N, A): negative_key of the background, no_negative elsewhere
  NegativeLimit* limits;  // (N); NULL where every anchor counts
  int64_t bytes;

  Workspace(void* workspace, int32_t n, int32_t anchors, double negative_ratio) {
    const int64_t keys_at = partials_bytes(n, anchors);
    const int64_t limits_at = keys_at + checked_product({n, anchors, sizeof(int32_t)}, "the workspace");
    const bool mining = negative_ratio >= 0;
    char* const base = static_cast<char*>(workspace);
    partials = reinterpret_cast<double*>(base);
    keys = mining && base ? reinterpret_cast<int32_t*>(base + keys_at) : nullptr;
    limits = mining && base ? reinterpret_cast<NegativeLimit*>(base + limits_at) : nullptr;
    bytes = mining ? limits_at + int64_t{n} * static_cast<int64_t>(sizeof(NegativeLimit)) : keys_at;
  }
};

struct SoftmaxRow {
  float loss, inverse;  // inverse: what turns the exponentials into probabilities
};

// The exponentials of a row's logits less their maximum, into `row` (classes, rounded up to lanes), and the loss.
template <class T>
SoftmaxRow softmax_row(float* row, const T* logits, int32_t classes, int32_t target) {
  const int64_t padded = (classes + lanes - 1) / lanes * lanes;
  for (int64_t k = 0; k < classes; ++k) row[k] = load(logits + k);
  for (int64_t k = classes; k < padded; ++k) row[k] = -std::numeric_limits<float>::infinity();
  float lane[lanes];
  std::copy_n(row, lanes, lane);
  for (int64_t first = lanes; first < padded; first += lanes) {
    for (int64_t i = 0; i < lanes; ++i) lane[i] = row[first + i] > lane[i] ? row[first + i] : lane[i];
  }
  float most = lane[0];
  for (int64_t i = 1; i < lanes; ++i) most = lane[i] > most ? lane[i] : most;
  const float picked = target >= 0 ? row[target] - most : std::numeric_limits<float>::quiet_NaN();
  std::fill_n(lane, lanes, 0.0f);
  for (int64_t first = 0; first < padded; first += lanes) {
    for (int64_t i = 0; i < lanes; ++i) {
      row[first + i] = dlfs::exp_f32(row[first + i] - most);
      lane[i] += row[first + i];
    }
  }
  for (int64_t half = lanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return {log_f32(lane[0]) - picked, 1.0f / lane[0]};
}

template <class T>
struct CrossEntropy {
  T* dlogits;              // (N, A, classes), nullable
  const T* logits;         // (N, A, classes)
  const int32_t* matches;  // (N, A)
  const int32_t* labels;   // (N, M)
  Workspace workspace;
  int32_t anchors, classes, max_boxes;
  float negative_ratio;
  GradFactor grad_factor;

  float* row_buffer() const {
    thread_local std::vector<float> memory;
    memory.resize(static_cast<size_t>((classes + lanes - 1) / lanes * lanes));
    return memory.data();
  }

  // Writes the keys of a block's anchors.
  void write_keys(int64_t image, int64_t index) const {
    float* const row = row_buffer();
    const int64_t end = std::min<int64_t>((index + 1) * block_anchors, anchors);
    for (int64_t a = image * anchors + index * block_anchors; a < image * anchors + end; ++a) {
      const bool background = matches[a] == match_background;
      workspace.keys[a] =
          background ? negative_key(softmax_row(row, logits + a * classes, classes, 0).loss) : no_negative;
    }
  }

  // The last of an image's background anchors that counts.
  NegativeLimit limit_of(int64_t image, int32_t wanted) const {
    if (wanted == 0) return take_no_negatives;
    thread_local std::vector<uint64_t> order;  // ascending in the order of the anchors
    order.clear();
    const int32_t* const keys = workspace.keys + image * anchors;
    for (int32_t a = 0; a < anchors; ++a) {
      if (keys[a] == no_negative) continue;
      order.push_back(static_cast<uint64_t>(INT32_MAX - keys[a]) << 32 | static_cast<uint32_t>(a));
    }
    if (static_cast<size_t>(wanted) >= order.size()) return take_all_negatives;
    std::nth_element(order.begin(), order.begin() + (wanted - 1), order.end());
    const int32_t last = static_cast<int32_t>(order[static_cast<size_t>(wanted) - 1] & 0xffffffffu);
    return {keys[last], last};
  }

  bool counts(int64_t image, int64_t a) const {
    const int32_t match = matches[image * anchors + a];
    if (match != match_background) return match >= 0;
    return !workspace.limits ||
           workspace.limits[image].takes(workspace.keys[image * anchors + a], static_cast<int32_t>(a));
  }

  double block(const LossScale& scale, int64_t image, int64_t index) const {
    const float weight = static_cast<float>(scale.weight(image, grad_factor.value()));
    float* const row = row_buffer();
    const int64_t end = std::min<int64_t>((index + 1) * block_anchors, anchors);
    double sum = 0;
    for (int64_t a = index * block_anchors; a < end; ++a) {
      const int64_t element = (image * anchors + a) * classes;
      if (!counts(image, a)) {
        for (int64_t k = 0; dlogits && k < classes; ++k) store(dlogits + element + k, 0.0f);
        continue;
      }
      const int32_t match = matches[image * anchors + a];
      const int32_t target = softmax_target(match, labels + image * max_boxes, max_boxes, classes);
      const SoftmaxRow softmax = softmax_row(row, logits + element, classes, target);
      sum += static_cast<double>(softmax.loss);
      if (!dlogits) continue;
      for (int64_t k = 0; k < classes; ++k) row[k] *= softmax.inverse;
      if (target >= 0) row[target] -= 1.0f;
      for (int64_t k = 0; k < classes; ++k) store(dlogits + element + k, row[k] * weight);
    }
    return sum;
  }

  void run(const LossPass& pass) const {
    const int64_t blocks = blocks_of(anchors);
    if (workspace.limits) {
      parallel_for(pass.n * blocks, 4, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) write_keys(i / blocks, i % blocks);
      });
      parallel_for(pass.n, 1, [&](int64_t begin, int64_t end) {
        for (int64_t image = begin; image < end; ++image) {
          workspace.limits[image] = limit_of(image, wanted_negatives(negative_ratio, pass.foreground[image]));
        }
      });
    }
    pass.run([this](const LossScale& scale, int64_t image, int64_t index) { return block(scale, image, index); });
  }
};

}  // namespace

extern "C" dlfs_status dlfs_cross_entropy_loss_workspace(dlfs_context ctx, int64_t* out, int32_t n, int32_t anchors,
                                                         double negative_ratio) {
  return guard("dlfs_cross_entropy_loss_workspace", [&] {
    require_context(ctx);
    check_pointer(out, "out");
    *out = Workspace(nullptr, n, anchors, negative_ratio).bytes;
  });
}

extern "C" dlfs_status dlfs_cross_entropy_loss(dlfs_stream stream, float* loss, void* dlogits, const void* logits,
                                               const int32_t* matches, const int32_t* labels, const int32_t* foreground,
                                               const float* grad_scale, void* workspace, int32_t n, int32_t anchors,
                                               int32_t classes, int32_t max_boxes, dlfs_dtype dtype,
                                               double negative_ratio, int32_t normalization, double grad_factor) {
  return on_stream("dlfs_cross_entropy_loss", stream, [&](Stream& s) {
    check_loss_operands({loss, logits, "logits", matches, labels, "labels", foreground, workspace}, n, max_boxes,
                        normalization, grad_factor);
    check_cross_entropy(n, anchors, classes, negative_ratio);
    const Workspace memory(workspace, n, anchors, negative_ratio);
    const LossPass pass{loss, foreground, memory.partials, n, blocks_of(anchors), normalization};
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      const CrossEntropy<T> work{static_cast<T*>(dlogits),
                                 static_cast<const T*>(logits),
                                 matches,
                                 labels,
                                 memory,
                                 anchors,
                                 classes,
                                 max_boxes,
                                 static_cast<float>(negative_ratio),
                                 GradFactor{grad_factor, grad_scale}};
      s.enqueue([pass, work] { work.run(pass); });
    });
  });
}
