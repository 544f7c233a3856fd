// Timing convolution algorithms against each other.
#include "cuda/conv_contest.hpp"

#include <algorithm>

namespace dlfs {
namespace {

// Of one algorithm: the least and the most runs, and the part of the budget that they may take, in milliseconds and within
// these limits.
constexpr int least_runs = 5;
constexpr int most_runs = 20;
constexpr double budget_part = 0.01;
constexpr double least_ms = 0.3;
constexpr double most_ms = 3;
// An algorithm within this factor of the fastest takes part in the second round.
constexpr double near = 1.08;
constexpr size_t finalists = 4;
// How often those run again, and the budget from which they do so more than once.
constexpr int final_rounds = 3;
constexpr double final_rounds_ms = 100;

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

}  // namespace

ConvContest::ConvContest(Stream& stream, const ConvTensors& tensors, int64_t bytes, double budget_ms)
    : stream_(stream),
      tensors_(tensors),
      measured_ms_(std::clamp(budget_part * budget_ms, least_ms, most_ms)),
      final_rounds_(budget_ms < final_rounds_ms ? 1 : final_rounds) {
  const int64_t cache = stream.context->l2_bytes;
  if (bytes < 2 * cache) flush_ = DeviceBuffer(*stream.context, cache, "tuning a convolution");
  for (int i = 0; i < 2 * most_runs; ++i) {
    cudaEvent_t event = nullptr;
    CUDA_CHECK(cudaEventCreate(&event));
    events_.emplace_back(event, [](cudaEvent_t e) { cudaEventDestroy(e); });
  }
}

int ConvContest::runs_for(double ms) const {
  return std::clamp(static_cast<int>(measured_ms_ / std::max(ms, 1e-3)), least_runs, most_runs);
}

void* ConvContest::workspace(int64_t bytes) {
  if (bytes > workspace_.bytes()) workspace_ = DeviceBuffer(*stream_.context, bytes, "tuning a convolution");
  return workspace_.data();
}

std::vector<double> ConvContest::measure(const ConvAlgorithm& algorithm, int runs) {
  void* const scratch = workspace(algorithm.workspace_bytes());
  const auto event = [this](int run, int which) { return events_[static_cast<size_t>(2 * run + which)].get(); };
  for (int i = 0; i < runs; ++i) {
    if (flush_.bytes() > 0) {
      CUDA_CHECK(cudaMemsetAsync(flush_.data(), i, static_cast<size_t>(flush_.bytes()), stream_.stream));
    }
    CUDA_CHECK(cudaEventRecord(event(i, 0), stream_.stream));
    algorithm.run(stream_, tensors_, scratch);
    CUDA_CHECK(cudaEventRecord(event(i, 1), stream_.stream));
  }
  CUDA_CHECK(cudaEventSynchronize(event(runs - 1, 1)));
  std::vector<double> times;
  for (int i = 0; i < runs; ++i) {
    float ms = 0;
    CUDA_CHECK(cudaEventElapsedTime(&ms, event(i, 0), event(i, 1)));
    times.push_back(ms);
  }
  return times;
}

void ConvContest::consider(const std::shared_ptr<const ConvAlgorithm>& algorithm) {
  if (!algorithm) return;
  const std::string pick = algorithm->pick();
  if (std::find(seen_.begin(), seen_.end(), pick) != seen_.end()) return;
  seen_.push_back(pick);
  try {
    measure(*algorithm, 1);  // loads the kernels
    const double once = measure(*algorithm, 1).front();
    const auto best = std::min_element(entries_.begin(), entries_.end(),
                                       [](const Entry& a, const Entry& b) { return a.ms < b.ms; });
    if (best != entries_.end() && once > 2 * best->ms) return;
    entries_.push_back({algorithm, median(measure(*algorithm, runs_for(once)))});
  } catch (const Error& error) {  // it cannot run here
    ignore_unless_fatal(error);
  }
}

std::shared_ptr<const ConvAlgorithm> ConvContest::winner() {
  if (entries_.empty()) return nullptr;
  std::stable_sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) { return a.ms < b.ms; });
  const double limit = near * entries_.front().ms;
  while (entries_.size() > finalists || entries_.back().ms > limit) entries_.pop_back();
  if (entries_.size() > 1) {
    std::vector<std::vector<double>> times(entries_.size());
    for (int round = 0; round < final_rounds_; ++round) {
      for (size_t i = 0; i < entries_.size(); ++i) {
        const std::vector<double> more = measure(*entries_[i].algorithm, runs_for(entries_[i].ms));
        times[i].insert(times[i].end(), more.begin(), more.end());
      }
    }
    for (size_t i = 0; i < entries_.size(); ++i) entries_[i].ms = median(std::move(times[i]));
  }
  return std::min_element(entries_.begin(), entries_.end(),
                          [](const Entry& a, const Entry& b) { return a.ms < b.ms; })
      ->algorithm;
}

}  // namespace dlfs
