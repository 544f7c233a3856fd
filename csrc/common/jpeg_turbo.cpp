#include "common/jpeg_turbo.hpp"

#ifdef DLFS_HAVE_LIBJPEG

#include <csetjmp>
#include <cstdio>  // jpeglib.h needs FILE

// In this order: the numbers of jerror.h's messages depend on a version that jpeglib.h sets.
#include <jpeglib.h>
#include <jerror.h>

namespace dlfs {
namespace {

// The library reports errors through this and never returns from error_exit, so each run lives in a function with a
// setjmp whose locals need no destruction.
struct ErrorManager {
  jpeg_error_mgr base;
  jmp_buf jump;
  bool failed;
  bool out_of_memory;
  char text[JMSG_LENGTH_MAX];
};

[[noreturn]] void fail(j_common_ptr cinfo) {
  ErrorManager* errors = reinterpret_cast<ErrorManager*>(cinfo->err);
  errors->failed = true;
  errors->out_of_memory = errors->base.msg_code == JERR_OUT_OF_MEMORY;
  errors->base.format_message(cinfo, errors->text);
  longjmp(errors->jump, 1);
}

// Warnings (level -1) are errors, as the library goes on with made-up pixels, except for those that leave all pixels
// intact: bytes between segments that belong to none (many cameras pad so), and odd versions of informative markers.
// Stray bytes before a restart marker come from a damaged interval.
void on_message(j_common_ptr cinfo, int level) {
  if (level >= 0) return;
  const jpeg_error_mgr& error = *cinfo->err;
  switch (error.msg_code) {
    case JWRN_ADOBE_XFORM:
    case JWRN_JFIF_MAJOR:
      return;
    case JWRN_EXTRANEOUS_DATA: {
      const int marker = error.msg_parm.i[1];
      if (marker < 0xd0 || marker > 0xd7) return;
      break;
    }
  }
  fail(cinfo);
}

void print_nothing(j_common_ptr) {}

jpeg_error_mgr* init_errors(ErrorManager& errors) {
  jpeg_std_error(&errors.base);
  errors.base.error_exit = fail;
  errors.base.emit_message = on_message;
  errors.base.output_message = print_nothing;
  errors.failed = false;
  errors.out_of_memory = false;
  errors.text[0] = 0;
  return &errors.base;
}

void throw_failure(const ErrorManager& errors, const char* what) {
  DLFS_CHECK(!errors.failed, errors.out_of_memory ? DLFS_ERROR_HOST_MEMORY : DLFS_ERROR_IMAGE, "%s: libjpeg-turbo: %s",
             what, errors.text);
}

// One row of Adobe CMYK (255 - ink) to RGB, rounded as Pillow's CMYK to RGB conversion does.
void convert_cmyk_row(uint8_t* rgb, const uint8_t* cmyk, int32_t width) {
  for (int32_t x = 0; x < width; ++x) {
    const int light = cmyk[4 * x + 3];
    for (int c = 0; c < 3; ++c) {
      const int product = (255 - cmyk[4 * x + c]) * light + 128;
      rgb[3 * x + c] = static_cast<uint8_t>(light - (((product >> 8) + product) >> 8));
    }
  }
}

// cmyk_row: width * 4 bytes of scratch where the file has four components.
void run_decode(ErrorManager& errors, uint8_t* rgb, uint8_t* cmyk_row, const uint8_t* bytes, int64_t length,
                int32_t width, int32_t height) {
  jpeg_decompress_struct cinfo;
  cinfo.err = init_errors(errors);
  if (setjmp(errors.jump)) {
    jpeg_destroy_decompress(&cinfo);
    return;
  }
  jpeg_create_decompress(&cinfo);
  jpeg_mem_src(&cinfo, bytes, static_cast<unsigned long>(length));
  jpeg_read_header(&cinfo, TRUE);
  cinfo.out_color_space = cmyk_row ? JCS_CMYK : JCS_RGB;
  cinfo.dct_method = JDCT_ISLOW;
  cinfo.do_fancy_upsampling = TRUE;
  jpeg_start_decompress(&cinfo);
  if (cinfo.output_width != static_cast<JDIMENSION>(width) || cinfo.output_height != static_cast<JDIMENSION>(height) ||
      cinfo.output_components != (cmyk_row ? 4 : 3)) {
    ERREXIT(&cinfo, JERR_CONVERSION_NOTIMPL);  // our own parser and the library's read the same header
  }
  const size_t stride = static_cast<size_t>(width) * 3;
  while (cinfo.output_scanline < cinfo.output_height) {
    uint8_t* next = rgb + cinfo.output_scanline * stride;
    if (cmyk_row) {
      JSAMPROW rows[1] = {cmyk_row};
      jpeg_read_scanlines(&cinfo, rows, 1);
      convert_cmyk_row(next, cmyk_row, width);
    } else {
      JSAMPROW rows[8];
      const JDIMENSION left = cinfo.output_height - cinfo.output_scanline;
      const JDIMENSION count = left < 8 ? left : 8;
      for (JDIMENSION i = 0; i < count; ++i) rows[i] = next + i * stride;
      jpeg_read_scanlines(&cinfo, rows, count);
    }
  }
  jpeg_finish_decompress(&cinfo);  // reads on to the end marker: what is missing before it is an error too
  jpeg_destroy_decompress(&cinfo);
}

// Collects what is encoded in a growing buffer. (jpeg_mem_dest's own leaks or dangles after an error.)
struct Destination {
  jpeg_destination_mgr base;
  unsigned char* bytes;
  size_t capacity;
  size_t length;
};

void grow(j_compress_ptr cinfo) {
  Destination& destination = *reinterpret_cast<Destination*>(cinfo->dest);
  const size_t capacity = destination.capacity ? 2 * destination.capacity : 64 * 1024;
  void* bytes = realloc(destination.bytes, capacity);
  if (!bytes) ERREXIT1(cinfo, JERR_OUT_OF_MEMORY, 0);
  destination.bytes = static_cast<unsigned char*>(bytes);
  destination.base.next_output_byte = destination.bytes + destination.capacity;
  destination.base.free_in_buffer = capacity - destination.capacity;
  destination.capacity = capacity;
}

boolean grow_when_full(j_compress_ptr cinfo) {
  grow(cinfo);
  return TRUE;
}

void end_output(j_compress_ptr cinfo) {
  Destination& destination = *reinterpret_cast<Destination*>(cinfo->dest);
  destination.length = destination.capacity - destination.base.free_in_buffer;
}

void run_encode(ErrorManager& errors, Destination& destination, const uint8_t* rgb, int32_t width, int32_t height,
                int32_t quality) {
  jpeg_compress_struct cinfo;
  cinfo.err = init_errors(errors);
  if (setjmp(errors.jump)) {
    jpeg_destroy_compress(&cinfo);
    return;
  }
  jpeg_create_compress(&cinfo);
  destination.base.init_destination = grow;
  destination.base.empty_output_buffer = grow_when_full;
  destination.base.term_destination = end_output;
  cinfo.dest = &destination.base;
  cinfo.image_width = static_cast<JDIMENSION>(width);
  cinfo.image_height = static_cast<JDIMENSION>(height);
  cinfo.input_components = 3;
  cinfo.in_color_space = JCS_RGB;
  jpeg_set_defaults(&cinfo);  // YCbCr, 4:2:0
  jpeg_set_quality(&cinfo, quality, TRUE);
  cinfo.dct_method = JDCT_ISLOW;
  jpeg_start_compress(&cinfo, TRUE);
  while (cinfo.next_scanline < cinfo.image_height) {
    JSAMPROW row = const_cast<uint8_t*>(rgb) + static_cast<size_t>(cinfo.next_scanline) * width * 3;
    jpeg_write_scanlines(&cinfo, &row, 1);
  }
  jpeg_finish_compress(&cinfo);
  jpeg_destroy_compress(&cinfo);
}

}  // namespace

void jpeg_turbo_decode(uint8_t* rgb, const uint8_t* bytes, int64_t length, const JpegHeader& header) {
  std::unique_ptr<uint8_t[]> cmyk_row;
  if (header.components == 4) cmyk_row.reset(new uint8_t[static_cast<size_t>(header.width) * 4]);
  ErrorManager errors;
  run_decode(errors, rgb, cmyk_row.get(), bytes, length, header.width, header.height);
  throw_failure(errors, "damaged or unsupported JPEG");
}

EncodedJpeg jpeg_turbo_encode(const uint8_t* rgb, int32_t width, int32_t height, int32_t quality) {
  DLFS_CHECK(width >= 1 && height >= 1 && width <= JPEG_MAX_DIMENSION && height <= JPEG_MAX_DIMENSION,
             DLFS_ERROR_ARGUMENT, "expected an image of 1 to %d pixels in width and height, got %d x %d",
             static_cast<int>(JPEG_MAX_DIMENSION), width, height);
  DLFS_CHECK(quality >= 1 && quality <= 100, DLFS_ERROR_ARGUMENT, "expected a quality from 1 to 100, got %d", quality);
  Destination destination{};
  ErrorManager errors;
  run_encode(errors, destination, rgb, width, height, quality);
  EncodedJpeg result{std::unique_ptr<unsigned char, EncodedJpeg::Free>(destination.bytes),
                     static_cast<int64_t>(destination.length)};
  throw_failure(errors, "encoding failed");
  return result;
}

}  // namespace dlfs

#endif
