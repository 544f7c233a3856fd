// Events, and graph capture and launch, on the CPU.
#include "cpu/runtime_graph.hpp"

namespace dlfs::cpu {

namespace {

auto& events() {
  static auto& table = *new ObjectTable<Event, HandleKind::event>;
  return table;
}
auto& graphs() {
  static auto& table = *new ObjectTable<Graph, HandleKind::graph>;
  return table;
}

}  // namespace

void Capture::add(const Stream* stream, Task task) {
  std::lock_guard lock(mutex);
  tasks.push_back(std::move(task));
  clocks[stream][stream] = tasks.size();
}

void Capture::fail(const char* reason) {
  std::lock_guard lock(mutex);
  if (failure.empty()) failure = reason;
}

namespace {

// Ends a capture: its streams run their calls again.
void detach(const std::shared_ptr<Capture>& capture) {
  std::map<Stream*, std::shared_ptr<Stream>> joined;
  {
    std::lock_guard lock(capture->mutex);
    capture->ended = true;
    joined.swap(capture->joined);
  }
  for (auto& [stream, owner] : joined) stream->set_capture(nullptr);
  capture->origin->set_capture(nullptr);
}

// What an event stands for at this moment: NULL where it was never recorded.
std::shared_ptr<EventRecord> current_record(dlfs_event handle) {
  std::shared_ptr<Event> event = events().find(handle);
  std::lock_guard lock(event->mutex);
  DLFS_CHECK(!event->capture, DLFS_ERROR_ARGUMENT, "the event was last recorded inside a graph capture");
  return event->record;
}

void record_in_capture(Stream& stream, Event& event, std::shared_ptr<Capture> capture) {
  std::lock_guard lock(event.mutex);
  std::lock_guard capture_lock(capture->mutex);
  event.clock = capture->clocks[&stream];
  event.capture = std::move(capture);
}

void wait_in_capture(Stream& stream, const std::shared_ptr<Capture>& capture, const Clock& clock) {
  const std::shared_ptr<Capture> own = stream.capture();
  DLFS_CHECK(!own || own == capture, DLFS_ERROR_ARGUMENT, "the event belongs to another graph capture");
  {
    std::lock_guard lock(capture->mutex);
    DLFS_CHECK(!capture->ended, DLFS_ERROR_ARGUMENT, "the event was recorded inside a graph capture that has ended");
    Clock& mine = capture->clocks[&stream];
    for (const auto& [other, count] : clock) mine[other] = std::max(mine[other], count);
    if (!own) capture->joined[&stream] = stream.shared_from_this();
  }
  if (!own) stream.set_capture(capture);
}

}  // namespace

void leave_capture(Stream& stream) {
  const std::shared_ptr<Capture> capture = stream.capture();
  if (!capture) return;
  capture->fail("a stream of the capture was destroyed");
  if (capture->origin == &stream) {
    detach(capture);
    return;
  }
  stream.set_capture(nullptr);
  std::lock_guard lock(capture->mutex);
  capture->joined.erase(&stream);
}

}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

extern "C" dlfs_status dlfs_event_create(dlfs_context ctx, dlfs_event* out) {
  return guard("dlfs_event_create", [&] {
    check_pointer(out, "out");
    auto event = std::make_shared<Event>();
    event->context = require_context(ctx);
    *out = events().add(std::move(event));
  });
}

extern "C" dlfs_status dlfs_event_destroy(dlfs_event event) {
  return guard("dlfs_event_destroy", [&] { events().remove(event); });
}

extern "C" dlfs_status dlfs_event_record(dlfs_stream stream, dlfs_event event) {
  return on_stream("dlfs_event_record", stream, [&](Stream& s) {
    std::shared_ptr<Event> object = events().find(event);
    DLFS_CHECK(object->context == s.context, DLFS_ERROR_ARGUMENT,
               "the event belongs to another context than the stream");
    if (std::shared_ptr<Capture> capture = s.capture()) {
      record_in_capture(s, *object, std::move(capture));
      return;
    }
    auto record = std::make_shared<EventRecord>();
    {
      std::lock_guard lock(object->mutex);
      object->record = record;
      object->capture = nullptr;
    }
    s.enqueue_record(std::move(record));
  });
}

extern "C" dlfs_status dlfs_event_query(dlfs_event event) {
  return guard("dlfs_event_query", [&]() -> dlfs_status {
    const std::shared_ptr<EventRecord> record = current_record(event);
    return !record || query_record(*record) ? DLFS_OK : DLFS_NOT_READY;
  });
}

