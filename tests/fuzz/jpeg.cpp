// Decodes mutated JPEGs with the decoder that both libraries have (csrc/common), built with AddressSanitizer and
// UndefinedBehaviorSanitizer, after what looks at a file's segments on a GPU has seen them (csrc/cuda/jpeg_route.cpp): each must give a whole picture or a DLFS_ERROR_IMAGE, in bounded time, and write nothing
// beside the picture. scripts/fuzz-jpeg.sh builds and runs this.
//
//   fuzz_jpeg SEED FIRST COUNT FILE...
//
// Input i is a function of SEED and i alone. One that fails is written to fuzz-jpeg-<i>.jpg in the current folder.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <vector>

#include <sanitizer/asan_interface.h>

#include "common/jpeg_turbo.hpp"
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
  snprintf(name, sizeof name, "fuzz-jpeg-%lld.jpg", input_index);
  std::ofstream(name, std::ios::binary).write(reinterpret_cast<const char*>(input.data()), static_cast<long>(input.size()));
  fprintf(stderr, "fuzz_jpeg: input %lld is in %s\n", input_index, name);
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

// Where segments begin: behind the markers of a file.
std::vector<size_t> markers(const Bytes& bytes) {
  std::vector<size_t> found;
  for (size_t i = 0; i + 1 < bytes.size(); ++i) {
    if (bytes[i] == 0xff && bytes[i + 1] != 0 && bytes[i + 1] != 0xff) found.push_back(i + 2);
  }
  return found;
}

void mutate(Bytes& bytes, const std::vector<Bytes>& files, Random& random) {
  static const uint8_t telling[] = {0, 1, 2, 3, 7, 8, 0x0f, 0x10, 0x11, 0x3f, 0x40, 0x7f, 0x80, 0xfe, 0xff,
                                    0xc0, 0xc2, 0xc4, 0xc9, 0xd0, 0xd8, 0xd9, 0xda, 0xdb, 0xdd, 0xee};
  const auto telling_byte = [&] { return telling[random.below(sizeof telling)]; };
  // Headers are a small part of a file, so half of the places are within 20 bytes of a marker.
  const std::vector<size_t> starts = markers(bytes);
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

// True where the input is a picture, false where it is refused as an image. Throws for anything else.
bool decode() {
  // Exactly as large as the file, so that reading behind its end is seen.
  const std::unique_ptr<uint8_t[]> file(new uint8_t[input.size()]);
  std::copy(input.begin(), input.end(), file.get());
  const auto length = static_cast<int64_t>(input.size());
  try {
    const dlfs::JpegHeader header = dlfs::check_jpeg(file.get(), length);
    const dlfs::JpegRoute route = dlfs::route_jpeg(file.get(), length, header);
    if ((route.engine && !route.nvjpeg) || route.lot < 0 || route.lot > 99) throw std::runtime_error("a route that is none");
    const size_t size = static_cast<size_t>(header.width) * static_cast<size_t>(header.height) * 3;
    Bytes memory(size + 2 * guard_size, guard_value);
    bool decoded = true;
    try {
      dlfs::jpeg_turbo_decode(memory.data() + guard_size, file.get(), length, header);
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
    fprintf(stderr, "usage: fuzz_jpeg SEED FIRST COUNT FILE...\n");
    return 2;
  }
  const uint64_t seed = strtoull(argv[1], nullptr, 10);
  const long long first = atoll(argv[2]), count = atoll(argv[3]);
  std::vector<Bytes> files;
  for (int i = 4; i < argc; ++i) {
    std::ifstream stream(argv[i], std::ios::binary);
    files.emplace_back(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
    if (files.back().empty()) {
      fprintf(stderr, "fuzz_jpeg: %s cannot be read or is empty\n", argv[i]);
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
    const auto start = std::chrono::steady_clock::now();
    try {
      decoded += decode();
    } catch (const std::exception& error) {
      fprintf(stderr, "fuzz_jpeg: %s\n", error.what());
      write_input();
      return 1;
    }
    const double seconds = seconds_since(start);
    if (seconds > slowest) slowest = seconds;
    if (seconds > seconds_allowed) {
      fprintf(stderr, "fuzz_jpeg: decoding took %.1f s\n", seconds);
      write_input();
      return 1;
    }
    const long long done = input_index + 1 - first;
    if (done % 100000 == 0 && done < count) fprintf(stderr, "fuzz_jpeg: %lld of %lld inputs\n", done, count);
  }
  printf("%lld inputs: %lld decoded, %lld refused, none crashed; the slowest took %.3f s\n", count, decoded,
         count - decoded, slowest);
  return 0;
}
