// Image decoding threads on the CPU. Jobs queue up in order; a thread takes one image at a time, decodes it into memory
// of its own and preprocesses it into its slot of the batch. A failing image fills its slot and keeps its message.
#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/image.hpp"
#include "cpu/preprocess.hpp"
#include "cpu/runtime.hpp"

namespace dlfs::cpu {
namespace {

constexpr int max_threads = 256;
// Pixel memory above this is given back after the image that needed it.
constexpr int64_t kept_bytes = int64_t{64} << 20;

// What a decoding thread reuses from image to image.
struct Scratch {
  std::unique_ptr<uint8_t[]> pixels;
  int64_t capacity = 0;
  ImageScratch stored;
  PreprocessScratch preprocess;

  uint8_t* reserve(int64_t bytes) {
    if (bytes > capacity) {
      pixels.reset();
      capacity = 0;
      pixels.reset(new uint8_t[static_cast<size_t>(bytes)]);
      capacity = bytes;
    }
    return pixels.get();
  }

  void trim() {
    stored.trim();
    if (capacity <= kept_bytes) return;
    pixels.reset();
    capacity = 0;
  }
};

struct Job {
  std::shared_ptr<Context> context;
  char* dst;
  std::vector<const uint8_t*> sources;
  std::vector<int64_t> lengths;
  std::vector<float> transforms;
  int32_t n;
  PreprocessFormat format;

  int32_t next = 0;  // the next image to hand out; guarded by the decoder's mutex

  std::mutex mutex;  // guards what follows
  std::condition_variable finished;
  int32_t remaining;
  std::vector<int32_t> status;
  std::vector<std::string> messages;

  bool done() {
    std::lock_guard lock(mutex);
    return remaining == 0;
  }

  void wait() {
    std::unique_lock lock(mutex);
    finished.wait(lock, [this] { return remaining == 0; });
  }

  // Decodes and preprocesses image i; throws where that fails.
  void decode(int32_t i, Scratch& scratch) const {
    const ImageHeader header = check_image(sources[i], lengths[i]);
    uint8_t* pixels = scratch.reserve(header.bytes());
    decode_image(pixels, sources[i], lengths[i], header, scratch.stored);
    const ImageTransform transform = image_transform(transforms.data(), i);
    prepare_columns(scratch.preprocess, sample_columns(transform, header.width, format.flags), format);
    preprocess_rows(slot(i), pixels, header.width, sample_rows(transform, header.height, format.flags), format,
                    scratch.preprocess, 0, format.out_h);
    scratch.trim();
  }

  // Runs image i to its end, good or bad.
  void run(int32_t i, Scratch& scratch) {
    dlfs_status code = DLFS_OK;
    std::string message;
    try {
      decode(i, scratch);
    } catch (const Error& e) {
      code = e.code;
      message = e.message;
    } catch (const std::bad_alloc&) {
      code = DLFS_ERROR_HOST_MEMORY;
      message = "out of host memory";
    } catch (const std::exception& e) {
      code = DLFS_ERROR_INTERNAL;
      message = e.what();
    }
    if (code != DLFS_OK) fill_rows(slot(i), format, 0, format.out_h);
    std::lock_guard lock(mutex);
    status[i] = code;
    messages[i].swap(message);
    if (--remaining == 0) finished.notify_all();
  }

  void* slot(int32_t i) const { return dst + i * format.image_bytes(); }
};

class Decoder {
 public:
  Decoder(std::shared_ptr<Context> owner, int threads) : context(std::move(owner)) {
    try {
      for (int i = 0; i < threads; ++i) {
        threads_.emplace_back([this] { work(); });
        pthread_setname_np(threads_.back().native_handle(), "dlfs-decoder");
      }
    } catch (...) {
      stop();
      throw;
    }
  }

  ~Decoder() { stop(); }

  void submit(std::shared_ptr<Job> job) {
    {
      std::lock_guard lock(mutex_);
      DLFS_CHECK(!stopping_, DLFS_ERROR_HANDLE, "this decoder is being destroyed");
      queue_.push_back(std::move(job));
    }
    wake_.notify_all();
  }

  // Runs what is queued, then ends the threads.
  void stop() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) {
      if (thread.joinable()) thread.join();
    }
  }

  const std::shared_ptr<Context> context;

