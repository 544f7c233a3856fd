// Decodes mutated JPEG, PNG and WebP files with the decoder that both libraries have (csrc/common), built with
// AddressSanitizer and UndefinedBehaviorSanitizer, after what looks at a JPEG's segments on a GPU (csrc/cuda/jpeg_route.cpp)
// has seen them: each must give a whole picture or a DLFS_ERROR_IMAGE, in bounded time, and write nothing beside the picture.
// scripts/fuzz-images.sh builds and runs this.
//
//   fuzz_images SEED FIRST COUNT FILE...
//
// Input i is a function of SEED and i alone. One that fails is written to fuzz-image-<i> in the current folder.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <vector>

#include <sanitizer/asan_interface.h>

#include "common/image.hpp"
#include "cuda/jpeg_route.hpp"

namespace {

using Bytes = std::vector<uint8_t>;

// Far more than the slowest input needs: pixels are bounded by the bytes, and scans by number.
constexpr double seconds_allowed = 10;
constexpr size_t guard_size = 4096;
constexpr uint8_t guard_value = 0xa5;

Bytes input;
long long input_index = 0;

void write_input() {
  char name[64];
  snprintf(name, sizeof name, "fuzz-image-%lld", input_index);
  std::ofstream(name, std::ios::binary).write(reinterpret_cast<const char*>(input.data()), static_cast<long>(input.size()));
  fprintf(stderr, "fuzz_images: input %lld is in %s\n", input_index, name);
}

// SplitMix64 (Steele, Lea, Flood 2014).
class Random {
 public:
  Random(uint64_t seed, uint64_t index) : state_(seed * 0x9e3779b97f4a7c15u ^ index * 0xd1342543de82ef95u) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  size_t below(size_t end) { return end == 0 ? 0 : static_cast<size_t>(next() % end); }
  uint8_t byte() { return static_cast<uint8_t>(next()); }

