// Decoding threads. Jobs queue up in order; a thread takes one image at a time, reads it where it is in a file, decodes it
// on a stream of its own and preprocesses it into its slot of the batch, or decodes it to where it is wanted as it is. Each
// thread has two lanes (stream, codec, memory), so that the host's part of one image overlaps with the device's part of the
// one before. An image counts as finished once its thread has waited for its lane, so that asking about a job is a look at a
// counter and involves no CUDA call. Where the device has JPEG engines and a share of the images is theirs, those are handed
// over once they are read and checked (decoder_engine.hpp).
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <thread>

#include "common/arguments.hpp"
#include "common/decode_job.hpp"
#include "common/exif.hpp"
#include "common/image_file.hpp"
#include "cuda/decoder_engine.hpp"
#include "cuda/image.hpp"
#include "cuda/preprocess.hpp"

namespace dlfs {
namespace {

constexpr int max_threads = 256;
constexpr int lanes_per_thread = 2;
// Pixel memory of a lane above this is given back after the image that needed it.
constexpr int64_t kept_bytes = int64_t{64} << 20;
// The first size of the pixel memory; beyond, it grows with some room, as growing waits for the device.
constexpr int64_t first_bytes = int64_t{4} << 20;

// A stream with what decoding on it needs, and the image that is in flight there.
class Lane {
 public:
  // crew: who works with the engines, or null.
  Lane(Context& context, EngineCrew* crew) : context_(context), crew_(crew) {}
  ~Lane() {
    if (event_) cudaEventDestroy(event_);
  }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  // Enqueues image i of a job, or hands it over; nothing may be in flight.
  void start(const std::shared_ptr<Job>& job, int32_t i) noexcept {
    job_ = job;
    image_ = i;
    if (job->guarded(i, [&] { decode(job, i); }) || job->raw()) return;
    job->guarded(i, [&] { fill(*job, i); });
  }

  // Waits for the image in flight, if any, and counts it as finished.
  void finish() noexcept {
    if (!job_) return;
    Job& j = *job_;
    const bool passed = j.guarded(image_, [&] {
      if (event_) CUDA_CHECK(cudaEventSynchronize(event_));
    });
    if (passed) {
      if (codec_) codec_->trim();
      if (pixels_.bytes() > kept_bytes) pixels_ = DeviceBuffer();
      if (file_ && file_->bytes() > kept_file_bytes) file_->reset();
    }
    const std::shared_ptr<Job> finished = std::move(job_);
    job_.reset();
    finished->finish_image();
  }

 private:
  // What the first image needs is made then, so that a failure is that image's.
  void prepare() {
    if (!stream_) stream_ = std::make_unique<Stream>(context_.shared_from_this(), /*urgent=*/true);
    if (!event_) {
      // Waiting blocks rather than spins: these threads share the cores with the rest of the program.
      CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming | cudaEventBlockingSync));
    }
  }

  void decode(const std::shared_ptr<Job>& shared, int32_t i) {
    const Job& job = *shared;
    const uint8_t* bytes = job.image(i).bytes;
    int64_t length = job.image(i).length;
    const bool in_file = job.image(i).in_file();
    if (in_file) {
      const ImageFile file(job.image(i).path);
      length = file.size();
      if (!file_) file_ = crew_ ? crew_->spare() : std::make_unique<PinnedBuffer>(context_, first_file_bytes);
      uint8_t* const memory = file_->reserve(length);
      file.read(memory);
      bytes = memory;
    }
    const ImageHeader header = check_image(bytes, length);
    if (job.raw()) job.require_size(i, header.width, header.height);
    if (crew_ && header.format == ImageFormat::jpeg && header.orientation == orientation_upright &&
        crew_->wants(route_jpeg(bytes, length, header.jpeg))) {
      crew_->add({shared, i, header.jpeg, bytes, length, in_file ? std::move(file_) : nullptr});
      job_.reset();
      return;
    }
    prepare();
    if (!codec_) codec_ = std::make_unique<ImageCodec>(context_);
    if (job.raw()) {
      codec_->decode(*stream_, job.pixels(i), bytes, length, header);
    } else {
      uint8_t* const pixels = reserve(header.bytes());
      codec_->decode(*stream_, pixels, bytes, length, header);
      const PreprocessSource source{pixels, job.columns(i, header.width), job.rows(i, header.height)};
      preprocess(*stream_, job.slot(i), &source, 1, job.format());
    }
    CUDA_CHECK(cudaEventRecord(event_, stream_->stream));
  }

