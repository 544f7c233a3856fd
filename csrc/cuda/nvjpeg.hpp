// What our uses of nvJPEG share: errors and owned objects. Included where nvjpeg.h is.
#pragma once

#include <nvjpeg.h>

#include <memory>
#include <type_traits>

#include "cuda/runtime.hpp"

namespace dlfs {

const char* nvjpeg_text(int status);

// Throws Error for what nvJPEG says about the machine, with the CUDA error that is behind it.
[[noreturn]] void throw_nvjpeg(nvjpegStatus_t status, const char* call);

#define NVJPEG_CHECK(call)                                                                                \
  do {                                                                                                    \
    const nvjpegStatus_t nvjpeg_check_status_ = (call);                                                   \
    if (nvjpeg_check_status_ != NVJPEG_STATUS_SUCCESS) ::dlfs::throw_nvjpeg(nvjpeg_check_status_, #call); \
  } while (0)

// Objects of nvJPEG and how they end.
template <class T, nvjpegStatus_t (*destroy)(T)>
struct DestroyNvjpeg {
  void operator()(std::remove_pointer_t<T>* object) const { destroy(object); }
};
template <class T, nvjpegStatus_t (*destroy)(T)>
using OwnedNvjpeg = std::unique_ptr<std::remove_pointer_t<T>, DestroyNvjpeg<T, destroy>>;

}  // namespace dlfs
