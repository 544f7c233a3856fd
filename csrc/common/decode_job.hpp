// What the decoding threads of both backends are given: jobs of images, in memory or in files, with the state of each.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/sampling.hpp"

namespace dlfs {

// The bytes of an image: in memory, or in a file.
struct EncodedImage {
  const uint8_t* bytes = nullptr;
  int64_t length = 0;
  std::string path;

  bool in_file() const { return !path.empty(); }
};

// Images that are decoded together: preprocessed into the slots of a batch, or each to pixels of its own size. A backend's
// own job adds the context.
class DecodeJob {
 public:
  // Arguments as dlfs.h has them, checked; set_images first, then one of the other two.
  void set_images(const int64_t* sources, const int64_t* lengths, const char* paths, int64_t path_bytes, int32_t n);
  void set_batch(void* dst, const float* transforms, const float* normalisation, int32_t out_h, int32_t out_w,
                 int32_t out_c, dlfs_dtype dtype, int32_t flags);
  void set_pixels(const int64_t* dst, const int32_t* sizes);

  int32_t size() const { return static_cast<int32_t>(images_.size()); }
  const EncodedImage& image(int32_t i) const { return images_[static_cast<size_t>(i)]; }

  // Whether images go to pixels of their own: pixels(i), of a size that require_size compares with the file's.
  bool raw() const { return !targets_.empty(); }
  uint8_t* pixels(int32_t i) const { return targets_[static_cast<size_t>(i)]; }
  void require_size(int32_t i, int32_t width, int32_t height) const;

  // Else the slot of image i, and how it is drawn there.
  void* slot(int32_t i) const { return dst_ + i * format_.image_bytes(); }
  const PreprocessFormat& format() const { return format_; }
  SampleAxis columns(int32_t i, int32_t width) const {
    return sample_columns(transforms_[static_cast<size_t>(i)], width, format_.flags);
  }
  SampleAxis rows(int32_t i, int32_t height) const {
    return sample_rows(transforms_[static_cast<size_t>(i)], height, format_.flags);
  }

  bool done() const { return remaining_.load(std::memory_order_acquire) == 0; }
  void wait();

  // Calls body; an exception becomes image i's error, unless it has one, as the first is the cause. True where there was
  // none.
  template <class Body>
  bool guarded(int32_t i, Body&& body) noexcept {
    try {
      body();
      return true;
    } catch (const Error& e) {
      fail(i, e.code, e.what());
    } catch (const std::bad_alloc&) {
      fail(i, DLFS_ERROR_HOST_MEMORY, "out of host memory");
    } catch (const std::exception& e) {
      fail(i, DLFS_ERROR_INTERNAL, e.what());
    } catch (...) {
      fail(i, DLFS_ERROR_INTERNAL, "unknown exception");
    }
    return false;
  }

  void fail(int32_t i, dlfs_status code, const char* message) noexcept;

  // Whether an image has failed; its own thread may ask.
  bool failed(int32_t i) const { return status_[static_cast<size_t>(i)] != DLFS_OK; }

  // Counts an image as finished, good or bad; its status must not be touched afterwards.
  void finish_image();

  // Of a finished job; throws where it has not.
  void results(int32_t* status) const;
  void message(char* out, int64_t capacity, int32_t i) const;

 private:
  template <class Job>
  friend class DecodeQueue;

  std::vector<EncodedImage> images_;
  char* dst_ = nullptr;
  std::vector<ImageTransform> transforms_;
  PreprocessFormat format_{};
  std::vector<uint8_t*> targets_;
  std::vector<int32_t> sizes_;

  int32_t next_ = 0;  // the next image to hand out; guarded by the queue's mutex

  std::atomic<int32_t> remaining_{0};
  // Of image i, written by its thread before it counts remaining_ down.
  std::vector<dlfs_status> status_;
  std::vector<std::string> messages_;

  std::mutex mutex_;
  std::condition_variable finished_;
};

// Jobs in the order of their submission, whose images threads take one by one.
template <class Job>
class DecodeQueue {
 public:
  void submit(std::shared_ptr<Job> job) {
    {
      const std::lock_guard lock(mutex_);
      DLFS_CHECK(!stopping_, DLFS_ERROR_HANDLE, "this decoder is being destroyed");
      jobs_.push_back(std::move(job));
    }
    wake_.notify_all();
  }

  // The next image, first job first; false where there is none.
  bool take(std::shared_ptr<Job>& job, int32_t& i) {
    const std::lock_guard lock(mutex_);
    if (jobs_.empty()) return false;
    job = jobs_.front();
    i = job->next_++;
    if (job->next_ == job->size()) jobs_.pop_front();
    return true;
  }

  // Waits until there is work; false when there will be none any more.
  bool wait() {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
    return !jobs_.empty();
  }

  // What is queued is still handed out.
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::shared_ptr<Job>> jobs_;
  bool stopping_ = false;
};

}  // namespace dlfs
