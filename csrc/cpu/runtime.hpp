// The CPU backend's runtime: contexts, streams, events, graphs, and the compute pool.
//
// A stream is a queue of tasks; enqueuing copies the arguments (a closure) and returns. One native thread, the
// executor, drains the queues of all streams in turn, a task at a time, and is the only one that opens OpenMP teams: a
// thread per stream would have a team of its own, and two busy streams would then run two teams on the same cores. An
// entry point that takes a stream is written as
//
//   extern "C" dlfs_status dlfs_fill(dlfs_stream stream, ...) {
//     return on_stream("dlfs_fill", stream, [&](Stream& s) {
//       check...;  // on the caller's thread: errors are immediate
//       s.enqueue([=] {  // on the executor's thread
//         parallel_for(n, 4096, [=](int64_t begin, int64_t end) { ... });
//       });
//     });
//   }
//
// The closure may run many times (a captured graph), so it must not consume what it captured.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/arguments.hpp"
#include "common/handles.hpp"

namespace dlfs::cpu {

class Stream;
struct Capture;

// ---- contexts and memory ----------------------------------------------------------------------------------------

// The machine's processor and its memory, with the options and the allocations of one user of it.
class Context {
 public:
  Context();
  ~Context();

  // Compute threads for what is enqueued from now on, at least 1.
  int threads() const { return threads_.load(std::memory_order_relaxed); }
  // 0 stands for all cores that this process may use.
  void set_threads(int64_t threads);

  // 256-byte aligned memory (64 and zeroed for `host`). Throws DLFS_ERROR_MEMORY (or HOST_MEMORY) naming the sizes.
  void* allocate(int64_t bytes, bool host);
  // Throws unless allocate(.., host) of this context gave the address. Waits for the streams, except for host memory.
  void release(void* address, bool host);
  int64_t allocated_bytes() const;
  int64_t peak_bytes() const;

  // Waits until every stream has run what is enqueued now; reports no errors.
  void drain();
  void add_stream(const std::shared_ptr<Stream>& stream);

  // "2 streams, 1 conv, 3 allocations (1024 bytes)" or empty when nothing is left.
  std::string leftovers() const;

  // Whether graphs pad the channels of convolutions, which serves nothing here but tests.
  std::atomic<bool> pad_channels{false};

  // Live handles by HandleKind.
  std::array<std::atomic<int64_t>, handle_kinds> live{};

 private:
  struct Block {
    int64_t bytes;
    bool mapped;
  };
  mutable std::mutex mutex_;
  std::unordered_map<void*, Block> blocks_[2];  // device, host
  int64_t allocated_ = 0;
  int64_t peak_ = 0;
  std::vector<std::weak_ptr<Stream>> streams_;
  std::atomic<int> threads_;
};

// Memory of the machine (or of its control group) in bytes: what can still be allocated, and all of it.
struct MachineMemory {
  int64_t available;
  int64_t total;
};
MachineMemory machine_memory();

// Cores that this process may use: its affinity mask, limited by its control group's CPU quota.
int available_cores();

// Whether the processor multiplies bf16 natively and oneDNN uses it.
bool has_bf16();

// ---- handles ----------------------------------------------------------------------------------------------------

// A HandleTable whose objects have a member `context` (shared_ptr<Context>) and are counted there while they have a
// handle.
template <class T, HandleKind kind>
class ObjectTable {
 public:
  int64_t add(std::shared_ptr<T> object) {
    std::shared_ptr<Context> context = object->context;
    const int64_t handle = table_.add(std::move(object));
    ++context->live[static_cast<size_t>(kind)];
    return handle;
  }
  std::shared_ptr<T> find(int64_t handle) const { return table_.find(handle); }
  std::shared_ptr<T> remove(int64_t handle) {
    std::shared_ptr<T> object = table_.remove(handle);
    --object->context->live[static_cast<size_t>(kind)];
    return object;
  }

 private:
  HandleTable<T, kind> table_;
};

std::shared_ptr<Context> require_context(dlfs_context handle);
std::shared_ptr<Stream> require_stream(dlfs_stream handle);

// ---- streams ----------------------------------------------------------------------------------------------------

enum class Lane {
  compute,  // on the executor's thread, with the context's threads
  copy,     // the same, but run_sync() may run it at once on the caller's thread when the stream is idle
};

struct Task {
  std::function<void()> run;
  int threads = 1;
};

// One recording of an event: passed when its stream has come to it. Guarded by the executor's lock.
struct EventRecord {
  bool passed = false;
  std::chrono::steady_clock::time_point time;
  std::shared_ptr<const Error> error;  // the stream's error at that point
};

class Stream : public std::enable_shared_from_this<Stream> {
 public:
  explicit Stream(std::shared_ptr<Context> context) : context(std::move(context)) {}

