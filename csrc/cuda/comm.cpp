// Communicators on CUDA: NCCL on a stream of the communicator's own, which waits for the caller's streams, and which they
// wait for, by events, so that a capture takes both in.
#include "cuda/comm.hpp"

#include "common/collectives.hpp"

#if defined(DLFS_HAVE_NCCL)

#include <dlfcn.h>

#include <chrono>
#include <cstring>
#include <future>
#include <thread>

#include "cuda/nccl.hpp"

namespace dlfs {

namespace {

struct NcclLibrary {
  Nccl functions{};
  std::string error;  // empty when all is well

  NcclLibrary() {
    void* const library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      error = dlerror();
      return;
    }
    const auto find = [&](auto& function, const char* name) {
      void* const symbol = dlsym(library, name);
      if (!symbol && error.empty()) error = std::string("libnccl.so.2 has no ") + name;
      std::memcpy(&function, &symbol, sizeof symbol);
    };
    Nccl& f = functions;
    find(f.GetVersion, "ncclGetVersion");
    find(f.GetErrorString, "ncclGetErrorString");
    find(f.GetLastError, "ncclGetLastError");
    find(f.GetUniqueId, "ncclGetUniqueId");
    find(f.CommInitRank, "ncclCommInitRank");
    find(f.CommDestroy, "ncclCommDestroy");
    find(f.CommAbort, "ncclCommAbort");
    find(f.CommGetAsyncError, "ncclCommGetAsyncError");
    find(f.AllReduce, "ncclAllReduce");
    find(f.Broadcast, "ncclBroadcast");
    find(f.AllGather, "ncclAllGather");
    find(f.GroupStart, "ncclGroupStart");
    find(f.GroupEnd, "ncclGroupEnd");
  }
};

const NcclLibrary& nccl_library() {
  static const auto* const library = new NcclLibrary();  // never closed: it has threads of its own
  return *library;
}

}  // namespace

const Nccl& nccl() {
  const NcclLibrary& library = nccl_library();
  DLFS_CHECK(library.error.empty(), DLFS_ERROR_UNSUPPORTED,
             "NCCL could not be opened: %s. It comes with scripts/cuda-wheels.sh, as the Python package nvidia-nccl-cu13, or "
             "as the system's package libnccl2",
             library.error.c_str());
  return library.functions;
}

void throw_nccl(ncclResult_t status, const char* call, ncclComm_t comm) {
  const Nccl& f = nccl();
  const char* const last = f.GetLastError(comm);
  cudaGetLastError();
  throw Error(DLFS_ERROR_COLLECTIVE, format("%s: %s%s%s", call, f.GetErrorString(status), last && *last ? ": " : "",
                                            last ? last : ""));
}

bool has_nccl() { return nccl_library().error.empty(); }

// The version that was built against: asking the library would open it for every command.
std::string nccl_build_info() { return format("nccl=%d.%d.%d\n", NCCL_MAJOR, NCCL_MINOR, NCCL_PATCH); }

namespace {

class Comm {
 public:
  Comm(std::shared_ptr<Context> context, int32_t rank, int32_t world)
      : context(std::move(context)), rank(rank), world(world), stream_(this->context, true),
        barrier_(*this->context, sizeof(float), "a communicator's barrier") {
    void* pinned = nullptr;
    CUDA_CHECK(cudaHostAlloc(&pinned, 2 * sizeof(int64_t), cudaHostAllocPortable));
    progress_ = static_cast<int64_t*>(pinned);
    progress_[0] = 0;
    progress_[1] = -1;
    CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
  }

  ~Comm() {
    cudaSetDevice(context->device);
    if (connecting_.joinable()) connecting_.join();
    if (comm_ && !aborted_) nccl().CommDestroy(comm_);
    // At most, as graphs may outlive this.
    if (aborting_.valid()) aborting_.wait_for(std::chrono::milliseconds(500));
    if (event_) cudaEventDestroy(event_);
    cudaFreeHost(progress_);
  }
  Comm(const Comm&) = delete;
  Comm& operator=(const Comm&) = delete;

  const std::shared_ptr<Context> context;
  const int32_t rank;
  const int32_t world;

  // NCCL's id comes from rank 0; the others have nothing to tell.
  std::string address() const {
    if (rank != 0) return {};
    ncclUniqueId id;
    NCCL_CHECK(nullptr, nccl().GetUniqueId(&id));
    return std::string(id.internal, sizeof id.internal);
  }

