// Errors, contexts and memory of the CUDA backend; see runtime.hpp for the rules.
#include "cuda/runtime.hpp"

#include <cublasLt.h>
#include <cudnn.h>

#include <algorithm>
#include <cstring>

#include "common/arguments.hpp"

namespace dlfs {

bool cuda_error_is_fatal(cudaError_t error) noexcept {
  switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorMisalignedAddress:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorAssert:
    case cudaErrorContextIsDestroyed:
    case cudaErrorCudartUnloading:
    case cudaErrorMpsClientTerminated:
    case cudaErrorUnknown:
#if CUDART_VERSION >= 12080
    case cudaErrorContained:
#endif
      return true;
    default: return false;
  }
}

void throw_cuda(cudaError_t error, const char* call) {
  cudaGetLastError();  // the thread's copy would be blamed on a later call
  const bool fatal = cuda_error_is_fatal(error);
  const dlfs_status code = error == cudaErrorMemoryAllocation ? DLFS_ERROR_MEMORY
                           : fatal                            ? DLFS_ERROR_CUDA_FATAL
                                                              : DLFS_ERROR_CUDA;
  throw Error(code, format("%s (%s) from %s%s", cudaGetErrorString(error), cudaGetErrorName(error), call,
                           fatal ? "; it may stem from earlier work, and the process cannot use CUDA any more" : ""));
}

namespace {

// The CUDA error behind a library's, cleared; throws where it poisons the process. executing: the library's error says
// that work on the device failed. Libraries carry a CUDA runtime of their own, whose last error is not ours: the driver
// is asked, through a stream nobody captures.
cudaError_t error_behind(const char* library, const char* name, bool executing, const char* call) {
  cudaError_t cuda = cudaGetLastError();
  if (cuda == cudaSuccess && executing) {
    cuda = cudaStreamQuery(cudaStreamPerThread);
    cudaGetLastError();
  }
  if (cuda_error_is_fatal(cuda)) {
    throw Error(DLFS_ERROR_CUDA_FATAL,
                format("%s (%s) behind %s's %s from %s; the process cannot use CUDA any more", cudaGetErrorString(cuda),
                       cudaGetErrorName(cuda), library, name, call));
  }
  return cuda;
}

}  // namespace

void throw_cudnn(int status, const char* call) {
  char detail[512] = "";
  cudnnGetLastErrorString(detail, sizeof detail);
  const char* const name = cudnnGetErrorString(static_cast<cudnnStatus_t>(status));
  const cudaError_t cuda =
      error_behind("cuDNN", name, status / 1000 == CUDNN_STATUS_EXECUTION_FAILED / 1000, call);
  const bool memory =
      status == CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED || cuda == cudaErrorMemoryAllocation;
  throw Error(memory ? DLFS_ERROR_MEMORY : DLFS_ERROR_CUDNN,
              format("%s from %s%s%s", name, call, *detail ? ": " : "", detail));
}

void throw_cublas(int status, const char* call) {
  const auto code = static_cast<cublasStatus_t>(status);
  const char* const name = cublasLtGetStatusName(code);
  const cudaError_t cuda = error_behind("cuBLASLt", name, code == CUBLAS_STATUS_EXECUTION_FAILED, call);
  const bool memory = code == CUBLAS_STATUS_ALLOC_FAILED || cuda == cudaErrorMemoryAllocation;
  throw Error(memory ? DLFS_ERROR_MEMORY : DLFS_ERROR_CUBLAS,
              format("%s from %s: %s", name, call, cublasLtGetStatusString(code)));
}

void use_device(int device) {
  // The first call on a thread must set it: cudaGetDevice answers 0 before any context is current.
  thread_local bool set = false;
  int current = -1;
  if (set && cudaGetDevice(&current) == cudaSuccess && current == device) return;
  CUDA_CHECK(cudaSetDevice(device));
  set = true;
}

// ---- captures and what waits for their end ------------------------------------------------------------------------

