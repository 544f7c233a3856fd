#include "common/image_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace dlfs {
namespace {

// In the words of lib/data/local-data-source.ts, so that a message does not depend on who read.
std::string reason_of(int error) {
  switch (error) {
    case ENOENT: return "no such file";
    case ENOTDIR: return "a part of the path is not a folder";
    case EISDIR: return "is a folder, not a file";
    case EACCES: return "permission denied";
    case EPERM: return "operation not permitted";
    case ENAMETOOLONG: return "the name is too long";
    case ELOOP: return "too many symbolic links";
    case EMFILE:
    case ENFILE: return "too many open files";
    case EIO: return "input/output error";
    default: return std::generic_category().message(error);
  }
}

}  // namespace

ImageFile::ImageFile(const std::string& path) : path_(path) {
  do {
    // Not blocking: opening a pipe would wait for somebody to write to it.
    descriptor_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  } while (descriptor_ < 0 && errno == EINTR);
  if (descriptor_ < 0) fail(reason_of(errno));
  try {
    struct stat info;
    if (fstat(descriptor_, &info) != 0) fail(reason_of(errno));
    if (S_ISDIR(info.st_mode)) fail(reason_of(EISDIR));
    if (!S_ISREG(info.st_mode)) fail("is not a regular file");
    size_ = info.st_size;
    if (size_ > max_image_file_bytes) {
      fail(format("the file has %lld bytes, more than the limit of %lld", static_cast<long long>(size_),
                  static_cast<long long>(max_image_file_bytes)));
    }
  } catch (...) {
    close(descriptor_);
    throw;
  }
}

ImageFile::~ImageFile() { close(descriptor_); }

void ImageFile::read(uint8_t* out) const {
  for (int64_t at = 0; at < size_;) {
    const ssize_t got = pread(descriptor_, out + at, static_cast<size_t>(size_ - at), at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(reason_of(errno));
    if (got == 0) {
      fail(format("the file ended after %lld of %lld bytes while it was read", static_cast<long long>(at),
                  static_cast<long long>(size_)));
    }
    at += got;
  }
}

void ImageFile::fail(const std::string& reason) const { throw Error(DLFS_ERROR_IO, path_ + ": " + reason); }

}  // namespace dlfs
