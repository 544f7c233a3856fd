// The part of a decoder that works with the GPU's JPEG engines: threads that collect images which decoding threads have
// read and checked, hand them over in batches and draw the results.
#pragma once

#include <condition_variable>
#include <deque>
#include <thread>

#include "common/decode_job.hpp"
#include "common/jpeg_header.hpp"
#include "cuda/jpeg.hpp"
#include "cuda/jpeg_engine.hpp"
#include "cuda/jpeg_route.hpp"

namespace dlfs {

struct Job : DecodeJob {
  std::shared_ptr<Context> context;
};

// The first size of pinned memory for a file, and the size above which it is given back.
constexpr int64_t first_file_bytes = int64_t{512} << 10;
constexpr int64_t kept_file_bytes = int64_t{16} << 20;

// An image on its way to the engines.
struct EngineWork {
  std::shared_ptr<Job> job;
  int32_t i;
  JpegHeader header;
  const uint8_t* bytes;
  int64_t length;
  std::unique_ptr<PinnedBuffer> file;  // of an image in a file: the memory that bytes lie in
};

class EngineLane;

class EngineCrew {
 public:
  // share: of the images that engines may be given, in per cent. The device must have engines.
  EngineCrew(Context& context, int32_t share);
  ~EngineCrew();
  EngineCrew(const EngineCrew&) = delete;
  EngineCrew& operator=(const EngineCrew&) = delete;

  // Whether an image is the engines'; depends on the image alone.
  bool wants(const JpegRoute& route) const { return route.engine && route.lot < share_; }

  // Takes an image over; its status and its end are this object's from then on. Waits while many are pending, so that memory
  // is bounded. An exception means that it was not taken.
  void add(EngineWork&& work);

  // Memory for a file in place of what went with add().
  std::unique_ptr<PinnedBuffer> spare();

  // Runs what is pending, then ends the threads; nothing is added any more.
  void stop();

 private:
  void work(EngineLane& lane) noexcept;

  Context& context_;  // held by the decoder
  const int32_t share_;
  const size_t batch_;
  std::vector<std::unique_ptr<EngineLane>> lanes_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable added_, taken_;
  std::deque<EngineWork> pending_;
  std::vector<std::unique_ptr<PinnedBuffer>> spares_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace dlfs
