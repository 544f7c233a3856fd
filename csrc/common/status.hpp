// Errors inside the native libraries: an operation throws Error, the guard around each extern "C" body turns it into a
// status and the thread's last message. Nothing here prints or exits.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <type_traits>

#include "dlfs.h"

#if defined(__CUDACC__)
#define DLFS_HD __host__ __device__
#else
#define DLFS_HD
#endif

namespace dlfs {

struct Error : std::exception {
  dlfs_status code;
  std::string message;
  Error(dlfs_status code, std::string message) : code(code), message(std::move(message)) {}
  const char* what() const noexcept override { return message.c_str(); }
};

// The calling thread's last message (dlfs_last_error).
std::string& last_error();

__attribute__((format(printf, 1, 2))) inline std::string format(const char* text, ...) {
  char buffer[1024];
  va_list args;
  va_start(args, text);
  vsnprintf(buffer, sizeof buffer, text, args);
  va_end(args);
  return buffer;
}

// Throws Error(code) with a printf-style message unless the condition holds; arguments are evaluated only then.
#define DLFS_CHECK(condition, code, ...)                                 \
  do {                                                                   \
    if (!(condition)) throw ::dlfs::Error(code, ::dlfs::format(__VA_ARGS__)); \
  } while (0)

// Runs an entry point's body. Every extern "C" function is `return dlfs::guard("op", [&] { ... });` where the body may
// return void (DLFS_OK) or a dlfs_status.
template <class Body>
dlfs_status guard(const char* op, Body&& body) noexcept {
  auto fail = [op](dlfs_status code, const char* text) noexcept {
    try {
      last_error() = std::string(op) + ": " + text;
    } catch (...) {  // out of memory while reporting: the code alone must do
    }
    return code;
  };
  try {
    if constexpr (std::is_void_v<decltype(body())>) {
      body();
      return DLFS_OK;
    } else {
      return body();
    }
  } catch (const Error& e) {
    return fail(e.code, e.what());
  } catch (const std::bad_alloc&) {
    return fail(DLFS_ERROR_HOST_MEMORY, "out of host memory");
  } catch (const std::exception& e) {
    return fail(DLFS_ERROR_INTERNAL, e.what());
  } catch (...) {
    return fail(DLFS_ERROR_INTERNAL, "unknown exception");
  }
}

inline int64_t dtype_size(dlfs_dtype dtype) {
  switch (dtype) {
    case DLFS_F32: case DLFS_I32: return 4;
    case DLFS_BF16: case DLFS_F16: return 2;
    case DLFS_U8: case DLFS_F8E4M3: case DLFS_I8: return 1;
    case DLFS_I64: return 8;
  }
  throw Error(DLFS_ERROR_DTYPE, format("unknown dtype %d", dtype));
}

inline const char* dtype_name(dlfs_dtype dtype) {
  static const char* const names[] = {"f32", "bf16", "f16", "i32", "u8", "i64", "f8", "i8"};
  return dtype >= 0 && dtype <= DLFS_I8 ? names[dtype] : "unknown";
}

}  // namespace dlfs
