// Decoding threads. Jobs queue up in order; a thread takes one image at a time, decodes it on a stream of its own and
// preprocesses it into its slot of the batch. Each thread has two lanes (stream, codec, pixel memory), so that the
// host's part of one image overlaps with the device's part of the one before. An image counts as finished once its
// thread has waited for its lane, so that asking about a job is a look at a counter and involves no CUDA call.
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <thread>

#include "common/arguments.hpp"
#include "cuda/image.hpp"
#include "cuda/preprocess.hpp"

namespace dlfs {
namespace {

constexpr int max_threads = 256;
constexpr int lanes_per_thread = 2;
// Pixel memory above this is given back after the image that needed it.
constexpr int64_t kept_bytes = int64_t{64} << 20;
// The first size of the pixel memory; beyond, it grows with some room, as growing waits for the device.
constexpr int64_t first_bytes = int64_t{4} << 20;

struct Job {
  std::shared_ptr<Context> context;
  char* dst;
  std::vector<const uint8_t*> sources;
  std::vector<int64_t> lengths;
  std::vector<ImageTransform> transforms;
  int32_t n;
  PreprocessFormat format;

  int32_t next = 0;  // the next image to hand out; guarded by the decoder's mutex

  std::atomic<int32_t> remaining;
  // Of image i, written by its thread before it counts remaining down.
  std::vector<dlfs_status> status;
  std::vector<std::string> messages;

  std::mutex mutex;
  std::condition_variable finished;

  void* slot(int32_t i) const { return dst + i * format.image_bytes(); }

  bool done() const { return remaining.load(std::memory_order_acquire) == 0; }

  void wait() {
    std::unique_lock lock(mutex);
    finished.wait(lock, [this] { return done(); });
  }

  void fail(int32_t i, dlfs_status code, const char* message) noexcept {
    if (status[static_cast<size_t>(i)] != DLFS_OK) return;  // the first error is the cause
    status[static_cast<size_t>(i)] = code;
    try {
      messages[static_cast<size_t>(i)] = message;
    } catch (const std::bad_alloc&) {  // the code alone must do
    }
  }

  void finish_image() {
    if (remaining.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    const std::lock_guard lock(mutex);  // so that no waiter is between its look and its sleep
    finished.notify_all();
  }
};

// Calls body; an exception becomes image i's error. True where there was none.
template <class Body>
bool run_guarded(Job& job, int32_t i, Body&& body) noexcept {
  try {
    body();
    return true;
  } catch (const Error& e) {
    job.fail(i, e.code, e.what());
  } catch (const std::bad_alloc&) {
    job.fail(i, DLFS_ERROR_HOST_MEMORY, "out of host memory");
  } catch (const std::exception& e) {
    job.fail(i, DLFS_ERROR_INTERNAL, e.what());
  } catch (...) {
    job.fail(i, DLFS_ERROR_INTERNAL, "unknown exception");
  }
  return false;
}

// A stream with what decoding on it needs, and the image that is in flight there.
class Lane {
 public:
  explicit Lane(Context& context) : context_(context) {}
  ~Lane() {
    if (event_) cudaEventDestroy(event_);
  }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  // Enqueues image i of a job; nothing may be in flight.
  void start(std::shared_ptr<Job> job, int32_t i) noexcept {
    job_ = std::move(job);
    image_ = i;
    Job& j = *job_;
    if (run_guarded(j, i, [&] { decode(j, i); })) return;
    run_guarded(j, i, [&] { fill(j, i); });
  }