  uint8_t* reserve(int64_t bytes) {
    if (bytes > pixels_.bytes()) {
      pixels_ = DeviceBuffer();
      pixels_ = DeviceBuffer(context_, std::max(bytes + bytes / 4, first_bytes), "a decoded image");
    }
    return pixels_.as<uint8_t>();
  }

  // The slot of an image that failed gets the fill colour.
  void fill(const Job& job, int32_t i) {
    prepare();
    const PreprocessSource nothing{};
    preprocess(*stream_, job.slot(i), &nothing, 1, job.format());
    CUDA_CHECK(cudaEventRecord(event_, stream_->stream));
  }

  Context& context_;  // held by the decoder
  EngineCrew* const crew_;
  std::unique_ptr<Stream> stream_;
  cudaEvent_t event_ = nullptr;
  std::unique_ptr<ImageCodec> codec_;
  std::unique_ptr<PinnedBuffer> file_;
  DeviceBuffer pixels_;
  std::shared_ptr<Job> job_;
  int32_t image_ = 0;
};

class Decoder {
 public:
  // hardware: the share of images, in per cent, that are the engines', where the device has any.
  Decoder(std::shared_ptr<Context> owner, int threads, int32_t hardware) : context(std::move(owner)) {
    try {
      if (hardware > 0 && jpeg_engines(*context).engines > 0) crew_ = std::make_unique<EngineCrew>(*context, hardware);
      for (int i = 0; i < threads; ++i) {
        for (int lane = 0; lane < lanes_per_thread; ++lane) {
          lanes_.push_back(std::make_unique<Lane>(*context, crew_.get()));
        }
      }
      for (int i = 0; i < threads; ++i) {
        threads_.emplace_back([this, i] { work(&lanes_[static_cast<size_t>(i) * lanes_per_thread]); });
        pthread_setname_np(threads_.back().native_handle(), "dlfs-decoder");
      }
    } catch (...) {
      stop();
      throw;
    }
  }

  ~Decoder() { stop(); }
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  void submit(std::shared_ptr<Job> job) { queue_.submit(std::move(job)); }

  // Runs what is queued, then ends the threads.
  void stop() {
    queue_.stop();
    for (std::thread& thread : threads_) {
      if (thread.joinable()) thread.join();
    }
    if (crew_) crew_->stop();
  }

  const std::shared_ptr<Context> context;

 private:
  void work(std::unique_ptr<Lane>* lanes) noexcept {
    cudaSetDevice(context->device);  // a failure shows at the first CUDA call, which belongs to an image
    int turn = 0;
    do {
      std::shared_ptr<Job> job;
      int32_t i = 0;
      while (queue_.take(job, i)) {
        lanes[turn]->finish();
        lanes[turn]->start(job, i);
        job.reset();
        turn = (turn + 1) % lanes_per_thread;
      }
      for (int k = 0; k < lanes_per_thread; ++k) lanes[(turn + k) % lanes_per_thread]->finish();
    } while (queue_.wait());
  }

  std::unique_ptr<EngineCrew> crew_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  DecodeQueue<Job> queue_;
  std::vector<std::thread> threads_;
};

// The tables live until the process ends, as the threads may.
auto& decoders() {
  static auto* const table = new HandleTable<Decoder, HandleKind::decoder>();
  return *table;
}

auto& jobs() {
  static auto* const table = new HandleTable<Job, HandleKind::job>();
  return *table;
}

