// Streams, events and graphs.
#include <cudnn.h>

#include "common/arguments.hpp"
#include "cuda/runtime.hpp"

namespace dlfs {

// ---- streams ------------------------------------------------------------------------------------------------------

Stream::Stream(std::shared_ptr<Context> context, bool urgent) : context(std::move(context)) {
  int least = 0, greatest = 0;
  CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  CUDA_CHECK(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, urgent ? greatest : least));
}

Stream::~Stream() {
  cudaSetDevice(context->device);
  images.reset();
  if (cudnn_) cudnnSetStream(cudnn_.get(), nullptr);  // a graph may keep the handle longer than the stream lives
  cudnn_.reset();
  cudaStreamDestroy(stream);
}

cudnnContext* Stream::cudnn() {
  if (!cudnn_) cudnn_ = create_cudnn(context->device, stream);
  return cudnn_.get();
}

void Stream::require_not_capturing(const char* what) const {
  DLFS_CHECK(!capturing(), DLFS_ERROR_ARGUMENT, "%s waits for the stream, which is being captured", what);
}

void Stream::retain(std::shared_ptr<void> object) {
  if (!capturing()) return;
  const std::lock_guard lock(capture_->mutex);
  capture_->retained.push_back(std::move(object));
}

void Stream::join(std::shared_ptr<Capture> capture) {
  capture_ = std::move(capture);
  retain(cudnn_);
}

void Stream::synchronize() { CUDA_CHECK(cudaStreamSynchronize(stream)); }

void Stream::note_failure(dlfs_status code, const char* op, const char* message) noexcept {
  if (!capturing()) return;
  const std::lock_guard lock(capture_->mutex);
  if (capture_->failure != DLFS_OK) return;
  capture_->failure = code;
  try {
    capture_->message = std::string(op) + ": " + message;
  } catch (const std::bad_alloc&) {  // the code alone must do
  }
}

void Stream::begin_capture() {
  DLFS_CHECK(!capturing(), DLFS_ERROR_ARGUMENT, "the stream is being captured already");
  cudnn();  // creating it allocates and waits
  auto capture = std::make_shared<Capture>();
  capture->origin = this;
  capture->retained.push_back(cudnn_);
  begin_capture_on(context->device, stream);
  capture_ = std::move(capture);
}

cudaGraph_t Stream::end_capture(std::vector<std::shared_ptr<void>>& retained) {
  DLFS_CHECK(capturing(), DLFS_ERROR_ARGUMENT, "the stream is not being captured");
  DLFS_CHECK(capture_->origin == this, DLFS_ERROR_ARGUMENT,
             "the capture must be ended on the stream that it was begun on");
  const std::shared_ptr<Capture> capture = std::move(capture_);
  cudaGraph_t graph = nullptr;
  const cudaError_t status = cudaStreamEndCapture(stream, &graph);
  capture->open = false;
  const std::lock_guard lock(capture->mutex);
  retained.swap(capture->retained);
  try {
    end_capture_on(context->device);
    if (capture->failure != DLFS_OK) {
      throw Error(capture->failure, "the capture is discarded, as a call during it failed: " + capture->message);
    }
    if (status != cudaSuccess) throw_cuda(status, "cudaStreamEndCapture; the capture is discarded");
  } catch (...) {
    cudaGetLastError();
    if (graph) cudaGraphDestroy(graph);
    throw;
  }
  return graph;
}

namespace {

// ---- events -------------------------------------------------------------------------------------------------------

struct Event {
  std::shared_ptr<Context> context;
  cudaEvent_t event = nullptr;
  std::mutex mutex;
  std::shared_ptr<Capture> capture;  // that it was last recorded in, or null

  explicit Event(std::shared_ptr<Context> context) : context(std::move(context)) {
    CUDA_CHECK(cudaEventCreate(&event));
  }
  ~Event() {
    cudaSetDevice(context->device);
    cudaEventDestroy(event);  // allowed at any time; the driver keeps what is in flight
  }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
};

using EventTable = HandleTable<Event, HandleKind::event>;

EventTable& events() {
  static auto* const table = new EventTable();
  return *table;
}

// DLFS_OK or DLFS_NOT_READY from a query; throws for an error.
dlfs_status query_status(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return DLFS_OK;
  if (status == cudaErrorNotReady) {
    cudaGetLastError();
    return DLFS_NOT_READY;
  }
  throw_cuda(status, call);
}

// ---- graphs -------------------------------------------------------------------------------------------------------

struct Graph {
  std::shared_ptr<Context> context;
  std::vector<std::shared_ptr<void>> retained;  // convolution plans, tables: what the captured calls use
  cudaGraph_t graph = nullptr;                  // kept for use as a part of another capture
  cudaGraphExec_t executable = nullptr;

