// NCCL by way of dlopen, when the first communicator is made: a training on one GPU neither needs the library nor waits for
// its 200 MB to be mapped. It is looked for by its name, where the loader and this library's own run path say.
#pragma once

#include <nccl.h>

#include "cuda/runtime.hpp"

namespace dlfs {

// The functions that are called, by NCCL's own names without their prefix.
struct Nccl {
  decltype(&ncclGetVersion) GetVersion;
  decltype(&ncclGetErrorString) GetErrorString;
  decltype(&ncclGetLastError) GetLastError;
  decltype(&ncclGetUniqueId) GetUniqueId;
  decltype(&ncclCommInitRank) CommInitRank;
  decltype(&ncclCommDestroy) CommDestroy;
  decltype(&ncclCommAbort) CommAbort;
  decltype(&ncclCommGetAsyncError) CommGetAsyncError;
  decltype(&ncclAllReduce) AllReduce;
  decltype(&ncclBroadcast) Broadcast;
  decltype(&ncclAllGather) AllGather;
  decltype(&ncclGroupStart) GroupStart;
  decltype(&ncclGroupEnd) GroupEnd;
};

// Opens the library once. Throws DLFS_ERROR_UNSUPPORTED where it is not found.
const Nccl& nccl();

// Throws DLFS_ERROR_COLLECTIVE for a status of NCCL, with its own last words.
[[noreturn]] void throw_nccl(ncclResult_t status, const char* call, ncclComm_t comm);

#define NCCL_CHECK(comm, call)                                                                        \
  do {                                                                                                \
    const ncclResult_t nccl_check_status_ = (call);                                                   \
    if (nccl_check_status_ != ncclSuccess) ::dlfs::throw_nccl(nccl_check_status_, #call, comm); \
  } while (0)

}  // namespace dlfs
