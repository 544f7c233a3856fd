// Entry points of the library, contexts, memory and copies.
#include <cudnn.h>

#include <algorithm>
#include <cstring>

#include "common/arguments.hpp"
#include "cuda/runtime.hpp"

namespace dlfs {
namespace {

// Copies text into a buffer of `capacity` bytes, truncated, always NUL-terminated.
void write_text(char* out, int64_t capacity, const std::string& text) {
  check_pointer(out, "out");
  check_size(capacity, "capacity");
  const size_t length = std::min(text.size(), static_cast<size_t>(capacity - 1));
  std::memcpy(out, text.data(), length);
  out[length] = 0;
}

// Devices that can be used; none where the driver is missing, too old, or refuses to start.
int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

void check_device(int32_t device) {
  const int count = device_count();
  DLFS_CHECK(count > 0, DLFS_ERROR_UNSUPPORTED,
             "no CUDA device was found: is NVIDIA's driver installed and recent enough?");
  DLFS_CHECK(device >= 0 && device < count, DLFS_ERROR_ARGUMENT, "expected a device from 0 to %d, got %d", count - 1,
             device);
}

std::string cuda_version_text(int version) { return format("%d.%d", version / 1000, version % 1000 / 10); }

bool supports(Context& context, std::string_view feature) {
  if (feature == "bf16" || feature == "conv.bf16" || feature == "tf32") return context.compute_capability >= 80;
  if (feature == "conv.f8") return context.compute_capability >= 89;
  if (feature == "conv.i8") return context.compute_capability >= 80;
  if (feature == "conv.pad8") return context.pad_channels;
  for (const char* name : {"f16", "conv.f16", "conv.epilogue", "graph", "graph.lanes"}) {
    if (feature == name) return true;
  }
  if (feature == "collectives") return has_nccl();
  if (feature == "conv.moments.bf16" || feature == "conv.moments.f16") return context.compute_capability == 90;
  return images_support(context, feature);
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_build_info(char* out, int64_t capacity) {
  return guard("dlfs_build_info", [&] {
    int runtime = 0, driver = 0;
    cudaRuntimeGetVersion(&runtime);
    cudaDriverGetVersion(&driver);  // 0 without a driver
    cudaGetLastError();
    const size_t cudnn = cudnnGetVersion();
    // Through volatile, so that the library holds the hash in one piece: tests make a stale copy of it by changing the bytes.
    const char* volatile header_hash = DLFS_HEADER_HASH;
    std::string text = format("backend=cuda\nheader=%s\n", header_hash);
    text += "cuda=" + cuda_version_text(runtime) + "\n";
    text += "cuda_driver=" + (driver > 0 ? cuda_version_text(driver) : std::string("none")) + "\n";
    text += format("cudnn=%zu.%zu.%zu\n", cudnn / 10000, cudnn % 10000 / 100, cudnn % 100);
    text += cublaslt_build_info();
    text += images_build_info();
    text += nccl_build_info();
    text += "archs=" DLFS_CUDA_ARCHS "\n";
    write_text(out, capacity, text);
  });
}

dlfs_status dlfs_device_count(int32_t* out) {
  return guard("dlfs_device_count", [&] {
    check_pointer(out, "out");
    *out = device_count();
  });
}

dlfs_status dlfs_device_info(char* name, int64_t capacity, int64_t* values, int32_t device) {
  return guard("dlfs_device_info", [&] {
    check_pointer(values, "values");
    check_device(device);
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
    write_text(name, capacity, properties.name);
    values[0] = static_cast<int64_t>(properties.totalGlobalMem);
    values[1] = properties.multiProcessorCount;
    values[2] = 10 * properties.major + properties.minor;
    values[3] = properties.l2CacheSize;
  });
}

// ---- contexts -----------------------------------------------------------------------------------------------------

dlfs_status dlfs_context_create(dlfs_context* out, int32_t device) {
  return guard("dlfs_context_create", [&] {
    check_pointer(out, "out");
    check_device(device);
    *out = contexts().add(std::make_shared<Context>(device));
  });
}

dlfs_status dlfs_context_destroy(dlfs_context ctx) {
  return guard("dlfs_context_destroy", [&] {
    const std::string left = contexts().find(ctx)->leftovers();
    DLFS_CHECK(left.empty(), DLFS_ERROR_ARGUMENT, "still in use: %s", left.c_str());
    contexts().remove(ctx);
  });
}

dlfs_status dlfs_context_option(dlfs_context ctx, const char* name, int64_t value) {
  return context_call("dlfs_context_option", ctx, [&](Context& context) {
    check_pointer(name, "name");
    const std::string_view option = name;
    if (option == "deterministic") {
      check_range(value, 0, 1, "deterministic");
      context.deterministic = value != 0;
    } else if (option == "tf32") {
      check_range(value, 0, 1, "tf32");
      context.tf32 = value != 0;
    } else if (option == "threads") {
      check_range(value, 0, INT32_MAX, "threads");  // of the CPU backend
    } else if (option == "conv.pad8") {
      check_range(value, 0, 1, "conv.pad8");
      context.pad_channels = value != 0;
    } else {
      throw Error(DLFS_ERROR_ARGUMENT,
                  format("expected deterministic, tf32, threads or conv.pad8, got '%.100s'", name));
    }
  });
}

dlfs_status dlfs_supports(dlfs_context ctx, int32_t* out, const char* feature) {
  return context_call("dlfs_supports", ctx, [&](Context& context) {
    check_pointer(out, "out");
    check_pointer(feature, "feature");
    *out = supports(context, feature) ? 1 : 0;
  });
}

// ---- memory -------------------------------------------------------------------------------------------------------

dlfs_status dlfs_malloc(dlfs_context ctx, void** out, int64_t bytes) {
  return context_call("dlfs_malloc", ctx, [&](Context& context) {
    check_pointer(out, "out");
    *out = context.allocate(bytes);
  });
}

dlfs_status dlfs_free(dlfs_context ctx, void* address) {
  return context_call("dlfs_free", ctx, [&](Context& context) { context.free(address); });
}

dlfs_status dlfs_host_malloc(dlfs_context ctx, void** out, int64_t bytes) {
  return context_call("dlfs_host_malloc", ctx, [&](Context& context) {
    check_pointer(out, "out");
    *out = context.allocate_host(bytes);
  });
}

dlfs_status dlfs_host_free(dlfs_context ctx, void* address) {
  return context_call("dlfs_host_free", ctx, [&](Context& context) { context.free_host(address); });
}

dlfs_status dlfs_memory_info(dlfs_context ctx, int64_t* values) {
  return context_call("dlfs_memory_info", ctx, [&](Context& context) {
    check_pointer(values, "values");
    context.memory_info(values);
  });
}

// ---- copies -------------------------------------------------------------------------------------------------------

dlfs_status dlfs_copy_to_device(dlfs_stream stream, void* dst, const void* pinned_src, int64_t bytes) {
  return stream_call("dlfs_copy_to_device", stream, [&](Stream& s) {
    check_count(bytes, "bytes");
    if (bytes == 0) return;
    check_pointer(dst, "dst");
    check_pointer(pinned_src, "pinned_src");
    CUDA_CHECK(cudaMemcpyAsync(dst, pinned_src, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, s.stream));
  });
}

dlfs_status dlfs_copy_to_host(dlfs_stream stream, void* pinned_dst, const void* src, int64_t bytes) {
  return stream_call("dlfs_copy_to_host", stream, [&](Stream& s) {
    check_count(bytes, "bytes");
    if (bytes == 0) return;
    check_pointer(pinned_dst, "pinned_dst");
    check_pointer(src, "src");
    CUDA_CHECK(cudaMemcpyAsync(pinned_dst, src, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, s.stream));
  });
}

dlfs_status dlfs_copy(dlfs_stream stream, void* dst, const void* src, int64_t bytes) {
  return stream_call("dlfs_copy", stream, [&](Stream& s) {
    check_count(bytes, "bytes");
    if (bytes == 0) return;
    check_pointer(dst, "dst");
    check_pointer(src, "src");
    check_no_overlap(dst, bytes, "dst", src, bytes, "src");
    CUDA_CHECK(cudaMemcpyAsync(dst, src, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, s.stream));
  });
}

dlfs_status dlfs_memset(dlfs_stream stream, void* dst, int64_t bytes, int32_t value) {
  return stream_call("dlfs_memset", stream, [&](Stream& s) {
    check_count(bytes, "bytes");
    if (bytes == 0) return;
    check_pointer(dst, "dst");
    CUDA_CHECK(cudaMemsetAsync(dst, value & 0xff, static_cast<size_t>(bytes), s.stream));
  });
}

dlfs_status dlfs_upload_sync(dlfs_stream stream, void* dst, const void* src, int64_t bytes) {
  return stream_call("dlfs_upload_sync", stream, [&](Stream& s) {
    s.require_not_capturing("an upload");
    check_count(bytes, "bytes");
    if (bytes > 0) {
      check_pointer(dst, "dst");
      check_pointer(src, "src");
      CUDA_CHECK(cudaMemcpyAsync(dst, src, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, s.stream));
    }
    s.synchronize();
  });
}

dlfs_status dlfs_download_sync(dlfs_stream stream, void* dst, const void* src, int64_t bytes) {
  return stream_call("dlfs_download_sync", stream, [&](Stream& s) {
    s.require_not_capturing("a download");
    check_count(bytes, "bytes");
    if (bytes > 0) {
      check_pointer(dst, "dst");
      check_pointer(src, "src");
      CUDA_CHECK(cudaMemcpyAsync(dst, src, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, s.stream));
    }
    s.synchronize();
  });
}

}  // extern "C"
