import { readFile } from "node:fs/promises";
import type { Bucket, Storage, StorageOptions } from "@google-cloud/storage";
import { check, DlfsError, ErrorCode } from "../native/error";
import { type ObjectInfo, SourceError } from "./data-source";
import {
  type Attempt,
  connectionProblem,
  describeStatus,
  failureOf,
  type HttpRequest,
  isTransientStatus,
  retryAfter,
} from "./http-transfer";
import { fileError } from "./local-data-source";
import { type ListPage, RemoteDataSource, type RemoteOptions } from "./remote-data-source";
import { TransientError } from "./retry";

/**
 * Who asks: whom Google's application-default credentials name ("default": $GOOGLE_APPLICATION_CREDENTIALS, the login of
 * gcloud, the machine's service account), nobody ("anonymous", for public buckets), or a service account by its key, a file
 * or what it holds.
 */
export type GcsCredentials =
  | "default"
  | "anonymous"
  | { keyFile: string }
  | { clientEmail: string; privateKey: string };

export interface GcsOptions extends RemoteOptions {
  bucket: string;
  /** Keys are relative to this part of the bucket. Default: all of it. */
  prefix?: string;
  /** Default: "anonymous" where $DLFS_GCS_ANONYMOUS is 1, else "default". */
  credentials?: GcsCredentials;
  /** Address of the service. Default: $STORAGE_EMULATOR_HOST, which is asked without credentials, else Google's. */
  endpoint?: string;
  /** Project to which requests are billed, for buckets whose readers pay. */
  userProject?: string;
}

const SCOPE = "https://www.googleapis.com/auth/devstorage.read_write";

/** Objects a page: the most that the service gives. */
const PAGE = 1000;

/**
 * Objects of a Google Cloud Storage bucket, on @google-cloud/storage, which is loaded at the first call. It finds the
 * credentials, renews the tokens, lists and writes; the bytes are read with fetch, which can be ended.
 */
export class GcsDataSource extends RemoteDataSource {
  readonly #options: GcsOptions;
  /** Null: Google's. */
  readonly #endpoint: string | null;
  /** Whether requests bear no credentials. */
  readonly #open: boolean;
  #storage: Promise<Storage> | null = null;

  constructor(options: GcsOptions) {
    const { bucket, prefix = "", credentials } = options;
    check(bucket !== "", "GcsDataSource", () => "the bucket's name is empty");
    const inner = prefix.replace(/^\/+|\/+$/g, "");
    super(`gs://${bucket}${inner === "" ? "" : `/${inner}`}`, inner, options);
    this.#options = options;
    const emulator = options.endpoint === undefined ? process.env.STORAGE_EMULATOR_HOST : undefined;
    this.#endpoint = options.endpoint ?? (emulator ? emulatorAddress(emulator) : null);
    const who = credentials ?? (process.env.DLFS_GCS_ANONYMOUS === "1" ? "anonymous" : "default");
    this.#open =
      who === "anonymous" || Boolean(emulator) || (options.endpoint !== undefined && credentials === undefined);
  }

  /** Retries, time limits and the limit of requests are this class's own: the library's are switched off. */
  #client(): Promise<Storage> {
    this.#storage ??= (async () => {
      const { credentials } = this.#options;
      const endpoint = this.#endpoint;
      const { Storage } = await import("@google-cloud/storage");
      const settings: StorageOptions = { retryOptions: { autoRetry: false, maxRetries: 0 } };
      if (endpoint !== null) settings.apiEndpoint = endpoint;
      if (this.#open) {
        const { PassThroughClient } = await import("google-auth-library");
        // Adds no credentials to the requests.
        settings.authClient = new PassThroughClient() as unknown as StorageOptions["authClient"];
        settings.projectId = "anonymous";
      } else if (typeof credentials === "object") {
        const { JWT } = await import("google-auth-library");
        const { clientEmail, privateKey } = "keyFile" in credentials ? await readKey(credentials.keyFile) : credentials;
        settings.authClient = new JWT({ email: clientEmail, key: privateKey, scopes: [SCOPE] });
      }
      if (endpoint !== null && !this.#open) settings.useAuthWithCustomEndpoint = true;
      const storage = new Storage(settings);
      // $STORAGE_EMULATOR_HOST would replace the whole path of the addresses, also where another endpoint was given.
      if (endpoint !== null) storage.baseUrl = `${storage.apiEndpoint}/storage/v1`;
      return storage;
    })();
    return this.#storage;
  }

  #bucket(storage: Storage): Bucket {
    const { bucket, userProject } = this.#options;
    return storage.bucket(bucket, { userProject });
  }

  protected override async readRequest(key: string): Promise<HttpRequest> {
    const { bucket, userProject } = this.#options;
    const location = this.locate(key);
    return await this.#guarded("GcsDataSource.read", location, async (storage) => {
      const headers: Record<string, string> = {};
      if (!this.#open) {
        const given = await storage.authClient.getRequestHeaders();
        for (const [name, value] of new Headers(given)) headers[name] = value;
      }
      const payer = userProject === undefined ? "" : `&userProject=${encodeURIComponent(userProject)}`;
      const name = encodeURIComponent(this.prefix + key);
      return {
        url: `${storage.apiEndpoint}/storage/v1/b/${encodeURIComponent(bucket)}/o/${name}?alt=media${payer}`,
        headers,
      };
    });
  }

  protected override async statObject(key: string): Promise<ObjectInfo | null> {
    const location = this.locate(key);
    try {
      return await this.#guarded("GcsDataSource.stat", location, async (storage) => {
        const [metadata] = await storage
          .bucket(this.#options.bucket)
          .file(this.prefix + key)
          .getMetadata();
        return { key, ...facts(metadata) };
      });
    } catch (error) {
      if (error instanceof SourceError && error.reason === "missing") return null;
      throw error;
    }
  }

  protected override async listPage(prefix: string, token: string | null): Promise<ListPage> {
    return await this.#guarded("GcsDataSource.list", this.locate(`${prefix}*`), async (storage) => {
      const [files, next] = await this.#bucket(storage).getFiles({
        prefix: this.prefix + prefix,
        autoPaginate: false,
        maxResults: PAGE,
        fields: "items(name,size,updated),nextPageToken",
        ...(token === null ? {} : { pageToken: token }),
      });
      // With `fields`, the library gives what the service answered instead of its own objects.
      const items = files as unknown as { name: string; size: string; updated: string }[];
      const objects = items.map((item) => ({ key: item.name.slice(this.prefix.length), ...facts(item) }));
      const follows = (next as { pageToken?: string } | null)?.pageToken ?? null;
      return { objects, next: follows };
    });
  }

  protected override async writeObject(key: string, bytes: Uint8Array, attempt: Attempt): Promise<void> {
    await this.#guarded("GcsDataSource.write", this.locate(key), async (storage) => {
      const file = this.#bucket(storage).file(this.prefix + key);
      const content = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
      // Objects appear when their upload is complete.
      const resumable = bytes.length > 32 << 20;
      await file.save(content, { resumable, validation: "crc32c", onUploadProgress: () => attempt.progress() });
    });
  }

  protected override async removeObject(key: string): Promise<void> {
    await this.#guarded("GcsDataSource.remove", this.locate(key), async (storage) => {
      await this.#bucket(storage)
        .file(this.prefix + key)
        .delete({ ignoreNotFound: true });
    });
  }

  /** Runs calls of the library, and makes its errors TransientErrors or SourceErrors. */
  async #guarded<T>(op: string, location: string, call: (storage: Storage) => Promise<T>): Promise<T> {
    try {
      return await call(await this.#client());
    } catch (error) {
      throw libraryError(op, location, error);
    }
  }
}

