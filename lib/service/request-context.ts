/** A request on its way through the service: its names, what is known of it so far, and how its answer looks. */
import { requestIdOf, type TraceContext, traceOf } from "./trace";
import type { InferenceReply, InferenceTimes } from "./types";

/** An answer before it is compressed and gets the headers that all answers have. */
export interface Reply {
  readonly status: number;
  readonly type: string;
  readonly body: Uint8Array | string;
  readonly headers?: Readonly<Record<string, string>>;
}

export const jsonReply = (value: unknown, status = 200, headers: Readonly<Record<string, string>> = {}): Reply => ({
  ...{ status, type: "application/json", body: JSON.stringify(value), headers },
});

/** Seconds that a part of a request took, for metrics. */
export type RequestStage = "receive" | "infer" | "respond";

export class RequestContext {
  readonly id: string;
  readonly trace: TraceContext;
  readonly started = performance.now();
  /** Without query; escapes as they came. */
  readonly path: string;
  readonly #search: string;
  #query: URLSearchParams | null = null;
  /** The route's name, of a fixed set. */
  route = "unknown";
  params: Readonly<Record<string, string>> = {};
  /** The model's name and version once they are known to exist: no client's text becomes a label of metrics. */
  model: { readonly name: string; readonly version: string } | null = null;
  images = 0;
  /** Bytes of the body as they came, and of the answer's. */
  received = 0;
  sent = 0;
  times: InferenceTimes | null = null;
  batchSize = 0;
  /** Milliseconds. */
  readonly stages: Partial<Record<RequestStage, number>> = {};
  /** Ends when the client has gone, or the time for an answer is over. */
  readonly abort = new AbortController();
  /** What the request holds, such as memory, until it is answered. */
  readonly kept = new DisposableStack();

  constructor(readonly request: Request) {
    const { url, headers } = request;
    // Not by URL, which throws for what a client may send as its Host.
    const authority = url.indexOf("://");
    const start = authority < 0 ? 0 : url.indexOf("/", authority + 3);
    const target = start < 0 ? "/" : url.slice(start);
    const [, path = "", search = ""] = /^([^?#]*)\??([^#]*)/.exec(target) ?? [];
    this.path = path;
    this.#search = search;
    this.id = requestIdOf(headers.get("x-request-id"));
    this.trace = traceOf(headers.get("traceparent"));
  }

  get query(): URLSearchParams {
    this.#query ??= new URLSearchParams(this.#search);
    return this.#query;
  }

  /** Remembers what an answer of the model said of itself. Of several, the longest. */
  answered({ model, version, times, batchSize }: InferenceReply): void {
    this.model = { name: model, version };
    if (!this.times || times.queue + times.compute > this.times.queue + this.times.compute) this.times = times;
    this.batchSize = Math.max(this.batchSize, batchSize);
  }

  /** Runs a part of the request and remembers how long it took. */
  async timed<T>(stage: RequestStage, work: () => Promise<T>): Promise<T> {
    const start = performance.now();
    try {
      return await work();
    } finally {
      this.stages[stage] = (this.stages[stage] ?? 0) + performance.now() - start;
    }
  }
}