namespace {

// Waiting for a device, or for anything that covers a capturing stream, fails and spoils the capture. So whoever waits
// does it under this lock with no capture underway, and what would have to wait is put off until the last one ends.
struct CaptureGate {
  std::mutex mutex;
  int active = 0;
  std::vector<std::shared_ptr<void>> deferred;
};

CaptureGate& capture_gate(int device) {
  static std::mutex mutex;
  static auto* const gates = new std::map<int, CaptureGate>();
  const std::lock_guard lock(mutex);
  return (*gates)[device];
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

}  // namespace

void begin_capture_on(int device, cudaStream_t stream) {
  CaptureGate& gate = capture_gate(device);
  const std::lock_guard lock(gate.mutex);
  // Relaxed: allocations and the like by this or another thread are allowed and do not end the capture.
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
  ++gate.active;
}

void end_capture_on(int device) {
  CaptureGate& gate = capture_gate(device);
  std::vector<std::shared_ptr<void>> deferred;
  cudaError_t status = cudaSuccess;
  {
    const std::lock_guard lock(gate.mutex);
    if (--gate.active > 0 || gate.deferred.empty()) return;
    deferred.swap(gate.deferred);
    status = cudaDeviceSynchronize();
  }
  deferred.clear();
  if (status != cudaSuccess) throw_cuda(status, "cudaDeviceSynchronize()");
}

// ---- contexts -----------------------------------------------------------------------------------------------------

Context::Context(int device) : device(device) {
  use();
  sm_count = attribute(cudaDevAttrMultiProcessorCount, device);
  compute_capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
                       attribute(cudaDevAttrComputeCapabilityMinor, device);
  max_threads_per_sm = attribute(cudaDevAttrMaxThreadsPerMultiProcessor, device);
  l2_bytes = attribute(cudaDevAttrL2CacheSize, device);
  shared_bytes_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  check_device_code(device, compute_capability);
}

std::shared_ptr<cudnnContext> create_cudnn(int device, cudaStream_t stream) {
  cudnnHandle_t handle = nullptr;
  CUDNN_CHECK(cudnnCreate(&handle));
  std::shared_ptr<cudnnContext> owner(handle, [device](cudnnContext* h) {
    cudaSetDevice(device);
    cudnnDestroy(h);
  });
  if (stream) CUDNN_CHECK(cudnnSetStream(handle, stream));
  return owner;
}

cudnnContext* Context::planner() {
  const std::lock_guard lock(mutex_);
  if (!planner_) planner_ = create_cudnn(device, nullptr);
  return planner_.get();
}

cublasLtContext* Context::cublaslt() {
  const std::lock_guard lock(mutex_);
  if (!cublaslt_) {
    use();
    cublasLtHandle_t handle = nullptr;
    CUBLAS_CHECK(cublasLtCreate(&handle));
    cublaslt_ = std::shared_ptr<cublasLtContext>(handle, [device = device](cublasLtContext* h) {
      cudaSetDevice(device);
      cublasLtDestroy(h);
    });
  }
  return cublaslt_.get();
}

void* Context::allocate(int64_t bytes) {
  check_size(bytes, "bytes");
  void* address = nullptr;
  const cudaError_t status = cudaMalloc(&address, static_cast<size_t>(bytes));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free_bytes = 0, total = 0;
    cudaMemGetInfo(&free_bytes, &total);
    const std::lock_guard lock(mutex_);
    throw Error(
        DLFS_ERROR_MEMORY,
        format("%lld bytes could not be allocated on device %d: %zu of %zu bytes are free, this context holds %lld",
               static_cast<long long>(bytes), device, free_bytes, total, static_cast<long long>(allocated_)));
  }
  if (status != cudaSuccess) throw_cuda(status, "cudaMalloc");
  std::shared_ptr<void> memory(address, [device = device](void* p) {
    cudaSetDevice(device);
    cudaFree(p);
  });
  const std::lock_guard lock(mutex_);
  device_blocks_[address] = {std::move(memory), bytes};
  allocated_ += bytes;
  peak_ = std::max(peak_, allocated_);
  return address;
}

void Context::free(void* address) {
  std::shared_ptr<void> memory;
  {
    const std::lock_guard lock(mutex_);
    const auto found = device_blocks_.find(address);
    DLFS_CHECK(found != device_blocks_.end(), DLFS_ERROR_ARGUMENT,
               "%p is not the address of an allocation of this context", address);
    memory = std::move(found->second.memory);
    allocated_ -= found->second.bytes;
    device_blocks_.erase(found);
  }
  release(std::move(memory));
}

