/** The service's HTTP server: limits, keys, routes, answers, metrics and logs around a model side. */
import { promisify } from "node:util";
import { deflate, gzip, type InputType, type ZlibOptions } from "node:zlib";
import { MetricsServer, PROMETHEUS_CONTENT_TYPE, prometheusText } from "../monitor";
import { check, DlfsError, ErrorCode } from "../native/error";
import { ApiKeys, Cors } from "./access";
import { Gate, limitsOf, type ServiceLimits } from "./limits";
import type { Logger } from "./log";
import { pageRoutes } from "./page";
import { type BodyGates, hasBody, receiveBody } from "./request-body";
import { jsonReply, type Reply, RequestContext } from "./request-context";
import { type Route, Router, routes, type ServiceParts } from "./routes";
import { ServiceMetrics } from "./service-metrics";
import { traceparentOf } from "./trace";
import { type InferenceBackend, ServiceError } from "./types";
import { UrlFetcher, type UrlFetchOptions } from "./url-fetch";
import { unreadyModels } from "./v2-routes";

export interface ServiceOptions {
  /** Default "127.0.0.1": nobody else on the network can ask. */
  hostname?: string;
  /** Default 8000; 0: any free one. */
  port?: number;
  /** A port of its own for /metrics, which is not on the other then, and needs no key. 0: any free one. */
  metricsPort?: number;
  /** Default the service's. */
  metricsHostname?: string;
  /** Certificate and key, as PEM. Default: no TLS. */
  tls?: { cert: string; key: string; passphrase?: string };
  /** Keys of which requests need one; default none: anybody may ask. */
  apiKeys?: readonly string[];
  /** Origins whose pages may ask, "https://example.org" or "*". Default none. */
  corsOrigins?: readonly string[];
  /** Whether clients may load and unload models. Default false. */
  modelControl?: boolean;
  /** The model of /predict where a request names none. Default: the only one. */
  defaultModel?: string;
  /** Whether there is a page at /. Default true. */
  page?: boolean;
  /** Images that are named by URL are fetched so; default: not at all. */
  urls?: Partial<UrlFetchOptions>;
  limits?: Partial<ServiceLimits>;
  /** Whether it is ready when each model that is not unloaded has a version that is, or when one of them has. Default "all". */
  readiness?: "all" | "any";
  /** Whether models are still being loaded: the service is not ready until started() is called. Default false. */
  starting?: boolean;
  log?: Logger;
}

/** Answers are compressed from so many bytes on. */
const COMPRESS_BYTES = 1400;

type Compress = (bytes: InputType, options: ZlibOptions) => Promise<Uint8Array>;
const COMPRESS: Readonly<Record<string, Compress>> = {
  gzip: promisify<InputType, ZlibOptions, Buffer>(gzip),
  deflate: promisify<InputType, ZlibOptions, Buffer>(deflate),
};

/** The first of gzip and deflate that a client takes; null where it takes neither. */
export function acceptedEncoding(header: string | null): "gzip" | "deflate" | null {
  const accepted = new Map<string, number>();
  for (const item of (header ?? "").toLowerCase().split(",")) {
    const [name = "", ...parameters] = item.split(";").map((part) => part.trim());
    const q = parameters.find((parameter) => parameter.startsWith("q="));
    accepted.set(name, q === undefined ? 1 : Number(q.slice(2)));
  }
  const best = (["gzip", "deflate"] as const).find((name) => (accepted.get(name) ?? accepted.get("*") ?? 0) > 0);
  return best ?? null;
}

/** How long the service answers on connections that are open before it closes them: their clients know of nothing yet. */
const LINGER_MS = 200;

/** A body that is not read up to so many bytes is left to the server to throw away; behind a larger one the connection ends. */
const IGNORED_BODY_BYTES = 65_536;

export class InferenceService implements AsyncDisposable {
  readonly limits: ServiceLimits;
  readonly #log: Logger | null;
  readonly #keys: ApiKeys;
  readonly #cors: Cors;
  readonly #router: Router;
  readonly #parts: ServiceParts;
  readonly #gates: BodyGates;
  readonly #working: Gate;
  readonly #metrics: ServiceMetrics;
  readonly #server: Bun.Server<undefined>;
  readonly #metricsServer: MetricsServer | null = null;
  #draining = false;
  #starting: boolean;
  readonly #readiness: "all" | "any";
  #stopping: Promise<void> | null = null;
  /** Told when nothing is under way any more. */
  #idle: (() => void) | null = null;

