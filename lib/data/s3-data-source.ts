import { check } from "../native/error";
import { type ObjectInfo, SourceError, type SourceFailure } from "./data-source";
import { type Attempt, connectionProblem, type HttpRequest, refusal, send } from "./http-transfer";
import { type ListPage, RemoteDataSource, type RemoteOptions } from "./remote-data-source";
import { TransientError } from "./retry";

export interface S3Options extends RemoteOptions {
  bucket: string;
  /** Keys are relative to this part of the bucket. Default: all of it. */
  prefix?: string;
  /** Default: $S3_ENDPOINT or $AWS_ENDPOINT, else Amazon's of the region. */
  endpoint?: string;
  /** Default: $S3_REGION or $AWS_REGION. */
  region?: string;
  /** Default: $S3_ACCESS_KEY_ID and $S3_SECRET_ACCESS_KEY, or those that begin with AWS_. */
  accessKeyId?: string;
  secretAccessKey?: string;
  sessionToken?: string;
}

/** Seconds for which the addresses of requests are valid: they are used at once. */
const EXPIRES = 3600;

/**
 * Objects of an S3 bucket, Amazon's or of a service that speaks its protocol, on Bun's client. Bun signs the requests and
 * lists; the bytes are read with fetch, which can be ended and says how long an answer must be.
 */
export class S3DataSource extends RemoteDataSource {
  readonly #client: Bun.S3Client;

  constructor(options: S3Options) {
    const { bucket, prefix = "", endpoint, region, accessKeyId, secretAccessKey, sessionToken } = options;
    check(bucket !== "", "S3DataSource", () => "the bucket's name is empty");
    const inner = prefix.replace(/^\/+|\/+$/g, "");
    super(`s3://${bucket}${inner === "" ? "" : `/${inner}`}`, inner, options);
    const given = { endpoint, region, accessKeyId, secretAccessKey, sessionToken };
    const set = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
    this.#client = new Bun.S3Client({ bucket, ...set });
  }

  protected override readRequest(key: string): HttpRequest {
    return this.#request(key, "GET");
  }

  #request(key: string, method: "GET" | "HEAD" | "PUT" | "DELETE"): HttpRequest {
    try {
      return { url: this.#client.presign(this.prefix + key, { method, expiresIn: EXPIRES }), method };
    } catch (error) {
      throw clientError("S3DataSource", this.locate(key), error);
    }
  }

  protected override async statObject(key: string, attempt: Attempt): Promise<ObjectInfo | null> {
    const response = await send(this.#request(key, "HEAD"), attempt);
    if (response.status === 404) return null;
    if (!response.ok) throw await refusal("S3DataSource.stat", this.locate(key), response, attempt);
    const size = Number(response.headers.get("content-length"));
    const modified = Date.parse(response.headers.get("last-modified") ?? "");
    return { key, size, modified: Number.isNaN(modified) ? 0 : modified };
  }

  protected override async listPage(prefix: string, token: string | null, attempt: Attempt): Promise<ListPage> {
    try {
      const answer = await this.#client.list({
        prefix: this.prefix + prefix,
        ...(token === null ? {} : { continuationToken: token }),
      });
      attempt.progress();
      const objects = (answer.contents ?? []).map(({ key, size, lastModified }) => ({
        key: key.slice(this.prefix.length),
        size: Number(size ?? 0),
        // HEAD says whole seconds; a time must be the same whoever is asked.
        modified: Math.floor(Date.parse(String(lastModified)) / 1000) * 1000 || 0,
      }));
      return { objects, next: answer.isTruncated ? (answer.nextContinuationToken ?? null) : null };
    } catch (error) {
      throw clientError("S3DataSource.list", this.locate(`${prefix}*`), error);
    }
  }

  protected override async writeObject(key: string, bytes: Uint8Array, attempt: Attempt): Promise<void> {
    // A request of one piece can be repeated and is seen whole or not at all; above 5 GB, S3 wants several.
    if (bytes.length > 2 ** 30) {
      try {
        await this.#client.write(this.prefix + key, bytes as Uint8Array<ArrayBuffer>, { retry: 3 });
        return;
      } catch (error) {
        throw clientError("S3DataSource.write", this.locate(key), error);
      }
    }
    const response = await send({ ...this.#request(key, "PUT"), body: bytes as Uint8Array<ArrayBuffer> }, attempt);
    if (!response.ok) throw await refusal("S3DataSource.write", this.locate(key), response, attempt);
    await response.body?.cancel();
  }

  protected override async removeObject(key: string, attempt: Attempt): Promise<void> {
    const response = await send(this.#request(key, "DELETE"), attempt);
    if (!response.ok && response.status !== 404) {
      throw await refusal("S3DataSource.remove", this.locate(key), response, attempt);
    }
    await response.body?.cancel();
  }
}

/** Codes of S3 that are worth another try. */
const TRANSIENT = new Set([
  "SlowDown",
  "InternalError",
  "ServiceUnavailable",
  "RequestTimeout",
  "RequestTimeTooSkewed",
  "OperationAborted",
  "TooManyRequests",
  "Throttling",
  "ThrottlingException",
  "RequestLimitExceeded",
  // What Bun's client calls an answer that is no XML of S3's, as those of proxies in between are.
  "UnknownError",
]);

const FAILURES: Record<string, SourceFailure> = {
  NoSuchKey: "missing",
  NoSuchBucket: "missing",
  AccessDenied: "denied",
  InvalidAccessKeyId: "denied",
  SignatureDoesNotMatch: "denied",
  ExpiredToken: "denied",
  ERR_S3_MISSING_CREDENTIALS: "denied",
};

/** What to throw for an error of Bun's client. */
function clientError(op: string, location: string, error: unknown): Error {
  const { code = "", message = String(error) } = error as { code?: string; message?: string };
  const connection = connectionProblem(error);
  if (connection !== null) return new TransientError(connection, null, { cause: error });
  if (TRANSIENT.has(code)) return new TransientError(`${code}: ${message}`, null, { cause: error });
  if (code === "ERR_S3_MISSING_CREDENTIALS") {
    const hint = "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or those with S3_ instead of AWS_)";
    return new SourceError(op, location, "denied", hint, { cause: error });
  }
  return new SourceError(op, location, FAILURES[code] ?? "other", code ? `${message} (${code})` : message, {
    cause: error,
  });
}
