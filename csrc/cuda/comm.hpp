// The kernel of communicators, in a file of its own: comm.cpp is plain C++.
#pragma once

#include "cuda/runtime.hpp"

namespace dlfs {

// Counts a collective that the stream has come to: progress[1] = label, progress[0] += 1, in pinned host memory.
void mark_progress(const Stream& stream, int64_t* progress, int32_t label);

}  // namespace dlfs
