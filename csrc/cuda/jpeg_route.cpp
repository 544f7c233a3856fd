#include "cuda/jpeg_route.hpp"

#include <cstring>

namespace dlfs {
namespace {

constexpr int marker_dht = 0xc4;
constexpr int marker_rst0 = 0xd0;
constexpr int marker_rst7 = 0xd7;
constexpr int marker_eoi = 0xd9;
constexpr int marker_sos = 0xda;
constexpr int marker_dqt = 0xdb;
constexpr int marker_dri = 0xdd;
constexpr int marker_app0 = 0xe0;
constexpr int marker_tem = 0x01;

// Huffman tables: class and number, 16 counts of codes by length, as many symbols; several to a segment.
bool sound_huffman(const uint8_t* p, int64_t size) {
  while (size > 0) {
    if (size < 17 || p[0] >> 4 > 1 || (p[0] & 15) > 3) return false;
    int64_t symbols = 0;
    int64_t free_codes = 1;  // of the length that is looked at
    for (int i = 1; i <= 16; ++i) {
      free_codes = 2 * free_codes - p[i];
      if (free_codes < 0) return false;
      symbols += p[i];
    }
    if (symbols > 256 || size < 17 + symbols) return false;
    p += 17 + symbols;
    size -= 17 + symbols;
  }
  return true;
}

// Quantization tables: precision and number, 64 values of one or two bytes; several to a segment.
bool sound_quantization(const uint8_t* p, int64_t size) {
  while (size > 0) {
    if (p[0] >> 4 > 1 || (p[0] & 15) > 3) return false;
    const int64_t table = p[0] >> 4 ? 129 : 65;
    if (size < table) return false;
    p += table;
    size -= table;
  }
  return true;
}

bool sound_frame(const uint8_t* p, int64_t size, int32_t components) {
  if (size != 6 + 3 * components) return false;
  for (int32_t i = 0; i < components; ++i) {
    const uint8_t sampling = p[6 + 3 * i + 1];
    const int h = sampling >> 4, v = sampling & 15;
    if (h < 1 || h > 4 || v < 1 || v > 4 || p[6 + 3 * i + 2] > 3) return false;
    for (int32_t j = 0; j < i; ++j) {
      if (p[6 + 3 * j] == p[6 + 3 * i]) return false;  // two components of one name
    }
  }
  return true;
}

// A scan header names components of the frame and their Huffman tables.
bool sound_scan(const uint8_t* p, int64_t size, const uint8_t* frame, int32_t components) {
  if (size < 1 || p[0] < 1 || p[0] > components || size != 4 + 2 * int64_t{p[0]}) return false;
  for (int i = 0; i < p[0]; ++i) {
    const uint8_t name = p[1 + 2 * i], tables = p[2 + 2 * i];
    bool known = false;
    for (int32_t j = 0; j < components; ++j) known = known || frame[6 + 3 * j] == name;
    if (!known || tables >> 4 > 3 || (tables & 15) > 3) return false;
  }
  const uint8_t* spectral = p + 1 + 2 * p[0];
  return spectral[0] <= 63 && spectral[1] <= 63 && spectral[0] <= spectral[1];
}

// What baseline coding allows of the tables: values of 8 bits, and two Huffman tables of each class.
bool baseline_quantization(const uint8_t* p, int64_t size) {
  for (; size >= 65; p += 65, size -= 65) {
    if (p[0] >> 4 != 0) return false;
  }
  return size == 0;
}

bool baseline_scan(const uint8_t* p) {
  for (int i = 0; i < p[0]; ++i) {
    if (p[2 + 2 * i] >> 4 > 1 || (p[2 + 2 * i] & 15) > 1) return false;
  }
  const uint8_t* spectral = p + 1 + 2 * p[0];
  return spectral[0] == 0 && spectral[1] == 63 && spectral[2] == 0;
}

struct Segments {
  bool sound = true;
  // Of a baseline file: one scan of all components, with the tables of the baseline, and nothing but coded data and restart
  // markers in order between its header and the end marker.
  bool plain = true;
  int32_t scans = 0;
  int32_t restarts = 0;
  int32_t interval = 0;  // units between restart markers, 0 for none
  int64_t coded = 0;     // where the coded data begins and ends
  int64_t end = 0;
  bool jfif = false;
  const uint8_t* frame = nullptr;  // content of the frame header
};

// check_jpeg has seen that all segments lie within the bytes and that an end marker follows.
Segments read_segments(const uint8_t* bytes, int64_t length, const JpegHeader& header) {
  Segments result;
  bool quantization = false, huffman = false, scan = false;
  int64_t position = 2;
  for (;;) {
    const void* found = memchr(bytes + position, 0xff, static_cast<size_t>(length - position));
    if (!found) break;
    position = static_cast<const uint8_t*>(found) - bytes;
    const int64_t start = position;
    while (position < length && bytes[position] == 0xff) ++position;
    if (position == length) break;
    const int marker = bytes[position++];
    if (marker == marker_eoi) {
      result.end = start;
      break;
    }
    if (scan && marker != 0) {
      const bool restart = marker >= marker_rst0 && marker <= marker_rst7;
      result.plain = result.plain && restart && (marker - marker_rst0) == (result.restarts & 7);
      ++result.restarts;
    }
    if (marker == 0 || marker == marker_tem || (marker >= marker_rst0 && marker < marker_eoi)) continue;
    if (length - position < 2) break;
    const int64_t size = (bytes[position] << 8 | bytes[position + 1]) - 2;
    const uint8_t* content = bytes + position + 2;
    if (size < 0 || size > length - position - 2) {
      result.sound = false;
      return result;
    }
    position += 2 + size;
    bool sound = true;
    if (marker == marker_dht) {
      sound = sound_huffman(content, size);
      huffman = true;
    } else if (marker == marker_dqt) {
      sound = sound_quantization(content, size);
      quantization = true;
      result.plain = result.plain && sound && baseline_quantization(content, size);
    } else if (marker == marker_dri) {
      result.plain = result.plain && size == 2;
      if (size == 2) result.interval = content[0] << 8 | content[1];
    } else if (marker == header.sof) {
      sound = result.frame == nullptr && sound_frame(content, size, header.components);
      result.frame = content;
    } else if (marker == marker_sos) {
      sound = result.frame != nullptr && quantization && huffman &&
              sound_scan(content, size, result.frame, header.components);
      scan = true;
      ++result.scans;
      result.plain = result.plain && sound && content[0] == header.components && baseline_scan(content);
      result.coded = position;
    } else if (marker == marker_app0) {
      result.jfif = result.jfif || (size >= 5 && memcmp(content, "JFIF", 5) == 0);
    }
    if (!sound) {
      result.sound = false;
      return result;
    }
  }
  result.sound = scan;
  return result;
}

// Whether a file of one of the usual samplings may be given to engines.
bool fits_engines(const Segments& segments, const JpegHeader& header) {
  constexpr uint8_t baseline = 0xc0;
  if (header.sof != baseline || !segments.plain || segments.scans != 1 || segments.end <= segments.coded) return false;
  const bool gray = header.components == 1;
  const int32_t across = gray ? 1 : header.sampling[0] >> 4, down = gray ? 1 : header.sampling[0] & 15;
  const int64_t columns = (header.width + 8 * across - 1) / (8 * across);
  const int64_t rows = (header.height + 8 * down - 1) / (8 * down);
  const int64_t units = columns * rows;
  const int64_t restarts = segments.interval > 0 ? (units - 1) / segments.interval : 0;
  const int64_t blocks = units * (gray ? 1 : across * down + 2);
  return segments.restarts == restarts && (segments.end - segments.coded) * 8 >= 2 * blocks;
}

// FNV-1a (Fowler, Noll, Vo) over the sizes and the first of the coded data, in which files differ.
int32_t draw_lot(const uint8_t* bytes, const Segments& segments, const JpegHeader& header) {
  uint64_t hash = 0xcbf29ce484222325u;
  const auto add = [&hash](uint64_t value) { hash = (hash ^ value) * 0x100000001b3u; };
  for (const int64_t number : {segments.end - segments.coded, int64_t{header.width}, int64_t{header.height}}) {
    for (int shift = 0; shift < 32; shift += 8) add(static_cast<uint64_t>(number) >> shift & 255);
  }
  const int64_t end = segments.end - segments.coded > 64 ? segments.coded + 64 : segments.end;
  for (int64_t i = segments.coded; i < end; ++i) add(bytes[i]);
  return static_cast<int32_t>((hash ^ hash >> 32) % 100);
}

// Whether libjpeg takes three components for RGB: its rules, as no marker says so for sure.
bool is_rgb(const Segments& segments, const JpegHeader& header) {
  if (segments.jfif) return false;
  if (header.adobe_transform >= 0) return header.adobe_transform == 0;
  const uint8_t* frame = segments.frame;
  return frame[6] == 'R' && frame[9] == 'G' && frame[12] == 'B';
}

}  // namespace

JpegRoute route_jpeg(const uint8_t* bytes, int64_t length, const JpegHeader& header) {
  if (header.process == JpegProcess::arithmetic) return {false, false, "arithmetic coding"};
  if (header.process == JpegProcess::lossless) return {false, false, "lossless coding"};
  if (header.bits != 8) return {false, false, "samples of more than 8 bits"};
  if (header.components == 4) return {false, false, "four components (CMYK or YCCK)"};
  if (header.components == 2) return {false, false, "two components"};
  const Segments segments = read_segments(bytes, length, header);
  if (!segments.sound) return {false, false, "malformed tables"};
  if (header.components == 1) {
    if (header.sampling[0] != 0x11) return {false, true, "one component with sampling factors"};
    return {true, true, "", fits_engines(segments, header), draw_lot(bytes, segments, header)};
  }
  if (is_rgb(segments, header)) return {false, false, "RGB without a colour transform"};
  const bool usual = (header.sampling[0] == 0x11 || header.sampling[0] == 0x21 || header.sampling[0] == 0x22) &&
                     header.sampling[1] == 0x11 && header.sampling[2] == 0x11;
  if (!usual) return {false, true, "an unusual chroma sampling"};
  return {true, true, "", fits_engines(segments, header), draw_lot(bytes, segments, header)};
}

}  // namespace dlfs