/** The address that $STORAGE_EMULATOR_HOST names: with or without scheme, and with or without the API's path. */
function emulatorAddress(host: string): string {
  return (/^https?:\/\//.test(host) ? host : `http://${host}`).replace(/\/+$/, "").replace(/\/storage\/v1$/, "");
}

/** A service account's key file, as Google's console gives it. */
async function readKey(path: string): Promise<{ clientEmail: string; privateKey: string }> {
  const fail = (what: string): never => {
    throw new DlfsError(ErrorCode.io, "GcsDataSource", `${path}: ${what}`);
  };
  const text = await readFile(path, "utf8").catch((error: unknown) => {
    throw fileError("GcsDataSource", path, error);
  });
  let key: { client_email?: unknown; private_key?: unknown } | null = null;
  try {
    key = JSON.parse(text) as typeof key;
  } catch (error) {
    fail(`expected a service account's key as JSON: ${(error as Error).message}`);
  }
  const field = (name: "client_email" | "private_key"): string => {
    const value = key?.[name];
    return typeof value === "string" ? value : fail(`${name}: missing, expected a service account's key`);
  };
  return { clientEmail: field("client_email"), privateKey: field("private_key") };
}

function facts(metadata: { size?: string | number; updated?: string }): { size: number; modified: number } {
  const modified = Date.parse(metadata.updated ?? "");
  return { size: Number(metadata.size ?? 0), modified: Number.isNaN(modified) ? 0 : modified };
}

const HINT =
  "set GOOGLE_APPLICATION_CREDENTIALS to a service account's key file, log in with " +
  "`gcloud auth application-default login`, or set DLFS_GCS_ANONYMOUS=1 for public buckets";

/** What to throw for an error of the library. */
function libraryError(op: string, location: string, error: unknown): Error {
  if (error instanceof DlfsError || error instanceof TransientError) return error;
  const {
    code,
    message = "",
    response,
  } = error as {
    code?: unknown;
    message?: string;
    response?: { headers?: Record<string, string> | Headers };
  };
  const status = Number(code);
  if (Number.isInteger(status) && status >= 400) {
    const text = message.trim() === "" ? describeStatus(status) : `${describeStatus(status)}: ${message.trim()}`;
    if (isTransientStatus(status)) {
      const { headers } = response ?? {};
      const after = headers instanceof Headers ? headers.get("retry-after") : headers?.["retry-after"];
      return new TransientError(text, retryAfter(after), { cause: error });
    }
    return new SourceError(op, location, failureOf(status), text, { cause: error });
  }
  if (/could not load the default credentials/i.test(message)) {
    return new SourceError(op, location, "denied", `no credentials: ${HINT}`, { cause: error });
  }
  const connection = connectionProblem(error) ?? connectionProblem((error as { cause?: unknown }).cause);
  if (connection !== null || /socket hang up|premature close|network timeout|socket connection/i.test(message)) {
    return new TransientError(connection ?? "the connection was cut", null, { cause: error });
  }
  // Uploads are checked against the checksum that the service computed.
  if (code === "FILE_NO_UPLOAD" || code === "FILE_NO_UPLOAD_DELETE")
    return new TransientError(message, null, { cause: error });
  return new SourceError(op, location, "other", message === "" ? String(error) : message, { cause: error });
}
