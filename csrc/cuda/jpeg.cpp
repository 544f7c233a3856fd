// JPEG through nvJPEG, with libjpeg-turbo beside it.
//
// nvJPEG decodes by its hybrid method: Huffman decoding on the calling thread, the rest on the GPU. Threads scale it,
// the result does not depend on what else runs, and damage is found on the host, where it can be reported.
#include "cuda/jpeg.hpp"

#include <algorithm>
#include <cstring>
#include <map>

#include "common/image.hpp"
#include "common/jpeg_turbo.hpp"
#include "cuda/jpeg_engine.hpp"
#include "cuda/jpeg_route.hpp"
#include "cuda/nvjpeg.hpp"

#ifdef DLFS_HAVE_LIBJPEG
#include <cstdio>  // jpeglib.h needs FILE

#include <jpeglib.h>
#endif

namespace dlfs {

const char* nvjpeg_text(int status) {
  switch (status) {
    case NVJPEG_STATUS_NOT_INITIALIZED: return "not initialized";
    case NVJPEG_STATUS_INVALID_PARAMETER: return "invalid parameter";
    case NVJPEG_STATUS_BAD_JPEG: return "bad JPEG";
    case NVJPEG_STATUS_JPEG_NOT_SUPPORTED: return "JPEG not supported";
    case NVJPEG_STATUS_ALLOCATOR_FAILURE: return "allocation failed";
    case NVJPEG_STATUS_EXECUTION_FAILED: return "execution failed";
    case NVJPEG_STATUS_ARCH_MISMATCH: return "architecture mismatch";
    case NVJPEG_STATUS_INTERNAL_ERROR: return "internal error";
    case NVJPEG_STATUS_IMPLEMENTATION_NOT_SUPPORTED: return "implementation not supported";
    case NVJPEG_STATUS_INCOMPLETE_BITSTREAM: return "incomplete bitstream";
    default: return "unknown status";
  }
}

void throw_nvjpeg(nvjpegStatus_t status, const char* call) {
  const cudaError_t cuda = cudaGetLastError();
  if (cuda_error_is_fatal(cuda)) throw_cuda(cuda, call);
  const dlfs_status code = status == NVJPEG_STATUS_ALLOCATOR_FAILURE ? DLFS_ERROR_MEMORY : DLFS_ERROR_NVJPEG;
  throw Error(code, format("%s (%d) from %s%s%s", nvjpeg_text(status), static_cast<int>(status), call,
                           cuda == cudaSuccess ? "" : ": ", cuda == cudaSuccess ? "" : cudaGetErrorString(cuda)));
}

namespace {

// Memory for images of more pixels than this is given back after use.
constexpr int64_t kept_pixels = int64_t{1} << 24;
// Bytes behind the file that a decoder's look-ahead may touch; end markers, so that it stops there.
constexpr size_t guard_bytes = 1024;
constexpr int64_t megabyte = int64_t{1} << 20;

// What nvJPEG says about the file rather than about the machine.
struct Refusal {
  std::string text;
};

// As NVJPEG_CHECK for calls that look at the file: what can be its fault is a Refusal.
void check_file(nvjpegStatus_t status, const char* call) {
  switch (status) {
    case NVJPEG_STATUS_SUCCESS: return;
    case NVJPEG_STATUS_NOT_INITIALIZED:
    case NVJPEG_STATUS_ALLOCATOR_FAILURE:
    case NVJPEG_STATUS_ARCH_MISMATCH: throw_nvjpeg(status, call);
    default: break;
  }
  const cudaError_t cuda = cudaGetLastError();
  if (cuda != cudaSuccess) throw_cuda(cuda, call);
  throw Refusal{format("nvJPEG: %s (%d) from %s", nvjpeg_text(status), static_cast<int>(status), call)};
}

// Gives memory back by way of Context::release, as freeing it at once would spoil a capture that is underway.
int release_memory(void* context, void* memory, void (*deleter)(void*)) noexcept {
  try {
    static_cast<Context*>(context)->release(std::shared_ptr<void>(memory, deleter));
    return cudaSuccess;
  } catch (const std::exception&) {
    return cudaErrorUnknown;
  }
}

void free_device(void* p) { cudaFree(p); }
void free_pinned(void* p) { cudaFreeHost(p); }

int nvjpeg_device_malloc(void*, void** out, size_t bytes, cudaStream_t) { return cudaMalloc(out, bytes); }
int nvjpeg_device_free(void* context, void* p, size_t, cudaStream_t) { return release_memory(context, p, free_device); }
int nvjpeg_pinned_malloc(void*, void** out, size_t bytes, cudaStream_t) {
  return cudaHostAlloc(out, bytes, cudaHostAllocDefault);
}
int nvjpeg_pinned_free(void* context, void* p, size_t, cudaStream_t) { return release_memory(context, p, free_pinned); }

}  // namespace

// nvJPEG's handle, shared by all codecs of a context: it may be used by several threads at once. The context outlives
// it, as each codec holds the context too.
struct NvjpegDevice {
  nvjpegDevAllocatorV2_t device_allocator;
  nvjpegPinnedAllocatorV2_t pinned_allocator;
  nvjpegHandle_t handle = nullptr;