void* Context::allocate_host(int64_t bytes) {
  check_size(bytes, "bytes");
  void* address = nullptr;
  const cudaError_t status = cudaHostAlloc(&address, static_cast<size_t>(bytes), cudaHostAllocPortable);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw Error(DLFS_ERROR_HOST_MEMORY,
                format("%lld bytes of pinned host memory could not be allocated", static_cast<long long>(bytes)));
  }
  if (status != cudaSuccess) throw_cuda(status, "cudaHostAlloc");
  std::shared_ptr<void> memory(address, [](void* p) { cudaFreeHost(p); });
  std::memset(address, 0, static_cast<size_t>(bytes));
  const std::lock_guard lock(mutex_);
  host_blocks_[address] = {std::move(memory), bytes};
  return address;
}

void Context::free_host(void* address) {
  std::shared_ptr<void> memory;
  {
    const std::lock_guard lock(mutex_);
    const auto found = host_blocks_.find(address);
    DLFS_CHECK(found != host_blocks_.end(), DLFS_ERROR_ARGUMENT,
               "%p is not the address of a pinned allocation of this context", address);
    memory = std::move(found->second.memory);
    host_blocks_.erase(found);
  }
  release(std::move(memory));
}

void Context::memory_info(int64_t* values) {
  size_t free_bytes = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total));
  const std::lock_guard lock(mutex_);
  values[0] = static_cast<int64_t>(free_bytes);
  values[1] = static_cast<int64_t>(total);
  values[2] = allocated_;
  values[3] = peak_;
}

void Context::release(std::shared_ptr<void> object) {
  if (!object) return;
  CaptureGate& gate = capture_gate(device);
  use();
  cudaError_t status = cudaSuccess;
  {
    const std::lock_guard lock(gate.mutex);
    if (gate.active > 0) {
      gate.deferred.push_back(std::move(object));
      return;
    }
    status = cudaDeviceSynchronize();
  }
  object.reset();
  if (status != cudaSuccess) throw_cuda(status, "cudaDeviceSynchronize()");
}

std::string Context::leftovers() {
  std::string text;
  const auto add = [&text](int64_t count, const char* what) {
    if (count == 0) return;
    text += format("%s%lld %s%s", text.empty() ? "" : ", ", static_cast<long long>(count), what, count == 1 ? "" : "s");
  };
  for (size_t kind = 0; kind < live_.size(); ++kind) add(live_[kind], handle_kind_name(static_cast<int64_t>(kind)));
  const std::lock_guard lock(mutex_);
  add(static_cast<int64_t>(device_blocks_.size()), "device allocation");
  if (!device_blocks_.empty()) text += format(" (%lld bytes)", static_cast<long long>(allocated_));
  add(static_cast<int64_t>(host_blocks_.size()), "pinned allocation");
  return text;
}

// ---- the library's own memory -------------------------------------------------------------------------------------

DeviceBuffer::DeviceBuffer(Context& context, int64_t bytes, const char* what) : bytes_(bytes) {
  context.use();
  void* address = nullptr;
  const cudaError_t status = cudaMalloc(&address, static_cast<size_t>(std::max<int64_t>(bytes, 1)));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw Error(DLFS_ERROR_MEMORY, format("%lld bytes for %s could not be allocated on device %d",
                                          static_cast<long long>(bytes), what, context.device));
  }
  if (status != cudaSuccess) throw_cuda(status, "cudaMalloc");
  memory_ = std::shared_ptr<void>(address, [device = context.device](void* p) {
    cudaSetDevice(device);
    cudaFree(p);
  });
  context_ = context.shared_from_this();
}

DeviceBuffer::~DeviceBuffer() {
  if (!memory_) return;
  try {
    context_->release(std::move(memory_));
  } catch (const std::exception&) {  // a destructor has nobody to tell; the next call on the device reports it again
  }
}

ContextTable& contexts() {
  static auto* const table = new ContextTable();
  return *table;
}

StreamTable& streams() {
  static auto* const table = new StreamTable();
  return *table;
}

}  // namespace dlfs
