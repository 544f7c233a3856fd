// Memory of the CPU backend: a context's allocations, and copies between them.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>

#include "cpu/runtime.hpp"

namespace dlfs::cpu {

namespace {

// Bytes from which memory is mapped: huge pages then spare the convolutions many misses of the address cache.
constexpr int64_t map_from = int64_t{2} << 20;
// A copy of this many bytes is shared between threads.
constexpr int64_t parallel_copy_from = int64_t{1} << 20;

std::atomic<int64_t> reserved_bytes{0};  // of all contexts

int64_t read_number(const char* path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : -1;
}

// Private memory of this process that is in use (touched), in bytes; files and shared memory do not count.
int64_t touched_bytes() {
  std::ifstream file("/proc/self/statm");
  int64_t total = 0, resident = 0, shared = 0;
  if (!(file >> total >> resident >> shared)) return 0;
  return (resident - shared) * sysconf(_SC_PAGESIZE);
}

std::string mib(int64_t bytes) { return format("%.1f MiB", static_cast<double>(bytes) / (1 << 20)); }

}  // namespace

MachineMemory machine_memory() {
  MachineMemory memory{std::numeric_limits<int64_t>::max(), 0};
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  for (int64_t kib = 0; file >> key >> kib; std::getline(file, unit)) {
    if (key == "MemTotal:") memory.total = kib * 1024;
    if (key == "MemAvailable:") memory.available = kib * 1024;
  }
  if (memory.total == 0) memory.total = sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
  const char* const groups[2][3] = {
      {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"},
      {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
       "/sys/fs/cgroup/memory/memory.stat"}};
  for (const auto& group : groups) {
    const int64_t limit = read_number(group[0]), used = read_number(group[1]);
    if (limit <= 0 || limit >= memory.total || used < 0) continue;
    int64_t cached = 0;  // of files, which the kernel drops before it refuses memory
    std::ifstream stat(group[2]);
    for (int64_t value = 0; stat >> key >> value;) {
      if (key == "inactive_file") cached = value;
    }
    memory.total = limit;
    memory.available = std::min(memory.available, std::max<int64_t>(0, limit - used + cached));
  }
  memory.available = std::min(memory.available, memory.total);
  // The kernel counts a page when it is first written. What was given out and not yet written is spoken for.
  const int64_t untouched = std::max<int64_t>(0, reserved_bytes.load() - touched_bytes());
  memory.available = std::max<int64_t>(0, memory.available - untouched);
  return memory;
}

Context::Context() : threads_(available_cores()) {}

Context::~Context() {
  for (auto& blocks : blocks_) {
    for (auto& [address, block] : blocks) {
      block.mapped ? static_cast<void>(munmap(address, static_cast<size_t>(block.bytes))) : std::free(address);
      reserved_bytes -= block.bytes;
    }
  }
}

void Context::set_threads(int64_t threads) { threads_ = threads > 0 ? static_cast<int>(threads) : available_cores(); }

void* Context::allocate(int64_t bytes, bool host) {
  check_size(bytes, "bytes");
  const dlfs_status code = host ? DLFS_ERROR_HOST_MEMORY : DLFS_ERROR_MEMORY;
  Block block{bytes, bytes >= map_from};
  if (block.mapped) {
    const MachineMemory memory = machine_memory();
    DLFS_CHECK(bytes <= memory.available, code, "out of memory: asked for %s, %s of %s are available",
               mib(bytes).c_str(), mib(memory.available).c_str(), mib(memory.total).c_str());
  }
  void* address = nullptr;
  if (block.mapped) {
    address = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) address = nullptr;
    if (address) madvise(address, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  } else {
    const size_t alignment = 256;
    const size_t rounded = (static_cast<size_t>(bytes) + alignment - 1) / alignment * alignment;
    address = std::aligned_alloc(alignment, rounded);
    if (address && host) std::memset(address, 0, rounded);
  }
  DLFS_CHECK(address, code, "out of memory: asked for %s", mib(bytes).c_str());
  std::lock_guard lock(mutex_);
  blocks_[host][address] = block;
  reserved_bytes += bytes;
  if (!host) {
    allocated_ += bytes;
    peak_ = std::max(peak_, allocated_);
  }
  return address;
}

void Context::release(void* address, bool host) {
  {
    std::lock_guard lock(mutex_);
    DLFS_CHECK(blocks_[host].count(address), DLFS_ERROR_ARGUMENT,
               "%p was not given by %s of this context, or has been freed", address,
               host ? "dlfs_host_malloc" : "dlfs_malloc");
  }
  if (!host) drain();
  Block block{};
  {
    std::lock_guard lock(mutex_);
    const auto found = blocks_[host].find(address);
    DLFS_CHECK(found != blocks_[host].end(), DLFS_ERROR_ARGUMENT, "%p has been freed by another thread", address);
    block = found->second;
    blocks_[host].erase(found);
    if (!host) allocated_ -= block.bytes;
  }
  reserved_bytes -= block.bytes;
  block.mapped ? static_cast<void>(munmap(address, static_cast<size_t>(block.bytes))) : std::free(address);
}

int64_t Context::allocated_bytes() const {
  std::lock_guard lock(mutex_);
  return allocated_;
}

int64_t Context::peak_bytes() const {
  std::lock_guard lock(mutex_);
  return peak_;
}

void Context::add_stream(const std::shared_ptr<Stream>& stream) {
  std::lock_guard lock(mutex_);
  streams_.erase(std::remove_if(streams_.begin(), streams_.end(), [](const auto& s) { return s.expired(); }),
                 streams_.end());
  streams_.push_back(stream);
}

void Context::drain() {
  std::vector<std::weak_ptr<Stream>> streams;
  {
    std::lock_guard lock(mutex_);
    streams = streams_;
  }
  for (const auto& weak : streams) {
    if (std::shared_ptr<Stream> stream = weak.lock()) stream->drain();
  }
}

std::string Context::leftovers() const {
  std::string text;
  const auto add = [&text](const std::string& item) { text += (text.empty() ? "" : ", ") + item; };
  for (size_t kind = static_cast<size_t>(HandleKind::stream); kind < live.size(); ++kind) {
    const long long count = live[kind];
    if (count > 0) add(format("%lld %s%s", count, handle_kind_name(static_cast<int64_t>(kind)), count > 1 ? "s" : ""));
  }
  std::lock_guard lock(mutex_);
  for (int host = 0; host < 2; ++host) {
    if (blocks_[host].empty()) continue;
    int64_t bytes = 0;
    for (const auto& [address, block] : blocks_[host]) bytes += block.bytes;
    add(format("%zu %sallocation%s (%lld bytes)", blocks_[host].size(), host ? "host " : "",
               blocks_[host].size() > 1 ? "s" : "", static_cast<long long>(bytes)));
  }
  return text;
}

namespace {

void check_copy(const void* dst, const void* src, int64_t bytes) {
  check_count(bytes, "bytes");
  if (bytes == 0) return;
  check_pointer(dst, "dst");
  check_pointer(src, "src");
}

void enqueue_copy(Stream& stream, void* dst, const void* src, int64_t bytes) {
  if (bytes == 0) return;
  if (bytes < parallel_copy_from) {
    stream.enqueue([=] { std::memcpy(dst, src, static_cast<size_t>(bytes)); }, Lane::copy);
    return;
  }
  stream.enqueue([=] {
    parallel_for(bytes, parallel_copy_from / 4, [=](int64_t begin, int64_t end) {
      std::memcpy(static_cast<char*>(dst) + begin, static_cast<const char*>(src) + begin,
                  static_cast<size_t>(end - begin));
    });
  });
}

}  // namespace

}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_malloc(dlfs_context ctx, void** out, int64_t bytes) {
  return guard("dlfs_malloc", [&] {
    check_pointer(out, "out");
    *out = require_context(ctx)->allocate(bytes, false);
  });
}

extern "C" dlfs_status dlfs_free(dlfs_context ctx, void* address) {
  return guard("dlfs_free", [&] { require_context(ctx)->release(address, false); });
}

extern "C" dlfs_status dlfs_host_malloc(dlfs_context ctx, void** out, int64_t bytes) {
  return guard("dlfs_host_malloc", [&] {
    check_pointer(out, "out");
    *out = require_context(ctx)->allocate(bytes, true);
  });
}

extern "C" dlfs_status dlfs_host_free(dlfs_context ctx, void* address) {
  return guard("dlfs_host_free", [&] { require_context(ctx)->release(address, true); });
}

extern "C" dlfs_status dlfs_memory_info(dlfs_context ctx, int64_t* values) {
  return guard("dlfs_memory_info", [&] {
    std::shared_ptr<Context> context = require_context(ctx);
    check_pointer(values, "values");
    const MachineMemory memory = machine_memory();
    values[0] = memory.available;
    values[1] = memory.total;
    values[2] = context->allocated_bytes();
    values[3] = context->peak_bytes();
  });
}

extern "C" dlfs_status dlfs_copy_to_device(dlfs_stream stream, void* dst, const void* pinned_src, int64_t bytes) {
  return on_stream("dlfs_copy_to_device", stream, [&](Stream& s) {
    check_copy(dst, pinned_src, bytes);
    enqueue_copy(s, dst, pinned_src, bytes);
  });
}

extern "C" dlfs_status dlfs_copy_to_host(dlfs_stream stream, void* pinned_dst, const void* src, int64_t bytes) {
  return on_stream("dlfs_copy_to_host", stream, [&](Stream& s) {
    check_copy(pinned_dst, src, bytes);
    enqueue_copy(s, pinned_dst, src, bytes);
  });
}

extern "C" dlfs_status dlfs_copy(dlfs_stream stream, void* dst, const void* src, int64_t bytes) {
  return on_stream("dlfs_copy", stream, [&](Stream& s) {
    check_copy(dst, src, bytes);
    check_no_overlap(dst, bytes, "dst", src, bytes, "src");
    enqueue_copy(s, dst, src, bytes);
  });
}

extern "C" dlfs_status dlfs_copy_2d(dlfs_stream stream, void* dst, const void* src, int64_t rows, int64_t row_bytes,
                                    int64_t dst_pitch, int64_t src_pitch) {
  return on_stream("dlfs_copy_2d", stream, [&](Stream& s) {
    check_count(rows, "rows");
    check_count(row_bytes, "row_bytes");
    check_range(dst_pitch, row_bytes, max_elements, "dst_pitch");
    check_range(src_pitch, row_bytes, max_elements, "src_pitch");
    const int64_t bytes = checked_product({rows, row_bytes}, "the copy");
    if (bytes == 0) return;
    check_pointer(dst, "dst");
    check_pointer(src, "src");
    const int64_t last = rows - 1;
    const int64_t dst_bytes = checked_product({last, dst_pitch}, "dst") + row_bytes;
    const int64_t src_bytes = checked_product({last, src_pitch}, "src") + row_bytes;
    // Interleaved rows (columns of one buffer) share no byte although their ranges do; only equal starts must differ.
    if (dst_pitch == row_bytes || src_pitch == row_bytes)
      check_no_overlap(dst, dst_bytes, "dst", src, src_bytes, "src");
    s.enqueue([=] {
      parallel_for(rows, std::max<int64_t>(1, (parallel_copy_from / 16) / row_bytes), [=](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          std::memcpy(static_cast<char*>(dst) + row * dst_pitch, static_cast<const char*>(src) + row * src_pitch,
                      static_cast<size_t>(row_bytes));
        }
      });
    });
  });
}