  void connect(const std::string& id) {
    ncclUniqueId unique;
    DLFS_CHECK(id.size() == sizeof unique.internal, DLFS_ERROR_ARGUMENT,
               "expected %zu bytes of rank 0, got %zu", sizeof unique.internal, id.size());
    std::memcpy(unique.internal, id.data(), id.size());
    const std::lock_guard lock(mutex_);
    DLFS_CHECK(!connecting_.joinable() && !comm_, DLFS_ERROR_ARGUMENT, "the communicator has been connected already");
    connecting_ = std::thread([this, unique] {
      ncclComm_t made = nullptr;
      std::string failure;
      try {
        context->use();
        NCCL_CHECK(nullptr, nccl().CommInitRank(&made, world, unique, rank));
      } catch (const std::exception& e) {
        failure = format("rank %d of %d: %s", rank, world, e.what());
        made = nullptr;
      }
      const std::lock_guard guard(mutex_);
      if (made && aborted_) {
        nccl().CommAbort(made);
        made = nullptr;
      }
      comm_ = made;
      if (failure_.empty()) failure_ = std::move(failure);
    });
  }

  bool query() {
    const std::lock_guard lock(mutex_);
    check_failure();
    if (!comm_) return false;
    ncclResult_t error = ncclSuccess;
    NCCL_CHECK(comm_, nccl().CommGetAsyncError(comm_, &error));
    if (error != ncclSuccess && error != ncclInProgress) throw_nccl(error, "a collective", comm_);
    return true;
  }

  // Enqueues a collective behind what `from` has so far: run(NCCL's communicator, the CUDA stream).
  template <class Run>
  void enqueue(Stream& from, int32_t label, Run&& run) {
    const std::lock_guard order(order_mutex_);
    const ncclComm_t comm = usable();
    DLFS_CHECK(comm, DLFS_ERROR_ARGUMENT,
               "the communicator is not connected (dlfs_comm_connect, then dlfs_comm_query until it is)");
    CUDA_CHECK(cudaEventRecord(event_, from.stream));
    CUDA_CHECK(cudaStreamWaitEvent(stream_.stream, event_, 0));
    mark_progress(stream_, progress_, label);
    try {
      run(comm, stream_.stream);
    } catch (const Error&) {
      usable();  // throws what is behind it: that it was aborted
      throw;
    }
  }

  void wait(Stream& from) {
    const std::lock_guard order(order_mutex_);
    usable();
    CUDA_CHECK(cudaEventRecord(event_, stream_.stream));
    CUDA_CHECK(cudaStreamWaitEvent(from.stream, event_, 0));
  }

  void progress(int64_t* values) const {
    const volatile int64_t* const counters = progress_;
    values[0] = counters[0];
    values[1] = counters[1];
  }

  // From any thread, also while another one enqueues: NCCL waits there for the other ranks when it first reaches them.
  void abort() {
    std::unique_lock lock(mutex_);
    if (aborted_) return;
    aborted_ = true;
    if (failure_.empty()) failure_ = "the communicator was aborted";
    if (!comm_) return;
    // NCCL lets kernels end at once, but returns only when no captured graph has its collectives any more: graphs of the
    // caller, who is not kept waiting for himself. Whether it worked shows when the device's work ends.
    std::promise<void> done;
    aborting_ = done.get_future().share();
    std::thread([comm = comm_, device = context->device, done = std::move(done)]() mutable {
      cudaSetDevice(device);
      nccl().CommAbort(comm);
      done.set_value();
    }).detach();
    const std::shared_future<void> aborting = aborting_;
    lock.unlock();
    aborting.wait_for(std::chrono::seconds(1));
  }

  void synchronize() { stream_.synchronize(); }

  // A value on the device that barriers sum, whatever it is.
  void* barrier() const { return barrier_.data(); }

 private:
  void check_failure() const { DLFS_CHECK(failure_.empty(), DLFS_ERROR_COLLECTIVE, "%s", failure_.c_str()); }

  // NCCL's communicator; null while it is not connected. Throws where it has failed.
  ncclComm_t usable() const {
    const std::lock_guard lock(mutex_);
    check_failure();
    return comm_;
  }

