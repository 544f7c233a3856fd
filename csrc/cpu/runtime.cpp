// Library information, contexts and the machine's description for the CPU backend.
#include "cpu/runtime.hpp"

#include <omp.h>
#include <sched.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <dnnl.hpp>
#include <fstream>
#include <sstream>

#include "common/image.hpp"
#include "cpu/comm_gloo.hpp"

#if defined(DLFS_HAVE_LIBJPEG)
#include <jpeglib.h>

#include <cstdio>
#endif

#if !defined(DLFS_HEADER_HASH)
#define DLFS_HEADER_HASH "unknown"
#endif

namespace dlfs::cpu {

namespace {

auto& contexts() {
  static auto& table = *new HandleTable<Context, HandleKind::context>;
  return table;
}

#define DLFS_TEXT_(x) #x
#define DLFS_TEXT(x) DLFS_TEXT_(x)

const char* jpeg_version() {
#if defined(LIBJPEG_TURBO_VERSION)
  return DLFS_TEXT(LIBJPEG_TURBO_VERSION);
#elif defined(JPEG_LIB_VERSION)
  return "libjpeg " DLFS_TEXT(JPEG_LIB_VERSION);
#else
  return "none";
#endif
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (colon != std::string::npos && line.compare(0, 10, "model name") == 0)
      return line.substr(std::min(colon + 2, line.size()));
  }
  return "CPU";
}

// The CPU quota of the control group, in cores, rounded up; 0 where there is none.
int quota_cores() {
  std::ifstream unified("/sys/fs/cgroup/cpu.max");
  double quota = 0, period = 0;
  if (unified >> quota >> period && quota > 0 && period > 0) return static_cast<int>(std::ceil(quota / period));
  std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  if (quota_file >> quota && period_file >> period && quota > 0 && period > 0)
    return static_cast<int>(std::ceil(quota / period));
  return 0;
}

const char* isa_name() {
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::sse41: return "sse4.1";
    case dnnl::cpu_isa::avx: return "avx";
    case dnnl::cpu_isa::avx2: return "avx2";
    case dnnl::cpu_isa::avx2_vnni: return "avx2_vnni";
    case dnnl::cpu_isa::avx512_core: return "avx512";
    case dnnl::cpu_isa::avx512_core_vnni: return "avx512_vnni";
    case dnnl::cpu_isa::avx512_core_bf16: return "avx512_bf16";
    case dnnl::cpu_isa::avx512_core_amx: return "amx";
    default: return "generic";
  }
}

void copy_text(char* out, int64_t capacity, const std::string& text) {
  check_pointer(out, "out");
  check_size(capacity, "capacity");
  const size_t length = std::min(text.size(), static_cast<size_t>(capacity) - 1);
  std::memcpy(out, text.data(), length);
  out[length] = '\0';
}

void check_device(int32_t device) {
  DLFS_CHECK(device == 0, DLFS_ERROR_ARGUMENT, "the CPU backend has one device, 0; got %d", device);
}

}  // namespace

std::shared_ptr<Context> require_context(dlfs_context handle) { return contexts().find(handle); }

bool has_bf16() {
  const dnnl::cpu_isa isa = dnnl::get_effective_cpu_isa();
  return isa == dnnl::cpu_isa::avx512_core_bf16 || isa == dnnl::cpu_isa::avx512_core_amx;
}

int available_cores() {
  static const int cores = [] {
    const int quota = quota_cores();
    const int allowed = std::max(1, omp_get_num_procs());
    return quota > 0 ? std::min(quota, allowed) : allowed;
  }();
  return cores;
}

}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_build_info(char* out, int64_t capacity) {
  return guard("dlfs_build_info", [&] {
    const dnnl_version_t* version = dnnl_version();
    std::ostringstream text;
    // Through volatile, so that the library holds the hash in one piece: tests make a stale copy of it by changing the
    // bytes.
    const char* volatile header_hash = DLFS_HEADER_HASH;
    text << "backend=cpu\nheader=" << header_hash << "\nonednn=" << version->major << '.' << version->minor << '.'
         << version->patch << "\nlibjpeg-turbo=" << jpeg_version() << '\n' << image_files_build_info() << gloo_build_info() << "isa=" << isa_name()
         << "\nthreads=" << available_cores() << '\n';
    copy_text(out, capacity, text.str());
  });
}

extern "C" dlfs_status dlfs_device_count(int32_t* out) {
  return guard("dlfs_device_count", [&] {
    check_pointer(out, "out");
    *out = 1;
  });
}

extern "C" dlfs_status dlfs_device_info(char* name, int64_t capacity, int64_t* values, int32_t device) {
  return guard("dlfs_device_info", [&] {
    check_device(device);
    check_pointer(name, "name");
    check_pointer(values, "values");
    copy_text(name, capacity, cpu_name());
    values[0] = machine_memory().total;
    values[1] = available_cores();
    values[2] = 0;
    values[3] = std::max(0L, sysconf(_SC_LEVEL2_CACHE_SIZE));
  });
}

extern "C" dlfs_status dlfs_context_create(dlfs_context* out, int32_t device) {
  return guard("dlfs_context_create", [&] {
    check_pointer(out, "out");
    check_device(device);
    *out = contexts().add(std::make_shared<Context>());
  });
}

extern "C" dlfs_status dlfs_context_destroy(dlfs_context ctx) {
  return guard("dlfs_context_destroy", [&] {
    const std::string left = contexts().find(ctx)->leftovers();
    DLFS_CHECK(left.empty(), DLFS_ERROR_ARGUMENT, "not released: %s", left.c_str());
    contexts().remove(ctx);
  });
}

extern "C" dlfs_status dlfs_context_option(dlfs_context ctx, const char* name, int64_t value) {
  return guard("dlfs_context_option", [&] {
    std::shared_ptr<Context> context = contexts().find(ctx);
    check_pointer(name, "name");
    const std::string option = name;
    if (option == "threads") {
      check_range(value, 0, 4096, "threads");
      context->set_threads(value);
    } else if (option == "deterministic" || option == "tf32") {
      // Sums have a fixed order for a given number of threads, and there is no TF32: both hold already.
      check_range(value, 0, 1, name);
    } else if (option == "conv.pad8") {
      check_range(value, 0, 1, name);
      context->pad_channels = value != 0;
    } else {
      throw Error(DLFS_ERROR_ARGUMENT,
                  format("unknown option '%s', expected deterministic, tf32, threads or conv.pad8", name));
    }
  });
}

extern "C" dlfs_status dlfs_supports(dlfs_context ctx, int32_t* out, const char* feature) {
  return guard("dlfs_supports", [&] {
    const std::shared_ptr<Context> context = contexts().find(ctx);
    check_pointer(out, "out");
    check_pointer(feature, "feature");
    const std::string name = feature;
    if (name == "bf16" || name == "conv.bf16" || name == "conv.moments.bf16") {
      *out = has_bf16();
    } else if (name == "conv.pad8") {
      *out = context->pad_channels;
    } else if (name == "collectives") {
      *out = has_gloo();
    } else {
      *out = name == "conv.epilogue" || name == "conv.moments.f32" || name == "conv.f8" || name == "conv.i8" ||
             name == "graph" || name == "jpeg.decode" || name == "jpeg.encode" || name == "jpeg.cmyk" ||
             image_files_support(name);
    }
  });
}
