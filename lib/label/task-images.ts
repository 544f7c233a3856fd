/** The images of Label Studio's tasks, wherever they lie. */
import { join, resolve, sep } from "node:path";
import { type DataSource, type Dataset, dataSource, isRemoteLocation } from "../data";
import { DlfsError, ErrorCode } from "../native/error";
import { decoded, namesIn } from "./find-image";
import { StudioToken } from "./studio/studio-token";

export interface TaskImagesOptions {
  /** A data set whose images tasks may name. */
  dataset?: Pick<Dataset, "store" | "source">;
  /** The folder that Label Studio serves as /data/local-files/?d=... (LOCAL_FILES_DOCUMENT_ROOT there). */
  localFiles?: string;
  /** Label Studio's own address, for images that were uploaded to it, and the token, of either kind, that it gives them out for. */
  labelStudio?: { url: string; token?: string };
  /** Other addresses that images may be fetched from: "https://images.example". Default: none. */
  hosts?: readonly string[];
  /** The most bytes of an image. Default 64 MiB. */
  maxBytes?: number;
  /** Milliseconds that fetching one may take. Default 20,000. */
  timeoutMs?: number;
}

/** HTTP Basic authentication. */
export interface Credentials {
  readonly name: string;
  readonly password: string;
}

/** Folders of buckets that are kept open. */
const SOURCES = 16;

/** Finds the bytes of images by what tasks say: data URLs, keys of a data set, local files, buckets, and some web addresses. */
export class TaskImages {
  readonly #token: StudioToken | null;
  readonly #sources = new Map<string, DataSource>();

  constructor(private readonly options: TaskImagesOptions) {
    const { url, token } = options.labelStudio ?? {};
    this.#token = url && token ? new StudioToken(url, token) : null;
  }

  /**
   * @param address what the task has: "data:image/jpeg;base64,...", "gs://bucket/1.jpg", "/data/upload/1/x.jpg", ...
   * @param credentials what the project has for its images' servers: sent to `hosts`
   * @throws DlfsError saying what cannot be had
   */
  async read(address: string, credentials?: Credentials): Promise<Uint8Array> {
    if (address.startsWith("data:")) return await this.#fetch(address, {});
    const known = this.keyOf(address);
    if (known !== null) return await (this.options.dataset as Pick<Dataset, "source">).source.read(known);
    const local = /^\/data\/local-files\/\?d=(.+)$/.exec(address)?.[1];
    if (local !== undefined && this.options.localFiles !== undefined) return await this.#readLocal(decoded(local));
    if (isRemoteLocation(address) && !/^https?:/.test(address)) {
      const slash = address.lastIndexOf("/");
      return await this.#sourceOf(address.slice(0, slash)).read(address.slice(slash + 1));
    }
    return await this.#fetchAllowed(address, credentials);
  }

  /** The key of a data set's image that a task's address names, by its end; null where there is none. */
  keyOf(address: string): string | null {
    const { dataset } = this.options;
    if (!dataset || address.startsWith("data:")) return null;
    for (const name of namesIn(address)) {
      const [key, ...others] = this.#find(name);
      if (key !== undefined) return others.length === 0 ? key : null;
    }
    return null;
  }

  #find(path: string): string[] {
    const { store } = this.options.dataset as Pick<Dataset, "store">;
    const find = (column: string) =>
      store.findImages({ where: `i.${column} = ?`, parameters: [path] }, { limit: 2 }).map(({ key }) => key);
    const keys = find("key");
    return keys.length > 0 ? keys : find("file_name");
  }

  async #readLocal(path: string): Promise<Uint8Array> {
    const root = resolve(this.options.localFiles as string);
    const file = resolve(join(root, path));
    if (!file.startsWith(root + sep)) throw refused(`${path} lies outside of the folder of local files`);
    const bytes = Bun.file(file);
    if (!(await bytes.exists())) throw refused(`there is no local file ${path}`);
    return await bytes.bytes();
  }

  /** Kept: its first request asks for credentials. */
  #sourceOf(folder: string): DataSource {
    const source = this.#sources.get(folder) ?? dataSource(folder);
    // The one that was used longest ago makes room.
    this.#sources.delete(folder);
    this.#sources.set(folder, source);
    const [oldest] = this.#sources.keys();
    if (this.#sources.size > SOURCES && oldest !== undefined) this.#sources.delete(oldest);
    return source;
  }

  async #fetchAllowed(address: string, credentials?: Credentials): Promise<Uint8Array> {
    const { labelStudio, hosts = [] } = this.options;
    const base = labelStudio?.url;
    if (!URL.canParse(address, base))
      throw refused(`${shortened(address)}: relative, and Label Studio's address is not known`);
    const url = new URL(address, base);
    const isOwn = base !== undefined && url.origin === new URL(base).origin;
    if (!isOwn && !hosts.includes(url.origin)) {
      throw refused(`${shortened(address)}: images from ${url.origin} are not fetched, unless --allow names it`);
    }
    const headers: Record<string, string> = {};
    if (isOwn && this.#token) headers.Authorization = await this.#token.header();
    if (!isOwn && credentials) headers.Authorization = basic(credentials);
    return await this.#fetch(url.href, headers);
  }

  async #fetch(url: string, headers: Record<string, string>): Promise<Uint8Array> {
    const { maxBytes = 64 * 2 ** 20, timeoutMs = 20_000 } = this.options;
    try {
      // The token goes to Label Studio alone, wherever it would send us.
      const answer = await fetch(url, { headers, redirect: "error", signal: AbortSignal.timeout(timeoutMs) });
      if (!answer.ok) throw new Error(`the answer is ${answer.status}`);
      if (Number(answer.headers.get("content-length") ?? 0) > maxBytes)
        throw new Error(`it is larger than ${maxBytes} bytes`);
      const bytes = await answer.bytes();
      if (bytes.length > maxBytes) throw new Error(`it is larger than ${maxBytes} bytes`);
      return bytes;
    } catch (error) {
      throw refused(`${shortened(url)}: ${(error as Error).message}`);
    }
  }
}

const basic = ({ name, password }: Credentials) => `Basic ${Buffer.from(`${name}:${password}`).toString("base64")}`;

const refused = (message: string): DlfsError => new DlfsError(ErrorCode.io, "image", message);

const shortened = (text: string): string => (text.length > 100 ? `${text.slice(0, 97)}...` : text);
