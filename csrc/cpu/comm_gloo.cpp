#include "cpu/comm_gloo.hpp"

#include "common/status.hpp"

#if defined(DLFS_HAVE_GLOO)

#include <gloo/allgather.h>
#include <gloo/allreduce.h>
#include <gloo/barrier.h>
#include <gloo/broadcast.h>
#include <gloo/config.h>
#include <gloo/context.h>
#include <gloo/transport/context.h>
#include <gloo/transport/pair.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/unbound_buffer.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <set>

#include "cpu/numeric.hpp"

namespace dlfs::cpu {
namespace {

using gloo::transport::UnboundBuffer;
using std::chrono::milliseconds;

// The buffers that Gloo's algorithms wait for, so that waiting can be ended from another thread. Gloo itself knows only
// timeouts, and closing its connections while they are in use may wait for ever.
class Waiting {
 public:
  void enter(UnboundBuffer* buffer) {
    const std::lock_guard lock(mutex_);
    buffers_.insert(buffer);
  }
  void leave(UnboundBuffer* buffer) {
    const std::lock_guard lock(mutex_);
    buffers_.erase(buffer);
  }
  void abort() {
    const std::lock_guard lock(mutex_);
    aborted_ = true;
    for (UnboundBuffer* buffer : buffers_) {
      buffer->abortWaitRecv();
      buffer->abortWaitSend();
    }
  }
  bool aborted() const { return aborted_; }
  void check() const { DLFS_CHECK(!aborted_, DLFS_ERROR_COLLECTIVE, "the communicator was aborted"); }

 private:
  std::mutex mutex_;
  std::set<UnboundBuffer*> buffers_;
  std::atomic<bool> aborted_{false};
};

class AbortableBuffer final : public UnboundBuffer {
 public:
  AbortableBuffer(std::unique_ptr<UnboundBuffer> inner, Waiting& waiting)
      : UnboundBuffer(inner->ptr, inner->size), inner_(std::move(inner)), waiting_(waiting) {
    waiting_.enter(inner_.get());
  }
  ~AbortableBuffer() override { waiting_.leave(inner_.get()); }

  bool waitRecv(int* rank, milliseconds timeout) override {
    waiting_.check();
    if (!inner_->waitRecv(rank, timeout)) waiting_.check();
    return true;
  }
  bool waitSend(int* rank, milliseconds timeout) override {
    waiting_.check();
    if (!inner_->waitSend(rank, timeout)) waiting_.check();
    return true;
  }
  void abortWaitRecv() override { inner_->abortWaitRecv(); }
  void abortWaitSend() override { inner_->abortWaitSend(); }
  void send(int rank, uint64_t slot, size_t offset, size_t bytes) override { inner_->send(rank, slot, offset, bytes); }
  void recv(int rank, uint64_t slot, size_t offset, size_t bytes) override { inner_->recv(rank, slot, offset, bytes); }
  void recv(std::vector<int> ranks, uint64_t slot, size_t offset, size_t bytes) override {
    inner_->recv(std::move(ranks), slot, offset, bytes);
  }

 private:
  const std::unique_ptr<UnboundBuffer> inner_;
  Waiting& waiting_;
};

// Gloo's TCP transport with buffers that can be aborted.
class Transport final : public gloo::transport::Context {
 public:
  Transport(std::shared_ptr<gloo::transport::Context> inner, Waiting& waiting)
      : Context(inner->rank, inner->size), inner_(std::move(inner)), waiting_(waiting) {}

  std::unique_ptr<gloo::transport::Pair>& getPair(int rank) override { return inner_->getPair(rank); }
  std::unique_ptr<gloo::transport::Pair>& createPair(int rank) override { return inner_->createPair(rank); }
  std::unique_ptr<UnboundBuffer> createUnboundBuffer(void* address, size_t size) override {
    return std::make_unique<AbortableBuffer>(inner_->createUnboundBuffer(address, size), waiting_);
  }

