/** Metrics in Prometheus' text format, version 0.0.4, and a server that gives them out. */
import { check, DlfsError, ErrorCode } from "../native/error";

/** The labels of one value, by name. */
export type Labels = Readonly<Record<string, string>>;

interface MetricHead {
  /** `dlfs_train_images_total`: a prefix, what is counted, base units in the plural (seconds, bytes), `_total` of counters. */
  readonly name: string;
  readonly help: string;
}

/** Single numbers, as they are now. Counters only grow, and begin at 0 with the process. */
export interface NumberMetric extends MetricHead {
  readonly type: "counter" | "gauge";
  readonly values: readonly { readonly labels?: Labels; readonly value: number }[];
}

/** How often something was how large: durations, sizes. */
export interface HistogramMetric extends MetricHead {
  readonly type: "histogram";
  /** Upper ends of the buckets, included in them, growing; a last bucket is for what is above all of them. */
  readonly bounds: readonly number[];
  /** `counts`: of each bucket by itself, one more than `bounds`; `sum`: of all that was observed. */
  readonly values: readonly { readonly labels?: Labels; readonly counts: readonly number[]; readonly sum: number }[];
}

/** A metric with its values as they are now. */
export type Metric = NumberMetric | HistogramMetric;

/** The text that Prometheus reads. Metrics without values are left out. */
export function prometheusText(metrics: readonly Metric[]): string {
  const blocks = metrics.flatMap((metric) => {
    const { name, type, help } = metric;
    check(/^[a-zA-Z_:][a-zA-Z0-9_:]*$/.test(name), "prometheusText", () => `"${name}" cannot be a metric's name`);
    check(
      (type === "counter") === name.endsWith("_total"),
      "prometheusText",
      () => `${name}: the names of counters, and of no others, end with _total`,
    );
    if (metric.values.length === 0) return [];
    const lines = metric.type === "histogram" ? histogramLines(metric) : numberLines(metric);
    return [`# HELP ${name} ${escaped(help)}`, `# TYPE ${name} ${type}`, ...lines];
  });
  return `${blocks.join("\n")}\n`;
}

const numberLines = ({ name, values }: NumberMetric): string[] =>
  values.map(({ labels = {}, value }) => `${name}${labelText(labels)} ${numberText(value)}`);

function histogramLines({ name, bounds, values }: HistogramMetric): string[] {
  check(
    bounds.every((bound, i) => Number.isFinite(bound) && (i === 0 || bound > (bounds[i - 1] as number))),
    "prometheusText",
    () => `${name}: expected growing bounds, got ${bounds.join(", ")}`,
  );
  return values.flatMap(({ labels = {}, counts, sum }) => {
    check(
      counts.length === bounds.length + 1,
      "prometheusText",
      () => `${name}: expected ${bounds.length + 1} counts, got ${counts.length}`,
    );
    let total = 0;
    const buckets = counts.map((count, i) => {
      total += count;
      const le = numberText(bounds[i] ?? Number.POSITIVE_INFINITY);
      return `${name}_bucket${labelText({ ...labels, le })} ${total}`;
    });
    const text = labelText(labels);
    return [...buckets, `${name}_sum${text} ${numberText(sum)}`, `${name}_count${text} ${total}`];
  });
}

function labelText(labels: Labels): string {
  const inside = Object.entries(labels).map(([label, text]) => `${label}="${escaped(text).replaceAll('"', '\\"')}"`);
  return inside.length > 0 ? `{${inside.join(",")}}` : "";
}

const escaped = (text: string) => text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n");

function numberText(value: number): string {
  if (Number.isNaN(value)) return "NaN";
  return Number.isFinite(value) ? String(value) : value > 0 ? "+Inf" : "-Inf";
}

/** What Prometheus' answers are of. */
export const PROMETHEUS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8";

export interface MetricsServerOptions {
  /** 0: any free one. */
  port: number;
  /** Default "127.0.0.1": nobody else on the network sees them. */
  hostname?: string;
  /** The metrics as they are when they are asked for. */
  collect: () => readonly Metric[];
}

/** Answers `GET /metrics`. Being asked costs a training nothing but the making of a text. */
export class MetricsServer implements Disposable {
  readonly #server: Bun.Server<undefined>;

  /** Throws DlfsError where the port cannot be had. */
  constructor({ port, hostname = "127.0.0.1", collect }: MetricsServerOptions) {
    const answer = () =>
      new Response(prometheusText(collect()), {
        headers: { "Content-Type": PROMETHEUS_CONTENT_TYPE },
      });
    try {
      this.#server = Bun.serve({
        ...{ port, hostname },
        routes: { "/metrics": { GET: answer } },
        fetch: () => new Response("not found: the metrics are at /metrics\n", { status: 404 }),
      });
    } catch (error) {
      throw new DlfsError(ErrorCode.io, "metrics", `cannot listen on ${hostname}:${port}: ${(error as Error).message}`);
    }
  }

  /** Where Prometheus finds it: "http://127.0.0.1:9464/metrics". */
  get url(): string {
    return new URL("/metrics", this.#server.url).href;
  }

  [Symbol.dispose](): void {
    void this.#server.stop(true);
  }
}