extern "C" dlfs_status dlfs_memset(dlfs_stream stream, void* dst, int64_t bytes, int32_t value) {
  return on_stream("dlfs_memset", stream, [&](Stream& s) {
    check_count(bytes, "bytes");
    if (bytes == 0) return;
    check_pointer(dst, "dst");
    s.enqueue([=] {
      parallel_for(bytes, parallel_copy_from / 4, [=](int64_t begin, int64_t end) {
        std::memset(static_cast<char*>(dst) + begin, value & 0xff, static_cast<size_t>(end - begin));
      });
    });
  });
}

extern "C" dlfs_status dlfs_upload_sync(dlfs_stream stream, void* dst, const void* src, int64_t bytes) {
  return on_stream("dlfs_upload_sync", stream, [&](Stream& s) {
    check_copy(dst, src, bytes);
    s.run_sync(
        [=] {
          if (bytes > 0) std::memcpy(dst, src, static_cast<size_t>(bytes));
        },
        Lane::copy);
  });
}

extern "C" dlfs_status dlfs_download_sync(dlfs_stream stream, void* dst, const void* src, int64_t bytes) {
  return on_stream("dlfs_download_sync", stream, [&](Stream& s) {
    check_copy(dst, src, bytes);
    s.run_sync(
        [=] {
          if (bytes > 0) std::memcpy(dst, src, static_cast<size_t>(bytes));
        },
        Lane::copy);
  });
}
