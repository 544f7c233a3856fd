import { check, DlfsError, ErrorCode } from "../native/error";
import { type CallOptions, keyProblem, type ObjectInfo, SourceError } from "./data-source";
import { type Attempt, type HttpRequest, refusal, send } from "./http-transfer";
import { type ListPage, RemoteDataSource, type RemoteOptions } from "./remote-data-source";

export interface HttpOptions extends RemoteOptions {
  /** Sent with each request: for authorization, for example. */
  headers?: Record<string, string>;
  /**
   * Key of a text object that names all objects, since HTTP has no listing: a key a line, or key, size in bytes and time of
   * change (a date, or milliseconds since 1970) with tabs between. Without it, list() is refused.
   */
  manifest?: string;
}

/** Objects of a manifest whose sizes are asked for at a time, where the manifest does not say them. */
const STATS_AT_A_TIME = 32;

/**
 * Files of an HTTP server: keys follow the base address, each part percent-encoded; a query in it (a signature, for example)
 * goes with each request and a name and password as basic authorization, and neither appears in messages. Ranges work
 * with any server, but those that ignore them send more than is needed. For reading only.
 */
export class HttpDataSource extends RemoteDataSource {
  readonly #base: string;
  readonly #query: string;
  readonly #headers: Record<string, string>;
  readonly #manifest: string | null;

  constructor(address: string, options: HttpOptions = {}) {
    const url = parse(address);
    const base = `${url.origin}${url.pathname.replace(/\/+$/, "")}`;
    super(base, "", options);
    this.#base = base;
    this.#query = url.search;
    this.#manifest = options.manifest ?? null;
    this.#headers = { ...options.headers };
    if (url.username !== "" || url.password !== "") {
      const login = `${decodeURIComponent(url.username)}:${decodeURIComponent(url.password)}`;
      this.#headers.authorization = `Basic ${Buffer.from(login).toString("base64")}`;
    }
  }

  protected override readRequest(key: string): HttpRequest {
    const path = key.split("/").map(encodeURIComponent).join("/");
    return { url: `${this.#base}/${path}${this.#query}`, headers: this.#headers };
  }

  protected override async statObject(key: string, attempt: Attempt): Promise<ObjectInfo | null> {
    const op = "HttpDataSource.stat";
    const request = this.readRequest(key);
    let response = await send({ ...request, method: "HEAD" }, attempt);
    if (response.status === 404 || response.status === 410) return null;
    let size = response.headers.get("content-length");
    if (response.status === 405 || response.status === 501 || (response.ok && size === null)) {
      // A server without HEAD, or one that does not say the size there, says it with the first byte.
      response = await send({ ...request, headers: { ...request.headers, range: "bytes=0-0" } }, attempt);
      await response.body?.cancel();
      if (response.status === 404 || response.status === 410) return null;
      const range = response.headers.get("content-range");
      size =
        response.ok || response.status === 416
          ? (range?.split("/")[1] ?? response.headers.get("content-length"))
          : null;
      if (response.status === 416 && size === "0") return { key, size: 0, modified: modifiedOf(response) };
    }
    if (!response.ok) throw await refusal(op, this.locate(key), response, attempt);
    if (size === null || !/^\d+$/.test(size)) {
      throw new SourceError(op, this.locate(key), "other", "the server does not say the object's size");
    }
    return { key, size: Number(size), modified: modifiedOf(response) };
  }

  override async *list(prefix: string, options: CallOptions = {}): AsyncIterable<ObjectInfo> {
    const manifest = this.#manifest;
    if (manifest === null) {
      throw new DlfsError(
        ErrorCode.unsupported,
        "HttpDataSource.list",
        `${this.locate(`${prefix}*`)}: HTTP has no listing; name a manifest, an object that holds all keys, a line each`,
      );
    }
    const entries = parseManifest(new TextDecoder().decode(await this.read(manifest, options)), this.locate(manifest));
    const wanted = entries.filter(({ key }) => key.startsWith(prefix)).sort((a, b) => (a.key < b.key ? -1 : 1));
    for (let at = 0; at < wanted.length; at += STATS_AT_A_TIME) {
      const group = wanted.slice(at, at + STATS_AT_A_TIME);
      const found = await Promise.all(
        group.map((entry) => (entry.size === null ? this.stat(entry.key, options) : entry)),
      );
      for (const info of found) if (info) yield { key: info.key, size: info.size as number, modified: info.modified };
    }
  }

  protected override async listPage(): Promise<ListPage> {
    return { objects: [], next: null }; // list() reads the manifest instead
  }

  protected override async writeObject(key: string): Promise<void> {
    throw new DlfsError(
      ErrorCode.unsupported,
      "HttpDataSource.write",
      `${this.locate(key)}: HTTP sources are for reading only`,
    );
  }
}

function parse(address: string): URL {
  const url = URL.canParse(address) ? new URL(address) : null;
  check(
    url !== null && (url.protocol === "http:" || url.protocol === "https:"),
    "HttpDataSource",
    () => `expected an address such as https://example.org/data, got ${JSON.stringify(address)}`,
  );
  return url;
}

function modifiedOf({ headers }: Response): number {
  const time = Date.parse(headers.get("last-modified") ?? "");
  return Number.isNaN(time) ? 0 : time;
}

interface ManifestEntry {
  key: string;
  size: number | null;
  modified: number;
}

function parseManifest(text: string, location: string): ManifestEntry[] {
  return text.split(/\r?\n/).flatMap((line, i) => {
    if (line.trim() === "") return [];
    const fail = (what: string): never => {
      throw new DlfsError(ErrorCode.io, "HttpDataSource.list", `${location}: line ${i + 1}: ${what}`);
    };
    const [key = "", sizeText, timeText] = line.split("\t");
    const problem = keyProblem(key);
    if (problem !== null) fail(`key ${JSON.stringify(key)} ${problem}`);
    const size = sizeText === undefined || sizeText === "" ? null : Number(sizeText);
    if (size !== null && !(Number.isSafeInteger(size) && size >= 0))
      fail(`expected a size in bytes, got "${sizeText}"`);
    const time =
      timeText === undefined || timeText === "" ? 0 : /^\d+$/.test(timeText) ? Number(timeText) : Date.parse(timeText);
    if (Number.isNaN(time)) fail(`expected a time of change, got "${timeText}"`);
    return [{ key, size, modified: time }];
  });
}
