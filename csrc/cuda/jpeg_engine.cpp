#include "cuda/jpeg_engine.hpp"

#include <nvjpeg.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "cuda/nvjpeg.hpp"

namespace dlfs {
namespace {

// Memory of an engine beyond this is given back after the batch that needed it.
constexpr size_t kept_bytes = size_t{256} << 20;
// Blocks are multiples of this, so that images of slightly different sizes find each other's.
constexpr size_t block_bytes = size_t{1} << 20;
// NVJPEG_FLAGS_BITSTREAM_STRICT is not among them: an error of one image is one of its whole batch. What the flag would
// find, jpeg_route.hpp looks for before.
constexpr unsigned flags = NVJPEG_FLAGS_UPSAMPLING_WITH_INTERPOLATION;

// Device or pinned memory of one engine. What nvJPEG frees rests until the stream has passed and serves again then: its work
// may still use it.
class BlockPool {
 public:
  BlockPool(Context& context, cudaError_t (*allocate)(void**, size_t), void (*deleter)(void*))
      : context_(context), allocate_(allocate), deleter_(deleter) {}
  ~BlockPool() {
    for (const auto& [address, bytes] : used_) free_.emplace(bytes, address);
    drop();
  }
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  cudaError_t get(void** out, size_t bytes) noexcept {
    try {
      const std::lock_guard lock(mutex_);
      const size_t size = (std::max(bytes, size_t{1}) + block_bytes - 1) / block_bytes * block_bytes;
      const auto found = free_.lower_bound(size);
      if (found != free_.end() && found->first <= 2 * size) {
        *out = found->second;
        used_[*out] = found->first;
        free_.erase(found);
        return cudaSuccess;
      }
      const cudaError_t status = allocate_(out, size);
      if (status == cudaSuccess) {
        used_[*out] = size;
        total_ += size;
      }
      return status;
    } catch (const std::bad_alloc&) {
      return cudaErrorMemoryAllocation;
    }
  }

  cudaError_t put(void* address) noexcept {
    const std::lock_guard lock(mutex_);
    const auto found = used_.find(address);
    if (found == used_.end()) return cudaErrorInvalidValue;
    try {
      resting_.emplace_back(found->second, address);
    } catch (const std::bad_alloc&) {
      return cudaErrorMemoryAllocation;  // stays in used_, and ends with the pool
    }
    used_.erase(found);
    return cudaSuccess;
  }

  // The stream has passed.
  void recycle() {
    const std::lock_guard lock(mutex_);
    free_.insert(resting_.begin(), resting_.end());
    resting_.clear();
  }

  // Gives free blocks back where there is more than is kept.
  void trim() {
    if (total_ > kept_bytes) drop();
  }

 private:
  void drop() noexcept {
    const std::lock_guard lock(mutex_);
    free_.insert(resting_.begin(), resting_.end());
    resting_.clear();
    for (const auto& [bytes, address] : free_) {
      total_ -= bytes;
      try {
        context_.release(std::shared_ptr<void>(address, deleter_));
      } catch (const std::exception&) {  // the next call on the device reports it again
      }
    }
    free_.clear();
  }

  Context& context_;
  cudaError_t (*allocate_)(void**, size_t);
  void (*deleter_)(void*);
  std::mutex mutex_;
  std::map<void*, size_t> used_;
  std::multimap<size_t, void*> free_;
  std::vector<std::pair<size_t, void*>> resting_;
  size_t total_ = 0;
};

cudaError_t allocate_device(void** out, size_t bytes) { return cudaMalloc(out, bytes); }
cudaError_t allocate_pinned(void** out, size_t bytes) { return cudaHostAlloc(out, bytes, cudaHostAllocDefault); }
void free_device(void* p) { cudaFree(p); }
void free_pinned(void* p) { cudaFreeHost(p); }

int pool_get(void* pool, void** out, size_t bytes, cudaStream_t) { return static_cast<BlockPool*>(pool)->get(out, bytes); }
int pool_put(void* pool, void* address, size_t, cudaStream_t) { return static_cast<BlockPool*>(pool)->put(address); }

JpegEngineInfo look_up() {
  nvjpegHandle_t handle = nullptr;
  const nvjpegStatus_t made = nvjpegCreateEx(NVJPEG_BACKEND_HARDWARE, nullptr, nullptr, flags, &handle);
  JpegEngineInfo info;
  if (made == NVJPEG_STATUS_SUCCESS) {
    unsigned engines = 0, cores = 0;
    if (nvjpegGetHardwareDecoderInfo(handle, &engines, &cores) == NVJPEG_STATUS_SUCCESS) {
      info.engines = static_cast<int>(engines);
      info.cores = static_cast<int>(std::max(cores, 1u));
    }
    nvjpegDestroy(handle);
  }
  cudaGetLastError();  // what the refusal may have left behind
  return info;
}

}  // namespace

// Several images for each core: on an H100 batches of 32 decoded a fifth faster than of 16, and those of 64 no faster.
int JpegEngineInfo::batch() const { return std::clamp(4 * engines * cores, 8, 64); }

JpegEngineInfo jpeg_engines(Context& context) {
  static std::mutex mutex;
  static auto* const known = new std::map<int, JpegEngineInfo>();
  const std::lock_guard lock(mutex);
  const auto found = known->find(context.device);
  if (found != known->end()) return found->second;
  context.use();
  return (*known)[context.device] = look_up();
}

struct NvjpegEngine {
  BlockPool device_pool, pinned_pool;
  nvjpegDevAllocatorV2_t device_allocator;
  nvjpegPinnedAllocatorV2_t pinned_allocator;
  OwnedNvjpeg<nvjpegHandle_t, nvjpegDestroy> handle;
  OwnedNvjpeg<nvjpegJpegState_t, nvjpegJpegStateDestroy> state;
  OwnedNvjpeg<nvjpegJpegStream_t, nvjpegJpegStreamDestroy> parsed;
  OwnedNvjpeg<nvjpegDecodeParams_t, nvjpegDecodeParamsDestroy> parameters;
  // Of a batch.
  std::vector<const unsigned char*> bytes;
  std::vector<size_t> lengths;
  std::vector<nvjpegImage_t> outputs;