 private:
  void work() {
    Scratch scratch;
    for (;;) {
      std::shared_ptr<Job> job;
      int32_t i;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
        if (queue_.empty()) return;
        job = queue_.front();
        i = job->next++;
        if (job->next == job->n) queue_.pop_front();
      }
      job->run(i, scratch);
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::shared_ptr<Job>> queue_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

// The tables live until the process ends, as the threads may.
auto& decoders() {
  static auto& table = *new ObjectTable<Decoder, HandleKind::decoder>;
  return table;
}
auto& jobs() {
  static auto& table = *new ObjectTable<Job, HandleKind::job>;
  return table;
}

std::shared_ptr<Job> require_finished(dlfs_job handle) {
  std::shared_ptr<Job> job = jobs().find(handle);
  DLFS_CHECK(job->done(), DLFS_ERROR_ARGUMENT, "the job has not finished");
  return job;
}

}  // namespace
}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_decoder_create(dlfs_context ctx, dlfs_decoder* out, int32_t threads) {
  return guard("dlfs_decoder_create", [&] {
    check_pointer(out, "out");
    check_range(threads, 0, max_threads, "threads");
    // Half of the cores: the other work on this backend needs them too.
    const int count = threads > 0 ? threads : std::clamp(available_cores() / 2, 1, 16);
    *out = decoders().add(std::make_shared<Decoder>(require_context(ctx), count));
  });
}

extern "C" dlfs_status dlfs_decoder_destroy(dlfs_decoder decoder) {
  return guard("dlfs_decoder_destroy", [&] { decoders().remove(decoder)->stop(); });
}

extern "C" dlfs_status dlfs_decoder_submit(dlfs_decoder decoder, dlfs_job* out, void* dst, const int64_t* sources,
                                           const int64_t* lengths, const float* transforms, const float* normalisation,
                                           int32_t n, int32_t out_h, int32_t out_w, int32_t out_c, dlfs_dtype dtype,
                                           int32_t flags) {
  return guard("dlfs_decoder_submit", [&] {
    std::shared_ptr<Decoder> object = decoders().find(decoder);
    check_pointer(out, "out");
    check_pointer(dst, "dst");
    check_pointer(sources, "sources");
    check_pointer(lengths, "lengths");
    check_preprocess(transforms, normalisation, n, out_h, out_w, out_c, dtype, flags);
    auto job = std::make_shared<Job>();
    job->context = object->context;
    job->dst = static_cast<char*>(dst);
    for (int32_t i = 0; i < n; ++i) {
      DLFS_CHECK(lengths[i] >= 0 && (sources[i] != 0 || lengths[i] == 0), DLFS_ERROR_ARGUMENT,
                 "image %d: expected an address and a length of at least 0, got %lld and %lld", i,
                 static_cast<long long>(sources[i]), static_cast<long long>(lengths[i]));
      job->sources.push_back(reinterpret_cast<const uint8_t*>(sources[i]));
    }
    job->lengths.assign(lengths, lengths + n);
    job->transforms.assign(transforms, transforms + int64_t{n} * DLFS_TRANSFORM_FLOATS);
    job->n = job->remaining = n;
    job->format = {out_h, out_w, out_c, dtype, flags, color_transform(normalisation, dtype, flags)};
    job->status.assign(static_cast<size_t>(n), DLFS_OK);
    job->messages.resize(static_cast<size_t>(n));
    const dlfs_job handle = jobs().add(job);
    try {
      object->submit(job);
    } catch (...) {
      jobs().remove(handle);
      throw;
    }
    *out = handle;
  });
}

extern "C" dlfs_status dlfs_job_query(dlfs_job job) {
  return guard("dlfs_job_query", [&]() -> dlfs_status { return jobs().find(job)->done() ? DLFS_OK : DLFS_NOT_READY; });
}

extern "C" dlfs_status dlfs_job_wait_sync(dlfs_job job) {
  return guard("dlfs_job_wait_sync", [&] { jobs().find(job)->wait(); });
}

extern "C" dlfs_status dlfs_job_results(dlfs_job job, int32_t* status) {
  return guard("dlfs_job_results", [&] {
    check_pointer(status, "status");
    const std::shared_ptr<Job> object = require_finished(job);
    std::copy(object->status.begin(), object->status.end(), status);
  });
}

extern "C" dlfs_status dlfs_job_message(dlfs_job job, char* out, int64_t capacity, int32_t i) {
  return guard("dlfs_job_message", [&] {
    check_pointer(out, "out");
    check_size(capacity, "capacity");
    const std::shared_ptr<Job> object = require_finished(job);
    check_range(i, 0, object->n - 1, "i");
    const std::string& message = object->messages[static_cast<size_t>(i)];
    const size_t length = std::min(message.size(), static_cast<size_t>(capacity) - 1);
    std::memcpy(out, message.data(), length);
    out[length] = '\0';
  });
}

extern "C" dlfs_status dlfs_job_destroy(dlfs_job job) {
  return guard("dlfs_job_destroy", [&] { jobs().remove(job)->wait(); });
}