  explicit NvjpegDevice(Context& context)
      : device_allocator{nvjpeg_device_malloc, nvjpeg_device_free, &context},
        pinned_allocator{nvjpeg_pinned_malloc, nvjpeg_pinned_free, &context} {
    // Strict: damage is to be reported, not painted over. Chroma is interpolated as libjpeg-turbo does.
    const unsigned flags = (NVJPEG_FLAGS_BITSTREAM_STRICT) | (NVJPEG_FLAGS_UPSAMPLING_WITH_INTERPOLATION);
    NVJPEG_CHECK(nvjpegCreateExV2(NVJPEG_BACKEND_HYBRID, &device_allocator, &pinned_allocator, flags, &handle));
    // Buffers are sized in steps, so that images of slightly different sizes do not reallocate them.
    try {
      NVJPEG_CHECK(nvjpegSetDeviceMemoryPadding(static_cast<size_t>(4 * megabyte), handle));
      NVJPEG_CHECK(nvjpegSetPinnedMemoryPadding(static_cast<size_t>(2 * megabyte), handle));
    } catch (...) {
      nvjpegDestroy(handle);
      throw;
    }
  }
  ~NvjpegDevice() { nvjpegDestroy(handle); }
  NvjpegDevice(const NvjpegDevice&) = delete;
  NvjpegDevice& operator=(const NvjpegDevice&) = delete;

  static std::shared_ptr<NvjpegDevice> of(Context& context) {
    static std::mutex mutex;
    static auto* const devices = new std::map<Context*, std::weak_ptr<NvjpegDevice>>();
    const std::lock_guard lock(mutex);
    std::weak_ptr<NvjpegDevice>& entry = (*devices)[&context];
    std::shared_ptr<NvjpegDevice> device = entry.lock();
    if (!device) {
      device = std::make_shared<NvjpegDevice>(context);
      entry = device;
    }
    return device;
  }
};

struct NvjpegDecoder {
  nvjpegHandle_t handle;
  OwnedNvjpeg<nvjpegJpegDecoder_t, nvjpegDecoderDestroy> decoder;
  OwnedNvjpeg<nvjpegJpegState_t, nvjpegJpegStateDestroy> state;
  OwnedNvjpeg<nvjpegBufferPinned_t, nvjpegBufferPinnedDestroy> pinned;
  OwnedNvjpeg<nvjpegBufferDevice_t, nvjpegBufferDeviceDestroy> device;
  OwnedNvjpeg<nvjpegJpegStream_t, nvjpegJpegStreamDestroy> parsed;
  OwnedNvjpeg<nvjpegDecodeParams_t, nvjpegDecodeParamsDestroy> parameters;
  std::vector<uint8_t> file;  // with guard_bytes behind it

