// Communicators on the CPU. Each has a queue and a thread that works it off: an entry on a stream only hands the collective
// over, so that the executor goes on computing while data travels.
#include <pthread.h>

#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <thread>

#include "common/collectives.hpp"
#include "cpu/comm_gloo.hpp"
#include "cpu/numeric.hpp"
#include "cpu/runtime.hpp"

namespace dlfs::cpu {

class Comm {
 public:
  Comm(std::shared_ptr<Context> context, int32_t rank, int32_t world, const std::string& host,
       std::chrono::milliseconds timeout)
      : context(std::move(context)), rank(rank), world(world), group(rank, world, host, timeout) {}

  const std::shared_ptr<Context> context;
  const int32_t rank;
  const int32_t world;
  GlooGroup group;

  // Starts the thread of a communicator; it ends with stop(), and holds the communicator until then.
  static void start(const std::shared_ptr<Comm>& comm) {
    std::thread thread([comm] { comm->work(); });
    pthread_setname_np(thread.native_handle(), "dlfs-comm");
    thread.detach();
  }

  void connect(std::vector<std::string> addresses) {
    {
      const std::lock_guard lock(mutex_);
      DLFS_CHECK(state_ == State::made, DLFS_ERROR_ARGUMENT, "the communicator has been connected already");
      state_ = State::connecting;
    }
    push([this, addresses = std::move(addresses)] {
      group.connect(addresses);
      const std::lock_guard lock(mutex_);
      state_ = State::connected;
    });
  }

  // Whether it is connected; throws what has gone wrong so far.
  bool query() const {
    const std::lock_guard lock(mutex_);
    throw_failure();
    return state_ == State::connected;
  }

  void require_connected() const {
    const std::lock_guard lock(mutex_);
    throw_failure();
    DLFS_CHECK(state_ == State::connected, DLFS_ERROR_ARGUMENT,
               "the communicator is not connected (dlfs_comm_connect, then dlfs_comm_query until it is)");
  }

  // Hands a collective over to the thread.
  void post(int32_t label, std::function<void()> run) {
    push([this, label, run = std::move(run)] {
      label_ = label;
      ++begun_;
      run();
    });
  }

  // Waits until all that was handed over is done; throws what went wrong.
  void wait() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return (queue_.empty() && !busy_) || failure_; });
    throw_failure();
  }

  void progress(int64_t* values) const {
    values[0] = begun_;
    values[1] = label_;
  }

  void abort() {
    group.abort();
    const std::lock_guard lock(mutex_);
    if (!failure_) fail("the communicator was aborted");
    queue_.clear();
    done_.notify_all();
  }

  // Ends the thread once the queue is empty, and waits for that.
  void stop() {
    std::unique_lock lock(mutex_);
    stopping_ = true;
    wake_.notify_one();
    done_.wait(lock, [this] { return stopped_; });
  }

 private:
  enum class State { made, connecting, connected };

  void push(std::function<void()> run) {
    const std::lock_guard lock(mutex_);
    if (failure_) return;  // wait() tells
    if (stopping_) {
      fail("the communicator has been destroyed");
      return;
    }
    queue_.push_back(std::move(run));
    wake_.notify_one();
  }

  void fail(const char* text) { failure_ = std::make_shared<Error>(DLFS_ERROR_COLLECTIVE, text); }

  void throw_failure() const {
    if (failure_) throw Error(*failure_);
  }

  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return !queue_.empty() || stopping_; });
      if (queue_.empty()) break;
      const std::function<void()> run = std::move(queue_.front());
      queue_.pop_front();
      busy_ = true;
      lock.unlock();
      std::string text;
      bool failed = false;
      try {
        run();
      } catch (const std::exception& e) {
        failed = true;
        text = e.what();
      }
      lock.lock();
      busy_ = false;
      if (failed) {
        if (!failure_) fail(format("rank %d of %d: %s", rank, world, text.c_str()).c_str());
        queue_.clear();
      }
      if (queue_.empty()) done_.notify_all();
    }
    stopped_ = true;
    done_.notify_all();
  }

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  std::condition_variable done_;
  std::deque<std::function<void()>> queue_;
  std::shared_ptr<const Error> failure_;
  State state_ = State::made;
  bool busy_ = false;
  bool stopping_ = false;
  bool stopped_ = false;

  std::atomic<int64_t> begun_{0};
  std::atomic<int64_t> label_{-1};
};

