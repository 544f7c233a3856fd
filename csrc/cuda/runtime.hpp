// The CUDA backend's runtime objects and rules, shared by every file of csrc/cuda:
// - an entry point that takes a stream is `return dlfs::stream_call("dlfs_x", stream, [&](dlfs::Stream& s) { ... });`:
//   it finds the stream, makes its device current for the calling thread and, while the stream is capturing, remembers
//   a failure so that dlfs_graph_end reports it. One that takes a context uses context_call in the same way.
// - CUDA, cuDNN and cuBLASLt calls are wrapped in CUDA_CHECK / CUDNN_CHECK / CUBLAS_CHECK, kernels are started by launch() of runtime.cuh.
// - Memory that the library itself owns on the device is a DeviceBuffer. What a captured graph needs after the call
//   (plans, tables) is handed to Stream::retain.
// - Objects behind handles live in a table() and enter and leave it by adopt() and disown(), which count them for
//   dlfs_context_destroy; what leaves is released by Context::release, which waits for the device and puts the release
//   off while a capture is underway (freeing waits for the device, which a capture forbids).
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "common/handles.hpp"
#include "common/status.hpp"

struct cublasLtContext;
struct cudnnContext;

namespace dlfs {

// Throws Error: DLFS_ERROR_MEMORY for an allocation failure, DLFS_ERROR_CUDA_FATAL for an error that poisons the
// process, else DLFS_ERROR_CUDA. Clears the thread's last CUDA error.
[[noreturn]] void throw_cuda(cudaError_t error, const char* call);

// Throws Error for a cuDNN status (an int here so that not every file includes cudnn.h); DLFS_ERROR_CUDA_FATAL where a
// CUDA error that poisons the process is behind it.
[[noreturn]] void throw_cudnn(int status, const char* call);

// The same for a cublasStatus_t.
[[noreturn]] void throw_cublas(int status, const char* call);

// Throws DLFS_ERROR_UNSUPPORTED where this library holds no code for the current device.
void check_device_code(int device, int compute_capability);

// A new cuDNN handle on a device, for a stream (null for none).
std::shared_ptr<cudnnContext> create_cudnn(int device, cudaStream_t stream);

// Counts captures underway on a device, so that nothing waits for the whole device meanwhile.
void begin_capture_on(int device, cudaStream_t stream);
void end_capture_on(int device);

// True for CUDA errors after which every further call of the process fails.
bool cuda_error_is_fatal(cudaError_t error) noexcept;

#define CUDA_CHECK(call)                                                          \
  do {                                                                            \
    const cudaError_t cuda_check_status_ = (call);                                \
    if (cuda_check_status_ != cudaSuccess) ::dlfs::throw_cuda(cuda_check_status_, #call); \
  } while (0)

#define CUDNN_CHECK(call)                                                                             \
  do {                                                                                                \
    const cudnnStatus_t cudnn_check_status_ = (call);                                                 \
    if (cudnn_check_status_ != CUDNN_STATUS_SUCCESS) ::dlfs::throw_cudnn(cudnn_check_status_, #call); \
  } while (0)

#define CUBLAS_CHECK(call)                                                                               \
  do {                                                                                                   \
    const cublasStatus_t cublas_check_status_ = (call);                                                  \
    if (cublas_check_status_ != CUBLAS_STATUS_SUCCESS) ::dlfs::throw_cublas(cublas_check_status_, #call); \
  } while (0)

class PlanPool;

// Makes a device current for the calling thread.
void use_device(int device);

// One open device.
class Context : public std::enable_shared_from_this<Context> {
 public:
  explicit Context(int device);

  const int device;
  int sm_count = 0;
  int compute_capability = 0;  // 10 * major + minor
  int max_threads_per_sm = 0;
  int64_t l2_bytes = 0;
  int64_t shared_bytes_per_block = 0;  // the limit that cudaFuncAttributeMaxDynamicSharedMemorySize can be raised to

  std::atomic<bool> deterministic{false};
  std::atomic<bool> tf32{false};
  std::atomic<bool> pad_channels{true};  // "conv.pad8"

  void use() const { use_device(device); }

  // The cuDNN handle with which plans are built (streams have their own), used under `planning`.
  cudnnContext* planner();
  std::mutex planning;

  // The threads that build convolution plans, started at the first use.
  PlanPool& plan_pool();

  // The cuBLASLt handle, created at the first use; it has no state of its own, so that threads and streams share it.
  cublasLtContext* cublaslt();

  // Device and pinned memory behind dlfs_malloc and dlfs_host_malloc.
  void* allocate(int64_t bytes);
  void free(void* address);
  void* allocate_host(int64_t bytes);
  void free_host(void* address);
  void memory_info(int64_t* values);

  // Drops an object whose memory or kernels the device may be using: waits for the device first, or, while a capture is
  // underway on it, keeps the object until that ends.
  void release(std::shared_ptr<void> object);

  // Live objects by kind, as seen by the user of the handles.
  void count(HandleKind kind, int change) noexcept { live_[static_cast<size_t>(kind)] += change; }

  // "2 streams, 1 graph, 3 device allocations (1024 bytes)"; empty when nothing is left.
  std::string leftovers();

 private:
  struct Block {
    std::shared_ptr<void> memory;
    int64_t bytes;
  };

  std::array<std::atomic<int64_t>, handle_kinds> live_{};
  std::mutex mutex_;  // guards what follows
  std::shared_ptr<cudnnContext> planner_;
  std::shared_ptr<cublasLtContext> cublaslt_;
  std::map<void*, Block> device_blocks_;
  std::map<void*, Block> host_blocks_;
  int64_t allocated_ = 0;
  int64_t peak_ = 0;
  std::shared_ptr<PlanPool> plan_pool_;  // the first to go: its threads use the rest
};

// Device memory owned by the library, 256-byte aligned; freed by way of Context::release.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(Context& context, int64_t bytes, const char* what);
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept { swap(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    swap(other);
    return *this;
  }

  void* data() const { return memory_.get(); }
  template <class T>
  T* as() const {
    return static_cast<T*>(memory_.get());
  }
  int64_t bytes() const { return bytes_; }

 private:
  void swap(DeviceBuffer& other) noexcept {
    context_.swap(other.context_);
    memory_.swap(other.memory_);
    std::swap(bytes_, other.bytes_);
  }

  std::shared_ptr<Context> context_;
  std::shared_ptr<void> memory_;
  int64_t bytes_ = 0;
};

class Stream;

// A capture underway, shared by the streams that take part in it.
struct Capture {
  const Stream* origin = nullptr;  // where it was begun and must be ended
  std::atomic<bool> open{true};
  std::mutex mutex;  // guards the rest
  dlfs_status failure = DLFS_OK;
  std::string message;
  std::vector<std::shared_ptr<void>> retained;
};

// An ordered queue of work. Calls on one stream do not overlap in time, so it needs no lock of its own.
class Stream {
 public:
  // urgent: its blocks go before those of other streams, for short work that must not wait behind a training step.
  explicit Stream(std::shared_ptr<Context> context, bool urgent = false);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  const std::shared_ptr<Context> context;
  cudaStream_t stream = nullptr;

  // This stream's cuDNN handle, created at the first use; never call it first inside a capture (dlfs_graph_begin does
  // it before).
  cudnnContext* cudnn();

  // State of the image library for this stream, opaque here, dropped before the CUDA stream is destroyed.
  std::shared_ptr<void> images;

  // True on the stream that dlfs_graph_begin was called for and on those that an event has joined to it.
  bool capturing() const { return capture_ && capture_->open; }

  // The capture that this stream takes part in, or null.
  std::shared_ptr<Capture> capture() const { return capturing() ? capture_ : nullptr; }

  // Makes this stream a part of another stream's capture.
  void join(std::shared_ptr<Capture> capture);

  // Throws where the stream is capturing: for ..._sync functions and queries.
  void require_not_capturing(const char* what) const;

  // Keeps an object alive for as long as the graph being captured; nothing outside a capture.
  void retain(std::shared_ptr<void> object);

  // Waits for everything enqueued; reports errors of earlier work.
  void synchronize();

  // Called by stream_call for a call that failed: while capturing, the first failure is what dlfs_graph_end reports.
  void note_failure(dlfs_status code, const char* op, const char* message) noexcept;

  void begin_capture();
  // Ends the capture; throws, with the capture discarded, if a call during it failed. Hands out what was retained.
  cudaGraph_t end_capture(std::vector<std::shared_ptr<void>>& retained);

 private:
  std::shared_ptr<cudnnContext> cudnn_;
  std::shared_ptr<Capture> capture_;
};

using ContextTable = HandleTable<Context, HandleKind::context>;
using StreamTable = HandleTable<Stream, HandleKind::stream>;

// The tables are never destroyed: threads may still call while the process ends.
ContextTable& contexts();
StreamTable& streams();

// Enters an object into its kind's table and counts it for its context.
template <class T, HandleKind kind>
int64_t adopt(HandleTable<T, kind>& table, Context& context, std::shared_ptr<T> object) {
  const int64_t handle = table.add(std::move(object));
  context.count(kind, 1);
  return handle;
}

// Takes an object out of its table; T has a member `context`. The caller hands it to Context::release.
template <class T, HandleKind kind>
std::shared_ptr<T> disown(HandleTable<T, kind>& table, int64_t handle) {
  std::shared_ptr<T> object = table.remove(handle);
  object->context->count(kind, -1);
  return object;
}

template <class Body>
dlfs_status context_call(const char* op, dlfs_context handle, Body&& body) noexcept {
  return guard(op, [&] {
    const std::shared_ptr<Context> context = contexts().find(handle);
    context->use();
    return body(*context);
  });
}

template <class Body>
dlfs_status stream_call(const char* op, dlfs_stream handle, Body&& body) noexcept {
  return guard(op, [&] {
    const std::shared_ptr<Stream> stream = streams().find(handle);
    try {
      stream->context->use();
      return body(*stream);
    } catch (const Error& e) {
      stream->note_failure(e.code, op, e.what());
      throw;
    } catch (const std::exception& e) {
      stream->note_failure(DLFS_ERROR_INTERNAL, op, e.what());
      throw;
    }
  });
}

// The image library's part of dlfs_supports ("jpeg.decode", "png.decode", ...) and of dlfs_build_info (its "key=value" lines, each
// ended by a newline); defined beside it.
bool images_support(Context& context, std::string_view feature);
std::string images_build_info();

// Whether communicators can be made (NCCL was there at build time and is found now), and NCCL's line for dlfs_build_info.
bool has_nccl();
std::string nccl_build_info();

// cuBLASLt's line for dlfs_build_info, beside its other uses.
std::string cublaslt_build_info();

}  // namespace dlfs
