#include "cuda/decoder_engine.hpp"

#include <pthread.h>

#include <algorithm>

#include "cuda/preprocess.hpp"

namespace dlfs {
namespace {

// Batches under way at a time: one in the engines, one whose results are drawn, one that waits.
constexpr int lanes = 3;
// Pixel memory above this is given back after the batch that needed it.
constexpr int64_t kept_bytes = int64_t{512} << 20;

int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

// A batch at a time: a stream, a decoding state, memory for pixels.
class EngineLane {
 public:
  // Throws where nvJPEG makes no state for the engines, so that asking for them fails at once.
  explicit EngineLane(Context& context) : context_(context), engine_(context) {}
  ~EngineLane() {
    if (event_) cudaEventDestroy(event_);
  }
  EngineLane(const EngineLane&) = delete;
  EngineLane& operator=(const EngineLane&) = delete;

  // Runs a batch to its end: all images are written or have failed, and the stream has passed.
  void run(std::vector<EngineWork>& batch) noexcept {
    decoded_ = 0;
    // What goes wrong here goes wrong for all.
    for_all(batch, [&] { decode(batch); });
    const bool drawn = for_all(batch, [&] { draw(batch); });
    for_all(batch, [&] {
      if (drawn) CUDA_CHECK(cudaEventSynchronize(event_));
      else if (stream_) CUDA_CHECK(cudaStreamSynchronize(stream_->stream));
    });
    if (pixels_.bytes() > kept_bytes) pixels_ = DeviceBuffer();
    engine_.trim();
    if (codec_) codec_->trim();
  }

 private:
  // Calls body; an exception becomes every image's error. True where there was none.
  template <class Body>
  static bool for_all(std::vector<EngineWork>& batch, Body&& body) noexcept {
    // The first image's guard tells what went wrong; the others fail of the same.
    EngineWork& first = batch.front();
    std::exception_ptr error;
    first.job->guarded(first.i, [&] {
      try {
        body();
      } catch (...) {
        error = std::current_exception();
        throw;
      }
    });
    if (!error) return true;
    for (size_t k = 1; k < batch.size(); ++k) {
      batch[k].job->guarded(batch[k].i, [&] { std::rethrow_exception(error); });
    }
    return false;
  }

  void prepare() {
    if (!stream_) stream_ = std::make_unique<Stream>(context_.shared_from_this(), /*urgent=*/true);
    // Waiting blocks rather than spins, as in the decoding threads.
    if (!event_) CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming | cudaEventBlockingSync));
  }

  void decode(std::vector<EngineWork>& batch) {
    prepare();
    places_.clear();
    int64_t total = 0;
    for (const EngineWork& work : batch) {
      places_.push_back(total);
      if (!work.job->raw()) total += aligned(int64_t{work.header.width} * work.header.height * 3);
    }
    if (total > pixels_.bytes()) {
      pixels_ = DeviceBuffer();
      pixels_ = DeviceBuffer(context_, total + total / 4, "decoded images");
    }
    images_.clear();
    taken_.clear();
    refused_.clear();
    for (size_t k = 0; k < batch.size(); ++k) {
      const EngineWork& work = batch[k];
      if (!engine_.takes(work.bytes, work.length)) {
        refused_.push_back(k);
        continue;
      }
      const size_t length = static_cast<size_t>(work.length);
      images_.push_back({work.bytes, length, pixels_of(batch, k), work.header.width, work.header.height});
      taken_.push_back(k);
    }
    if (!images_.empty() && !engine_.decode(*stream_, images_.data(), static_cast<int>(images_.size()))) {
      // Each by itself: that another image of its batch is refused must not decide how one is decoded.
      for (size_t k = 0; k < images_.size(); ++k) {
        if (!engine_.decode(*stream_, &images_[k], 1)) refused_.push_back(taken_[k]);
        CUDA_CHECK(cudaStreamSynchronize(stream_->stream));
      }
    }
    for (const size_t k : refused_) {
      const EngineWork& work = batch[k];
      work.job->guarded(work.i, [&] {
        if (!codec_) codec_ = std::make_unique<JpegCodec>(context_);
        codec_->decode(*stream_, pixels_of(batch, k), work.bytes, work.length, work.header);
        CUDA_CHECK(cudaStreamSynchronize(stream_->stream));
      });
    }
    decoded_ = batch.size();
  }

