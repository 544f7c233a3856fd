/** The service in figures for Prometheus. Labels are names of routes, models that exist, and statuses: no client's text. */
import packageJson from "../../package.json";
import { CounterMeter, DURATION_BOUNDS, HistogramMeter, type Labels, type Metric, type NumberMetric } from "../monitor";
import { GpuMonitor } from "./gpu-monitor";
import type { RequestContext } from "./request-context";
import type { HistogramData, InferenceBackend, ModelStatistics } from "./types";

/** How often the event loop's delay is measured. */
const DELAY_MS = 20;
const DELAY_BOUNDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5];

export class ServiceMetrics implements Disposable {
  readonly #backend: InferenceBackend;
  readonly #gpus: GpuMonitor;
  readonly #began = Date.now() / 1000 - process.uptime();
  readonly #delay = new HistogramMeter({
    ...{ name: "dlfs_event_loop_delay_seconds", labels: [], bounds: DELAY_BOUNDS },
    help: "How much later than it should a timer of the thread that answers ran.",
  });
  readonly #requests = new CounterMeter({
    ...{
      name: "dlfs_http_requests_total",
      help: "Requests that were answered.",
      labels: ["route", "method", "status"],
    },
  });
  readonly #durations = new HistogramMeter({
    ...{ name: "dlfs_http_request_duration_seconds", labels: ["route"], bounds: DURATION_BOUNDS },
    help: "From a request's head to its answer.",
  });
  readonly #stages = new HistogramMeter({
    ...{ name: "dlfs_http_stage_duration_seconds", labels: ["route", "stage"], bounds: DURATION_BOUNDS },
    help: "Parts of requests: receive (the body, decompressed), infer (queue and engine), respond (compression).",
  });
  readonly #received = new CounterMeter({
    ...{ name: "dlfs_http_request_body_bytes_total", help: "Bytes of bodies, as they came.", labels: ["route"] },
  });
  readonly #sent = new CounterMeter({
    ...{ name: "dlfs_http_response_body_bytes_total", help: "Bytes of answers, as they went.", labels: ["route"] },
  });
  readonly #inferences = new CounterMeter({
    ...{ name: "dlfs_inference_requests_total", labels: ["model", "version", "status"] },
    help: "Requests to models, by the answer's status.",
  });
  readonly #inferenceDurations = new HistogramMeter({
    ...{ name: "dlfs_inference_request_duration_seconds", labels: ["model", "version"], bounds: DURATION_BOUNDS },
    help: "From the head of a request to a model to its answer.",
  });
  readonly #timer: Timer;
  /** Requests under way. */
  inFlight = 0;
  ready: () => boolean = () => false;

  constructor(backend: InferenceBackend) {
    this.#backend = backend;
    this.#gpus = new GpuMonitor();
    let last = performance.now();
    this.#timer = setInterval(() => {
      const now = performance.now();
      this.#delay.observe({}, Math.max(0, now - last - DELAY_MS) / 1000);
      last = now;
    }, DELAY_MS);
    this.#timer.unref();
  }

  /** Counts a request that is answered. */
  finished(context: RequestContext, status: number, isInference: boolean): void {
    const { route, request, stages, received, sent, model } = context;
    const seconds = (performance.now() - context.started) / 1000;
    const method = ["GET", "POST", "HEAD", "OPTIONS"].includes(request.method) ? request.method : "other";
    this.#requests.add({ route, method, status: String(status) });
    this.#durations.observe({ route }, seconds);
    for (const [stage, ms] of Object.entries(stages)) this.#stages.observe({ route, stage }, ms / 1000);
    if (received > 0) this.#received.add({ route }, received);
    if (sent > 0) this.#sent.add({ route }, sent);
    if (!isInference) return;
    const { name = "unknown", version = "unknown" } = model ?? {};
    this.#inferences.add({ model: name, version, status: String(status) });
    if (status === 200) this.#inferenceDurations.observe({ model: name, version }, seconds);
  }

  collect(): Metric[] {
    const gauge = (name: string, help: string, value: number): NumberMetric => ({
      ...{ name, help, type: "gauge", values: [{ value }] },
    });
    const { rss } = process.memoryUsage();
    const { user, system } = process.cpuUsage();
    return [
      {
        ...{ name: "dlfs_build_info", help: "What runs here.", type: "gauge" },
        values: [{ labels: { version: packageJson.version, bun: Bun.version }, value: 1 }],
      },
      gauge("dlfs_service_ready", "1 where the service takes requests.", Number(this.ready())),
      gauge("dlfs_http_requests_in_flight", "Requests that are being answered.", this.inFlight),
      ...[this.#requests, this.#durations, this.#stages, this.#received, this.#sent].map((meter) => meter.metric()),
      ...[this.#inferences, this.#inferenceDurations].map((meter) => meter.metric()),
      ...modelMetrics(this.#backend),
      this.#delay.metric(),
      ...this.#gpus.metrics(),
      gauge("process_resident_memory_bytes", "Memory of the process that answers.", rss),
      {
        ...{ name: "process_cpu_seconds_total", help: "Processor time of the process that answers.", type: "counter" },
        values: [{ value: (user + system) / 1e6 }],
      },
      gauge("process_start_time_seconds", "When the process began, in seconds since 1970.", this.#began),
    ];
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
    this.#gpus[Symbol.dispose]();
  }
}

/** What the model side tells of its queues and engines. */
function modelMetrics(backend: InferenceBackend): Metric[] {
  const statistics = backend.statistics();
  const models = backend.models();
  const of = ({ name, version }: { name: string; version: string }): Labels => ({ model: name, version });
  type Values = (stats: ModelStatistics) => readonly { labels?: Labels; value: number }[];
  const numbers = (type: "counter" | "gauge", name: string, help: string, values: Values): NumberMetric => ({
    ...{ name, help, type },
    values: statistics.flatMap((stats) =>
      values(stats).map(({ labels, value }) => ({ labels: { ...of(stats), ...labels }, value })),
    ),
  });
  const counter = (name: string, help: string, values: Values) => numbers("counter", name, help, values);
  const gauge = (name: string, help: string, values: Values) => numbers("gauge", name, help, values);
  const histogram = (
    name: string,
    help: string,
    series: (stats: ModelStatistics) => readonly { labels?: Labels; data: HistogramData }[],
  ): Metric[] => {
    const values = statistics.flatMap((stats) =>
      series(stats).map(({ labels, data }) => ({ labels: { ...of(stats), ...labels }, ...data })),
    );
    const [first] = values;
    return first ? [{ name, help, type: "histogram", bounds: first.bounds, values }] : [];
  };
  const engines = (value: (engine: ModelStatistics["engines"][number]) => number): Values => {
    return ({ engines: list }) =>
      list.map((engine) => ({ labels: { engine: String(engine.index) }, value: value(engine) }));
  };
  return [
    {
      ...{ name: "dlfs_model_info", help: "The models, and what they run on.", type: "gauge" },
      values: models.map((model) => {
        const { precision, backend: kind, device, size } = model;
        return { labels: { ...of(model), precision, backend: kind, device, size: size?.join("x") ?? "" }, value: 1 };
      }),
    },
    {
      ...{ name: "dlfs_model_ready", help: "1 where the model takes requests.", type: "gauge" },
      values: models.map((model) => ({ labels: of(model), value: Number(model.state === "ready") })),
    },
    counter("dlfs_inference_images_total", "Images that were detected on.", ({ inferences: value }) => [{ value }]),
    counter("dlfs_inference_batches_total", "Batches that ran.", ({ executions: value }) => [{ value }]),
    counter("dlfs_inference_failures_total", "Requests that a model did not answer, by reason.", ({ failures }) =>
      Object.entries(failures).map(([reason, value]) => ({ labels: { reason: reason.toLowerCase() }, value })),
    ),
    ...histogram("dlfs_inference_queue_duration_seconds", "Time of requests in the queue.", ({ queueTimes: data }) => [
      { data },
    ]),
    ...histogram("dlfs_inference_stage_duration_seconds", "Time of batches in each stage.", ({ stageTimes }) =>
      Object.entries(stageTimes).map(([stage, data]) => ({ labels: { stage }, data })),
    ),
    ...histogram("dlfs_inference_batch_size", "Images of batches.", ({ batchSizes: data }) => [{ data }]),
    gauge("dlfs_inference_queue_depth", "Requests that wait, by priority level.", ({ queued }) =>
      queued.map((value, i) => ({ labels: { priority: String(i + 1) }, value })),
    ),
    gauge("dlfs_inference_queue_bytes", "Bytes of images that wait.", ({ queuedBytes: value }) => [{ value }]),
    gauge("dlfs_inference_running", "Requests that are with an engine.", ({ running: value }) => [{ value }]),
    gauge(
      "dlfs_engine_ready",
      "1 where the engine's process takes batches.",
      engines(({ ready }) => Number(ready)),
    ),
    counter(
      "dlfs_engine_restarts_total",
      "How often an engine's process was started again.",
      engines((e) => e.restarts),
    ),
    gauge(
      "dlfs_engine_memory_bytes",
      "Device memory that the engine has allocated.",
      engines((e) => e.memory.allocated),
    ),
    gauge(
      "dlfs_engine_device_memory_free_bytes",
      "Free memory of the engine's device.",
      engines((e) => e.memory.free),
    ),
    gauge(
      "dlfs_engine_device_memory_total_bytes",
      "Memory of the engine's device.",
      engines((e) => e.memory.total),
    ),
    gauge(
      "dlfs_engine_resident_memory_bytes",
      "Memory of the engine's process.",
      engines((e) => e.processMemory),
    ),
    gauge(
      "dlfs_engine_shared_memory_used_bytes",
      "Memory shared with the engine, in use.",
      engines((e) => e.shared.used),
    ),
    gauge(
      "dlfs_engine_shared_memory_bytes",
      "Memory shared with the engine.",
      engines((e) => e.shared.total),
    ),
  ];
}
