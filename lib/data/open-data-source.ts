import { fileURLToPath } from "node:url";
import { DlfsError, ErrorCode } from "../native/error";
import { CachedDataSource, type CacheOptions } from "./cached-data-source";
import type { DataSource } from "./data-source";
import { GcsDataSource, type GcsOptions } from "./gcs-data-source";
import { HttpDataSource, type HttpOptions } from "./http-data-source";
import { LocalDataSource } from "./local-data-source";
import type { RemoteOptions } from "./remote-data-source";
import { S3DataSource, type S3Options } from "./s3-data-source";

export interface DataSourceOptions extends RemoteOptions {
  /** The copy on a local disk of what is read over a network; false: none. Default: CacheOptions' defaults. */
  cache?: CacheOptions | false;
  gcs?: Omit<GcsOptions, "bucket" | "prefix" | keyof RemoteOptions>;
  s3?: Omit<S3Options, "bucket" | "prefix" | keyof RemoteOptions>;
  http?: Omit<HttpOptions, keyof RemoteOptions>;
}

/** Whether a location names something behind a network, and no path. */
export function isRemoteLocation(location: string): boolean {
  return /^(gs|s3|https?):\/\//i.test(location);
}

/**
 * The source that a location names: `gs://BUCKET/PREFIX`, `s3://BUCKET/PREFIX`, `https://HOST/PATH` (all behind a cache on
 * disk, unless `cache` is false), `file:///PATH`, or the path of a folder.
 */
export function dataSource(location: string, options: DataSourceOptions = {}): DataSource {
  const { cache, gcs, s3, http, ...remote } = options;
  const scheme = /^([A-Za-z][A-Za-z0-9+.-]*):\/\//.exec(location)?.[1]?.toLowerCase();
  const behindCache = (source: DataSource): DataSource =>
    cache === false ? source : new CachedDataSource(source, { warn: remote.warn, ...cache });
  switch (scheme) {
    case undefined:
      return new LocalDataSource(location);
    case "file":
      return new LocalDataSource(fileURLToPath(location));
    case "gs":
      return behindCache(new GcsDataSource({ ...remote, ...gcs, ...bucketOf(location) }));
    case "s3":
      return behindCache(new S3DataSource({ ...remote, ...s3, ...bucketOf(location) }));
    case "http":
    case "https":
      return behindCache(new HttpDataSource(location, { ...remote, ...http }));
    default:
      throw new DlfsError(
        ErrorCode.argument,
        "dataSource",
        `${location}: expected gs://BUCKET/PREFIX, s3://BUCKET/PREFIX, an http(s):// address or a path, got ${scheme}://`,
      );
  }
}

function bucketOf(location: string): { bucket: string; prefix: string } {
  const [bucket = "", ...rest] = location.slice(5).split("/");
  if (bucket === "") throw new DlfsError(ErrorCode.argument, "dataSource", `${location}: names no bucket`);
  return { bucket, prefix: rest.join("/") };
}