  explicit NvjpegDecoder(NvjpegDevice& library) : handle(library.handle) {
    nvjpegJpegDecoder_t new_decoder = nullptr;
    NVJPEG_CHECK(nvjpegDecoderCreate(handle, NVJPEG_BACKEND_HYBRID, &new_decoder));
    decoder.reset(new_decoder);
    nvjpegJpegState_t new_state = nullptr;
    NVJPEG_CHECK(nvjpegDecoderStateCreate(handle, new_decoder, &new_state));
    state.reset(new_state);
    nvjpegBufferPinned_t new_pinned = nullptr;
    NVJPEG_CHECK(nvjpegBufferPinnedCreateV2(handle, &library.pinned_allocator, &new_pinned));
    pinned.reset(new_pinned);
    nvjpegBufferDevice_t new_device = nullptr;
    NVJPEG_CHECK(nvjpegBufferDeviceCreateV2(handle, &library.device_allocator, &new_device));
    device.reset(new_device);
    NVJPEG_CHECK(nvjpegStateAttachPinnedBuffer(new_state, new_pinned));
    NVJPEG_CHECK(nvjpegStateAttachDeviceBuffer(new_state, new_device));
    nvjpegJpegStream_t new_parsed = nullptr;
    NVJPEG_CHECK(nvjpegJpegStreamCreate(handle, &new_parsed));
    parsed.reset(new_parsed);
    nvjpegDecodeParams_t new_parameters = nullptr;
    NVJPEG_CHECK(nvjpegDecodeParamsCreate(handle, &new_parameters));
    parameters.reset(new_parameters);
    NVJPEG_CHECK(nvjpegDecodeParamsSetOutputFormat(new_parameters, NVJPEG_OUTPUT_RGBI));
  }

  // Throws Refusal where nvJPEG does not decode the file.
  void decode(const Stream& stream, uint8_t* rgb, const uint8_t* bytes, int64_t length, const JpegHeader& header) {
    const size_t size = static_cast<size_t>(length);
    file.resize(size + guard_bytes);
    std::memcpy(file.data(), bytes, size);
    for (size_t i = 0; i < guard_bytes; i += 2) {
      file[size + i] = 0xff;
      file[size + i + 1] = 0xd9;
    }
    check_file(nvjpegJpegStreamParse(handle, file.data(), size, 0, 0, parsed.get()), "nvjpegJpegStreamParse");
    unsigned width = 0, height = 0;
    check_file(nvjpegJpegStreamGetFrameDimensions(parsed.get(), &width, &height), "nvjpegJpegStreamGetFrameDimensions");
    if (width != static_cast<unsigned>(header.width) || height != static_cast<unsigned>(header.height)) {
      throw Refusal{format("nvJPEG: %u x %u pixels rather than %d x %d", width, height, header.width, header.height)};
    }
    int unsupported = 0;
    check_file(nvjpegDecoderJpegSupported(decoder.get(), parsed.get(), parameters.get(), &unsupported),
               "nvjpegDecoderJpegSupported");
    if (unsupported != 0) throw Refusal{"nvJPEG: not supported"};
    check_file(nvjpegDecodeJpegHost(handle, decoder.get(), state.get(), parameters.get(), parsed.get()),
               "nvjpegDecodeJpegHost");
    check_file(nvjpegDecodeJpegTransferToDevice(handle, decoder.get(), state.get(), parsed.get(), stream.stream),
               "nvjpegDecodeJpegTransferToDevice");
    nvjpegImage_t image{};
    image.channel[0] = rgb;
    image.pitch[0] = static_cast<size_t>(header.width) * 3;
    check_file(nvjpegDecodeJpegDevice(handle, decoder.get(), state.get(), &image, stream.stream),
               "nvjpegDecodeJpegDevice");
  }
};

struct NvjpegEncoder {
  nvjpegHandle_t handle;
  OwnedNvjpeg<nvjpegEncoderState_t, nvjpegEncoderStateDestroy> state;
  OwnedNvjpeg<nvjpegEncoderParams_t, nvjpegEncoderParamsDestroy> parameters;