  // Images of the batch that are to be drawn, and the fill colour for those that failed.
  void draw(std::vector<EngineWork>& batch) {
    prepare();
    for (size_t k = 0; k < batch.size(); ++k) {
      const EngineWork& work = batch[k];
      Job& job = *work.job;
      if (job.raw()) continue;
      PreprocessSource source{};
      if (decoded_ == batch.size() && !job.failed(work.i)) {
        source = {pixels_of(batch, k), job.columns(work.i, work.header.width), job.rows(work.i, work.header.height)};
      }
      preprocess(*stream_, job.slot(work.i), &source, 1, job.format());
    }
    CUDA_CHECK(cudaEventRecord(event_, stream_->stream));
  }

  uint8_t* pixels_of(const std::vector<EngineWork>& batch, size_t k) const {
    const EngineWork& work = batch[k];
    return work.job->raw() ? work.job->pixels(work.i) : pixels_.as<uint8_t>() + places_[k];
  }

  Context& context_;
  JpegEngine engine_;
  std::unique_ptr<Stream> stream_;
  cudaEvent_t event_ = nullptr;
  std::unique_ptr<JpegCodec> codec_;  // for what the engines refuse after all
  DeviceBuffer pixels_;
  size_t decoded_ = 0;  // all of the batch, or none
  // Of the batch: where pixels lie; the images for the engine and which these are; those that it refuses.
  std::vector<int64_t> places_;
  std::vector<EngineImage> images_;
  std::vector<size_t> taken_, refused_;
};

EngineCrew::EngineCrew(Context& context, int32_t share)
    : context_(context), share_(share), batch_(static_cast<size_t>(jpeg_engines(context).batch())) {
  try {
    for (int i = 0; i < lanes; ++i) lanes_.push_back(std::make_unique<EngineLane>(context));
    for (const auto& lane : lanes_) {
      threads_.emplace_back([this, &lane] { work(*lane); });
      pthread_setname_np(threads_.back().native_handle(), "dlfs-engine");
    }
  } catch (...) {
    stop();
    throw;
  }
}

EngineCrew::~EngineCrew() { stop(); }

void EngineCrew::add(EngineWork&& work) {
  {
    std::unique_lock lock(mutex_);
    taken_.wait(lock, [this] { return pending_.size() < 2 * batch_; });
    pending_.push_back(std::move(work));
  }
  added_.notify_one();
}

std::unique_ptr<PinnedBuffer> EngineCrew::spare() {
  {
    const std::lock_guard lock(mutex_);
    if (!spares_.empty()) {
      std::unique_ptr<PinnedBuffer> buffer = std::move(spares_.back());
      spares_.pop_back();
      return buffer;
    }
  }
  return std::make_unique<PinnedBuffer>(context_, first_file_bytes);
}

void EngineCrew::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  added_.notify_all();
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void EngineCrew::work(EngineLane& lane) noexcept {
  cudaSetDevice(context_.device);  // a failure shows at the first CUDA call, which belongs to a batch
  std::vector<EngineWork> batch;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      added_.wait(lock, [this] { return stopping_ || !pending_.empty(); });
      if (pending_.empty()) return;
      // Whatever is there: while the engines are busy, images gather.
      while (!pending_.empty() && batch.size() < batch_) {
        batch.push_back(std::move(pending_.front()));
        pending_.pop_front();
      }
    }
    taken_.notify_all();
    lane.run(batch);
    for (EngineWork& work : batch) {
      if (work.file && work.file->bytes() > kept_file_bytes) work.file->reset();
      work.job->finish_image();
      const std::lock_guard lock(mutex_);
      if (work.file) spares_.push_back(std::move(work.file));
    }
    batch.clear();
  }
}

}  // namespace dlfs
