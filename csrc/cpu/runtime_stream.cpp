// Streams, events, graph capture and launch on the CPU.
#include "cpu/runtime_stream.hpp"

#include <omp.h>
#include <pthread.h>

#include <cstdlib>

namespace dlfs::cpu {

namespace {

// The tables live until the process ends: native threads may use them while static objects are destroyed.
auto& streams() {
  static auto& table = *new ObjectTable<Stream, HandleKind::stream>;
  return table;
}
auto& events() {
  static auto& table = *new ObjectTable<Event, HandleKind::event>;
  return table;
}
auto& graphs() {
  static auto& table = *new ObjectTable<Graph, HandleKind::graph>;
  return table;
}

// First come, first served: a stream that runs a long graph takes the lock for each of its operations, and a plain mutex
// would let it do so again and again while another stream waits.
class FairLock {
 public:
  void lock() {
    std::unique_lock lock(mutex_);
    const uint64_t ticket = next_++;
    changed_.wait(lock, [&] { return serving_ == ticket; });
  }
  void unlock() {
    std::lock_guard lock(mutex_);
    ++serving_;
    if (serving_ != next_) changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t next_ = 0;
  uint64_t serving_ = 0;
};

FairLock& compute_lock() {
  static FairLock& lock = *new FairLock;
  return lock;
}

std::atomic<bool> exiting{false};

// At exit the static objects of oneDNN and OpenMP are destroyed: no stream may compute then. Registered after those
// libraries were loaded, so it runs before their destructors: it waits for the operation in progress, and what is still
// queued is dropped.
void stop_at_exit() {
  static std::once_flag once;
  std::call_once(once, [] {
    std::atexit([] {
      exiting = true;
      std::lock_guard lock(compute_lock());
    });
  });
}

thread_local int current_threads = 1;

}  // namespace

std::shared_ptr<Stream> require_stream(dlfs_stream handle) { return streams().find(handle); }

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

void run_in_lane(const Task& task) {
  if (task.lane != Lane::compute) {
    task.run();
    return;
  }
  std::lock_guard lock(compute_lock());
  if (exiting) return;
  if (current_threads != task.threads || omp_get_max_threads() != task.threads) {
    omp_set_num_threads(task.threads);  // of this thread only
    current_threads = task.threads;
  }
  task.run();
}

// ---- Stream -----------------------------------------------------------------------------------------------------

Stream::Stream(std::shared_ptr<Context> owner) : context(std::move(owner)) {
  stop_at_exit();
  thread_ = std::thread([this] { work(); });
  pthread_setname_np(thread_.native_handle(), "dlfs-stream");
}

Stream::~Stream() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();  // tasks own no stream, so this is never the stream's own thread
}

void Stream::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stop_ || !queue_.empty(); });
    if (queue_.empty()) return;
    Task task = std::move(queue_.front());
    queue_.pop_front();
    busy_ = true;
    lock.unlock();
    run_task(task);
    task.run = nullptr;  // releases what the closure owns before the stream counts as idle
    lock.lock();
    busy_ = false;
    if (queue_.empty()) idle_.notify_all();
  }
}

void Stream::run_task(const Task& task) {
  if (task.lane != Lane::signal && error()) return;
  try {
    run_in_lane(task);
  } catch (const Error& e) {
    set_error(std::make_shared<const Error>(e));
  } catch (const std::bad_alloc&) {
    set_error(std::make_shared<const Error>(DLFS_ERROR_HOST_MEMORY, "out of host memory while the stream ran"));
  } catch (const std::exception& e) {
    set_error(std::make_shared<const Error>(DLFS_ERROR_INTERNAL, e.what()));
  }
}

void Stream::enqueue(std::function<void()> run, Lane lane, int threads) {
  Task task{std::move(run), lane, threads > 0 ? threads : context->threads()};
  if (std::shared_ptr<Capture> recording = capture()) {
    std::lock_guard lock(recording->mutex);
    recording->tasks.push_back(std::move(task));
    recording->clocks[this][this] = recording->tasks.size();
    return;
  }
  bool wake;
  {
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(task));
    wake = !busy_;
  }
  if (wake) wake_.notify_one();
}

void Stream::run_sync(std::function<void()> run, Lane lane) {
  refuse_capture("a call that waits");
  std::exception_ptr failure;
  enqueue(
      [&] {
        try {
          run();
        } catch (...) {
          failure = std::current_exception();
        }
      },
      lane);
  synchronize();
  if (failure) std::rethrow_exception(failure);
}

void Stream::throw_error(std::unique_lock<std::mutex>& lock) {
  if (!error_) return;
  const std::shared_ptr<const Error> error = std::move(error_);
  error_ = nullptr;
  lock.unlock();
  throw Error(*error);
}

void Stream::synchronize() {
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [this] { return queue_.empty() && !busy_; });
  throw_error(lock);
}

bool Stream::query() {
  std::unique_lock lock(mutex_);
  throw_error(lock);
  return queue_.empty() && !busy_;
}

void Stream::drain() {
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [this] { return queue_.empty() && !busy_; });
}

