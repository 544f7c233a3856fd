// Threads that build convolution plans in the background: cuDNN compiles kernels when a plan is finalized, which takes
// from milliseconds to seconds of one processor core.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <thread>

#include "cuda/conv.hpp"

namespace dlfs {

class PlanPool {
 public:
  // Starts threads as jobs want them, at most one for each core but the one that times what they build, and 16.
  explicit PlanPool(int device);
  // Drops what has not begun, and waits for what has.
  ~PlanPool();
  PlanPool(const PlanPool&) = delete;
  PlanPool& operator=(const PlanPool&) = delete;

  // Runs a job on one of the threads, with the device current; the job catches its own errors.
  void submit(std::function<void()> job);

 private:
  void work();

  const int device_;
  const size_t most_threads_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;
  size_t idle_ = 0;  // threads that wait for a job
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

// The cuDNN handle with which the calling thread of a pool builds plans, created at its first use; null on other threads.
// cuDNN allows a handle to one thread at a time.
cudnnContext* pool_handle();

// Algorithms that are being built on a pool, handed out as they become ready. What is still to be built when this object
// goes is dropped.
class Builds {
 public:
  using Algorithm = std::shared_ptr<const ConvAlgorithm>;
  using Clock = std::chrono::steady_clock;

  Builds() = default;
  ~Builds();
  Builds(const Builds&) = delete;
  Builds& operator=(const Builds&) = delete;

  // build: may return null where there is nothing to be had; what it refers to lives as long as the pool.
  void add(PlanPool& pool, std::function<Algorithm()> build);

  // Waits for the next one that is ready; null when none is left, or at the deadline. Throws what a build threw.
  Algorithm next(Clock::time_point deadline);

 private:
  struct State {
    std::mutex mutex;  // guards the rest
    std::condition_variable changed;
    std::deque<Algorithm> ready;
    std::exception_ptr failure;
    int pending = 0;
    bool cancelled = false;
  };
  const std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace dlfs
