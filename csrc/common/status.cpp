#include "common/status.hpp"

namespace dlfs {

std::string& last_error() {
  thread_local std::string message;
  return message;
}

}  // namespace dlfs

extern "C" int32_t dlfs_abi_version(void) { return DLFS_ABI_VERSION; }

extern "C" const char* dlfs_last_error(void) { return dlfs::last_error().c_str(); }
