/** Metrics in Prometheus' text format, version 0.0.4, and a server that gives them out. */
import { check, DlfsError, ErrorCode } from "../native/error";

/** The labels of one value, by name. */
export type Labels = Readonly<Record<string, string>>;

/** A metric with its values as they are now. */
export interface Metric {
  /** `dlfs_train_images_total`: a prefix, what is counted, base units in the plural (seconds, bytes), `_total` of counters. */
  readonly name: string;
  /** Counters only grow, and begin at 0 with the process. */
  readonly type: "counter" | "gauge";
  readonly help: string;
  readonly values: readonly { readonly labels?: Labels; readonly value: number }[];
}

/** The text that Prometheus reads. Metrics without values are left out. */
export function prometheusText(metrics: readonly Metric[]): string {
  const blocks = metrics.flatMap(({ name, type, help, values }) => {
    check(/^[a-zA-Z_:][a-zA-Z0-9_:]*$/.test(name), "prometheusText", () => `"${name}" cannot be a metric's name`);
    check(
      (type === "counter") === name.endsWith("_total"),
      "prometheusText",
      () => `${name}: the names of counters, and of no others, end with _total`,
    );
    if (values.length === 0) return [];
    const lines = values.map(({ labels = {}, value }) => {
      const inside = Object.entries(labels).map(
        ([label, text]) => `${label}="${escaped(text).replaceAll('"', '\\"')}"`,
      );
      return `${name}${inside.length > 0 ? `{${inside.join(",")}}` : ""} ${numberText(value)}`;
    });
    return [`# HELP ${name} ${escaped(help)}`, `# TYPE ${name} ${type}`, ...lines];
  });
  return `${blocks.join("\n")}\n`;
}

const escaped = (text: string) => text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n");

function numberText(value: number): string {
  if (Number.isNaN(value)) return "NaN";
  return Number.isFinite(value) ? String(value) : value > 0 ? "+Inf" : "-Inf";
}

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
        headers: { "Content-Type": "text/plain; version=0.0.4; charset=utf-8" },
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