  Stream stream_;
  DeviceBuffer barrier_;
  cudaEvent_t event_ = nullptr;
  int64_t* progress_ = nullptr;  // pinned: collectives begun, the last one's label
  std::thread connecting_;
  std::mutex order_mutex_;    // of what is enqueued; taken before the other one
  mutable std::mutex mutex_;  // guards what follows; held for moments only
  ncclComm_t comm_ = nullptr;
  std::string failure_;
  bool aborted_ = false;
  std::shared_future<void> aborting_;  // done when NCCL has let go of all
};

using CommTable = HandleTable<Comm, HandleKind::comm>;

CommTable& comms() {
  static auto* const table = new CommTable();
  return *table;
}

// The communicator, kept for as long as a graph that is being captured.
std::shared_ptr<Comm> find_comm(Stream& stream, dlfs_comm handle) {
  std::shared_ptr<Comm> comm = comms().find(handle);
  DLFS_CHECK(comm->context == stream.context, DLFS_ERROR_ARGUMENT,
             "the communicator belongs to another context than the stream");
  stream.retain(comm);
  return comm;
}

ncclDataType_t nccl_type(dlfs_dtype dtype) {
  return dtype == DLFS_F32 ? ncclFloat32 : dtype == DLFS_BF16 ? ncclBfloat16 : ncclFloat16;
}

// One operation for each buffer, as one group.
template <class Run>
void for_group(ncclComm_t comm, const std::vector<CommBuffer>& list, Run&& run) {
  NCCL_CHECK(comm, nccl().GroupStart());
  for (const CommBuffer& buffer : list) NCCL_CHECK(comm, run(buffer));
  NCCL_CHECK(comm, nccl().GroupEnd());
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_comm_create(dlfs_context ctx, dlfs_comm* out, int32_t rank, int32_t world, const char* host,
                             int64_t timeout_ms) {
  return context_call("dlfs_comm_create", ctx, [&](Context& context) {
    check_pointer(out, "out");
    check_pointer(host, "host");
    check_membership(rank, world);
    check_range(timeout_ms, 1, INT32_MAX, "timeout_ms");
    nccl();
    *out = adopt(comms(), context, std::make_shared<Comm>(context.shared_from_this(), rank, world));
  });
}

dlfs_status dlfs_comm_address(dlfs_comm comm, uint8_t* out, int64_t capacity, int64_t* bytes) {
  return guard("dlfs_comm_address", [&] {
    check_pointer(out, "out");
    check_pointer(bytes, "bytes");
    const std::string text = comms().find(comm)->address();
    DLFS_CHECK(static_cast<int64_t>(text.size()) <= capacity, DLFS_ERROR_ARGUMENT, "expected room for %zu bytes, got %lld",
               text.size(), static_cast<long long>(capacity));
    std::memcpy(out, text.data(), text.size());
    *bytes = static_cast<int64_t>(text.size());
  });
}

dlfs_status dlfs_comm_connect(dlfs_comm comm, const uint8_t* addresses, const int64_t* sizes) {
  return guard("dlfs_comm_connect", [&] {
    const std::shared_ptr<Comm> object = comms().find(comm);
    check_pointer(addresses, "addresses");
    check_pointer(sizes, "sizes");
    check_range(sizes[0], 0, INT32_MAX, "sizes");
    object->connect(std::string(reinterpret_cast<const char*>(addresses), static_cast<size_t>(sizes[0])));
  });
}

dlfs_status dlfs_comm_query(dlfs_comm comm) {
  return guard("dlfs_comm_query",
               [&]() -> dlfs_status { return comms().find(comm)->query() ? DLFS_OK : DLFS_NOT_READY; });
}

dlfs_status dlfs_comm_all_reduce(dlfs_stream stream, dlfs_comm comm, const int64_t* buffers, const int64_t* sizes,
                                 int32_t count, dlfs_dtype dtype, int32_t operation, int32_t label) {
  return stream_call("dlfs_comm_all_reduce", stream, [&](Stream& s) {
    const std::vector<CommBuffer> list = comm_buffers(buffers, sizes, count);
    check_reduction(dtype, operation);
    check_label(label);
    const ncclRedOp_t reduction = operation == DLFS_REDUCE_SUM ? ncclSum : ncclAvg;
    find_comm(s, comm)->enqueue(s, label, [&](ncclComm_t c, cudaStream_t own) {
      for_group(c, list, [&](const CommBuffer& b) {
        return nccl().AllReduce(b.address, b.address, static_cast<size_t>(b.size), nccl_type(dtype), reduction, c, own);
      });
    });
  });
}

dlfs_status dlfs_comm_broadcast(dlfs_stream stream, dlfs_comm comm, const int64_t* buffers, const int64_t* sizes,
                                int32_t count, int32_t root, int32_t label) {
  return stream_call("dlfs_comm_broadcast", stream, [&](Stream& s) {
    const std::vector<CommBuffer> list = comm_buffers(buffers, sizes, count);
    check_label(label);
    const std::shared_ptr<Comm> object = find_comm(s, comm);
    check_range(root, 0, object->world - 1, "root");
    object->enqueue(s, label, [&](ncclComm_t c, cudaStream_t own) {
      for_group(c, list, [&](const CommBuffer& b) {
        return nccl().Broadcast(b.address, b.address, static_cast<size_t>(b.size), ncclUint8, root, c, own);
      });
    });
  });
}

dlfs_status dlfs_comm_all_gather(dlfs_stream stream, dlfs_comm comm, const int64_t* outs, const int64_t* owns,
                                 const int64_t* sizes, int32_t count, int32_t label) {
  return stream_call("dlfs_comm_all_gather", stream, [&](Stream& s) {
    const std::vector<CommBuffer> out = comm_buffers(outs, sizes, count), own = comm_buffers(owns, sizes, count);
    check_label(label);
    find_comm(s, comm)->enqueue(s, label, [&](ncclComm_t c, cudaStream_t queue) {
      size_t i = 0;
      for_group(c, own, [&](const CommBuffer& b) {
        return nccl().AllGather(b.address, out[i++].address, static_cast<size_t>(b.size), ncclUint8, c, queue);
      });
    });
  });
}

dlfs_status dlfs_comm_barrier(dlfs_stream stream, dlfs_comm comm, int32_t label) {
  return stream_call("dlfs_comm_barrier", stream, [&](Stream& s) {
    check_label(label);
    const std::shared_ptr<Comm> object = find_comm(s, comm);
    object->enqueue(s, label, [&](ncclComm_t c, cudaStream_t own) {
      // NCCL has none: nobody's sum is complete before all have come.
      NCCL_CHECK(c, nccl().AllReduce(object->barrier(), object->barrier(), 1, ncclFloat32, ncclSum, c, own));
    });
  });
}

dlfs_status dlfs_comm_wait(dlfs_stream stream, dlfs_comm comm) {
  return stream_call("dlfs_comm_wait", stream, [&](Stream& s) { find_comm(s, comm)->wait(s); });
}

dlfs_status dlfs_comm_progress(dlfs_comm comm, int64_t* values) {
  return guard("dlfs_comm_progress", [&] {
    check_pointer(values, "values");
    comms().find(comm)->progress(values);
  });
}

dlfs_status dlfs_comm_abort(dlfs_comm comm) {
  return guard("dlfs_comm_abort", [&] {
    const std::shared_ptr<Comm> object = comms().find(comm);
    object->context->use();
    object->abort();
  });
}

dlfs_status dlfs_comm_destroy(dlfs_comm comm) {
  return guard("dlfs_comm_destroy", [&] {
    std::shared_ptr<Comm> object = disown(comms(), comm);
    const std::shared_ptr<Context> context = object->context;
    context->use();
    object->synchronize();
    context->release(std::move(object));
  });
}

}  // extern "C"

#else

namespace dlfs {

bool has_nccl() { return false; }
std::string nccl_build_info() { return "nccl=none\n"; }

namespace {

dlfs_status no_nccl(const char* op) {
  return guard(op, [] {
    throw Error(DLFS_ERROR_UNSUPPORTED,
                "this library was built without NCCL's header, nccl.h (Python package nvidia-nccl-cu13, or libnccl-dev)");
  });
}

}  // namespace
}  // namespace dlfs

extern "C" {

dlfs_status dlfs_comm_create(dlfs_context, dlfs_comm*, int32_t, int32_t, const char*, int64_t) {
  return dlfs::no_nccl("dlfs_comm_create");
}
dlfs_status dlfs_comm_address(dlfs_comm, uint8_t*, int64_t, int64_t*) { return dlfs::no_nccl("dlfs_comm_address"); }
dlfs_status dlfs_comm_connect(dlfs_comm, const uint8_t*, const int64_t*) { return dlfs::no_nccl("dlfs_comm_connect"); }
dlfs_status dlfs_comm_query(dlfs_comm) { return dlfs::no_nccl("dlfs_comm_query"); }
dlfs_status dlfs_comm_all_reduce(dlfs_stream, dlfs_comm, const int64_t*, const int64_t*, int32_t, dlfs_dtype, int32_t,
                                 int32_t) {
  return dlfs::no_nccl("dlfs_comm_all_reduce");
}
dlfs_status dlfs_comm_broadcast(dlfs_stream, dlfs_comm, const int64_t*, const int64_t*, int32_t, int32_t, int32_t) {
  return dlfs::no_nccl("dlfs_comm_broadcast");
}
dlfs_status dlfs_comm_all_gather(dlfs_stream, dlfs_comm, const int64_t*, const int64_t*, const int64_t*, int32_t, int32_t) {
  return dlfs::no_nccl("dlfs_comm_all_gather");
}
dlfs_status dlfs_comm_barrier(dlfs_stream, dlfs_comm, int32_t) { return dlfs::no_nccl("dlfs_comm_barrier"); }
dlfs_status dlfs_comm_wait(dlfs_stream, dlfs_comm) { return dlfs::no_nccl("dlfs_comm_wait"); }
dlfs_status dlfs_comm_progress(dlfs_comm, int64_t*) { return dlfs::no_nccl("dlfs_comm_progress"); }
dlfs_status dlfs_comm_abort(dlfs_comm) { return dlfs::no_nccl("dlfs_comm_abort"); }
dlfs_status dlfs_comm_destroy(dlfs_comm) { return dlfs::no_nccl("dlfs_comm_destroy"); }

}  // extern "C"

#endif