 private:
  const std::shared_ptr<gloo::transport::Context> inner_;
  Waiting& waiting_;
};

class Group final : public gloo::Context {
 public:
  Group(int rank, int world, std::shared_ptr<gloo::transport::Device> device, milliseconds timeout, Waiting& waiting)
      : Context(rank, world) {
    setTimeout(timeout);
    device_ = std::move(device);
    std::shared_ptr<gloo::transport::Context> tcp = device_->createContext(rank, world);
    tcp->setTimeout(timeout);
    transportContext_ = std::make_shared<Transport>(std::move(tcp), waiting);
    transportContext_->setTimeout(timeout);
  }

  gloo::transport::Context& transport() { return *transportContext_; }
};

// c = a + b; a may be c.
template <class T>
void add(void* c, const void* a, const void* b, size_t n) {
  T* const sum = static_cast<T*>(c);
  const T* const x = static_cast<const T*>(a);
  const T* const y = static_cast<const T*>(b);
  for (size_t i = 0; i < n; ++i) sum[i] = from_float<T>(to_float(x[i]) + to_float(y[i]));
}

// What a call into Gloo throws becomes an Error.
template <class Body>
void reported(Body&& body) {
  try {
    body();
  } catch (const Error&) {
    throw;
  } catch (const std::exception& e) {
    throw Error(DLFS_ERROR_COLLECTIVE, std::string("Gloo: ") + e.what());
  }
}

}  // namespace

struct GlooGroup::Members {
  Waiting waiting;
  std::shared_ptr<Group> group;  // none in a world of one
  std::vector<std::string> addresses;
  int rank = 0;
  int world = 1;
  bool failed = false;
};

bool has_gloo() { return true; }

std::string gloo_build_info() {
  return format("gloo=%d.%d.%d\n", GLOO_VERSION_MAJOR, GLOO_VERSION_MINOR, GLOO_VERSION_PATCH);
}

GlooGroup::GlooGroup(int rank, int world, const std::string& host, milliseconds timeout)
    : members_(std::make_unique<Members>()) {
  Members& m = *members_;
  m.rank = rank;
  m.world = world;
  m.addresses.resize(static_cast<size_t>(world));
  if (world == 1) return;
  reported([&] {
    gloo::transport::tcp::attr attributes;
    attributes.hostname = host;
    m.group = std::make_shared<Group>(rank, world, gloo::transport::tcp::CreateDevice(attributes), timeout, m.waiting);
    for (int peer = 0; peer < world; ++peer) {
      if (peer == rank) continue;
      const std::vector<char> bytes = m.group->transport().createPair(peer)->address().bytes();
      m.addresses[static_cast<size_t>(peer)].assign(bytes.begin(), bytes.end());
    }
  });
}

GlooGroup::~GlooGroup() {
  // Connections that broke, or were given up, in the middle of an operation are left to the end of the process: Gloo may
  // wait for its own thread when it closes them.
  if (members_->failed || members_->waiting.aborted()) members_.release();
}

// For each rank in turn: the length of the address in two bytes, and the address.
std::string GlooGroup::addresses() const {
  std::string text;
  for (const std::string& address : members_->addresses) {
    text += static_cast<char>(address.size() & 0xff);
    text += static_cast<char>(address.size() >> 8);
    text += address;
  }
  return text;
}

namespace {

// The address that rank `reader` finds in another rank's list.
std::vector<char> address_for(int reader, const std::string& list) {
  size_t at = 0;
  for (int rank = 0;; ++rank) {
    DLFS_CHECK(at + 2 <= list.size(), DLFS_ERROR_ARGUMENT, "addresses: no entry for rank %d", reader);
    const size_t length = static_cast<uint8_t>(list[at]) | static_cast<size_t>(static_cast<uint8_t>(list[at + 1])) << 8;
    at += 2;
    DLFS_CHECK(at + length <= list.size(), DLFS_ERROR_ARGUMENT, "addresses: cut off at rank %d", rank);
    if (rank == reader) return {list.begin() + static_cast<std::ptrdiff_t>(at), list.begin() + static_cast<std::ptrdiff_t>(at + length)};
    at += length;
  }
}

}  // namespace

void GlooGroup::connect(const std::vector<std::string>& all) {
  Members& m = *members_;
  for (int peer = 0; peer < m.world; ++peer) {
    if (peer == m.rank) continue;
    const std::vector<char> address = address_for(m.rank, all[static_cast<size_t>(peer)]);
    m.failed = true;
    reported([&] {
      m.waiting.check();
      m.group->transport().getPair(peer)->connect(address);
    });
    m.failed = false;
  }
}

namespace {

// An operation of the group: until it has gone well, the connections count as broken.
template <class Body>
void operate(bool& failed, Waiting& waiting, Body&& body) {
  waiting.check();
  DLFS_CHECK(!failed, DLFS_ERROR_COLLECTIVE, "an earlier collective failed");
  failed = true;
  reported(body);
  failed = false;
}

}  // namespace

void GlooGroup::all_reduce(void* buffer, int64_t elements, dlfs_dtype dtype) {
  Members& m = *members_;
  if (!m.group) return;
  operate(m.failed, m.waiting, [&] {
    gloo::AllreduceOptions options(m.group);
    const size_t n = static_cast<size_t>(elements);
    options.setAlgorithm(gloo::AllreduceOptions::Algorithm::RING);
    if (dtype == DLFS_F32) {
      options.setOutput(static_cast<float*>(buffer), n);
      options.setReduceFunction(add<float>);
    } else {
      options.setOutput(static_cast<uint16_t*>(buffer), n);
      options.setReduceFunction(dtype == DLFS_BF16 ? add<Bf16> : add<F16>);
    }
    gloo::allreduce(options);
  });
}

void GlooGroup::broadcast(void* buffer, int64_t bytes, int root) {
  Members& m = *members_;
  if (!m.group) return;
  operate(m.failed, m.waiting, [&] {
    gloo::BroadcastOptions options(m.group);
    options.setRoot(root);
    options.setOutput(static_cast<uint8_t*>(buffer), static_cast<size_t>(bytes));
    gloo::broadcast(options);
  });
}

void GlooGroup::all_gather(void* out, const void* in, int64_t bytes) {
  Members& m = *members_;
  const size_t n = static_cast<size_t>(bytes);
  uint8_t* const all = static_cast<uint8_t*>(out);
  uint8_t* const own = all + n * static_cast<size_t>(m.rank);
  if (own != in) std::memcpy(own, in, n);
  if (!m.group) return;
  operate(m.failed, m.waiting, [&] {
    gloo::AllgatherOptions options(m.group);
    options.setOutput(all, n * static_cast<size_t>(m.world));
    gloo::allgather(options);
  });
}

void GlooGroup::barrier() {
  Members& m = *members_;
  if (!m.group) return;
  operate(m.failed, m.waiting, [&] {
    gloo::BarrierOptions options(m.group);
    gloo::barrier(options);
  });
}

void GlooGroup::abort() { members_->waiting.abort(); }

}  // namespace dlfs::cpu

#else

namespace dlfs::cpu {

struct GlooGroup::Members {};

bool has_gloo() { return false; }

std::string gloo_build_info() { return "gloo=none\n"; }

GlooGroup::GlooGroup(int, int, const std::string&, std::chrono::milliseconds) {
  throw Error(DLFS_ERROR_UNSUPPORTED,
              "this library was built without Gloo, which CPUs train together by. Debian and Ubuntu: libgloo-dev, then "
              "bash scripts/build.sh cpu");
}
GlooGroup::~GlooGroup() = default;
std::string GlooGroup::addresses() const { return {}; }
void GlooGroup::connect(const std::vector<std::string>&) {}
void GlooGroup::all_reduce(void*, int64_t, dlfs_dtype) {}
void GlooGroup::broadcast(void*, int64_t, int) {}
void GlooGroup::all_gather(void*, const void*, int64_t) {}
void GlooGroup::barrier() {}
void GlooGroup::abort() {}

}  // namespace dlfs::cpu

#endif
