#include "common/decode_job.hpp"

#include <algorithm>
#include <cstring>

namespace dlfs {

void DecodeJob::set_images(const int64_t* sources, const int64_t* lengths, const char* paths, int64_t path_bytes,
                           int32_t n) {
  check_pointer(sources, "sources");
  check_pointer(lengths, "lengths");
  check_range(n, 1, 1 << 20, "n");
  check_count(path_bytes, "path_bytes");
  if (path_bytes > 0) {
    check_pointer(paths, "paths");
    DLFS_CHECK(paths[path_bytes - 1] == 0, DLFS_ERROR_ARGUMENT, "expected paths to end with a NUL");
  }
  images_.resize(static_cast<size_t>(n));
  for (int32_t i = 0; i < n; ++i) {
    EncodedImage& image = images_[static_cast<size_t>(i)];
    if (lengths[i] == -1) {
      DLFS_CHECK(sources[i] >= 0 && sources[i] < path_bytes && paths[sources[i]] != 0, DLFS_ERROR_ARGUMENT,
                 "image %d: expected a path to start at an offset below %lld, got %lld", i,
                 static_cast<long long>(path_bytes), static_cast<long long>(sources[i]));
      image.path = paths + sources[i];
      continue;
    }
    DLFS_CHECK(lengths[i] >= 0 && (sources[i] != 0 || lengths[i] == 0), DLFS_ERROR_ARGUMENT,
               "image %d: expected an address and a length of at least 0, or -1 for a path, got %lld and %lld", i,
               static_cast<long long>(sources[i]), static_cast<long long>(lengths[i]));
    image.bytes = reinterpret_cast<const uint8_t*>(sources[i]);
    image.length = lengths[i];
  }
  remaining_ = n;
  status_.assign(images_.size(), DLFS_OK);
  messages_.resize(images_.size());
}

void DecodeJob::set_batch(void* dst, const float* transforms, const float* normalisation, int32_t out_h, int32_t out_w,
                          int32_t out_c, dlfs_dtype dtype, int32_t flags) {
  check_pointer(dst, "dst");
  check_preprocess(transforms, normalisation, size(), out_h, out_w, out_c, dtype, flags);
  dst_ = static_cast<char*>(dst);
  for (int32_t i = 0; i < size(); ++i) transforms_.push_back(image_transform(transforms, i));
  format_ = {out_h, out_w, out_c, dtype, flags, color_transform(normalisation, dtype, flags)};
}

void DecodeJob::set_pixels(const int64_t* dst, const int32_t* sizes) {
  check_pointer(dst, "dst");
  check_pointer(sizes, "sizes");
  for (int32_t i = 0; i < size(); ++i) {
    DLFS_CHECK(dst[i] != 0, DLFS_ERROR_ARGUMENT, "image %d: dst is NULL", i);
    for (int32_t axis = 0; axis < 2; ++axis) {
      DLFS_CHECK(sizes[2 * i + axis] >= 1 && sizes[2 * i + axis] <= max_image_side, DLFS_ERROR_ARGUMENT,
                 "image %d: expected a %s of 1 to %d pixels, got %d", i, axis ? "width" : "height", max_image_side,
                 sizes[2 * i + axis]);
    }
    targets_.push_back(reinterpret_cast<uint8_t*>(dst[i]));
  }
  sizes_.assign(sizes, sizes + 2 * int64_t{size()});
}

void DecodeJob::require_size(int32_t i, int32_t width, int32_t height) const {
  const int32_t* expected = sizes_.data() + 2 * int64_t{i};
  DLFS_CHECK(height == expected[0] && width == expected[1], DLFS_ERROR_IMAGE,
             "expected an image of %d x %d pixels, got one of %d x %d", expected[1], expected[0], width, height);
}

void DecodeJob::wait() {
  std::unique_lock lock(mutex_);
  finished_.wait(lock, [this] { return done(); });
}

void DecodeJob::fail(int32_t i, dlfs_status code, const char* message) noexcept {
  const size_t at = static_cast<size_t>(i);
  if (status_[at] != DLFS_OK) return;
  status_[at] = code;
  try {
    const std::string& path = images_[at].path;
    const bool named = path.empty() || strncmp(message, path.c_str(), path.size()) == 0;
    messages_[at] = named ? message : path + ": " + message;
  } catch (const std::bad_alloc&) {  // the code alone must do
  }
}

void DecodeJob::finish_image() {
  if (remaining_.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
  const std::lock_guard lock(mutex_);  // so that no waiter is between its look and its sleep
  finished_.notify_all();
}

void DecodeJob::results(int32_t* status) const {
  check_pointer(status, "status");
  DLFS_CHECK(done(), DLFS_ERROR_ARGUMENT, "the job has not finished");
  std::copy(status_.begin(), status_.end(), status);
}

void DecodeJob::message(char* out, int64_t capacity, int32_t i) const {
  check_pointer(out, "out");
  check_size(capacity, "capacity");
  DLFS_CHECK(done(), DLFS_ERROR_ARGUMENT, "the job has not finished");
  check_range(i, 0, size() - 1, "i");
  const std::string& text = messages_[static_cast<size_t>(i)];
  const size_t length = std::min(text.size(), static_cast<size_t>(capacity) - 1);
  memcpy(out, text.data(), length);
  out[length] = '\0';
}

}  // namespace dlfs
