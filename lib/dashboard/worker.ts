/** A dashboard in a thread of its own: what it reads and works out holds up nobody else. */
import { failure } from "../live";
import { DlfsError, ErrorCode } from "../native/error";
import type { EditorOptions } from "./edits";

export interface DashboardWorkerOptions extends Pick<EditorOptions, "edit"> {
  /** Of runs, or folders that hold such. */
  folders: readonly string[];
  /** Who knows it may read, and write where `edit` is true. */
  token: string;
}

/** What the thread is told, and what it answers. */
export type DashboardRequest =
  | { kind: "open"; options: DashboardWorkerOptions }
  | { kind: "request"; id: number; url: string; method: string; headers: [string, string][]; body: ArrayBuffer | null }
  | { kind: "close" };
export type DashboardReply =
  | { kind: "opened" }
  | { kind: "refused"; code: number; op: string; reason: string }
  | { kind: "answer"; id: number; status: number; headers: [string, string][]; body: ArrayBuffer }
  | { kind: "closed" };

/** Answers as Dashboard does. */
export class DashboardWorker implements AsyncDisposable {
  readonly #thread: Worker;
  readonly #opened = Promise.withResolvers<void>();
  readonly #closed = Promise.withResolvers<void>();
  readonly #waiting = new Map<number, (answer: Response) => void>();
  #next = 0;
  /** Why it answers no more. */
  #over: string | null = null;

  private constructor(options: DashboardWorkerOptions) {
    // Without it a thread has the environment that the process was started with.
    const env = { ...process.env } as Record<string, string>;
    this.#thread = new Worker(new URL("./worker-thread.ts", import.meta.url).href, { env });
    this.#thread.onmessage = ({ data }: MessageEvent<DashboardReply>) => this.#hear(data);
    this.#thread.onerror = ({ message }) => this.#end(`the dashboard's thread has failed: ${message}`);
    this.#tell({ kind: "open", options });
  }

  /** @throws DlfsError where a folder is none, or the token is empty */
  static async open(options: DashboardWorkerOptions): Promise<DashboardWorker> {
    const worker = new DashboardWorker(options);
    await worker.#opened.promise;
    worker.#thread.unref(); // nobody's process goes on for it
    return worker;
  }

  /** The answer to a request; 503 where the thread has ended. */
  async handle(request: Request): Promise<Response> {
    const { url, method, headers } = request;
    const body = request.body ? await request.arrayBuffer() : null;
    if (this.#over !== null) return failure(503, this.#over);
    const id = this.#next++;
    const { promise, resolve } = Promise.withResolvers<Response>();
    this.#waiting.set(id, resolve);
    this.#tell({ kind: "request", id, url, method, headers: [...headers], body }, body ? [body] : []);
    return await promise;
  }

  /** Ends the thread, after what it is at. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#over === null) {
      this.#thread.ref();
      this.#tell({ kind: "close" });
    }
    await this.#closed.promise;
  }

  #tell(request: DashboardRequest, transfer: ArrayBuffer[] = []): void {
    this.#thread.postMessage(request, transfer);
  }

  #hear(reply: DashboardReply): void {
    if (reply.kind === "opened") this.#opened.resolve();
    else if (reply.kind === "refused") {
      const { code, op, reason } = reply;
      this.#opened.reject(new DlfsError(code, op, reason));
      this.#end(reason);
    } else if (reply.kind === "closed") this.#end("the dashboard has ended");
    else {
      const { id, status, headers, body } = reply;
      const resolve = this.#waiting.get(id);
      this.#waiting.delete(id);
      resolve?.(new Response(body, { status, headers }));
    }
  }

  #end(reason: string): void {
    this.#over ??= reason;
    this.#opened.reject(new DlfsError(ErrorCode.internal, "dashboard", reason));
    for (const resolve of this.#waiting.values()) resolve(failure(503, reason));
    this.#waiting.clear();
    this.#closed.resolve();
  }
}