  // Appends a task, or records it while the stream captures. threads: 0 for the context's number.
  void enqueue(std::function<void()> run, Lane lane = Lane::compute, int threads = 0);

  // Appends a task, waits for it, and throws what it threw. Refused during capture.
  void run_sync(std::function<void()> run, Lane lane = Lane::compute, int threads = 0);

  // Appends the tasks of a graph: other streams may run between them.
  void enqueue_graph(std::shared_ptr<const std::vector<Task>> tasks);
  void enqueue_record(std::shared_ptr<EventRecord> record);
  void enqueue_wait(std::shared_ptr<EventRecord> record);

  // Waits until the queue is empty and throws the stream's error, if any, once.
  void synchronize();
  // Whether the queue is empty; throws the stream's error, if any, once.
  bool query();
  // Waits until the queue is empty; leaves the error for later.
  void drain();

  // Throws when the stream captures: for calls that cannot be recorded.
  void refuse_capture(const char* what) const;
  std::shared_ptr<Capture> capture() const;
  void set_capture(std::shared_ptr<Capture> capture);
  // Marks the capture in progress, if any, as failed.
  void fail_capture(const char* reason) const;

  const std::shared_ptr<Context> context;

 private:
  friend class Executor;

  // An entry of the queue: one of a task, a graph, an event to pass, an event to wait for.
  struct Entry {
    Task task;
    std::shared_ptr<const std::vector<Task>> graph;
    size_t next = 0;  // task of the graph
    std::shared_ptr<EventRecord> record;
    std::shared_ptr<EventRecord> wait;
  };

  void push(Entry entry);

  // All guarded by the executor's lock. An error makes the executor skip the tasks that follow until it is reported.
  std::deque<Entry> queue_;
  bool busy_ = false;
  std::shared_ptr<const Error> error_;
  std::shared_ptr<Capture> capture_;
};

// Waits until a record has been passed, or asks whether it has; both throw its error. Copies time when passed.
void wait_record(const EventRecord& record);
bool query_record(const EventRecord& record, std::chrono::steady_clock::time_point* time = nullptr);

// The body of an entry point that takes a stream: body(Stream&). A failure spoils the capture in progress, as the
// contract says of dlfs_graph_end.
template <class Body>
dlfs_status on_stream(const char* op, dlfs_stream handle, Body&& body) noexcept {
  return guard(op, [&] {
    std::shared_ptr<Stream> stream = require_stream(handle);
    try {
      return body(*stream);
    } catch (const std::exception& e) {
      stream->fail_capture(format("%s: %s", op, e.what()).c_str());
      throw;
    }
  });
}

// ---- the compute pool -------------------------------------------------------------------------------------------

// Threads that parallel_for may use here: the task's number on the executor's thread, else 1 (decoding threads run the
// same kernels, each alone).
int compute_threads();

namespace detail {
void parallel_run(int64_t chunks, void (*run)(void*, int64_t), void* state);
}

// Calls body(begin, end) for contiguous parts of [0, n), in parallel, each at least `grain` long unless n is shorter.
// The parts depend on n, grain and the number of threads only. What body throws is thrown here after all parts have
// ended.
template <class Body>
void parallel_for(int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
  const int64_t most = n / (grain > 0 ? grain : 1);
  const int64_t threads = compute_threads();
  const int64_t chunks = most < threads ? (most > 0 ? most : 1) : threads;
  if (chunks == 1) {
    body(int64_t{0}, n);
    return;
  }
  struct State {
    const Body& body;
    int64_t n, chunks;
  } state{body, n, chunks};
  detail::parallel_run(
      chunks,
      [](void* data, int64_t chunk) {
        const State& s = *static_cast<State*>(data);
        s.body(s.n / s.chunks * chunk + std::min(chunk, s.n % s.chunks),
               s.n / s.chunks * (chunk + 1) + std::min(chunk + 1, s.n % s.chunks));
      },
      &state);
}

}  // namespace dlfs::cpu