  NvjpegEncoder(NvjpegDevice& library, cudaStream_t stream) : handle(library.handle) {
    nvjpegEncoderState_t new_state = nullptr;
    NVJPEG_CHECK(nvjpegEncoderStateCreate(handle, &new_state, stream));
    state.reset(new_state);
    nvjpegEncoderParams_t new_parameters = nullptr;
    NVJPEG_CHECK(nvjpegEncoderParamsCreate(handle, &new_parameters, stream));
    parameters.reset(new_parameters);
    NVJPEG_CHECK(nvjpegEncoderParamsSetEncoding(new_parameters, NVJPEG_ENCODING_BASELINE_DCT, stream));
    NVJPEG_CHECK(nvjpegEncoderParamsSetSamplingFactors(new_parameters, NVJPEG_CSS_420, stream));
    NVJPEG_CHECK(nvjpegEncoderParamsSetOptimizedHuffman(new_parameters, 0, stream));
  }

  int64_t encode(const Stream& stream, uint8_t* out, int64_t capacity, const uint8_t* rgb, int32_t width,
                 int32_t height, int32_t quality) {
    NVJPEG_CHECK(nvjpegEncoderParamsSetQuality(parameters.get(), quality, stream.stream));
    nvjpegImage_t image{};
    image.channel[0] = const_cast<uint8_t*>(rgb);
    image.pitch[0] = static_cast<size_t>(width) * 3;
    NVJPEG_CHECK(nvjpegEncodeImage(handle, state.get(), parameters.get(), &image, NVJPEG_INPUT_RGBI, width, height,
                                   stream.stream));
    size_t length = 0;
    NVJPEG_CHECK(nvjpegEncodeRetrieveBitstream(handle, state.get(), nullptr, &length, stream.stream));
    CUDA_CHECK(cudaStreamSynchronize(stream.stream));
    DLFS_CHECK(length <= static_cast<size_t>(capacity), DLFS_ERROR_ARGUMENT,
               "expected a capacity of at least %zu bytes, got %lld", length, static_cast<long long>(capacity));
    NVJPEG_CHECK(nvjpegEncodeRetrieveBitstream(handle, state.get(), out, &length, stream.stream));
    CUDA_CHECK(cudaStreamSynchronize(stream.stream));
    return static_cast<int64_t>(length);
  }
};

// ---- pinned memory ------------------------------------------------------------------------------------------------

uint8_t* PinnedBuffer::reserve(int64_t bytes) {
  if (bytes > bytes_) {
    reset();
    const int64_t size = std::max(bytes + bytes / 4, least_);
    void* memory = nullptr;
    const cudaError_t status = cudaHostAlloc(&memory, static_cast<size_t>(size), cudaHostAllocDefault);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw Error(DLFS_ERROR_HOST_MEMORY,
                  format("%lld bytes of pinned host memory for an image could not be allocated",
                         static_cast<long long>(size)));
    }
    if (status != cudaSuccess) throw_cuda(status, "cudaHostAlloc");
    memory_ = std::shared_ptr<void>(memory, free_pinned);
    bytes_ = size;
  }
  return static_cast<uint8_t*>(memory_.get());
}

void PinnedBuffer::reset() noexcept {
  bytes_ = 0;
  if (!memory_) return;
  try {
    context_->release(std::move(memory_));
  } catch (const std::exception&) {  // the next call on the device reports it again
  }
}

// ---- the codec ----------------------------------------------------------------------------------------------------

JpegCodec::JpegCodec(Context& context)
    : context_(context.shared_from_this()), device_(NvjpegDevice::of(context)), staging_(context, 4 * megabyte) {}

JpegCodec::~JpegCodec() = default;