namespace {

auto& comms() {
  static auto& table = *new ObjectTable<Comm, HandleKind::comm>;
  return table;
}

std::shared_ptr<Comm> find_comm(const Stream& stream, dlfs_comm handle) {
  std::shared_ptr<Comm> comm = comms().find(handle);
  DLFS_CHECK(comm->context == stream.context, DLFS_ERROR_ARGUMENT,
             "the communicator belongs to another context than the stream");
  comm->require_connected();
  return comm;
}

// The entry that hands a collective over when the stream comes to it.
void enqueue(Stream& stream, const std::shared_ptr<Comm>& comm, int32_t label, std::function<void()> run) {
  stream.enqueue([comm, label, run = std::move(run)] { comm->post(label, run); });
}

template <class T>
void scale(void* buffer, int64_t n, float factor) {
  T* const x = static_cast<T*>(buffer);
  for (int64_t i = 0; i < n; ++i) x[i] = from_float<T>(to_float(x[i]) * factor);
}

void divide(void* buffer, int64_t n, dlfs_dtype dtype, int32_t world) {
  const float factor = 1.0f / static_cast<float>(world);
  if (dtype == DLFS_F32) {
    scale<float>(buffer, n, factor);
  } else if (dtype == DLFS_BF16) {
    scale<Bf16>(buffer, n, factor);
  } else {
    scale<F16>(buffer, n, factor);
  }
}

}  // namespace
}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_comm_create(dlfs_context ctx, dlfs_comm* out, int32_t rank, int32_t world, const char* host,
                                        int64_t timeout_ms) {
  return guard("dlfs_comm_create", [&] {
    check_pointer(out, "out");
    check_pointer(host, "host");
    check_membership(rank, world);
    check_range(timeout_ms, 1, INT32_MAX, "timeout_ms");
    auto comm =
        std::make_shared<Comm>(require_context(ctx), rank, world, host, std::chrono::milliseconds(timeout_ms));
    Comm::start(comm);
    *out = comms().add(std::move(comm));
  });
}

extern "C" dlfs_status dlfs_comm_address(dlfs_comm comm, uint8_t* out, int64_t capacity, int64_t* bytes) {
  return guard("dlfs_comm_address", [&] {
    check_pointer(out, "out");
    check_pointer(bytes, "bytes");
    const std::string text = comms().find(comm)->group.addresses();
    DLFS_CHECK(static_cast<int64_t>(text.size()) <= capacity, DLFS_ERROR_ARGUMENT, "expected room for %zu bytes, got %lld",
               text.size(), static_cast<long long>(capacity));
    std::memcpy(out, text.data(), text.size());
    *bytes = static_cast<int64_t>(text.size());
  });
}

extern "C" dlfs_status dlfs_comm_connect(dlfs_comm comm, const uint8_t* addresses, const int64_t* sizes) {
  return guard("dlfs_comm_connect", [&] {
    const std::shared_ptr<Comm> object = comms().find(comm);
    check_pointer(addresses, "addresses");
    check_pointer(sizes, "sizes");
    std::vector<std::string> all;
    for (int32_t rank = 0; rank < object->world; ++rank) {
      check_range(sizes[rank], 0, INT32_MAX, "sizes");
      all.emplace_back(reinterpret_cast<const char*>(addresses), static_cast<size_t>(sizes[rank]));
      addresses += sizes[rank];
    }
    object->connect(std::move(all));
  });
}

