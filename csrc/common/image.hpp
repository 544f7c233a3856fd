// Image files of every supported format behind one header and one decoder for the host. Shared by both libraries: they
// refuse the same files with the same messages.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "common/jpeg_header.hpp"
#include "common/png_file.hpp"
#include "common/webp_file.hpp"

namespace dlfs {

enum class ImageFormat : int32_t { jpeg = DLFS_IMAGE_JPEG, png = DLFS_IMAGE_PNG, webp = DLFS_IMAGE_WEBP };

struct ImageHeader {
  ImageFormat format;
  int32_t width, height;                // of the upright picture
  int32_t stored_width, stored_height;  // of the pixels as they lie in the file
  int32_t orientation;                  // 1 to 8, EXIF's numbers
  int32_t components;                   // 1 gray, 2 gray and alpha, 3 colours, 4 colours and alpha (of a JPEG: and black)
  int32_t bits;                         // per sample, or of a palette's index
  // Of the format that it is.
  JpegHeader jpeg;
  PngHeader png;
  WebpHeader webp;

  int64_t pixels() const { return int64_t{width} * height; }
  int64_t bytes() const { return pixels() * 3; }
};

// Throws DLFS_ERROR_IMAGE where the bytes are no image of a supported format or end before its size is known.
ImageHeader read_image_header(const uint8_t* bytes, int64_t length);

// read_image_header, and throws DLFS_ERROR_IMAGE as well for what must not be decoded: truncated files, more pixels than
// max_image_pixels, than max_image_side a side or than so few bytes can hold.
ImageHeader check_image(const uint8_t* bytes, int64_t length);

// check_image of dlfs_image_decode_sync's arguments; throws as well where they are none, and DLFS_ERROR_SHAPE unless the picture
// has this size.
ImageHeader check_image_arguments(const void* dst, const void* bytes, int64_t length, int32_t width, int32_t height);

// Pixels that a decoding thread keeps from image to image; trim() gives back what only large ones need.
class ImageScratch {
 public:
  uint8_t* reserve(int64_t bytes);
  void trim();

 private:
  std::unique_ptr<uint8_t[]> memory_;
  int64_t bytes_ = 0;
};

// Decodes on the host to rgb (height, width, 3) uint8, upright; header is what check_image gave for these bytes. Throws
// DLFS_ERROR_IMAGE with the decoding library's text for damaged files, and DLFS_ERROR_UNSUPPORTED where this library was
// built without that library; rgb's content is undefined then. Threads may decode at once, each with a scratch of its own.
void decode_image(uint8_t* rgb, const uint8_t* bytes, int64_t length, const ImageHeader& header, ImageScratch& scratch);

// What dlfs_supports says of "png.decode" and "webp.decode".
bool image_files_support(std::string_view feature);

// "key=value" lines of dlfs_build_info for libpng and libwebp.
std::string image_files_build_info();

}  // namespace dlfs
