// Image decoding threads on the CPU. Jobs queue up in order; a thread takes one image at a time, reads it where it is in a
// file, decodes it into memory of its own and preprocesses it into its slot of the batch, or decodes it to where it is wanted
// as it is. A failing image fills its slot and keeps its message.
#include <pthread.h>

#include <algorithm>
#include <memory>
#include <thread>
#include <vector>

#include "common/decode_job.hpp"
#include "common/image.hpp"
#include "common/image_file.hpp"
#include "cpu/preprocess.hpp"
#include "cpu/runtime.hpp"

namespace dlfs::cpu {
namespace {

constexpr int max_threads = 256;
// Memory of a thread above this is given back after the image that needed it.
constexpr int64_t kept_bytes = int64_t{64} << 20;

// Memory that grows to what the largest image needed.
class Buffer {
 public:
  uint8_t* reserve(int64_t bytes) {
    if (bytes > capacity_) {
      memory_.reset();
      capacity_ = 0;
      memory_.reset(new uint8_t[static_cast<size_t>(bytes)]);
      capacity_ = bytes;
    }
    return memory_.get();
  }

  void trim() {
    if (capacity_ <= kept_bytes) return;
    memory_.reset();
    capacity_ = 0;
  }

 private:
  std::unique_ptr<uint8_t[]> memory_;
  int64_t capacity_ = 0;
};

// What a decoding thread reuses from image to image.
struct Scratch {
  Buffer file;
  Buffer pixels;
  ImageScratch stored;
  PreprocessScratch preprocess;
};

struct Job : DecodeJob {
  std::shared_ptr<Context> context;

  // Decodes and preprocesses image i; throws where that fails.
  void decode(int32_t i, Scratch& scratch) const {
    const uint8_t* bytes = image(i).bytes;
    int64_t length = image(i).length;
    if (image(i).in_file()) {
      const ImageFile file(image(i).path);
      length = file.size();
      uint8_t* memory = scratch.file.reserve(length);
      file.read(memory);
      bytes = memory;
    }
    const ImageHeader header = check_image(bytes, length);
    if (raw()) {
      require_size(i, header.width, header.height);
      decode_image(pixels(i), bytes, length, header, scratch.stored);
      return;
    }
    uint8_t* decoded = scratch.pixels.reserve(header.bytes());
    decode_image(decoded, bytes, length, header, scratch.stored);
    prepare_columns(scratch.preprocess, columns(i, header.width), format());
    preprocess_rows(slot(i), decoded, header.width, rows(i, header.height), format(), scratch.preprocess, 0,
                    format().out_h);
  }

  // Runs image i to its end, good or bad.
  void run(int32_t i, Scratch& scratch) {
    if (!guarded(i, [&] { decode(i, scratch); }) && !raw()) fill_rows(slot(i), format(), 0, format().out_h);
    scratch.file.trim();
    scratch.pixels.trim();
    scratch.stored.trim();
    finish_image();
  }
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

  void submit(std::shared_ptr<Job> job) { queue_.submit(std::move(job)); }

  // Runs what is queued, then ends the threads.
  void stop() {
    queue_.stop();
    for (std::thread& thread : threads_) {
      if (thread.joinable()) thread.join();
    }
  }

  const std::shared_ptr<Context> context;

 private:
  void work() {
    Scratch scratch;
    do {
      std::shared_ptr<Job> job;
      int32_t i = 0;
      while (queue_.take(job, i)) job->run(i, scratch);
    } while (queue_.wait());
  }

  DecodeQueue<Job> queue_;
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

// Enters a job, whose arguments have been checked, and starts it.
void start(const std::shared_ptr<Decoder>& decoder, dlfs_job* out, const std::shared_ptr<Job>& job) {
  job->context = decoder->context;
  const dlfs_job handle = jobs().add(job);
  try {
    decoder->submit(job);
  } catch (...) {
    jobs().remove(handle);
    throw;
  }
  *out = handle;
}

}  // namespace
}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_decoder_create(dlfs_context ctx, dlfs_decoder* out, int32_t threads, int32_t hardware) {
  return guard("dlfs_decoder_create", [&] {
    check_pointer(out, "out");
    check_range(threads, 0, max_threads, "threads");
    check_range(hardware, 0, 100, "hardware");
    // Half of the cores: the other work on this backend needs them too.
    const int count = threads > 0 ? threads : std::clamp(available_cores() / 2, 1, 16);
    *out = decoders().add(std::make_shared<Decoder>(require_context(ctx), count));
  });
}

extern "C" dlfs_status dlfs_decoder_destroy(dlfs_decoder decoder) {
  return guard("dlfs_decoder_destroy", [&] { decoders().remove(decoder)->stop(); });
}

extern "C" dlfs_status dlfs_decoder_submit(dlfs_decoder decoder, dlfs_job* out, void* dst, const int64_t* sources,
                                           const int64_t* lengths, const char* paths, const float* transforms,
                                           const float* normalisation, int64_t path_bytes, int32_t n, int32_t out_h,
                                           int32_t out_w, int32_t out_c, dlfs_dtype dtype, int32_t flags) {
  return guard("dlfs_decoder_submit", [&] {
    const std::shared_ptr<Decoder> object = decoders().find(decoder);
    check_pointer(out, "out");
    const auto job = std::make_shared<Job>();
    job->set_images(sources, lengths, paths, path_bytes, n);
    job->set_batch(dst, transforms, normalisation, out_h, out_w, out_c, dtype, flags);
    start(object, out, job);
  });
}

extern "C" dlfs_status dlfs_decoder_submit_pixels(dlfs_decoder decoder, dlfs_job* out, const int64_t* dst,
                                                  const int64_t* sources, const int64_t* lengths, const char* paths,
                                                  const int32_t* sizes, int64_t path_bytes, int32_t n) {
  return guard("dlfs_decoder_submit_pixels", [&] {
    const std::shared_ptr<Decoder> object = decoders().find(decoder);
    check_pointer(out, "out");
    const auto job = std::make_shared<Job>();
    job->set_images(sources, lengths, paths, path_bytes, n);
    job->set_pixels(dst, sizes);
    start(object, out, job);
  });
}

extern "C" dlfs_status dlfs_job_query(dlfs_job job) {
  return guard("dlfs_job_query", [&]() -> dlfs_status { return jobs().find(job)->done() ? DLFS_OK : DLFS_NOT_READY; });
}

extern "C" dlfs_status dlfs_job_wait_sync(dlfs_job job) {
  return guard("dlfs_job_wait_sync", [&] { jobs().find(job)->wait(); });
}

extern "C" dlfs_status dlfs_job_results(dlfs_job job, int32_t* status) {
  return guard("dlfs_job_results", [&] { jobs().find(job)->results(status); });
}

extern "C" dlfs_status dlfs_job_message(dlfs_job job, char* out, int64_t capacity, int32_t i) {
  return guard("dlfs_job_message", [&] { jobs().find(job)->message(out, capacity, i); });
}

extern "C" dlfs_status dlfs_job_destroy(dlfs_job job) {
  return guard("dlfs_job_destroy", [&] { jobs().remove(job)->wait(); });
}
