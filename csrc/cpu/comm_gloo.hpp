// Gloo's part of the CPU's collectives, in one file so that Gloo's headers are included nowhere else. Without Gloo at build
// time has_gloo() is false and making a GlooGroup fails with what to install.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dlfs.h"

namespace dlfs::cpu {

bool has_gloo();

// "gloo=0.5.0\n", or "gloo=none\n".
std::string gloo_build_info();

// The processes that reduce together, connected with each other by TCP. Calls wait until they are done, and throw Error
// (DLFS_ERROR_COLLECTIVE) where another rank is gone, is late by more than the timeout, or abort() was called.
class GlooGroup {
 public:
  GlooGroup(int rank, int world, const std::string& host, std::chrono::milliseconds timeout);
  ~GlooGroup();
  GlooGroup(const GlooGroup&) = delete;
  GlooGroup& operator=(const GlooGroup&) = delete;

  // For each rank, where it is to connect to, in a form that take_addresses understands.
  std::string addresses() const;
  // Connects; all: what addresses() gave on each rank.
  void connect(const std::vector<std::string>& all);

  void all_reduce(void* buffer, int64_t elements, dlfs_dtype dtype);
  void broadcast(void* buffer, int64_t bytes, int root);
  void all_gather(void* out, const void* in, int64_t bytes);
  void barrier();

  // From any thread: calls in progress and later ones fail.
  void abort();

 private:
  struct Members;
  std::unique_ptr<Members> members_;
};

}  // namespace dlfs::cpu
