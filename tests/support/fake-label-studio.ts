/** A server that answers as Label Studio 1.23 does, as far as labels go in and out, and fails as it is told to. */
import { isObject, type JsonObject } from "../../lib/native/json";

const XML = `<View><Image name="img" value="$photo"/><RectangleLabels name="box" toName="img"><Label value="cell"/><Label value="dust"/></RectangleLabels></View>`;

/** One of its requests. */
export interface Asked {
  method: string;
  path: string;
  authorization: string | null;
}

/** What is answered instead: before a request is carried out, or (`after`) once it has been. */
export type Fault = (asked: Asked) => Response | undefined;

const jwt = (claims: object) =>
  ["{}", JSON.stringify(claims), "signature"].map((part) => Buffer.from(part).toString("base64url")).join(".");

export const LEGACY_TOKEN = "0123abcd";
export const PERSONAL_TOKEN = jwt({ token_type: "refresh" });

export class FakeLabelStudio implements Disposable {
  readonly asked: Asked[] = [];
  readonly projects: { id: number; title: string; label_config: string }[] = [];
  readonly tasks: (JsonObject & { id: number; annotations: JsonObject[]; predictions: JsonObject[] })[] = [];
  readonly uploads: { name: string; bytes: number }[] = [];
  readonly users = [
    { id: 1, email: "ada@x.org" },
    { id: 2, email: "eve@x.org" },
  ];
  /** Access tokens that are valid. */
  readonly access = new Set<string>();
  fault: Fault = () => undefined;
  after: Fault = () => undefined;
  /** Most tasks of a page. */
  pageSize = 2;
  #ids = 0;
  readonly #server: Bun.Server<undefined>;

  constructor() {
    this.#server = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: (request) => this.#answer(request) });
    this.addProject("cells");
  }

  get url(): string {
    return this.#server.url.href;
  }

  [Symbol.dispose](): void {
    void this.#server.stop(true);
  }

  addProject(title: string, config = XML): number {
    return this.projects.push({ id: this.projects.length + 1, title, label_config: config });
  }

  async #answer(request: Request): Promise<Response> {
    const url = new URL(request.url);
    const authorization = request.headers.get("authorization");
    const asked = { method: request.method, path: url.pathname, authorization };
    this.asked.push(asked);
    const fault = this.fault(asked);
    if (fault) return fault;
    const answer = await this.#carryOut(request, url, authorization);
    return this.after(asked) ?? answer;
  }

  async #carryOut(request: Request, url: URL, authorization: string | null): Promise<Response> {
    const path = url.pathname.replace(/\/$/, "");
    if (path === "/api/token/refresh") {
      const { refresh } = (await request.json()) as { refresh: string };
      if (refresh !== PERSONAL_TOKEN) return problem(401, "Token is invalid");
      const access = jwt({ exp: Math.floor(Date.now() / 1000) + 300, n: ++this.#ids });
      this.access.add(access);
      return Response.json({ access });
    }
    const [kind, token = ""] = authorization?.split(" ") ?? [];
    if (!(kind === "Token" ? token === LEGACY_TOKEN : this.access.has(token))) return problem(401, "Invalid token.");
    const [, project] = /^\/api\/projects\/(\d+)/.exec(path) ?? [];
    if (project !== undefined && !this.projects.some(({ id }) => id === Number(project)))
      return problem(404, "No Project matches the given query.");
    const query = (name: string) => Number(url.searchParams.get(name));
    if (path === "/api/users") return Response.json(this.users);
    if (path === "/api/projects" && request.method === "POST") {
      const { title, label_config } = (await request.json()) as { title: string; label_config: string };
      return Response.json(this.projects[this.addProject(title, label_config) - 1], { status: 201 });
    }
    if (path === "/api/projects") {
      const at = query("page") - 1;
      const next = at + 1 < this.projects.length ? "http://next" : null;
      return Response.json({ count: this.projects.length, next, results: this.projects.slice(at, at + 1) });
    }
    if (path === `/api/projects/${project}`) return Response.json(this.projects[Number(project) - 1]);
    if (path === "/api/tasks") {
      const from = (query("page") - 1) * this.pageSize;
      const all = this.tasks.filter(({ project }) => project === query("project"));
      if (from > 0 && from >= all.length) return problem(404, "Invalid page.");
      return Response.json({ total: all.length, tasks: all.slice(from, from + this.pageSize) });
    }
    if (path === `/api/projects/${project}/import`) return await this.#import(request, Number(project));
    const [, upload] = /^\/api\/import\/file-upload\/(\d+)$/.exec(path) ?? [];
    if (upload !== undefined) {
      const { name } = this.uploads[Number(upload) - 1] as { name: string };
      return Response.json({ id: Number(upload), file: `upload/1/0a1b2c3d-${name.replaceAll(" ", "_")}` });
    }
    const [, id, isAnnotations] = /^\/api\/tasks\/(\d+)(\/annotations)?$/.exec(path) ?? [];
    const body = request.method === "POST" ? ((await request.json()) as JsonObject) : {};
    const task = this.tasks.find((one) => one.id === Number(id ?? body.task));
    if (!task) return problem(404, "No Task matches the given query.");
    if (isAnnotations) task.annotations.push(this.#annotation(body));
    if (path === "/api/predictions") task.predictions.push(body);
    return Response.json(task, { status: request.method === "POST" ? 201 : 200 });
  }

  async #import(request: Request, project: number): Promise<Response> {
    if (request.headers.get("content-type")?.startsWith("multipart/")) {
      const file = (await request.formData()).get("file") as File;
      const id = this.uploads.push({ name: file.name, bytes: file.size });
      return Response.json({ task_count: 1, file_upload_ids: [id] }, { status: 201 });
    }
    const tasks = (await request.json()) as { annotations: JsonObject[]; predictions: JsonObject[] }[];
    const emails = new Set<unknown>(this.users.map(({ email }) => email));
    for (const { annotations } of tasks) {
      for (const { completed_by: by } of annotations) {
        if (!isObject(by) || emails.has(by.email)) continue;
        const error = { non_field_errors: [`Unknown annotator's email ${by.email}`] };
        return Response.json({ detail: "Validation error", validation_errors: error }, { status: 400 });
      }
    }
    for (const task of tasks) {
      const annotations = task.annotations.map((one) => this.#annotation(one));
      this.tasks.push({ ...task, id: ++this.#ids, project, annotations });
    }
    return Response.json({ task_count: tasks.length, file_upload_ids: [] }, { status: 201 });
  }

  #annotation({ completed_by: by, ...rest }: JsonObject): JsonObject {
    const user = this.users.find(({ email }) => isObject(by) && email === by.email) ?? this.users[0];
    const time = "2026-01-02T03:04:05Z";
    return {
      ...rest,
      id: ++this.#ids,
      completed_by: user?.id,
      was_cancelled: false,
      created_at: time,
      updated_at: time,
    };
  }
}

const problem = (status: number, detail: string) => Response.json({ status_code: status, detail }, { status });