std::shared_ptr<const Error> Stream::error() const {
  std::lock_guard lock(mutex_);
  return error_;
}

void Stream::set_error(std::shared_ptr<const Error> error) {
  std::lock_guard lock(mutex_);
  if (!error_) error_ = std::move(error);
}

std::shared_ptr<Capture> Stream::capture() const {
  std::lock_guard lock(mutex_);
  return capture_;
}

void Stream::set_capture(std::shared_ptr<Capture> capture) {
  std::lock_guard lock(mutex_);
  capture_ = std::move(capture);
}

void Stream::fail_capture(const char* reason) const {
  if (std::shared_ptr<Capture> recording = capture()) recording->fail(reason);
}

void Stream::refuse_capture(const char* what) const {
  DLFS_CHECK(!capture(), DLFS_ERROR_ARGUMENT, "the stream is capturing a graph: %s is not allowed", what);
}

// ---- events and captures ----------------------------------------------------------------------------------------

void EventRecord::pass(std::shared_ptr<const Error> stream_error) {
  {
    std::lock_guard lock(mutex);
    passed = true;
    time = std::chrono::steady_clock::now();
    error = std::move(stream_error);
  }
  changed.notify_all();
}

std::shared_ptr<const Error> EventRecord::wait() {
  std::unique_lock lock(mutex);
  changed.wait(lock, [this] { return passed; });
  return error;
}

void Capture::fail(const char* reason) {
  std::lock_guard lock(mutex);
  if (failure.empty()) failure = reason;
}

namespace {

// Ends a capture: its streams run their calls again.
void detach(const std::shared_ptr<Capture>& capture) {
  std::map<Stream*, std::shared_ptr<Stream>> joined;
  {
    std::lock_guard lock(capture->mutex);
    capture->ended = true;
    joined.swap(capture->joined);
  }
  for (auto& [stream, owner] : joined) stream->set_capture(nullptr);
  capture->origin->set_capture(nullptr);
}

// What an event stands for at this moment: NULL where it was never recorded.
std::shared_ptr<EventRecord> current_record(dlfs_event handle) {
  std::shared_ptr<Event> event = events().find(handle);
  std::lock_guard lock(event->mutex);
  DLFS_CHECK(!event->capture, DLFS_ERROR_ARGUMENT, "the event was last recorded inside a graph capture");
  return event->record;
}

void record_in_capture(Stream& stream, Event& event, std::shared_ptr<Capture> capture) {
  std::lock_guard lock(event.mutex);
  std::lock_guard capture_lock(capture->mutex);
  event.clock = capture->clocks[&stream];
  event.capture = std::move(capture);
}

void wait_in_capture(Stream& stream, const std::shared_ptr<Capture>& capture, const Clock& clock) {
  const std::shared_ptr<Capture> own = stream.capture();
  DLFS_CHECK(!own || own == capture, DLFS_ERROR_ARGUMENT, "the event belongs to another graph capture");
  {
    std::lock_guard lock(capture->mutex);
    DLFS_CHECK(!capture->ended, DLFS_ERROR_ARGUMENT, "the event was recorded inside a graph capture that has ended");
    Clock& mine = capture->clocks[&stream];
    for (const auto& [other, count] : clock) mine[other] = std::max(mine[other], count);
    if (!own) capture->joined[&stream] = stream.shared_from_this();
  }
  if (!own) stream.set_capture(capture);
}

}  // namespace

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
    if (std::shared_ptr<Capture> capture = object->capture()) {
      capture->fail("a stream of the capture was destroyed");
      if (capture->origin == object.get()) {
        detach(capture);
      } else {
        object->set_capture(nullptr);
        std::lock_guard lock(capture->mutex);
        capture->joined.erase(object.get());
      }
    }
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

extern "C" dlfs_status dlfs_event_create(dlfs_context ctx, dlfs_event* out) {
  return guard("dlfs_event_create", [&] {
    check_pointer(out, "out");
    auto event = std::make_shared<Event>();
    event->context = require_context(ctx);
    *out = events().add(std::move(event));
  });
}

extern "C" dlfs_status dlfs_event_destroy(dlfs_event event) {
  return guard("dlfs_event_destroy", [&] { events().remove(event); });
}

extern "C" dlfs_status dlfs_event_record(dlfs_stream stream, dlfs_event event) {
  return on_stream("dlfs_event_record", stream, [&](Stream& s) {
    std::shared_ptr<Event> object = events().find(event);
    DLFS_CHECK(object->context == s.context, DLFS_ERROR_ARGUMENT, "the event belongs to another context than the stream");
    if (std::shared_ptr<Capture> capture = s.capture()) {
      record_in_capture(s, *object, std::move(capture));
      return;
    }
    auto record = std::make_shared<EventRecord>();
    {
      std::lock_guard lock(object->mutex);
      object->record = record;
      object->capture = nullptr;
    }
    s.enqueue([record, stream = &s] { record->pass(stream->error()); }, Lane::signal);
  });
}

