// Handles: integers of kind (4 bits), generation (24 bits) and slot (20 bits), 48 bits in all, so that they are exact as
// JavaScript numbers. A slot is used again with the next generation, so a destroyed handle is recognised and refused.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <vector>

#include "common/status.hpp"

namespace dlfs {

enum class HandleKind : int64_t { context = 1, stream, event, graph, conv, sgd, decoder, job, average, comm };

// One more than the last kind: the size of arrays by kind.
constexpr size_t handle_kinds = static_cast<size_t>(HandleKind::comm) + 1;

inline const char* handle_kind_name(int64_t kind) {
  static const char* const names[] = {"null", "context", "stream", "event",   "graph",       "conv",
                                      "sgd",  "decoder", "job",    "average", "communicator"};
  static_assert(sizeof names / sizeof names[0] == handle_kinds, "a name for each kind");
  return kind >= 0 && kind < static_cast<int64_t>(handle_kinds) ? names[kind] : "unknown";
}

// The objects of one kind. find() hands out shared ownership, so an object destroyed by another thread lives until the
// calls that use it have returned.
template <class T, HandleKind kind>
class HandleTable {
 public:
  int64_t add(std::shared_ptr<T> object) {
    std::unique_lock lock(mutex_);
    size_t slot;
    if (!free_.empty()) {
      slot = free_.back();
      free_.pop_back();
    } else {
      slot = slots_.size();
      DLFS_CHECK(slot < (1u << 20), DLFS_ERROR_HOST_MEMORY, "more than %u live %s handles", 1u << 20, name());
      slots_.emplace_back();
    }
    slots_[slot].object = std::move(object);
    return static_cast<int64_t>(kind) << 44 | static_cast<int64_t>(slots_[slot].generation) << 20 | static_cast<int64_t>(slot);
  }

  std::shared_ptr<T> find(int64_t handle) const {
    std::shared_lock lock(mutex_);
    return slots_[checked(handle)].object;
  }

  // Takes the object out of the table; the handle is invalid from here on.
  std::shared_ptr<T> remove(int64_t handle) {
    std::unique_lock lock(mutex_);
    const size_t slot = checked(handle);
    std::shared_ptr<T> object = std::move(slots_[slot].object);
    slots_[slot].object = nullptr;
    slots_[slot].generation = (slots_[slot].generation + 1) & 0xffffff;
    free_.push_back(slot);
    return object;
  }

 private:
  struct Slot {
    std::shared_ptr<T> object;
    uint32_t generation = 1;
  };

  static const char* name() { return handle_kind_name(static_cast<int64_t>(kind)); }

  size_t checked(int64_t handle) const {
    const int64_t handle_kind = handle >> 44;
    DLFS_CHECK(handle_kind == static_cast<int64_t>(kind), DLFS_ERROR_HANDLE, "expected a %s handle, got %s (%lld)", name(),
               handle_kind_name(handle_kind), static_cast<long long>(handle));
    const size_t slot = static_cast<size_t>(handle & 0xfffff);
    const uint32_t generation = static_cast<uint32_t>(handle >> 20 & 0xffffff);
    DLFS_CHECK(slot < slots_.size() && slots_[slot].generation == generation && slots_[slot].object, DLFS_ERROR_HANDLE,
               "this %s has been destroyed (%lld)", name(), static_cast<long long>(handle));
    return slot;
  }

  mutable std::shared_mutex mutex_;
  std::vector<Slot> slots_;
  std::vector<size_t> free_;
};

}  // namespace dlfs