  /**
   * Listens from now on. The model side stays the caller's.
   *
   * @throws DlfsError where an option is wrong, or a port cannot be had
   */
  constructor(backend: InferenceBackend, options: ServiceOptions = {}) {
    const { hostname = "127.0.0.1", port = 8000, tls, metricsPort, metricsHostname = hostname } = options;
    const { apiKeys = [], corsOrigins = [], log = null, urls, defaultModel = null, modelControl = false } = options;
    this.#log = log;
    this.#starting = options.starting ?? false;
    this.#readiness = options.readiness ?? "all";
    this.limits = limitsOf(options.limits);
    this.#keys = new ApiKeys(apiKeys);
    this.#cors = new Cors(corsOrigins);
    const { maxConcurrent, maxReceiving, maxBufferedBytes, maxBodyBytes } = this.limits;
    check(
      maxBufferedBytes >= maxBodyBytes,
      "limits.maxBufferedBytes",
      () => `expected at least maxBodyBytes, ${maxBodyBytes}, got ${maxBufferedBytes}`,
    );
    this.#working = new Gate(maxConcurrent, "too many requests at a time");
    this.#gates = {
      receiving: new Gate(maxReceiving, "too many bodies on their way"),
      memory: new Gate(maxBufferedBytes, "no memory for another body at the moment"),
    };
    this.#parts = {
      ...{ backend, limits: this.limits, defaultModel, modelControl },
      urls: urls ? new UrlFetcher({ ...urls, maxBytes: urls.maxBytes ?? maxBodyBytes }) : null,
      unready: () => this.#unready(),
      body: (context) => this.#body(context),
    };
    using made = new DisposableStack();
    this.#metrics = made.use(new ServiceMetrics(backend));
    this.#metrics.ready = () => this.#unready() === null;
    const collect = () => this.#metrics.collect();
    const metricsRoute: Route = {
      ...{ method: "GET", pattern: "/metrics" },
      answer: () => ({ status: 200, type: PROMETHEUS_CONTENT_TYPE, body: prometheusText(collect()) }),
    };
    const own = [...(metricsPort === undefined ? [metricsRoute] : []), ...(options.page === false ? [] : pageRoutes())];
    this.#router = new Router([...routes, ...own]);
    if (metricsPort !== undefined) {
      this.#metricsServer = made.use(new MetricsServer({ port: metricsPort, hostname: metricsHostname, collect }));
    }
    try {
      this.#server = Bun.serve({
        ...{ hostname, port, development: false, reusePort: false, idleTimeout: this.limits.idleSeconds },
        // The limit that answers with a reason is receiveBody()'s; this one holds where that is passed by.
        maxRequestBodySize: maxBodyBytes + IGNORED_BODY_BYTES,
        ...(tls && { tls }),
        fetch: (request, server) => this.#handle(request, server),
        error: () => new Response('{"error":"internal error"}', { status: 500 }),
      });
    } catch (error) {
      throw new DlfsError(ErrorCode.io, "service", `cannot listen on ${hostname}:${port}: ${(error as Error).message}`);
    }
    made.move();
  }

  /** Where it is: "http://127.0.0.1:8000/". */
  get url(): URL {
    return this.#server.url;
  }

  /** Where its metrics are. */
  get metricsUrl(): string {
    return this.#metricsServer?.url ?? new URL("/metrics", this.url).href;
  }

  /** Requests under way. */
  get inFlight(): number {
    return this.#metrics.inFlight;
  }

  /** All models that are to be are loaded, or have failed: from now on it is ready where they are. */
  started(): void {
    this.#starting = false;
  }

  #unready(): string | null {
    if (this.#draining) return "the service is ending";
    return this.#starting ? "models are being loaded" : unreadyModels(this.#parts.backend.models(), this.#readiness);
  }

  /** Says from now on that it is not ready, and ends connections behind their answers; requests are answered as before. */
  drain(): void {
    this.#draining = true;
  }

  /**
   * Takes no further connections, answers what is under way, and ends. What is on its way on connections that are open is answered,
   * too, for a moment, before those that are idle are closed.
   *
   * @param graceSeconds after which what is still under way is cut off
   */
  stop(graceSeconds = 30): Promise<void> {
    this.#stopping ??= (async () => {
      this.drain();
      await Bun.sleep(Math.min(LINGER_MS, graceSeconds * 1000));
      const idle = new Promise<void>((done) => {
        this.#idle = done;
        if (this.inFlight === 0) done();
      });
      // Closes idle connections, and those of requests under way behind their answers.
      const closed = this.#server.stop(false);
      let timer: Timer | undefined;
      const late = new Promise<void>((done) => {
        timer = setTimeout(done, graceSeconds * 1000);
      });
      await Promise.race([Promise.all([idle, closed]), late]);
      clearTimeout(timer);
      await this.#server.stop(true);
      this.#metricsServer?.[Symbol.dispose]();
      this.#metrics[Symbol.dispose]();
    })();
    return this.#stopping;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  async #handle(request: Request, server: Bun.Server<undefined>): Promise<Response> {
    const context = new RequestContext(request);
    this.#metrics.inFlight++;
    let reply: Reply;
    let defect: unknown = null;
    try {
      reply = await this.#answer(context, server);
    } catch (error) {
      if (!(error instanceof ServiceError)) defect = error;
      reply = refusal(error, context);
    }
    try {
      return await this.#respond(context, reply);
    } finally {
      context.kept.dispose();
      const { status } = reply;
      this.#metrics.inFlight--;
      this.#metrics.finished(context, status, context.route.endsWith("/infer") || context.route === "/predict");
      this.#write(context, reply, defect, server);
      if (this.inFlight === 0) this.#idle?.();
    }
  }

  async #answer(context: RequestContext, server: Bun.Server<undefined>): Promise<Reply> {
    const { request, path } = context;
    const found = this.#router.find(path);
    if (found === null) throw new ServiceError(400, "the path has an escape that is none");
    const methods = found.flatMap(({ route: { method } }) => (method === "GET" ? ["GET", "HEAD"] : [method]));
    const [first] = found;
    if (first) context.route = first.route.name ?? first.route.pattern;
    if (request.method === "OPTIONS" && request.headers.has("access-control-request-method")) {
      const preflight = this.#cors.preflight(request, methods);
      return { status: preflight.status, type: "", body: "", headers: Object.fromEntries(preflight.headers) };
    }
    if (!first) {
      this.#keys.check(request);
      throw new ServiceError(404, "not found");
    }
    const wanted = request.method === "HEAD" ? "GET" : request.method;
    const match = found.find(({ route }) => route.method === wanted);
    if (!match) {
      const allowed = methods.join(", ");
      return jsonReply({ error: `expected ${allowed}, got ${request.method}` }, 405, { Allow: allowed });
    }
    const { route, params } = match;
    context.route = route.name ?? route.pattern;
    context.params = params;
    if (route.kind !== "open") this.#keys.check(request);
    if (route.kind !== "work") return await route.answer(context, this.#parts);

    // Told before the body is sent. A place is taken behind it: clients that send slowly keep none from others.
    this.#working.expectRoom();
    // The server's own limit of time would end connections whose answers take longer: these have limits of their own.
    server.timeout(request, 0);
    const { abort } = context;
    const gone = () => abort.abort(new ServiceError(499, "the client has gone"));
    request.signal.addEventListener("abort", gone);
    try {
      return await route.answer(context, this.#parts);
    } catch (error) {
      // What a request ends with by its own signal is what ended the signal.
      throw abort.signal.aborted && abort.signal.reason instanceof ServiceError ? abort.signal.reason : error;
    } finally {
      request.signal.removeEventListener("abort", gone);
      server.timeout(request, this.limits.idleSeconds);
    }
  }

  async #body(context: RequestContext): Promise<Uint8Array> {
    const { bytes, received } = await context.timed("receive", () =>
      receiveBody(context.request, this.limits, this.#gates, context.kept),
    );
    context.received = received;
    context.kept.use(this.#working.enter());
    const { answerSeconds } = this.limits;
    const late = new ServiceError(503, `no answer within ${answerSeconds} s`, 1);
    const timer = setTimeout(() => context.abort.abort(late), answerSeconds * 1000);
    context.kept.defer(() => clearTimeout(timer));
    return bytes;
  }

  async #respond(context: RequestContext, reply: Reply): Promise<Response> {
    const { request } = context;
    const headers = new Headers(reply.headers);
    if (reply.type !== "") headers.set("Content-Type", reply.type);
    headers.set("X-Request-Id", context.id);
    headers.set("traceparent", traceparentOf(context.trace));
    headers.set("X-Content-Type-Options", "nosniff");
    if (!headers.has("Cache-Control")) headers.set("Cache-Control", "no-store");
    this.#cors.apply(request, headers);
    if (this.#draining || leavesBody(request, reply.status)) headers.set("Connection", "close");
    const { body, status } = reply;
    const length = typeof body === "string" ? Buffer.byteLength(body) : body.length;
    if (status === 204) return new Response(null, { status, headers });
    let sent: Uint8Array | string = body;
    if (length >= COMPRESS_BYTES) {
      headers.append("Vary", "Accept-Encoding");
      const encoding = acceptedEncoding(request.headers.get("accept-encoding"));
      if (encoding !== null) {
        sent = await context.timed("respond", () => (COMPRESS[encoding] as Compress)(body, { level: 1 }));
        headers.set("Content-Encoding", encoding);
      }
    }
    context.sent = typeof sent === "string" ? length : sent.length;
    return new Response(sent as Uint8Array<ArrayBuffer>, { status, headers });
  }

  #write(context: RequestContext, { status, body }: Reply, defect: unknown, server: Bun.Server<undefined>): void {
    const log = this.#log;
    if (!log) return;
    const isWork = context.route === "/predict" || context.route.endsWith("/infer");
    const level = status >= 500 && status !== 503 ? "error" : status >= 400 ? "warn" : isWork ? "info" : "debug";
    if (!log.isLevelEnabled(level)) return;
    const { request, trace, model, times, stages } = context;
    const round = (ms: number | undefined) => (ms === undefined ? undefined : Math.round(ms * 1000) / 1000);
    log[level](
      {
        ...{ requestId: context.id, traceId: trace.traceId, spanId: trace.spanId },
        ...(trace.parentId !== null && { parentId: trace.parentId }),
        ...{ method: request.method, route: context.route, status, client: server.requestIP(request)?.address },
        ...(context.route === "unknown" && { path: context.path.slice(0, 200) }),
        ...(model && { model: model.name, version: model.version }),
        ...(context.images > 0 && { images: context.images, batchSize: context.batchSize }),
        ...{ bytesIn: context.received, bytesOut: context.sent, ms: round(performance.now() - context.started) },
        ...(stages.receive !== undefined && { receiveMs: round(stages.receive) }),
        ...(times && { queueMs: round(times.queue), computeMs: round(times.compute) }),
        ...(status >= 400 && { error: errorTextOf(body) }),
        ...(defect !== null && { err: defect }),
      },
      "request",
    );
  }
}

/** Whether a large part of a request was not read, and need not be sent. */
function leavesBody(request: Request, status: number): boolean {
  if (status === 408 || status === 413) return true;
  if (!hasBody(request) || request.bodyUsed) return false;
  const length = request.headers.get("content-length");
  return length === null || Number(length) > IGNORED_BODY_BYTES;
}

const errorTextOf = (body: Reply["body"]): string => {
  try {
    const text = typeof body === "string" ? body : new TextDecoder().decode(body);
    return String((JSON.parse(text) as { error?: unknown }).error).slice(0, 500);
  } catch {
    return "";
  }
};

/** The answer to a request that cannot be answered otherwise: no path, no stack. */
function refusal(error: unknown, { id }: RequestContext): Reply {
  if (!(error instanceof ServiceError)) {
    return jsonReply({ error: `internal error; the service's log has more under request id ${id}` }, 500);
  }
  const { status, message, retryAfter } = error;
  const headers = {
    ...(retryAfter !== undefined && { "Retry-After": String(Math.max(1, Math.ceil(retryAfter))) }),
    ...(status === 401 && { "WWW-Authenticate": 'Bearer realm="dlfs"' }),
  };
  return jsonReply({ error: message }, status, headers);
}