extern "C" dlfs_status dlfs_event_query(dlfs_event event) {
  return guard("dlfs_event_query", [&]() -> dlfs_status {
    const std::shared_ptr<EventRecord> record = current_record(event);
    if (!record) return DLFS_OK;
    std::lock_guard lock(record->mutex);
    if (!record->passed) return DLFS_NOT_READY;
    if (record->error) throw Error(*record->error);
    return DLFS_OK;
  });
}

extern "C" dlfs_status dlfs_event_synchronize(dlfs_event event) {
  return guard("dlfs_event_synchronize", [&] {
    const std::shared_ptr<EventRecord> record = current_record(event);
    if (!record) return;
    if (std::shared_ptr<const Error> error = record->wait()) throw Error(*error);
  });
}

extern "C" dlfs_status dlfs_stream_wait_event(dlfs_stream stream, dlfs_event event) {
  return on_stream("dlfs_stream_wait_event", stream, [&](Stream& s) {
    std::shared_ptr<Event> object = events().find(event);
    std::shared_ptr<EventRecord> record;
    std::shared_ptr<Capture> capture;
    Clock clock;
    {
      std::lock_guard lock(object->mutex);
      record = object->record;
      capture = object->capture;
      clock = object->clock;
    }
    if (capture) {
      wait_in_capture(s, capture, clock);
      return;
    }
    if (!record) return;
    s.refuse_capture("waiting for an event recorded outside the capture");
    s.enqueue(
        [record, stream = &s] {
          if (std::shared_ptr<const Error> error = record->wait()) stream->set_error(std::move(error));
        },
        Lane::signal);
  });
}

extern "C" dlfs_status dlfs_event_elapsed(double* out_ms, dlfs_event start, dlfs_event end) {
  return guard("dlfs_event_elapsed", [&]() -> dlfs_status {
    check_pointer(out_ms, "out_ms");
    const std::shared_ptr<EventRecord> records[2] = {current_record(start), current_record(end)};
    std::chrono::steady_clock::time_point times[2];
    for (int i = 0; i < 2; ++i) {
      DLFS_CHECK(records[i], DLFS_ERROR_ARGUMENT, "the %s event was never recorded", i == 0 ? "start" : "end");
      std::lock_guard lock(records[i]->mutex);
      if (!records[i]->passed) return DLFS_NOT_READY;
      times[i] = records[i]->time;
    }
    *out_ms = std::chrono::duration<double, std::milli>(times[1] - times[0]).count();
    return DLFS_OK;
  });
}

extern "C" dlfs_status dlfs_graph_begin(dlfs_stream stream) {
  return guard("dlfs_graph_begin", [&] {
    std::shared_ptr<Stream> s = require_stream(stream);
    s->refuse_capture("starting another");
    s->set_capture(std::make_shared<Capture>(s.get()));
  });
}

extern "C" dlfs_status dlfs_graph_end(dlfs_stream stream, dlfs_graph* out) {
  return guard("dlfs_graph_end", [&] {
    std::shared_ptr<Stream> s = require_stream(stream);
    std::shared_ptr<Capture> capture = s->capture();
    DLFS_CHECK(capture, DLFS_ERROR_ARGUMENT, "the stream is not capturing a graph");
    DLFS_CHECK(capture->origin == s.get(), DLFS_ERROR_ARGUMENT, "the capture was begun on another stream");
    std::string failure;
    std::vector<Task> tasks;
    {
      std::lock_guard lock(capture->mutex);
      failure = capture->failure;
      Clock& known = capture->clocks[s.get()];
      for (const auto& [other, owner] : capture->joined) {
        if (failure.empty() && known[other] < capture->clocks[other][other]) {
          failure = "work on a joined stream was not joined back by an event that the capturing stream waits for";
        }
      }
      tasks = std::move(capture->tasks);
    }
    detach(capture);
    DLFS_CHECK(failure.empty(), DLFS_ERROR_ARGUMENT, "the capture was discarded after a failed call: %s", failure.c_str());
    check_pointer(out, "out");
    auto graph = std::make_shared<Graph>();
    graph->context = s->context;
    graph->tasks = std::make_shared<const std::vector<Task>>(std::move(tasks));
    *out = graphs().add(std::move(graph));
  });
}

extern "C" dlfs_status dlfs_graph_launch(dlfs_stream stream, dlfs_graph graph) {
  return on_stream("dlfs_graph_launch", stream, [&](Stream& s) {
    std::shared_ptr<Graph> object = graphs().find(graph);
    DLFS_CHECK(object->context == s.context, DLFS_ERROR_ARGUMENT, "the graph belongs to another context than the stream");
    // The tasks take the compute lock one by one.
    s.enqueue(
        [tasks = object->tasks] {
          for (const Task& task : *tasks) run_in_lane(task);
        },
        Lane::copy);
  });
}

extern "C" dlfs_status dlfs_graph_destroy(dlfs_graph graph) {
  return guard("dlfs_graph_destroy", [&] {
    std::shared_ptr<Graph> object = graphs().remove(graph);
    object->context->drain();
  });
}
