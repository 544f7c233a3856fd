// Captures of the CPU backend: what dlfs_graph_begin starts and dlfs_graph_end turns into a graph.
#pragma once

#include "cpu/runtime.hpp"

namespace dlfs::cpu {

// For every stream of a capture, how many of the capture's tasks on it are known to be finished.
using Clock = std::map<const Stream*, size_t>;

// A capture in progress: one list of tasks, in the order of the calls, which respects every dependency.
struct Capture {
  explicit Capture(Stream* origin) : origin(origin) {}

  mutable std::mutex mutex;
  Stream* const origin;  // alive until `ended`
  bool ended = false;
  std::vector<Task> tasks;
  std::string failure;                                // the first failed call; empty while all is well
  std::map<Stream*, std::shared_ptr<Stream>> joined;  // streams other than the origin
  std::map<const Stream*, Clock> clocks;

  void add(const Stream* stream, Task task);
  void fail(const char* reason);
};

struct Event {
  std::shared_ptr<Context> context;
  std::mutex mutex;
  std::shared_ptr<EventRecord> record;  // of the last recording, if that was outside a capture
  std::shared_ptr<Capture> capture;     // of the last recording, if that was inside one
  Clock clock;
};

struct Graph {
  std::shared_ptr<Context> context;
  std::shared_ptr<const std::vector<Task>> tasks;
};

// For a stream about to be destroyed: spoils the capture that it takes part in.
void leave_capture(Stream& stream);

}  // namespace dlfs::cpu
