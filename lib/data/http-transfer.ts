import { type ByteRange, SourceError } from "./data-source";
import { TransientError } from "./retry";

/** One try of a call: `signal` ends it; progress() is to be called whenever something has arrived. */
export interface Attempt {
  signal: AbortSignal;
  progress(): void;
}

export interface HttpRequest {
  url: string;
  method?: "GET" | "HEAD" | "PUT" | "DELETE";
  headers?: Record<string, string>;
  body?: Uint8Array<ArrayBuffer>;
}

/**
 * Sends a request. What may be over soon (no connection, a connection that was cut, 408, 425, 429, 5xx) is a TransientError.
 * Other answers, 4xx among them, are returned.
 */
export async function send(request: HttpRequest, attempt: Attempt): Promise<Response> {
  const { url, method = "GET", body } = request;
  // Bytes are wanted as they are stored: lengths and ranges say nothing about what was decompressed on the way.
  const headers = { "accept-encoding": "identity", ...request.headers };
  const response = await connected(() => fetch(url, { method, headers, body, signal: attempt.signal }), attempt);
  attempt.progress();
  if (!isTransientStatus(response.status)) return response;
  throw new TransientError(await describeAnswer(response, attempt), retryAfter(response.headers.get("retry-after")));
}

/** Whether an answer of this status is worth another try. */
export function isTransientStatus(status: number): boolean {
  return status === 408 || status === 425 || status === 429 || (status >= 500 && status !== 501 && status !== 505);
}

/** An error for an answer that is final: `op` and `location` name what was asked for. */
export async function refusal(
  op: string,
  location: string,
  response: Response,
  attempt: Attempt,
): Promise<SourceError> {
  const { status } = response;
  return new SourceError(op, location, failureOf(status), await describeAnswer(response, attempt));
}

export function failureOf(status: number): SourceError["reason"] {
  if (status === 404 || status === 410) return "missing";
  return status === 401 || status === 403 ? "denied" : "other";
}

/** What an HTTP status means for an object, in words. */
export function describeStatus(status: number): string {
  if (status === 404 || status === 410) return `no such object (HTTP ${status})`;
  if (status === 401) return "not permitted without valid credentials (HTTP 401)";
  if (status === 403) return "permission denied (HTTP 403)";
  if (status === 429) return "the server asks to be called less often (HTTP 429)";
  return `the server answered HTTP ${status}`;
}

async function describeAnswer(response: Response, attempt: Attempt): Promise<string> {
  const text = await response.text().catch(() => "");
  attempt.progress();
  const detail = errorText(text);
  return detail === "" ? describeStatus(response.status) : `${describeStatus(response.status)}: ${detail}`;
}

/** What an error's body says: S3's XML, Google's JSON, or the beginning of a plain text. */
function errorText(body: string): string {
  const tag = (name: string): string => new RegExp(`<${name}>([^<]*)</${name}>`).exec(body)?.[1]?.trim() ?? "";
  const [code, message] = [tag("Code"), tag("Message")];
  if (code !== "" || message !== "") return [code, message].filter((part) => part !== "").join(", ");
  try {
    const { error } = JSON.parse(body) as { error?: { message?: unknown } };
    if (typeof error?.message === "string") return error.message;
  } catch {
    // Not JSON.
  }
  const line = body.trim().split("\n")[0] ?? "";
  return line.startsWith("<") ? "" : line.slice(0, 200);
}

/** Milliseconds to wait as a Retry-After header says: seconds, or a date. */
export function retryAfter(header: string | null | undefined): number | null {
  if (header === null || header === undefined || header.trim() === "") return null;
  const seconds = Number(header);
  const ms = Number.isNaN(seconds) ? Date.parse(header) - Date.now() : 1000 * seconds;
  return Number.isFinite(ms) ? Math.max(0, ms) : null;
}

/** Runs a transfer, and makes failures of the connection TransientErrors. */
async function connected<T>(transfer: () => Promise<T>, attempt: Attempt): Promise<T> {
  try {
    return await transfer();
  } catch (error) {
    attempt.signal.throwIfAborted();
    const problem = connectionProblem(error);
    throw problem === null ? error : new TransientError(problem, null, { cause: error });
  }
}