  explicit NvjpegEngine(Context& context)
      : device_pool(context, allocate_device, free_device),
        pinned_pool(context, allocate_pinned, free_pinned),
        device_allocator{pool_get, pool_put, &device_pool},
        pinned_allocator{pool_get, pool_put, &pinned_pool} {
    nvjpegHandle_t new_handle = nullptr;
    NVJPEG_CHECK(
        nvjpegCreateExV2(NVJPEG_BACKEND_HARDWARE, &device_allocator, &pinned_allocator, flags, &new_handle));
    handle.reset(new_handle);
    nvjpegJpegStream_t new_parsed = nullptr;
    NVJPEG_CHECK(nvjpegJpegStreamCreate(new_handle, &new_parsed));
    parsed.reset(new_parsed);
    nvjpegDecodeParams_t new_parameters = nullptr;
    NVJPEG_CHECK(nvjpegDecodeParamsCreate(new_handle, &new_parameters));
    parameters.reset(new_parameters);
    NVJPEG_CHECK(nvjpegDecodeParamsSetOutputFormat(new_parameters, NVJPEG_OUTPUT_RGBI));
    make_state(jpeg_engines(context).batch());
  }

  void make_state(int batch) {
    state.reset();
    nvjpegJpegState_t new_state = nullptr;
    NVJPEG_CHECK(nvjpegJpegStateCreate(handle.get(), &new_state));
    state.reset(new_state);
    // Has nvJPEG keep its buffers from batch to batch; they grow to what images need.
    NVJPEG_CHECK(nvjpegDecodeBatchedPreAllocate(handle.get(), new_state, batch, 1, 1, NVJPEG_CSS_444, NVJPEG_OUTPUT_RGBI));
  }
};

JpegEngine::JpegEngine(Context& context)
    : context_(context.shared_from_this()), engine_(std::make_unique<NvjpegEngine>(context)) {}

JpegEngine::~JpegEngine() = default;

bool JpegEngine::takes(const uint8_t* bytes, int64_t length) {
  NvjpegEngine& e = *engine_;
  if (nvjpegJpegStreamParseHeader(e.handle.get(), bytes, static_cast<size_t>(length), e.parsed.get()) !=
      NVJPEG_STATUS_SUCCESS) {
    return false;
  }
  int unsupported = 1;
  return nvjpegDecodeBatchedSupportedEx(e.handle.get(), e.parsed.get(), e.parameters.get(), &unsupported) ==
             NVJPEG_STATUS_SUCCESS &&
         unsupported == 0;
}

bool JpegEngine::decode(const Stream& stream, const EngineImage* images, int n) {
  NvjpegEngine& e = *engine_;
  e.device_pool.recycle();
  e.pinned_pool.recycle();
  e.bytes.clear();
  e.lengths.clear();
  e.outputs.clear();
  for (int i = 0; i < n; ++i) {
    e.bytes.push_back(images[i].bytes);
    e.lengths.push_back(images[i].length);
    nvjpegImage_t output{};
    output.channel[0] = images[i].rgb;
    output.pitch[0] = static_cast<size_t>(images[i].width) * 3;
    e.outputs.push_back(output);
  }
  NVJPEG_CHECK(nvjpegDecodeBatchedInitialize(e.handle.get(), e.state.get(), n, 1, NVJPEG_OUTPUT_RGBI));
  const nvjpegStatus_t status = nvjpegDecodeBatched(e.handle.get(), e.state.get(), e.bytes.data(), e.lengths.data(),
                                                    e.outputs.data(), stream.stream);
  if (status == NVJPEG_STATUS_SUCCESS) return true;
  if (status == NVJPEG_STATUS_ALLOCATOR_FAILURE) throw_nvjpeg(status, "nvjpegDecodeBatched");
  const cudaError_t cuda = cudaStreamSynchronize(stream.stream);
  if (cuda != cudaSuccess) throw_cuda(cuda, "nvjpegDecodeBatched");
  cudaGetLastError();
  // A state that failed is not trusted with other files.
  e.make_state(n);
  return false;
}

void JpegEngine::trim() {
  engine_->device_pool.trim();
  engine_->pinned_pool.trim();
}

}  // namespace dlfs