extern "C" dlfs_status dlfs_comm_query(dlfs_comm comm) {
  return guard("dlfs_comm_query",
               [&]() -> dlfs_status { return comms().find(comm)->query() ? DLFS_OK : DLFS_NOT_READY; });
}

extern "C" dlfs_status dlfs_comm_all_reduce(dlfs_stream stream, dlfs_comm comm, const int64_t* buffers,
                                            const int64_t* sizes, int32_t count, dlfs_dtype dtype, int32_t operation,
                                            int32_t label) {
  return on_stream("dlfs_comm_all_reduce", stream, [&](Stream& s) {
    const std::shared_ptr<Comm> object = find_comm(s, comm);
    const std::vector<CommBuffer> list = comm_buffers(buffers, sizes, count);
    check_reduction(dtype, operation);
    check_label(label);
    Comm* const c = object.get();  // held by its thread
    enqueue(s, object, label, [c, list, dtype, operation] {
      for (const auto& [address, size] : list) {
        c->group.all_reduce(address, size, dtype);
        if (operation == DLFS_REDUCE_AVERAGE && c->world > 1) divide(address, size, dtype, c->world);
      }
    });
  });
}

extern "C" dlfs_status dlfs_comm_broadcast(dlfs_stream stream, dlfs_comm comm, const int64_t* buffers,
                                           const int64_t* sizes, int32_t count, int32_t root, int32_t label) {
  return on_stream("dlfs_comm_broadcast", stream, [&](Stream& s) {
    const std::shared_ptr<Comm> object = find_comm(s, comm);
    const std::vector<CommBuffer> list = comm_buffers(buffers, sizes, count);
    check_range(root, 0, object->world - 1, "root");
    check_label(label);
    Comm* const c = object.get();
    enqueue(s, object, label, [c, list, root] {
      for (const auto& [address, size] : list) c->group.broadcast(address, size, root);
    });
  });
}

extern "C" dlfs_status dlfs_comm_all_gather(dlfs_stream stream, dlfs_comm comm, const int64_t* outs, const int64_t* owns,
                                            const int64_t* sizes, int32_t count, int32_t label) {
  return on_stream("dlfs_comm_all_gather", stream, [&](Stream& s) {
    const std::shared_ptr<Comm> object = find_comm(s, comm);
    const std::vector<CommBuffer> out = comm_buffers(outs, sizes, count), own = comm_buffers(owns, sizes, count);
    check_label(label);
    Comm* const c = object.get();
    enqueue(s, object, label, [c, out, own] {
      for (size_t i = 0; i < out.size(); ++i) c->group.all_gather(out[i].address, own[i].address, own[i].size);
    });
  });
}

extern "C" dlfs_status dlfs_comm_barrier(dlfs_stream stream, dlfs_comm comm, int32_t label) {
  return on_stream("dlfs_comm_barrier", stream, [&](Stream& s) {
    const std::shared_ptr<Comm> object = find_comm(s, comm);
    check_label(label);
    Comm* const c = object.get();
    enqueue(s, object, label, [c] { c->group.barrier(); });
  });
}

extern "C" dlfs_status dlfs_comm_wait(dlfs_stream stream, dlfs_comm comm) {
  return on_stream("dlfs_comm_wait", stream, [&](Stream& s) {
    const std::shared_ptr<Comm> object = find_comm(s, comm);
    s.enqueue([object] { object->wait(); });
  });
}

extern "C" dlfs_status dlfs_comm_progress(dlfs_comm comm, int64_t* values) {
  return guard("dlfs_comm_progress", [&] {
    check_pointer(values, "values");
    comms().find(comm)->progress(values);
  });
}

extern "C" dlfs_status dlfs_comm_abort(dlfs_comm comm) {
  return guard("dlfs_comm_abort", [&] { comms().find(comm)->abort(); });
}

extern "C" dlfs_status dlfs_comm_destroy(dlfs_comm comm) {
  return guard("dlfs_comm_destroy", [&] {
    const std::shared_ptr<Comm> object = comms().remove(comm);
    object->context->drain();
    object->stop();
  });
}
