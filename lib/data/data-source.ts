/** An object of a data source. */
export interface ObjectInfo {
  /** Path relative to the source's root, parts separated by "/". */
  key: string;
  /** Bytes. */
  size: number;
  /** Time of the last change, in milliseconds since 1970. */
  modified: number;
}

export interface ReadOptions {
  /** Bytes [start, end) only; a range that reaches past the end gives what is there. Default: the whole object. */
  range?: { start: number; end: number };
  signal?: AbortSignal;
}

/**
 * Where bytes come from: a folder, a bucket, ... Objects have keys such as "train2017/000000000009.jpg". All methods are
 * safe to call concurrently. Failures are DlfsErrors that name the object; an aborted read rejects with the signal's
 * reason.
 */
export abstract class DataSource {
  /** The bytes of an object. It must exist. */
  abstract read(key: string, options?: ReadOptions): Promise<Uint8Array<ArrayBuffer>>;

  /** All objects whose key starts with `prefix`, in ascending order of key. */
  abstract list(prefix: string): AsyncIterable<ObjectInfo>;

  /** An object's size and time of change, or null where there is no object of this key. */
  abstract stat(key: string): Promise<ObjectInfo | null>;

  /** Creates or replaces an object. A reader sees the old bytes or the new ones, never a part. */
  abstract write(key: string, bytes: Uint8Array): Promise<void>;

  /** The full location of a key, for messages. */
  abstract locate(key: string): string;
}
