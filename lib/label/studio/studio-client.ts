/** Label Studio's REST interface, as far as labels go in and out (https://api.labelstud.io). */
import { type RetryOptions, retrying, TransientError } from "../../data";
import { connectionProblem, isTransientStatus, retryAfter } from "../../data/http-transfer";
import { RetriesExhausted } from "../../data/retry";
import { DlfsError, ErrorCode } from "../../native/error";
import { isObject, type JsonObject } from "../../native/json";
import { type LabelConfig, parseLabelConfig } from "../label-config";
import { StudioToken } from "./studio-token";

export interface StudioClientOptions {
  /** "https://studio.example", with the path below which it is, if any. */
  url: string;
  /** A legacy or a personal access token. */
  token: string;
  /** Milliseconds that an answer may take. Default 120,000: imports take their time. */
  timeoutMs?: number;
  retry?: RetryOptions;
}

export interface StudioProject {
  readonly id: number;
  readonly title: string;
  readonly config: LabelConfig;
}

/** A task with its annotations and predictions, as Label Studio has it. */
export type StudioTaskRecord = JsonObject & { id: number };

/** Tasks that are asked for at a time. */
const PAGE = 200;

const OP = "label studio";

export class StudioClient {
  readonly #base: string;
  readonly #token: StudioToken;
  readonly #timeout: number;
  /** Of requests that may be repeated, and of what callers repeat themselves. */
  readonly retry: RetryOptions;

  /** @throws DlfsError where the address is none */
  constructor({ url, token, timeoutMs = 120_000, retry = {} }: StudioClientOptions) {
    if (!URL.canParse(url) || !/^https?:/.test(url))
      throw new DlfsError(ErrorCode.argument, OP, `expected its address, such as http://127.0.0.1:8080, got "${url}"`);
    this.#base = url.replace(/\/*$/, "/");
    this.#token = new StudioToken(this.#base, token);
    this.#timeout = timeoutMs;
    this.retry = retry;
  }

  /** @throws DlfsError where there is none, or it labels no boxes */
  async project(id: number): Promise<StudioProject> {
    return projectOf(await this.#get(`api/projects/${id}/`));
  }

  /** The project of that title; null where there is none. @throws DlfsError where there are several */
  async projectNamed(title: string): Promise<StudioProject | null> {
    const found: JsonObject[] = [];
    for (let page = 1, left = true; left; page++) {
      const { results, next } = await this.#get(`api/projects/?page=${page}&page_size=100`);
      if (!Array.isArray(results)) throw unexpected("api/projects/", "results");
      found.push(...results.filter((one) => isObject(one) && one.title === title));
      left = typeof next === "string";
    }
    const [one, ...others] = found;
    if (others.length === 0) return one ? projectOf(one) : null;
    const ids = found.map(({ id }) => id).join(", ");
    throw new DlfsError(ErrorCode.argument, OP, `projects ${ids} are called "${title}": say which by its number`);
  }

  async createProject(title: string, labelConfig: string): Promise<StudioProject> {
    return projectOf(await this.post("api/projects/", { title, label_config: labelConfig }));
  }

  /** All tasks of a project, in the order of their ids, page by page. */
  async *tasks(project: number, signal?: AbortSignal): AsyncGenerator<StudioTaskRecord[]> {
    for (let page = 1, seen = 0, total = 1; seen < total; page++) {
      const path = `api/tasks/?project=${project}&page=${page}&page_size=${PAGE}&fields=all&ordering=id`;
      const answer = await this.#get(path, signal);
      const { tasks } = answer;
      if (!Array.isArray(tasks) || !tasks.every((task) => isObject(task) && typeof task.id === "number"))
        throw unexpected("api/tasks/", "tasks");
      total = Number(answer.total) || 0;
      seen += tasks.length;
      if (tasks.length === 0) return;
      yield tasks as StudioTaskRecord[];
    }
  }

  async task(id: number): Promise<StudioTaskRecord> {
    return (await this.#get(`api/tasks/${id}/`)) as StudioTaskRecord;
  }

  /** Addresses of users by their ids; none where the token's owner may not know. */
  async users(): Promise<Map<number, string>> {
    const users = await this.#get<unknown>("api/users/").catch((error) => {
      if (error instanceof RefusedError) return [];
      throw error;
    });
    const list = isObject(users) ? users.results : users;
    if (!Array.isArray(list)) throw unexpected("api/users/", "a list");
    return new Map(list.flatMap((one) => (isObject(one) ? [[Number(one.id), String(one.email ?? "")] as const] : [])));
  }