  Graph(std::shared_ptr<Context> context, cudaGraph_t captured, std::vector<std::shared_ptr<void>> kept)
      : context(std::move(context)), retained(std::move(kept)), graph(captured) {
    const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
    if (status != cudaSuccess) {
      cudaGraphDestroy(graph);
      throw_cuda(status, "cudaGraphInstantiate");
    }
  }
  ~Graph() {
    cudaSetDevice(context->device);
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
};

using GraphTable = HandleTable<Graph, HandleKind::graph>;

GraphTable& graphs() {
  static auto* const table = new GraphTable();
  return *table;
}

// Makes a graph a node of the one being captured on the stream.
void capture_graph(Stream& stream, const std::shared_ptr<Graph>& part) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaGraph_t whole = nullptr;
  const cudaGraphNode_t* after = nullptr;
  size_t count = 0;
  cudaGraphNode_t node = nullptr;
#if CUDART_VERSION >= 13000
  CUDA_CHECK(cudaStreamGetCaptureInfo(stream.stream, &status, nullptr, &whole, &after, nullptr, &count));
#else
  CUDA_CHECK(cudaStreamGetCaptureInfo_v2(stream.stream, &status, nullptr, &whole, &after, &count));
#endif
  DLFS_CHECK(status == cudaStreamCaptureStatusActive, DLFS_ERROR_CUDA, "the stream's capture has become invalid");
  CUDA_CHECK(cudaGraphAddChildGraphNode(&node, whole, after, count, part->graph));
#if CUDART_VERSION >= 13000
  CUDA_CHECK(cudaStreamUpdateCaptureDependencies(stream.stream, &node, nullptr, 1, cudaStreamSetCaptureDependencies));
#else
  CUDA_CHECK(cudaStreamUpdateCaptureDependencies(stream.stream, &node, 1, cudaStreamSetCaptureDependencies));
#endif
  stream.retain(part);
}

}  // namespace
}  // namespace dlfs

using namespace dlfs;