  // Waits for the image in flight, if any, and counts it as finished.
  void finish() noexcept {
    if (!job_) return;
    Job& j = *job_;
    const bool passed = run_guarded(j, image_, [&] {
      if (event_) CUDA_CHECK(cudaEventSynchronize(event_));
    });
    if (passed) {
      if (codec_) codec_->trim();
      if (pixels_.bytes() > kept_bytes) pixels_ = DeviceBuffer();
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

  void decode(const Job& job, int32_t i) {
    const size_t at = static_cast<size_t>(i);
    const ImageHeader header = check_image(job.sources[at], job.lengths[at]);
    prepare();
    if (!codec_) codec_ = std::make_unique<ImageCodec>(context_);
    const int64_t bytes = header.bytes();
    if (bytes > pixels_.bytes()) {
      pixels_ = DeviceBuffer();
      pixels_ = DeviceBuffer(context_, std::max(bytes + bytes / 4, first_bytes), "a decoded image");
    }
    codec_->decode(*stream_, pixels_.as<uint8_t>(), job.sources[at], job.lengths[at], header);
    const ImageTransform& transform = job.transforms[at];
    const PreprocessSource source{pixels_.as<uint8_t>(), sample_columns(transform, header.width, job.format.flags),
                                  sample_rows(transform, header.height, job.format.flags)};
    preprocess(*stream_, job.slot(i), &source, 1, job.format);
    CUDA_CHECK(cudaEventRecord(event_, stream_->stream));
  }

  // The slot of an image that failed gets the fill colour.
  void fill(const Job& job, int32_t i) {
    prepare();
    const PreprocessSource nothing{};
    preprocess(*stream_, job.slot(i), &nothing, 1, job.format);
    CUDA_CHECK(cudaEventRecord(event_, stream_->stream));
  }

  Context& context_;  // held by the decoder
  std::unique_ptr<Stream> stream_;
  cudaEvent_t event_ = nullptr;
  std::unique_ptr<ImageCodec> codec_;
  DeviceBuffer pixels_;
  std::shared_ptr<Job> job_;
  int32_t image_ = 0;
};

class Decoder {
 public:
  Decoder(std::shared_ptr<Context> owner, int threads) : context(std::move(owner)) {
    try {
      for (int i = 0; i < threads; ++i) {
        for (int lane = 0; lane < lanes_per_thread; ++lane) lanes_.push_back(std::make_unique<Lane>(*context));
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

  void submit(std::shared_ptr<Job> job) {
    {
      const std::lock_guard lock(mutex_);
      DLFS_CHECK(!stopping_, DLFS_ERROR_HANDLE, "this decoder is being destroyed");
      queue_.push_back(std::move(job));
    }
    wake_.notify_all();
  }

  // Runs what is queued, then ends the threads.
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) {
      if (thread.joinable()) thread.join();
    }
  }

  const std::shared_ptr<Context> context;

 private:
  // The next image of the queue, first job first; false where there is none.
  bool take(std::shared_ptr<Job>& job, int32_t& i) {
    const std::lock_guard lock(mutex_);
    if (queue_.empty()) return false;
    job = queue_.front();
    i = job->next++;
    if (job->next == job->n) queue_.pop_front();
    return true;
  }

  // Waits until there is work; false when there will be none any more.
  bool wait() {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    return !queue_.empty();
  }

  void work(std::unique_ptr<Lane>* lanes) noexcept {
    cudaSetDevice(context->device);  // a failure shows at the first CUDA call, which belongs to an image
    int turn = 0;
    do {
      std::shared_ptr<Job> job;
      int32_t i = 0;
      while (take(job, i)) {
        lanes[turn]->finish();
        lanes[turn]->start(std::move(job), i);
        turn = (turn + 1) % lanes_per_thread;
      }
      for (int k = 0; k < lanes_per_thread; ++k) lanes[(turn + k) % lanes_per_thread]->finish();
    } while (wait());
  }

  std::vector<std::unique_ptr<Lane>> lanes_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::shared_ptr<Job>> queue_;
  bool stopping_ = false;
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

std::shared_ptr<Job> require_finished(dlfs_job handle) {
  std::shared_ptr<Job> job = jobs().find(handle);
  DLFS_CHECK(job->done(), DLFS_ERROR_ARGUMENT, "the job has not finished");
  return job;
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

dlfs_status dlfs_decoder_create(dlfs_context ctx, dlfs_decoder* out, int32_t threads) {
  return context_call("dlfs_decoder_create", ctx, [&](Context& context) {
    check_pointer(out, "out");
    check_range(threads, 0, max_threads, "threads");
    // Huffman decoding is the threads' work; a quarter of the cores is left to the rest of the program.
    const int count = threads > 0 ? threads : std::clamp(available_cores() * 3 / 4, 1, 16);
    *out = adopt(decoders(), context, std::make_shared<Decoder>(context.shared_from_this(), count));
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
                                const int64_t* lengths, const float* transforms, const float* normalisation, int32_t n,
                                int32_t out_h, int32_t out_w, int32_t out_c, dlfs_dtype dtype, int32_t flags) {
  return guard("dlfs_decoder_submit", [&] {
    const std::shared_ptr<Decoder> object = decoders().find(decoder);
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
      job->transforms.push_back(image_transform(transforms, i));
    }
    job->lengths.assign(lengths, lengths + n);
    job->n = n;
    job->remaining = n;
    job->format = {out_h, out_w, out_c, dtype, flags, color_transform(normalisation, dtype, flags)};
    job->status.assign(static_cast<size_t>(n), DLFS_OK);
    job->messages.resize(static_cast<size_t>(n));
    const dlfs_job handle = adopt(jobs(), *object->context, job);
    try {
      object->submit(job);
    } catch (...) {
      disown(jobs(), handle);
      throw;
    }
    *out = handle;
  });
}

dlfs_status dlfs_job_query(dlfs_job job) {
  return guard("dlfs_job_query", [&]() -> dlfs_status { return jobs().find(job)->done() ? DLFS_OK : DLFS_NOT_READY; });
}

dlfs_status dlfs_job_wait_sync(dlfs_job job) {
  return guard("dlfs_job_wait_sync", [&] { jobs().find(job)->wait(); });
}

dlfs_status dlfs_job_results(dlfs_job job, int32_t* status) {
  return guard("dlfs_job_results", [&] {
    check_pointer(status, "status");
    const std::shared_ptr<Job> object = require_finished(job);
    std::copy(object->status.begin(), object->status.end(), status);
  });
}

dlfs_status dlfs_job_message(dlfs_job job, char* out, int64_t capacity, int32_t i) {
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

dlfs_status dlfs_job_destroy(dlfs_job job) {
  return guard("dlfs_job_destroy", [&] { disown(jobs(), job)->wait(); });
}

}  // extern "C"