// Enters a job, whose arguments have been checked, and starts it.
void start(const std::shared_ptr<Decoder>& decoder, dlfs_job* out, const std::shared_ptr<Job>& job) {
  job->context = decoder->context;
  const dlfs_job handle = adopt(jobs(), *decoder->context, job);
  try {
    decoder->submit(job);
  } catch (...) {
    disown(jobs(), handle);
    throw;
  }
  *out = handle;
}

// Cores that this process may run on.
int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_decoder_create(dlfs_context ctx, dlfs_decoder* out, int32_t threads, int32_t hardware) {
  return context_call("dlfs_decoder_create", ctx, [&](Context& context) {
    check_pointer(out, "out");
    check_range(threads, 0, max_threads, "threads");
    check_range(hardware, 0, 100, "hardware");
    // Huffman decoding is the threads' work, of which a quarter of the cores is left to the rest of the program. What feeds
    // the engines needs fewer: on an H100 with 16 cores 8 threads were faster than 12, and 4 as fast.
    const int cores = available_cores();
    const int good = hardware > 0 && jpeg_engines(context).engines > 0 ? cores / 2 : cores * 3 / 4;
    const int count = threads > 0 ? threads : std::clamp(good, 1, 16);
    *out = adopt(decoders(), context, std::make_shared<Decoder>(context.shared_from_this(), count, hardware));
  });
}

dlfs_status dlfs_decoder_destroy(dlfs_decoder decoder) {
  return guard("dlfs_decoder_destroy", [&] {
    std::shared_ptr<Decoder> object = disown(decoders(), decoder);
    const std::shared_ptr<Context> context = object->context;
    object->stop();
    context->release(std::move(object));
  });
}

dlfs_status dlfs_decoder_submit(dlfs_decoder decoder, dlfs_job* out, void* dst, const int64_t* sources,
                                const int64_t* lengths, const char* paths, const float* transforms,
                                const float* normalisation, int64_t path_bytes, int32_t n, int32_t out_h, int32_t out_w,
                                int32_t out_c, dlfs_dtype dtype, int32_t flags) {
  return guard("dlfs_decoder_submit", [&] {
    const std::shared_ptr<Decoder> object = decoders().find(decoder);
    check_pointer(out, "out");
    const auto job = std::make_shared<Job>();
    job->set_images(sources, lengths, paths, path_bytes, n);
    job->set_batch(dst, transforms, normalisation, out_h, out_w, out_c, dtype, flags);
    start(object, out, job);
  });
}

dlfs_status dlfs_decoder_submit_pixels(dlfs_decoder decoder, dlfs_job* out, const int64_t* dst, const int64_t* sources,
                                       const int64_t* lengths, const char* paths, const int32_t* sizes,
                                       int64_t path_bytes, int32_t n) {
  return guard("dlfs_decoder_submit_pixels", [&] {
    const std::shared_ptr<Decoder> object = decoders().find(decoder);
    check_pointer(out, "out");
    const auto job = std::make_shared<Job>();
    job->set_images(sources, lengths, paths, path_bytes, n);
    job->set_pixels(dst, sizes);
    start(object, out, job);
  });
}

dlfs_status dlfs_job_query(dlfs_job job) {
  return guard("dlfs_job_query", [&]() -> dlfs_status { return jobs().find(job)->done() ? DLFS_OK : DLFS_NOT_READY; });
}

dlfs_status dlfs_job_wait_sync(dlfs_job job) {
  return guard("dlfs_job_wait_sync", [&] { jobs().find(job)->wait(); });
}

dlfs_status dlfs_job_results(dlfs_job job, int32_t* status) {
  return guard("dlfs_job_results", [&] { jobs().find(job)->results(status); });
}

dlfs_status dlfs_job_message(dlfs_job job, char* out, int64_t capacity, int32_t i) {
  return guard("dlfs_job_message", [&] { jobs().find(job)->message(out, capacity, i); });
}

dlfs_status dlfs_job_destroy(dlfs_job job) {
  return guard("dlfs_job_destroy", [&] { disown(jobs(), job)->wait(); });
}

}  // extern "C"
