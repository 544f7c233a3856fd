// Streams, the executor that drains them, and the compute pool.
#include <omp.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <thread>

#include "cpu/runtime_graph.hpp"

namespace dlfs::cpu {

namespace {

// The tables and the executor live until the process ends: native threads may use them while static objects are
// destroyed.
auto& streams() {
  static auto& table = *new ObjectTable<Stream, HandleKind::stream>;
  return table;
}

thread_local int current_threads = 1;

// After a parallel region libgomp's threads spin for some ten milliseconds before they sleep. Where other threads want
// the cores too (JavaScript, JPEG decoding), the spinning takes the time slices that the late thread needs: a step of
// 150 operations took 227 ms without it and 2860 ms with it on two busy cores, against some 60 us more per region on
// idle ones. libgomp reads its settings when it is loaded, which is too late for us to change them, but it spins only
// briefly while it manages more threads than there are cores: a team that does nothing, parked forever, makes that so.
void limit_spinning() {
  if (std::getenv("OMP_WAIT_POLICY") || std::getenv("GOMP_SPINCOUNT")) return;  // the user has decided
  const int parked = omp_get_num_procs() - available_cores() + 2;
  std::thread([parked] {
    std::atomic<int> members{0};
#pragma omp parallel num_threads(parked)
    ++members;
    for (;;) pause();
  }).detach();
}

}  // namespace

// The thread that runs the tasks of all streams: round robin over those whose next entry can run. Its lock guards the
// streams' queues, errors and captures, and the event records.
class Executor {
 public:
  static Executor& instance() {
    static Executor& executor = *new Executor;
    return executor;
  }

  std::mutex mutex;

  // Under the lock: adds an entry to the stream's queue.
  void push(Stream& stream, Stream::Entry entry) {
    if (!started_) {
      // At exit the static objects of oneDNN and OpenMP are destroyed: nothing may compute then. Registered after those
      // libraries were loaded, the handler runs before their destructors; it waits for the task in progress, and what
      // is still queued is dropped.
      std::atexit([] { instance().stop(); });
      limit_spinning();
      std::thread thread([this] { work(); });
      pthread_setname_np(thread.native_handle(), "dlfs-executor");
      thread.detach();
      started_ = true;
    }
    if (stream.queue_.empty() && !stream.busy_) active_.push_back(stream.shared_from_this());
    stream.queue_.push_back(std::move(entry));
    if (sleeping_) wake_.notify_one();
  }

  // Waits until the condition, which the executor's progress changes, holds.
  template <class Condition>
  void wait(std::unique_lock<std::mutex>& lock, Condition condition) {
    if (condition()) return;
    ++waiters_;
    progress_.wait(lock, condition);
    --waiters_;
  }

 private:
  void work() {
    std::unique_lock lock(mutex);
    size_t turn = 0;
    for (;;) {
      const size_t count = active_.size();
      size_t tried = 0;
      while (tried < count && !runnable(*active_[(turn + tried) % count])) ++tried;
      if (tried == count) {
        sleeping_ = true;
        wake_.wait(lock);
        sleeping_ = false;
        continue;
      }
      turn = (turn + tried) % count;
      const std::shared_ptr<Stream> stream = active_[turn];
      step(*stream, lock);
      if (stream->queue_.empty()) {
        active_.erase(active_.begin() + static_cast<std::ptrdiff_t>(turn));
        if (waiters_ > 0) progress_.notify_all();
      } else {
        ++turn;
      }
    }
  }

  static bool runnable(const Stream& stream) {
    const Stream::Entry& entry = stream.queue_.front();
    return !entry.wait || entry.wait->passed;
  }

  // Runs the stream's next entry, or the next task of it if it is a graph.
  void step(Stream& stream, std::unique_lock<std::mutex>& lock) {
    Stream::Entry& entry = stream.queue_.front();  // stays in place while the lock is released: others only append
    bool done = true;
    if (entry.record) {
      entry.record->passed = true;
      entry.record->time = std::chrono::steady_clock::now();
      entry.record->error = stream.error_;
      if (waiters_ > 0) progress_.notify_all();
    } else if (entry.wait) {
      if (!stream.error_) stream.error_ = entry.wait->error;
    } else if (entry.graph && entry.graph->empty()) {
      done = true;
    } else {
      const Task& task = entry.graph ? (*entry.graph)[entry.next++] : entry.task;
      done = !entry.graph || entry.next == entry.graph->size();
      if (!stream.error_ && !exiting_) run(stream, task, lock);
      if (stream.error_) done = true;
    }
    if (!done) return;
    // What the entry owns (plans, buffers) is released without the lock, and before the stream counts as idle.
    Stream::Entry finished = std::move(entry);
    stream.queue_.pop_front();
    stream.busy_ = true;
    lock.unlock();
    finished = Stream::Entry();
    lock.lock();
    stream.busy_ = false;
  }

  void run(Stream& stream, const Task& task, std::unique_lock<std::mutex>& lock) {
    running_ = true;
    lock.unlock();
    std::shared_ptr<const Error> error;
    try {
      if (current_threads != task.threads || omp_get_max_threads() != task.threads) {
        omp_set_num_threads(task.threads);  // of this thread only
        current_threads = task.threads;
      }
      task.run();
    } catch (const Error& e) {
      error = std::make_shared<const Error>(e);
    } catch (const std::bad_alloc&) {
      error = std::make_shared<const Error>(DLFS_ERROR_HOST_MEMORY, "out of host memory while the stream ran");
    } catch (const std::exception& e) {
      error = std::make_shared<const Error>(DLFS_ERROR_INTERNAL, e.what());
    }
    lock.lock();
    running_ = false;
    stream.error_ = std::move(error);
    if (exiting_) progress_.notify_all();
  }