 private:
  uint64_t state_;
};

// The input is a PNG: its chunks have checksums.
bool has_checksums() { return dlfs::is_png(input.data(), static_cast<int64_t>(input.size())); }

// Where parts of a file begin: behind the markers of a JPEG, behind the names of a PNG's and a WebP's chunks, and EXIF data.
std::vector<size_t> beginnings(const Bytes& bytes) {
  static const char* const names[] = {"IHDR", "PLTE", "tRNS", "IDAT", "eXIf", "RIFF", "VP8X", "VP8 ",
                                      "VP8L", "ANMF", "ALPH", "EXIF", "Exif", "II*",  "MM"};
  const bool jpeg = bytes.size() > 1 && bytes[0] == 0xff && bytes[1] == 0xd8;
  std::vector<size_t> found;
  for (size_t i = 0; i + 4 < bytes.size(); ++i) {
    if (jpeg && bytes[i] == 0xff && bytes[i + 1] != 0 && bytes[i + 1] != 0xff) found.push_back(i + 2);
    for (const char* name : names) {
      if (memcmp(&bytes[i], name, strlen(name)) == 0) found.push_back(i + strlen(name));
    }
  }
  return found;
}

uint32_t crc32(const uint8_t* bytes, size_t size) {
  uint32_t crc = ~0u;
  for (size_t i = 0; i < size; ++i) {
    crc ^= bytes[i];
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
  }
  return ~crc;
}

// Sets the checksums of a PNG's chunks right, so that changed content is looked at.
void set_checksums(Bytes& bytes) {
  const auto u32 = [&](size_t at) {
    return size_t{bytes[at]} << 24 | size_t{bytes[at + 1]} << 16 | size_t{bytes[at + 2]} << 8 | bytes[at + 3];
  };
  for (size_t at = 8; at + 12 <= bytes.size();) {
    const size_t size = u32(at);
    if (size > bytes.size() - at - 12) return;
    const uint32_t crc = crc32(&bytes[at + 4], size + 4);
    for (size_t i = 0; i < 4; ++i) bytes[at + 8 + size + i] = static_cast<uint8_t>(crc >> (24 - 8 * i));
    at += 12 + size;
  }
}

// Sets the size in a WebP's head right.
void set_riff_size(Bytes& bytes) {
  for (size_t i = 0; i < 4; ++i) bytes[4 + i] = static_cast<uint8_t>((bytes.size() - 8) >> (8 * i));
}

void mutate(Bytes& bytes, const std::vector<Bytes>& files, Random& random) {
  static const uint8_t telling[] = {0, 1, 2, 3, 7, 8, 0x0f, 0x10, 0x11, 0x3f, 0x40, 0x7f, 0x80, 0xfe, 0xff,
                                    0xc0, 0xc2, 0xc4, 0xc9, 0xd0, 0xd8, 0xd9, 0xda, 0xdb, 0xdd, 0xee};
  const auto telling_byte = [&] { return telling[random.below(sizeof telling)]; };
  // Headers are a small part of a file, so half of the places are within 20 bytes of a part's beginning.
  const std::vector<size_t> starts = beginnings(bytes);
  const auto place = [&] {
    if (starts.empty() || random.below(2) == 0) return random.below(bytes.size());
    return std::min(starts[random.below(starts.size())] + random.below(20), bytes.size() - 1);
  };
  const size_t at = place(), length = 1 + random.below(random.below(4) == 0 ? 300 : 12);
  const size_t end = std::min(at + length, bytes.size());
  const auto from = bytes.begin() + static_cast<long>(at), to = bytes.begin() + static_cast<long>(end);
  switch (random.below(9)) {
    case 0:
      bytes[at] ^= static_cast<uint8_t>(1u << random.below(8));
      break;
    case 1:
      bytes[at] = telling_byte();
      break;
    case 2:
      for (auto i = from; i != to; ++i) *i = random.byte();
      break;
    case 3:
      bytes.erase(from, to);
      break;
    case 4: {
      const Bytes copy(from, to);
      bytes.insert(bytes.begin() + static_cast<long>(place()), copy.begin(), copy.end());
      break;
    }
    case 5: {
      Bytes made(length);
      for (uint8_t& value : made) value = random.below(3) == 0 ? telling_byte() : random.byte();
      bytes.insert(from, made.begin(), made.end());
      break;
    }
    case 6:
      bytes.resize(at);
      break;
    case 7: {
      // The head of this file with the tail of another, or a segment of it in the middle.
      const Bytes& other = files[random.below(files.size())];
      const size_t begin = random.below(other.size()), stop = begin + random.below(other.size() - begin + 1);
      const auto first = other.begin() + static_cast<long>(begin), last = other.begin() + static_cast<long>(stop);
      if (random.below(2) == 0) bytes.resize(at);
      bytes.insert(bytes.begin() + static_cast<long>(std::min(at, bytes.size())), first, last);
      break;
    }
    default:
      if (end - at >= 2) {
        bytes[at] = telling_byte();
        bytes[at + 1] = telling_byte();
      }
  }
}

bool guards_are_whole(const Bytes& memory, size_t size) {
  for (size_t i = 0; i < guard_size; ++i) {
    if (memory[i] != guard_value || memory[guard_size + size + i] != guard_value) return false;
  }
  return true;
}

// A copy that is exactly as large as the first bytes of the input, so that reading behind their end is seen.
std::unique_ptr<uint8_t[]> first_bytes(size_t length) {
  std::unique_ptr<uint8_t[]> bytes(new uint8_t[length]);
  std::copy_n(input.begin(), length, bytes.get());
  return bytes;
}

// The header of the beginning of the input must be read, or refused as an image's.
void read_header(size_t length) {
  try {
    dlfs::read_image_header(first_bytes(length).get(), static_cast<int64_t>(length));
  } catch (const dlfs::Error& error) {
    if (error.code != DLFS_ERROR_IMAGE) throw;
  }
}

// True where the input is a picture, false where it is refused as an image. Throws for anything else.
bool decode() {
  const std::unique_ptr<uint8_t[]> file = first_bytes(input.size());
  const auto length = static_cast<int64_t>(input.size());
  try {
    const dlfs::ImageHeader header = dlfs::check_image(file.get(), length);
    if (header.format == dlfs::ImageFormat::jpeg) {
      const dlfs::JpegRoute route = dlfs::route_jpeg(file.get(), length, header.jpeg);
      const bool sound = (route.nvjpeg || !route.engine) && route.lot >= 0 && route.lot <= 99;
      if (!sound) throw std::runtime_error("a route that is none");
    }
    const size_t size = static_cast<size_t>(header.bytes());
    Bytes memory(size + 2 * guard_size, guard_value);
    bool decoded = true;
    try {
      dlfs::ImageScratch scratch;
      dlfs::decode_image(memory.data() + guard_size, file.get(), length, header, scratch);
    } catch (const dlfs::Error& error) {
      if (error.code != DLFS_ERROR_IMAGE) throw;
      decoded = false;
    }
    if (!guards_are_whole(memory, size)) throw std::runtime_error("bytes beside the picture were written");
    return decoded;
  } catch (const dlfs::Error& error) {
    if (error.code != DLFS_ERROR_IMAGE) throw;
    return false;
  }
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    fprintf(stderr, "usage: fuzz_images SEED FIRST COUNT FILE...\n");
    return 2;
  }
  const uint64_t seed = strtoull(argv[1], nullptr, 10);
  const long long first = atoll(argv[2]), count = atoll(argv[3]);
  std::vector<Bytes> files;
  for (int i = 4; i < argc; ++i) {
    std::ifstream stream(argv[i], std::ios::binary);
    files.emplace_back(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
    if (files.back().empty()) {
      fprintf(stderr, "fuzz_images: %s cannot be read or is empty\n", argv[i]);
      return 2;
    }
  }
  __asan_set_death_callback(write_input);
  long long decoded = 0;
  double slowest = 0;
  for (input_index = first; input_index < first + count; ++input_index) {
    Random random(seed, static_cast<uint64_t>(input_index));
    input = files[random.below(files.size())];
    for (size_t changes = 1 + random.below(4); changes > 0 && !input.empty(); --changes) mutate(input, files, random);
    if (random.below(4) != 0 && has_checksums()) set_checksums(input);
    if (random.below(2) == 0 && dlfs::is_webp(input.data(), static_cast<int64_t>(input.size()))) set_riff_size(input);
    const size_t beginning = random.below(input.size() + 1);
    const auto start = std::chrono::steady_clock::now();
    try {
      read_header(beginning);
      decoded += decode();
    } catch (const std::exception& error) {
      fprintf(stderr, "fuzz_images: %s\n", error.what());
      write_input();
      return 1;
    }
    const double seconds = seconds_since(start);
    if (seconds > slowest) slowest = seconds;
    if (seconds > seconds_allowed) {
      fprintf(stderr, "fuzz_images: decoding took %.1f s\n", seconds);
      write_input();
      return 1;
    }
    const long long done = input_index + 1 - first;
    if (done % 100000 == 0 && done < count) fprintf(stderr, "fuzz_images: %lld of %lld inputs\n", done, count);
  }
  printf("%lld inputs: %lld decoded, %lld refused, none crashed; the slowest took %.3f s\n", count, decoded,
         count - decoded, slowest);
  return 0;
}
