// Events and graphs of the CPU backend (see runtime.hpp for streams).
#pragma once

#include "cpu/runtime.hpp"

namespace dlfs::cpu {

// One recording of an event: passed when the stream has come to it.
struct EventRecord {
  std::mutex mutex;
  std::condition_variable changed;
  bool passed = false;
  std::chrono::steady_clock::time_point time;
  std::shared_ptr<const Error> error;  // of the stream when it came here

  void pass(std::shared_ptr<const Error> stream_error);
  std::shared_ptr<const Error> wait();
};

// For every stream of a capture, how many of the capture's operations on it are known to be finished.
using Clock = std::map<const Stream*, size_t>;

// A capture in progress: one list of operations, in the order of the calls, which respects every dependency.
struct Capture {
  explicit Capture(Stream* origin) : origin(origin) {}

  mutable std::mutex mutex;
  Stream* const origin;  // alive until `ended`
  bool ended = false;
  std::vector<Task> tasks;
  std::string failure;                           // the first failed call; empty while all is well
  std::map<Stream*, std::shared_ptr<Stream>> joined;  // streams other than the origin
  std::map<const Stream*, Clock> clocks;

  void fail(const char* reason);
};

struct Event {
  std::shared_ptr<Context> context;
  std::mutex mutex;
  std::shared_ptr<EventRecord> record;  // of the last recording outside a capture
  std::shared_ptr<Capture> capture;     // of the last recording, if that was inside one
  Clock clock;
};

struct Graph {
  std::shared_ptr<Context> context;
  std::shared_ptr<const std::vector<Task>> tasks;
};

}  // namespace dlfs::cpu