extern "C" {

dlfs_status dlfs_stream_create(dlfs_context ctx, dlfs_stream* out) {
  return context_call("dlfs_stream_create", ctx, [&](Context& context) {
    check_pointer(out, "out");
    *out = adopt(streams(), context, std::make_shared<Stream>(context.shared_from_this()));
  });
}

dlfs_status dlfs_stream_destroy(dlfs_stream stream) {
  return guard("dlfs_stream_destroy", [&] {
    std::shared_ptr<Stream> object = disown(streams(), stream);
    const std::shared_ptr<Context> context = object->context;
    context->use();
    if (const std::shared_ptr<Capture> capture = object->capture(); capture && capture->origin == object.get()) {
      std::vector<std::shared_ptr<void>> retained;
      try {
        cudaGraphDestroy(object->end_capture(retained));
      } catch (const Error&) {  // a failed capture is thrown away just as well
      }
    }
    const cudaError_t status = cudaStreamSynchronize(object->stream);
    context->release(std::move(object));
    if (status != cudaSuccess) throw_cuda(status, "cudaStreamSynchronize");
  });
}

dlfs_status dlfs_stream_synchronize(dlfs_stream stream) {
  return stream_call("dlfs_stream_synchronize", stream, [&](Stream& s) {
    s.require_not_capturing("synchronizing");
    s.synchronize();
  });
}

dlfs_status dlfs_stream_query(dlfs_stream stream) {
  return stream_call("dlfs_stream_query", stream, [&](Stream& s) -> dlfs_status {
    s.require_not_capturing("a query");
    return query_status(cudaStreamQuery(s.stream), "cudaStreamQuery");
  });
}

dlfs_status dlfs_event_create(dlfs_context ctx, dlfs_event* out) {
  return context_call("dlfs_event_create", ctx, [&](Context& context) {
    check_pointer(out, "out");
    *out = adopt(events(), context, std::make_shared<Event>(context.shared_from_this()));
  });
}

dlfs_status dlfs_event_destroy(dlfs_event event) {
  return guard("dlfs_event_destroy", [&] { disown(events(), event); });
}

dlfs_status dlfs_event_record(dlfs_stream stream, dlfs_event event) {
  return stream_call("dlfs_event_record", stream, [&](Stream& s) {
    const std::shared_ptr<Event> e = events().find(event);
    DLFS_CHECK(e->context->device == s.context->device, DLFS_ERROR_ARGUMENT,
               "the event belongs to device %d, the stream to device %d", e->context->device, s.context->device);
    const std::lock_guard lock(e->mutex);
    CUDA_CHECK(cudaEventRecord(e->event, s.stream));
    e->capture = s.capture();
  });
}

dlfs_status dlfs_event_query(dlfs_event event) {
  return guard("dlfs_event_query", [&]() -> dlfs_status {
    const std::shared_ptr<Event> e = events().find(event);
    e->context->use();
    return query_status(cudaEventQuery(e->event), "cudaEventQuery");
  });
}

dlfs_status dlfs_event_synchronize(dlfs_event event) {
  return guard("dlfs_event_synchronize", [&] {
    const std::shared_ptr<Event> e = events().find(event);
    e->context->use();
    CUDA_CHECK(cudaEventSynchronize(e->event));
  });
}

dlfs_status dlfs_stream_wait_event(dlfs_stream stream, dlfs_event event) {
  return stream_call("dlfs_stream_wait_event", stream, [&](Stream& s) {
    const std::shared_ptr<Event> e = events().find(event);
    const std::lock_guard lock(e->mutex);
    const bool joins = e->capture && e->capture->open && !s.capturing();
    if (joins) s.cudnn();  // creating it allocates and waits
    CUDA_CHECK(cudaStreamWaitEvent(s.stream, e->event, 0));
    if (joins) s.join(e->capture);
  });
}

dlfs_status dlfs_event_elapsed(double* out_ms, dlfs_event start, dlfs_event end) {
  return guard("dlfs_event_elapsed", [&]() -> dlfs_status {
    check_pointer(out_ms, "out_ms");
    const std::shared_ptr<Event> first = events().find(start);
    const std::shared_ptr<Event> last = events().find(end);
    first->context->use();
    float milliseconds = 0;
    const cudaError_t status = cudaEventElapsedTime(&milliseconds, first->event, last->event);
    if (status == cudaErrorInvalidResourceHandle) {
      cudaGetLastError();
      throw Error(DLFS_ERROR_ARGUMENT, "an event has not been recorded, or the two belong to different devices");
    }
    const dlfs_status ready = query_status(status, "cudaEventElapsedTime");
    if (ready == DLFS_OK) *out_ms = milliseconds;
    return ready;
  });
}

dlfs_status dlfs_graph_begin(dlfs_stream stream) {
  return stream_call("dlfs_graph_begin", stream, [&](Stream& s) { s.begin_capture(); });
}

dlfs_status dlfs_graph_end(dlfs_stream stream, dlfs_graph* out) {
  return stream_call("dlfs_graph_end", stream, [&](Stream& s) {
    check_pointer(out, "out");
    std::vector<std::shared_ptr<void>> retained;
    cudaGraph_t captured = s.end_capture(retained);
    *out = adopt(graphs(), *s.context, std::make_shared<Graph>(s.context, captured, std::move(retained)));
  });
}

dlfs_status dlfs_graph_launch(dlfs_stream stream, dlfs_graph graph) {
  return stream_call("dlfs_graph_launch", stream, [&](Stream& s) {
    const std::shared_ptr<Graph> g = graphs().find(graph);
    DLFS_CHECK(g->context == s.context, DLFS_ERROR_ARGUMENT, "the graph belongs to another context than the stream");
    if (s.capturing()) {
      capture_graph(s, g);
    } else {
      CUDA_CHECK(cudaGraphLaunch(g->executable, s.stream));
    }
  });
}

dlfs_status dlfs_graph_destroy(dlfs_graph graph) {
  return guard("dlfs_graph_destroy", [&] {
    std::shared_ptr<Graph> object = disown(graphs(), graph);
    const std::shared_ptr<Context> context = object->context;
    context->release(std::move(object));
  });
}

}  // extern "C"
