// The threads that build convolution plans.
#include "cuda/conv_pool.hpp"

#include <algorithm>
#include <system_error>
#include <utility>

namespace dlfs {
namespace {

constexpr int most_threads = 16;

// Of a pool's thread: the device, and the handle on it.
thread_local int pool_device = -1;
thread_local std::shared_ptr<cudnnContext> pool_cudnn;

}  // namespace

PlanPool::PlanPool(int device)
    : device_(device),
      most_threads_(
          static_cast<size_t>(std::clamp(static_cast<int>(std::thread::hardware_concurrency()) - 1, 1, most_threads))) {}

PlanPool::~PlanPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    jobs_.clear();
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void PlanPool::submit(std::function<void()> job) {
  {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
    if (jobs_.size() > idle_ && threads_.size() < most_threads_) {
      try {
        threads_.emplace_back([this] { work(); });
      } catch (const std::system_error&) {  // those that are there do it
        if (threads_.empty()) {
          jobs_.pop_back();
          throw;
        }
      }
    }
  }
  changed_.notify_one();
}

void PlanPool::work() {
  pool_device = device_;
  for (;;) {
    std::function<void()> job;
    {
      std::unique_lock lock(mutex_);
      ++idle_;
      changed_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
      --idle_;
      if (stopping_) break;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    job();
  }
  pool_cudnn = nullptr;
}

cudnnContext* pool_handle() {
  if (pool_device < 0) return nullptr;
  if (!pool_cudnn) {
    use_device(pool_device);
    pool_cudnn = create_cudnn(pool_device, nullptr);
  }
  return pool_cudnn.get();
}

PlanPool& Context::plan_pool() {
  const std::lock_guard lock(mutex_);
  if (!plan_pool_) plan_pool_ = std::make_shared<PlanPool>(device);
  return *plan_pool_;
}

Builds::~Builds() {
  const std::lock_guard lock(state_->mutex);
  state_->cancelled = true;
  state_->ready.clear();
}

void Builds::add(PlanPool& pool, std::function<Algorithm()> build) {
  {
    const std::lock_guard lock(state_->mutex);
    ++state_->pending;
  }
  pool.submit([state = state_, build = std::move(build)] {
    bool wanted = false;
    {
      const std::lock_guard lock(state->mutex);
      wanted = !state->cancelled;
    }
    Algorithm algorithm;
    std::exception_ptr failure;
    try {
      if (wanted) algorithm = build();
    } catch (...) {
      failure = std::current_exception();
    }
    {
      const std::lock_guard lock(state->mutex);
      --state->pending;
      if (failure && !state->failure) state->failure = failure;
      if (algorithm && !state->cancelled) state->ready.push_back(std::move(algorithm));
    }
    state->changed.notify_all();
  });
}

Builds::Algorithm Builds::next(Clock::time_point deadline) {
  std::unique_lock lock(state_->mutex);
  state_->changed.wait_until(lock, deadline, [this] {
    return state_->failure || !state_->ready.empty() || state_->pending == 0;
  });
  if (state_->failure) std::rethrow_exception(state_->failure);
  if (state_->ready.empty()) return nullptr;
  Algorithm algorithm = std::move(state_->ready.front());
  state_->ready.pop_front();
  return algorithm;
}

}  // namespace dlfs