void JpegCodec::decode(const Stream& stream, uint8_t* rgb, const uint8_t* bytes, int64_t length,
                       const JpegHeader& header) {
  const int64_t pixels = int64_t{header.width} * header.height;
  largest_pixels_ = std::max(largest_pixels_, pixels);
  const JpegRoute route = route_jpeg(bytes, length, header);
#ifdef DLFS_HAVE_LIBJPEG
  const bool use_nvjpeg = route.nvjpeg;
#else
  const bool use_nvjpeg = route.alternative;
#endif
  std::string refusal;
  if (use_nvjpeg) {
    try {
      if (!decoder_) decoder_ = std::make_unique<NvjpegDecoder>(*device_);
      decoder_->decode(stream, rgb, bytes, length, header);
      return;
    } catch (const Refusal& e) {
      refusal = e.text;
    } catch (...) {
      cudaStreamSynchronize(stream.stream);
      cudaGetLastError();
      decoder_.reset();
      throw;
    }
    // What was enqueued before the refusal uses the buffers; a decoder that failed is not trusted with another file.
    CUDA_CHECK(cudaStreamSynchronize(stream.stream));
    decoder_.reset();
  }
#ifdef DLFS_HAVE_LIBJPEG
  const int64_t size = pixels * 3;
  uint8_t* const host = staging_.reserve(size);
  jpeg_turbo_decode(host, bytes, length, header);
  CUDA_CHECK(cudaMemcpyAsync(rgb, host, static_cast<size_t>(size), cudaMemcpyHostToDevice, stream.stream));
#else
  if (!refusal.empty()) throw Error(DLFS_ERROR_IMAGE, "damaged or unsupported JPEG: " + refusal);
  const bool damaged = std::strcmp(route.reason, "malformed tables") == 0;
  throw Error(damaged ? DLFS_ERROR_IMAGE : DLFS_ERROR_UNSUPPORTED,
              format("a JPEG with %s: nvJPEG cannot decode it, and this library was built without libjpeg-turbo",
                     route.reason));
#endif
}

int64_t JpegCodec::encode(const Stream& stream, uint8_t* out, int64_t capacity, const uint8_t* rgb, int32_t width,
                          int32_t height, int32_t quality) {
  try {
    if (!encoder_) encoder_ = std::make_unique<NvjpegEncoder>(*device_, stream.stream);
    return encoder_->encode(stream, out, capacity, rgb, width, height, quality);
  } catch (...) {
    cudaStreamSynchronize(stream.stream);
    cudaGetLastError();
    encoder_.reset();
    throw;
  }
}

void JpegCodec::trim() {
  if (largest_pixels_ <= kept_pixels) return;
  largest_pixels_ = 0;
  decoder_.reset();
  staging_.reset();
}

// ---- what the library says about itself ---------------------------------------------------------------------------

bool images_support(Context& context, std::string_view feature) {
  if (feature == "jpeg.hardware") return jpeg_engines(context).engines > 0;
  if (feature == "jpeg.decode" || feature == "jpeg.encode") return true;
#ifdef DLFS_HAVE_LIBJPEG
  if (feature == "jpeg.cmyk") return true;
#endif
  return image_files_support(feature);
}

std::string images_build_info() {
  int version[3] = {0, 0, 0};
  nvjpegGetProperty(MAJOR_VERSION, &version[0]);
  nvjpegGetProperty(MINOR_VERSION, &version[1]);
  nvjpegGetProperty(PATCH_LEVEL, &version[2]);
  std::string text = format("nvjpeg=%d.%d.%d\n", version[0], version[1], version[2]);
#ifdef DLFS_HAVE_LIBJPEG
#define DLFS_TEXT_OF(x) #x
#define DLFS_TEXT(x) DLFS_TEXT_OF(x)
#ifdef LIBJPEG_TURBO_VERSION
  text += "libjpeg-turbo=" DLFS_TEXT(LIBJPEG_TURBO_VERSION) "\n";
#else
  text += "libjpeg=" DLFS_TEXT(JPEG_LIB_VERSION) "\n";
#endif
#endif
  text += image_files_build_info();
  return text;
}

}  // namespace dlfs
