import { check, DlfsError, ErrorCode } from "../native/error";

/** An object of a data source. */
export interface ObjectInfo {
  /** Path relative to the source's root, parts separated by "/". */
  key: string;
  /** Bytes. */
  size: number;
  /** Time of the last change, in milliseconds since 1970; 0 where the source does not know. */
  modified: number;
}

export interface CallOptions {
  /** Ends the call, which then rejects with the signal's reason. */
  signal?: AbortSignal;
}

/** Bytes [start, end) of an object. */
export interface ByteRange {
  start: number;
  end: number;
}

export interface ReadOptions extends CallOptions {
  /** These bytes only; a range that reaches past the end gives what is there. Default: the whole object. */
  range?: ByteRange;
}

/**
 * Where bytes come from: a folder, a bucket, a server, ... Objects have keys such as "train2017/000000000009.jpg". A source
 * of one's own extends this class with four methods: read, list, stat and write. All are safe to call concurrently. Failures
 * are DlfsErrors that name the object (SourceError says of which kind they are); a call that is aborted rejects with the
 * signal's reason.
 */
export abstract class DataSource {
  /** The bytes of an object. It must exist. The caller may do with the array what it likes. */
  abstract read(key: string, options?: ReadOptions): Promise<Uint8Array<ArrayBuffer>>;

  /** All objects whose key starts with `prefix`, in ascending order of key. */
  abstract list(prefix: string, options?: CallOptions): AsyncIterable<ObjectInfo>;

  /** An object's size and time of change, or null where there is no object of this key. */
  abstract stat(key: string, options?: CallOptions): Promise<ObjectInfo | null>;

  /** Creates or replaces an object. A reader sees the old bytes or the new ones, never a part. */
  abstract write(key: string, bytes: Uint8Array, options?: CallOptions): Promise<void>;

  /** Removes an object; one that is not there is no error. Sources that cannot do so say that. */
  remove(key: string, _options?: CallOptions): Promise<void> {
    const op = `${this.constructor.name}.remove`;
    return Promise.reject(new SourceError(op, this.locate(key), "other", "this source removes nothing"));
  }

  /** The full location of a key, for messages. */
  locate(key: string): string {
    return `${this.constructor.name} ${key}`;
  }

  /**
   * The file that holds exactly the bytes of an object at this moment, where the source has one; else null, which says
   * nothing about whether the object exists. It is then read from the file, images by native threads; who finds the file gone
   * calls read().
   */
  pathOf(_key: string): string | null {
    return null;
  }
}

/**
 * What kind of failure a source had: there is no such object ("missing"), reading or writing it is not permitted ("denied"),
 * the service did not answer in spite of retries ("unavailable"), there is no room for it ("full"), or anything else.
 */
export type SourceFailure = "missing" | "denied" | "unavailable" | "full" | "other";

/** A failure of a data source; the message names the source's method, the object's full location, and what went wrong. */
export class SourceError extends DlfsError {
  constructor(
    op: string,
    location: string,
    readonly reason: SourceFailure,
    message: string,
    options?: ErrorOptions,
  ) {
    super(ErrorCode.io, op, `${location}: ${message}`, options);
  }
}

/** Why `key` cannot be an object's key, or null where it can. */
export function keyProblem(key: string): string | null {
  if (key === "") return "is empty";
  if (key.includes("\0")) return "contains a NUL character";
  if (key.startsWith("/") || /^[A-Za-z]:[\\/]/.test(key)) return "is an absolute path";
  if (key.split(/[\\/]/).includes("..")) return 'leaves the folder with ".."';
  if (key.endsWith("/")) return "ends with a slash";
  return null;
}

/** Refuses ranges that are none: [start, end) of integers with 0 <= start <= end. */
export function checkRange(range: ByteRange, op: string, location: string): void {
  const { start, end } = range;
  check(
    Number.isSafeInteger(start) && Number.isSafeInteger(end) && start >= 0 && end >= start,
    op,
    () => `${location}: bad range [${start}, ${end})`,
  );
}