/** The codes by which runtimes and libraries name failures of connections that may be over soon. */
const CONNECTION_PROBLEMS: Record<string, string> = {
  ECONNRESET: "the connection was cut",
  EPIPE: "the connection was cut",
  ConnectionClosed: "the connection was cut",
  ECONNREFUSED: "cannot connect",
  ConnectionRefused: "cannot connect",
  FailedToOpenSocket: "cannot connect",
  EHOSTUNREACH: "cannot reach the server",
  ENETUNREACH: "cannot reach the server's network",
  ENOTFOUND: "the server's name is not known",
  EAI_AGAIN: "the server's name could not be looked up",
  ETIMEDOUT: "the connection timed out",
};

/** What went wrong with a connection, in words; null where an error is about something else. */
export function connectionProblem(error: unknown): string | null {
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === "string" && Object.hasOwn(CONNECTION_PROBLEMS, code) ? CONNECTION_PROBLEMS[code]! : null;
}

/**
 * The bytes of an answer to a GET, with `range` or without. Fewer bytes than the headers promise are a TransientError. A
 * server that ignores ranges (200 instead of 206) is read up to the range's end, and no further.
 */
export async function receive(
  response: Response,
  range: ByteRange | undefined,
  attempt: Attempt,
): Promise<Uint8Array<ArrayBuffer>> {
  const partial = range !== undefined && response.status === 206;
  const promised = partial ? partLength(response, range) : bodyLength(response);
  const skip = partial || !range ? 0 : range.start;
  const stop = range && !partial ? range.end : Number.POSITIVE_INFINITY;
  const bytes = await connected(() => collect(response, promised, stop, attempt), attempt);
  const expected = Math.min(promised ?? 0, stop);
  if (bytes.length < expected) {
    throw new TransientError(`the transfer ended after ${bytes.length} of ${expected} bytes`);
  }
  return skip === 0 ? bytes : bytes.subarray(Math.min(skip, bytes.length));
}

/** Bytes that an answer of status 206 must hold. */
function partLength(response: Response, { start, end }: ByteRange): number {
  const header = response.headers.get("content-range") ?? "";
  if (header.endsWith("/0")) return 0; // an empty object has no valid range; servers differ in how they say so
  const match = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(header.trim());
  if (!match || Number(match[1]) !== start) {
    throw new TransientError(`asked for bytes ${start} to ${end - 1}, but the answer's Content-Range is "${header}"`);
  }
  const last = match[3] === "*" ? Number(match[2]) + 1 : Number(match[3]);
  return Math.min(end, last) - start;
}

/** Bytes that a whole body must hold; null where the answer does not say. */
function bodyLength({ headers }: Response): number | null {
  // Google's service says how large the stored object is, independent of the transfer.
  const stored = headers.get("x-goog-stored-content-length");
  const plain = (headers.get("x-goog-stored-content-encoding") ?? "identity") === "identity";
  const length = (plain ? stored : null) ?? (headers.has("content-encoding") ? null : headers.get("content-length"));
  return length === null || !/^\d+$/.test(length) ? null : Number(length);
}

/** The body, up to `stop` bytes. */
async function collect(
  response: Response,
  promised: number | null,
  stop: number,
  attempt: Attempt,
): Promise<Uint8Array<ArrayBuffer>> {
  if (!response.body) return new Uint8Array(0);
  const chunks: Uint8Array[] = [];
  let filled = 0;
  // Leaving the loop early cancels the transfer.
  for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
    attempt.progress();
    chunks.push(chunk);
    filled += chunk.length;
    if (filled >= stop || (promised !== null && filled > promised)) break;
  }
  const wanted = Math.min(filled, stop, promised ?? filled);
  const [first] = chunks;
  if (chunks.length === 1 && first && first.length === wanted && first.buffer instanceof ArrayBuffer)
    return first as Uint8Array<ArrayBuffer>;
  const bytes = new Uint8Array(wanted);
  let at = 0;
  for (const chunk of chunks) {
    bytes.set(chunk.length > wanted - at ? chunk.subarray(0, wanted - at) : chunk, at);
    at += Math.min(chunk.length, wanted - at);
  }
  return bytes;
}
