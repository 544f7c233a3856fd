/**
 * A load on a service's HTTP port, made by processes of their own.
 *
 * `open`: requests are sent at a rate, at random moments (a Poisson process), whatever became of those before; a latency is counted
 * from the moment at which its request was to be sent, so that a service that stalls, or a sender that is late, is not spared the
 * requests that would have come meanwhile (coordinated omission). `closed`: so many clients each send the next request when the last
 * is answered; what they see is the service's time, and how many requests a second it can do.
 */
import { fileURLToPath } from "node:url";

export interface LoadOptions {
  /** "http://127.0.0.1:8000/predict" */
  readonly url: string;
  /** Paths of the files that are sent, one after the other. */
  readonly files: readonly string[];
  readonly mode: "open" | "closed";
  /** Of an open load: requests a second, of all processes together. */
  readonly rate?: number;
  /** Of a closed load: clients, of all processes together. */
  readonly clients?: number;
  /** Seconds that are counted, and seconds before them. */
  readonly seconds: number;
  readonly warmUp?: number;
  readonly processes?: number;
  readonly headers?: Readonly<Record<string, string>>;
  readonly seed?: number;
}

/** In milliseconds. */
export interface Latencies {
  readonly mean: number;
  readonly p50: number;
  readonly p90: number;
  readonly p95: number;
  readonly p99: number;
  readonly p999: number;
  readonly max: number;
}

export interface LoadResult {
  readonly mode: "open" | "closed";
  readonly rate: number | null;
  readonly clients: number | null;
  readonly seconds: number;
  readonly requests: number;
  /** Answers by status; "error": no answer. */
  readonly statuses: Readonly<Record<string, number>>;
  /** Answers of status 200 a second. */
  readonly perSecond: number;
  /** Of answers of status 200. */
  readonly latencies: Latencies;
  /** Of them, how late requests were sent, at the 99th percentile: a sender that is too slow shows here. */
  readonly lateP99: number;
}

/** What a process is told, and what it tells. */
export interface WorkerTask extends LoadOptions {
  readonly index: number;
  /** Milliseconds since 1970 at which all begin. */
  readonly begin: number;
}
export interface WorkerResult {
  readonly latencies: Float64Array;
  readonly late: Float64Array;
  readonly statuses: Record<string, number>;
}

export function percentile(sorted: Float64Array, share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN;
}

export function latenciesOf(values: Float64Array): Latencies {
  const sorted = values.slice().sort();
  const at = (share: number) => Math.round(percentile(sorted, share) * 1000) / 1000;
  const mean = sorted.reduce((sum, value) => sum + value, 0) / sorted.length;
  return {
    ...{
      mean: Math.round(mean * 1000) / 1000,
      p50: at(0.5),
      p90: at(0.9),
      p95: at(0.95),
      p99: at(0.99),
      p999: at(0.999),
    },
    max: at(1),
  };
}

/** Runs a load to its end. */
export async function runLoad(options: LoadOptions): Promise<LoadResult> {
  const { processes = 2, mode, seconds, rate, clients } = options;
  const program = fileURLToPath(new URL("load-worker.ts", import.meta.url));
  const begin = Date.now() + 700;
  const results = await Promise.all(
    Array.from({ length: processes }, (_, index) => {
      const share = (total: number | undefined) =>
        total === undefined ? undefined : Math.floor(total / processes) + (index < total % processes ? 1 : 0);
      const own = { rate: rate === undefined ? undefined : rate / processes, clients: share(clients) };
      const task: WorkerTask = { ...options, ...own, index, begin };
      return new Promise<WorkerResult>((done, fail) => {
        const child = Bun.spawn([process.execPath, "run", program], {
          ...{ stdin: "ignore", stdout: "inherit", stderr: "inherit", serialization: "advanced" },
          ipc: (message: WorkerResult) => done(message),
          onExit: (_, code) => {
            if (code !== 0) fail(new Error(`a process of the load ended with ${code}`));
          },
        });
        child.send(task);
      });
    }),
  );
  const joined = (name: "latencies" | "late") => Float64Array.from(results.flatMap((result) => [...result[name]]));
  const statuses: Record<string, number> = {};
  for (const result of results) {
    for (const [status, count] of Object.entries(result.statuses)) statuses[status] = (statuses[status] ?? 0) + count;
  }
  return {
    ...{ mode, rate: rate ?? null, clients: clients ?? null, seconds, statuses },
    requests: Object.values(statuses).reduce((sum, count) => sum + count, 0),
    perSecond: (statuses["200"] ?? 0) / seconds,
    latencies: latenciesOf(joined("latencies")),
    lateP99: percentile(joined("late").sort(), 0.99),
  };
}

/** The result in a line. */
export function describeLoad({ mode, rate, clients, perSecond, latencies, statuses }: LoadResult): string {
  const { p50, p90, p99, max } = latencies;
  const what = mode === "open" ? `${rate?.toFixed(0)} requests/s` : `${clients} clients`;
  const answers = Object.entries(statuses).map(([status, count]) => `${status}: ${count}`);
  const ms = [p50, p90, p99, max].map((value) => value.toFixed(1)).join(" / ");
  return `${mode}, ${what}: ${perSecond.toFixed(1)} images/s, p50 / p90 / p99 / max ${ms} ms (${answers.join(", ")})`;
}