  void stop() {
    std::unique_lock lock(mutex);
    exiting_ = true;
    progress_.wait(lock, [this] { return !running_; });
  }

  std::condition_variable wake_;                 // for the executor: something was queued
  std::condition_variable progress_;             // for those who wait for streams and events
  std::vector<std::shared_ptr<Stream>> active_;  // streams whose queue is not empty
  int64_t waiters_ = 0;
  bool started_ = false;
  bool sleeping_ = false;
  bool running_ = false;
  bool exiting_ = false;
};

std::shared_ptr<Stream> require_stream(dlfs_stream handle) { return streams().find(handle); }

// ---- the compute pool -------------------------------------------------------------------------------------------

int compute_threads() { return current_threads; }

void detail::parallel_run(int64_t chunks, void (*run)(void*, int64_t), void* state) {
  std::exception_ptr failure;
#pragma omp parallel for num_threads(static_cast<int>(chunks)) schedule(static, 1)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    try {
      run(state, chunk);
    } catch (...) {
#pragma omp critical(dlfs_parallel_failure)
      if (!failure) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

// ---- Stream -----------------------------------------------------------------------------------------------------

void Stream::push(Entry entry) {
  Executor& executor = Executor::instance();
  std::lock_guard lock(executor.mutex);
  executor.push(*this, std::move(entry));
}

void Stream::enqueue(std::function<void()> run, Lane, int threads) {
  Task task{std::move(run), threads > 0 ? threads : context->threads()};
  if (std::shared_ptr<Capture> recording = capture()) {
    recording->add(this, std::move(task));
    return;
  }
  Entry entry;
  entry.task = std::move(task);
  push(std::move(entry));
}

void Stream::enqueue_graph(std::shared_ptr<const std::vector<Task>> tasks) {
  if (std::shared_ptr<Capture> recording = capture()) {
    for (const Task& task : *tasks) recording->add(this, task);
    return;
  }
  Entry entry;
  entry.graph = std::move(tasks);
  push(std::move(entry));
}

void Stream::enqueue_record(std::shared_ptr<EventRecord> record) {
  Entry entry;
  entry.record = std::move(record);
  push(std::move(entry));
}

void Stream::enqueue_wait(std::shared_ptr<EventRecord> record) {
  Entry entry;
  entry.wait = std::move(record);
  push(std::move(entry));
}

void Stream::run_sync(std::function<void()> run, Lane lane, int threads) {
  refuse_capture("a call that waits");
  if (lane == Lane::copy && query()) {
    run();
    return;
  }
  std::exception_ptr failure;
  enqueue(
      [&] {
        try {
          run();
        } catch (...) {
          failure = std::current_exception();
        }
      },
      lane, threads);
  synchronize();
  if (failure) std::rethrow_exception(failure);
}

void Stream::synchronize() {
  drain();
  query();
}

bool Stream::query() {
  std::shared_ptr<const Error> error;
  {
    std::lock_guard lock(Executor::instance().mutex);
    error.swap(error_);
    if (!error) return queue_.empty() && !busy_;
  }
  throw Error(*error);
}

void Stream::drain() {
  Executor& executor = Executor::instance();
  std::unique_lock lock(executor.mutex);
  executor.wait(lock, [this] { return queue_.empty() && !busy_; });
}

std::shared_ptr<Capture> Stream::capture() const {
  std::lock_guard lock(Executor::instance().mutex);
  return capture_;
}

void Stream::set_capture(std::shared_ptr<Capture> capture) {
  std::lock_guard lock(Executor::instance().mutex);
  capture_.swap(capture);
}

void Stream::fail_capture(const char* reason) const {
  if (std::shared_ptr<Capture> recording = capture()) recording->fail(reason);
}

void Stream::refuse_capture(const char* what) const {
  DLFS_CHECK(!capture(), DLFS_ERROR_ARGUMENT, "the stream is capturing a graph: %s is not allowed", what);
}

void wait_record(const EventRecord& record) {
  Executor& executor = Executor::instance();
  std::unique_lock lock(executor.mutex);
  executor.wait(lock, [&] { return record.passed; });
  lock.unlock();
  if (record.error) throw Error(*record.error);
}

bool query_record(const EventRecord& record, std::chrono::steady_clock::time_point* time) {
  {
    std::lock_guard lock(Executor::instance().mutex);
    if (!record.passed) return false;
  }
  if (record.error) throw Error(*record.error);
  if (time) *time = record.time;
  return true;
}

}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_stream_create(dlfs_context ctx, dlfs_stream* out) {
  return guard("dlfs_stream_create", [&] {
    check_pointer(out, "out");
    std::shared_ptr<Context> context = require_context(ctx);
    auto stream = std::make_shared<Stream>(context);
    context->add_stream(stream);
    *out = streams().add(std::move(stream));
  });
}

extern "C" dlfs_status dlfs_stream_destroy(dlfs_stream stream) {
  return guard("dlfs_stream_destroy", [&] {
    std::shared_ptr<Stream> object = streams().remove(stream);
    leave_capture(*object);
    object->drain();
  });
}

extern "C" dlfs_status dlfs_stream_synchronize(dlfs_stream stream) {
  return on_stream("dlfs_stream_synchronize", stream, [&](Stream& s) {
    s.refuse_capture("synchronize");
    s.synchronize();
  });
}

extern "C" dlfs_status dlfs_stream_query(dlfs_stream stream) {
  return on_stream("dlfs_stream_query", stream, [&](Stream& s) -> dlfs_status {
    s.refuse_capture("query");
    return s.query() ? DLFS_OK : DLFS_NOT_READY;
  });
}