  /** Uploads an image into a project; the address that a task has for it. */
  async upload(project: number, name: string, bytes: Uint8Array<ArrayBuffer>): Promise<string> {
    const form = new FormData();
    form.append("file", new File([bytes], name.split("/").at(-1) as string));
    const path = `api/projects/${project}/import?commit_to_project=false`;
    const { file_upload_ids: ids } = await this.#repeat(() => this.#send("POST", path, form));
    const id = Array.isArray(ids) ? ids[0] : undefined;
    if (typeof id !== "number") throw unexpected(path, "file_upload_ids");
    const { file } = await this.#get(`api/import/file-upload/${id}`);
    if (typeof file !== "string") throw unexpected("api/import/file-upload/", "file");
    return `/data/${file.split("/").map(encodeURIComponent).join("/")}`;
  }

  /**
   * Posts JSON once: what is not known to have been taken must be looked for before it is sent again.
   *
   * @throws TransientError where another try may do
   */
  async post(path: string, body: unknown): Promise<JsonObject> {
    return await this.#send("POST", path, JSON.stringify(body));
  }

  /** Repeats `work` as long as it fails with TransientErrors and may be repeated. */
  async #repeat<T>(work: (attempt: number) => Promise<T>, signal?: AbortSignal): Promise<T> {
    return await retrying(work, this.retry, signal).catch((error) => {
      throw error instanceof RetriesExhausted ? new DlfsError(ErrorCode.io, OP, error.message) : error;
    });
  }

  /** As #repeat, for others' work. */
  async repeat<T>(work: (attempt: number) => Promise<T>): Promise<T> {
    return await this.#repeat(work);
  }

  async #get<T = JsonObject>(path: string, signal?: AbortSignal): Promise<T> {
    return await this.#repeat(() => this.#send<T>("GET", path), signal);
  }

  async #send<T = JsonObject>(method: "GET" | "POST", path: string, body?: string | FormData): Promise<T> {
    const what = `${method} ${path.replace(/\?.*$/, "")}`;
    const headers: Record<string, string> = { Authorization: await this.#token.header() };
    if (typeof body === "string") headers["Content-Type"] = "application/json";
    const request = { method, headers, body, redirect: "manual", signal: AbortSignal.timeout(this.#timeout) } as const;
    const answer = await fetch(`${this.#base}${path}`, request).catch((error: Error) => {
      const problem = error.name === "TimeoutError" ? "no answer in time" : connectionProblem(error);
      throw new TransientError(`${this.#base}: ${problem ?? error.message}`, null, { cause: error });
    });
    const text = await answer.text().catch((error: Error) => {
      throw new TransientError(`${what}: the answer was cut: ${error.message}`, null, { cause: error });
    });
    if (answer.ok) {
      try {
        return JSON.parse(text) as T;
      } catch {
        throw new DlfsError(ErrorCode.io, OP, `${what}: expected JSON, got ${JSON.stringify(text.slice(0, 60))}`);
      }
    }
    if (answer.status >= 300 && answer.status < 400) {
      const place = answer.headers.get("location");
      throw new DlfsError(ErrorCode.io, OP, `${this.#base} sends elsewhere, to ${place}: give that address`);
    }
    const said = `${what}: HTTP ${answer.status}${errorText(text)}`;
    if (isTransientStatus(answer.status)) throw new TransientError(said, retryAfter(answer.headers.get("retry-after")));
    throw new RefusedError(ErrorCode.io, OP, said);
  }
}

/** Label Studio said no. */
export class RefusedError extends DlfsError {}

function unexpected(path: string, field: string): DlfsError {
  return new DlfsError(ErrorCode.io, OP, `${path}: the answer has no ${field}: is this Label Studio's address?`);
}

function projectOf(body: JsonObject): StudioProject {
  const { id, title, label_config: config } = body;
  if (typeof id !== "number" || typeof config !== "string") throw unexpected("api/projects/", "label_config");
  return { id, title: String(title), config: parseLabelConfig(config) };
}

/** What an error's body says: `detail`, and what is wrong with which field. */
function errorText(text: string): string {
  let body: unknown;
  try {
    body = JSON.parse(text);
  } catch {
    return "";
  }
  if (!isObject(body)) return "";
  const detail = typeof body.detail === "string" ? [body.detail] : [];
  const wrong = body.validation_errors === undefined ? [] : [JSON.stringify(body.validation_errors).slice(0, 500)];
  return detail.length + wrong.length === 0 ? "" : `: ${[...detail, ...wrong].join(" ")}`;
}
