// Reads whole image files for the decoding threads, with errors (DLFS_ERROR_IO) that name the file.
#pragma once

#include <cstdint>
#include <string>

#include "common/status.hpp"

namespace dlfs {

// No image within the limit of pixels needs more.
constexpr int64_t max_image_file_bytes = int64_t{1} << 30;

// A regular file, opened. Its size is that at opening: bytes that are appended later are not read.
class ImageFile {
 public:
  // Throws where there is no such file, it cannot be opened, is no regular file or has more than max_image_file_bytes.
  explicit ImageFile(const std::string& path);
  ~ImageFile();
  ImageFile(const ImageFile&) = delete;
  ImageFile& operator=(const ImageFile&) = delete;

  int64_t size() const { return size_; }

  // Reads size() bytes; throws where the file has become shorter meanwhile.
  void read(uint8_t* out) const;

 private:
  [[noreturn]] void fail(const std::string& reason) const;

  const std::string& path_;
  int descriptor_ = -1;
  int64_t size_ = 0;
};

}  // namespace dlfs