extern "C" dlfs_status dlfs_event_synchronize(dlfs_event event) {
  return guard("dlfs_event_synchronize", [&] {
    const std::shared_ptr<EventRecord> record = current_record(event);
    if (record) wait_record(*record);
  });
}

extern "C" dlfs_status dlfs_stream_wait_event(dlfs_stream stream, dlfs_event event) {
  return on_stream("dlfs_stream_wait_event", stream, [&](Stream& s) {
    std::shared_ptr<Event> object = events().find(event);
    std::shared_ptr<EventRecord> record;
    std::shared_ptr<Capture> capture;
    Clock clock;
    {
      std::lock_guard lock(object->mutex);
      record = object->record;
      capture = object->capture;
      clock = object->clock;
    }
    if (capture) {
      wait_in_capture(s, capture, clock);
      return;
    }
    if (!record) return;
    s.refuse_capture("waiting for an event recorded outside the capture");
    s.enqueue_wait(std::move(record));
  });
}

extern "C" dlfs_status dlfs_event_elapsed(double* out_ms, dlfs_event start, dlfs_event end) {
  return guard("dlfs_event_elapsed", [&]() -> dlfs_status {
    check_pointer(out_ms, "out_ms");
    const std::shared_ptr<EventRecord> records[2] = {current_record(start), current_record(end)};
    std::chrono::steady_clock::time_point times[2];
    for (int i = 0; i < 2; ++i) {
      DLFS_CHECK(records[i], DLFS_ERROR_ARGUMENT, "the %s event was never recorded", i == 0 ? "start" : "end");
      if (!query_record(*records[i], &times[i])) return DLFS_NOT_READY;
    }
    *out_ms = std::chrono::duration<double, std::milli>(times[1] - times[0]).count();
    return DLFS_OK;
  });
}

extern "C" dlfs_status dlfs_graph_begin(dlfs_stream stream) {
  return guard("dlfs_graph_begin", [&] {
    std::shared_ptr<Stream> s = require_stream(stream);
    s->refuse_capture("starting another");
    s->set_capture(std::make_shared<Capture>(s.get()));
  });
}

extern "C" dlfs_status dlfs_graph_end(dlfs_stream stream, dlfs_graph* out) {
  return guard("dlfs_graph_end", [&] {
    std::shared_ptr<Stream> s = require_stream(stream);
    std::shared_ptr<Capture> capture = s->capture();
    DLFS_CHECK(capture, DLFS_ERROR_ARGUMENT, "the stream is not capturing a graph");
    DLFS_CHECK(capture->origin == s.get(), DLFS_ERROR_ARGUMENT, "the capture was begun on another stream");
    std::string failure;
    std::vector<Task> tasks;
    {
      std::lock_guard lock(capture->mutex);
      failure = capture->failure;
      Clock& known = capture->clocks[s.get()];
      for (const auto& [other, owner] : capture->joined) {
        if (failure.empty() && known[other] < capture->clocks[other][other]) {
          failure = "work on a joined stream was not joined back by an event that the capturing stream waits for";
        }
      }
      tasks = std::move(capture->tasks);
    }
    detach(capture);
    DLFS_CHECK(failure.empty(), DLFS_ERROR_ARGUMENT, "the capture was discarded after a failed call: %s",
               failure.c_str());
    check_pointer(out, "out");
    auto graph = std::make_shared<Graph>();
    graph->context = s->context;
    graph->tasks = std::make_shared<const std::vector<Task>>(std::move(tasks));
    *out = graphs().add(std::move(graph));
  });
}

extern "C" dlfs_status dlfs_graph_launch(dlfs_stream stream, dlfs_graph graph) {
  return on_stream("dlfs_graph_launch", stream, [&](Stream& s) {
    std::shared_ptr<Graph> object = graphs().find(graph);
    DLFS_CHECK(object->context == s.context, DLFS_ERROR_ARGUMENT,
               "the graph belongs to another context than the stream");
    s.enqueue_graph(object->tasks);
  });
}

extern "C" dlfs_status dlfs_graph_destroy(dlfs_graph graph) {
  return guard("dlfs_graph_destroy", [&] {
    std::shared_ptr<Graph> object = graphs().remove(graph);
    object->context->drain();
  });
}
