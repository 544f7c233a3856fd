/** Bodies of requests, within limits of size, memory and time, decompressed. */
import { promisify } from "node:util";
import { gunzip, type InputType, inflate, type ZlibOptions } from "node:zlib";
import type { Gate, ServiceLimits } from "./limits";
import { quoted } from "./tensors";
import { ServiceError } from "./types";

export interface BodyGates {
  /** Requests whose bodies are on their way. */
  readonly receiving: Gate;
  /** Bytes of bodies. */
  readonly memory: Gate;
}

export interface ReceivedBody {
  readonly bytes: Uint8Array;
  /** As they came, before decompression. */
  readonly received: number;
}

type Decompress = (bytes: InputType, options: ZlibOptions) => Promise<Uint8Array>;

const DECOMPRESS: Readonly<Record<string, Decompress>> = {
  gzip: promisify<InputType, ZlibOptions, Buffer>(gunzip),
  "x-gzip": promisify<InputType, ZlibOptions, Buffer>(gunzip),
  deflate: promisify<InputType, ZlibOptions, Buffer>(inflate),
};

const tooLarge = (limit: number) => new ServiceError(413, `the body is larger than the limit of ${limit} bytes`);

/** Whether a request has a body. By its head: asking for `body` would make a stream of it. */
export function hasBody({ headers }: Request): boolean {
  const length = headers.get("content-length");
  return length === null ? headers.has("transfer-encoding") : length !== "0";
}

/**
 * Receives the body of a request and undoes its Content-Encoding (gzip or deflate), off the thread that answers.
 *
 * @param kept takes what holds the body's memory, until the request is answered
 * @throws ServiceError 400 damaged; 408 too slow; 413 too large, compressed or not; 415 of another encoding; 499 given up; 503 no room
 */
export async function receiveBody(
  request: Request,
  limits: ServiceLimits,
  { receiving, memory }: BodyGates,
  kept: DisposableStack,
): Promise<ReceivedBody> {
  const { maxBodyBytes } = limits;
  const encoding = (request.headers.get("content-encoding") ?? "identity").trim().toLowerCase();
  const decompress = Object.hasOwn(DECOMPRESS, encoding) ? DECOMPRESS[encoding] : undefined;
  if (!decompress && encoding !== "identity") {
    throw new ServiceError(415, `Content-Encoding: expected gzip, deflate or identity, got ${quoted(encoding)}`);
  }
  const declared = request.headers.get("content-length");
  const length = declared === null ? null : Number(declared);
  if (length !== null && length > maxBodyBytes) throw tooLarge(maxBodyBytes);
  let body: Uint8Array;
  {
    using _ = receiving.enter();
    body = await receive(request, length, limits, memory, kept);
  }
  if (!decompress || body.length === 0) return { bytes: body, received: body.length };
  let bytes: Uint8Array;
  try {
    bytes = await decompress(body, { maxOutputLength: maxBodyBytes });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ERR_BUFFER_TOO_LARGE") throw tooLarge(maxBodyBytes);
    throw new ServiceError(400, `the body is no ${encoding}: ${(error as Error).message.slice(0, 100)}`);
  }
  kept.use(memory.enter(bytes.length));
  return { bytes, received: body.length };
}

async function receive(
  request: Request,
  length: number | null,
  limits: ServiceLimits,
  memory: Gate,
  kept: DisposableStack,
): Promise<Uint8Array> {
  if (!hasBody(request)) return new Uint8Array(0);
  if (length !== null) kept.use(memory.enter(length));
  let expired: (error: ServiceError) => void = () => {};
  const late = new Promise<never>((_, reject) => {
    expired = reject;
  });
  late.catch(() => {});
  const timer = setTimeout(
    () => expired(new ServiceError(408, `the body did not come within ${limits.bodySeconds} s`)),
    limits.bodySeconds * 1000,
  );
  // What comes after its time, or fails then, is no longer waited for.
  const work = length === null ? readChunks(request, limits, memory, kept, late) : request.bytes();
  work.catch(() => {});
  try {
    return await Promise.race([work, late]);
  } catch (error) {
    if (error instanceof ServiceError) throw error;
    // Nobody reads the answer, but it is counted.
    throw new ServiceError(499, "the connection ended within the body");
  } finally {
    clearTimeout(timer);
  }
}

/** A body of a length that its head does not say. */
async function readChunks(
  request: Request,
  { maxBodyBytes }: ServiceLimits,
  memory: Gate,
  kept: DisposableStack,
  late: Promise<never>,
): Promise<Uint8Array> {
  const reader = (request.body as ReadableStream<Uint8Array>).getReader();
  const parts: Uint8Array[] = [];
  let size = 0;
  try {
    for (;;) {
      const { done, value } = await Promise.race([reader.read(), late]);
      if (done) return parts.length === 1 ? (parts[0] as Uint8Array) : Buffer.concat(parts);
      size += value.length;
      if (size > maxBodyBytes) throw tooLarge(maxBodyBytes);
      kept.use(memory.enter(value.length));
      parts.push(value);
    }
  } catch (error) {
    reader.cancel().catch(() => {});
    throw error;
  }
}
