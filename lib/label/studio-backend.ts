/** A machine-learning backend for Label Studio (https://labelstud.io/guide/ml_create): it asks for boxes, and tells of corrections. */
import { timingSafeEqual } from "node:crypto";
import type { LabelMessage } from "../formats";
import { DlfsError, ErrorCode } from "../native/error";
import { isObject, type JsonObject } from "../native/json";
import { type LabelConfig, parseLabelConfig } from "./label-config";
import { boxesOf, type NamedBox, regionOf } from "./regions";
import type { Retraining } from "./retraining";
import type { Credentials, TaskImages } from "./task-images";

/** What finds boxes: an engine. */
export interface Detector {
  /** Said to Label Studio with each prediction. */
  readonly version: string;
  readonly classes: readonly string[];
  detect(images: readonly Uint8Array[]): Promise<readonly DetectedImage[]>;
}

export interface DetectedImage {
  readonly width: number;
  readonly height: number;
  readonly detections: readonly { box: readonly [number, number, number, number]; score: number; label: number }[];
  readonly error: Error | null;
}

export interface StudioBackendOptions {
  /** 0: any free one. Default 9090, Label Studio's. */
  port?: number;
  /** Default "127.0.0.1". */
  hostname?: string;
  /** What Label Studio must send as HTTP Basic; default: nothing. */
  user?: { name: string; password: string };
  detector: () => Detector;
  images: TaskImages;
  /** Is given what was labelled: to a data set, to a training that goes on. Rejects with a DlfsError for labels it cannot take. */
  labels?: (message: LabelMessage) => Promise<void>;
  retraining?: Retraining;
  /** The address of a user of Label Studio, which says only numbers; undefined where it is not known. */
  userAddress?: (id: number) => Promise<string | undefined>;
  log: (line: string, error?: Error) => void;
}

/** Images that are read at a time for one request. */
const READS = 16;

/** Requests are this large at most: many tasks, or images within them. */
const MAX_BODY_BYTES = 256 * 2 ** 20;

/**
 * Answers Label Studio: `GET /health` and `/`, `POST /setup`, `/predict`, `/webhook`, `/train`, and, since older versions ask,
 * `/validate`, `/delete`, `/duplicate_model` and `/job_status`; each also below a path of the user's own, such as /labelstudio/.
 * A task whose image cannot be had gets an empty result, and the others theirs.
 */
export class StudioBackend implements AsyncDisposable {
  readonly #options: StudioBackendOptions;
  readonly #server: Bun.Server<undefined>;
  /** By project. */
  readonly #configs = new Map<string, LabelConfig>();
  /** What annotations said, by their image and by their ids, the newest last; and their images: for those that are deleted. */
  readonly #given = new Map<string, Map<number, LabelMessage>>();
  readonly #imageOf = new Map<number, string>();

  /** @throws DlfsError where the port cannot be had */
  constructor(options: StudioBackendOptions) {
    const { port = 9090, hostname = "127.0.0.1" } = options;
    this.#options = options;
    try {
      this.#server = Bun.serve({
        ...{ port, hostname, maxRequestBodySize: MAX_BODY_BYTES, idleTimeout: 120 },
        fetch: (request) => this.#answer(request),
        error: () => Response.json({ error: "something went wrong here" }, { status: 500 }),
      });
    } catch (error) {
      throw new DlfsError(ErrorCode.io, "label", `cannot listen on ${hostname}:${port}: ${(error as Error).message}`);
    }
  }

  /** "http://127.0.0.1:9090/" */
  get url(): string {
    return this.#server.url.href;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.stop(true);
  }

  async #answer(request: Request): Promise<Response> {
    if (!this.#mayEnter(request)) {
      return Response.json({ error: "who is asking?" }, { status: 401, headers: { "WWW-Authenticate": "Basic" } });
    }
    const verb = new URL(request.url).pathname.replace(/\/+$/, "").split("/").at(-1) ?? "";
    try {
      if (request.method === "GET") return this.#health(verb);
      if (request.method !== "POST") return Response.json({ error: "expected GET or POST" }, { status: 405 });
      const body: unknown = await request.json().catch(() => {
        throw new DlfsError(ErrorCode.argument, "body", "expected JSON");
      });
      if (!isObject(body)) throw new DlfsError(ErrorCode.argument, "body", "expected a JSON object");
      return await this.#post(verb, body);
    } catch (error) {
      if (!(error instanceof DlfsError)) {
        this.#options.log(`${verb}: ${(error as Error).message}`, error as Error);
        return Response.json({ error: "something went wrong here" }, { status: 500 });
      }
      return Response.json({ error: error.message }, { status: 400 });
    }
  }

  #mayEnter(request: Request): boolean {
    const { user } = this.#options;
    if (!user) return true;
    const expected = `Basic ${btoa(`${user.name}:${user.password}`)}`;
    const hash = (text: string) => new Bun.CryptoHasher("sha256").update(text).digest();
    return timingSafeEqual(hash(request.headers.get("authorization") ?? ""), hash(expected));
  }

  #health(verb: string): Response {
    const { detector, retraining } = this.#options;
    if (verb !== "" && verb !== "health") return Response.json({ error: `there is no ${verb}` }, { status: 404 });
    return Response.json({
      status: "UP",
      model_class: "dlfs",
      model_version: detector().version,
      ...retraining?.status,
    });
  }

  async #post(verb: string, body: JsonObject): Promise<Response> {
    switch (verb) {
      case "setup":
        this.#configOf(body, "schema");
        return Response.json({ model_version: this.#options.detector().version });
      case "predict":
        return Response.json({ results: await this.#predict(body) });
      case "webhook":
        return await this.#webhook(body);
      case "train":
        this.#options.retraining?.now();
        return Response.json(
          { status: this.#options.retraining ? "training" : "nothing to train with" },
          { status: 201 },
        );
      case "validate":
      case "delete":
      case "duplicate_model":
      case "job_status":
        return Response.json({});
      default:
        return Response.json({ error: `there is no ${verb}` }, { status: 404 });
    }
  }

  /** The configuration in a request, kept for its project; else the one that is kept. */
  #configOf(body: JsonObject, field: "schema" | "label_config"): LabelConfig {
    const { project } = body;
    const id = isObject(project) ? String(project.id) : String(project ?? "").replace(/\..*$/, "");
    const xml = isObject(project) ? (project.label_config ?? body[field]) : body[field];
    if (typeof xml === "string" && xml !== "") this.#configs.set(id, parseLabelConfig(xml));
    const known = this.#configs.get(id);
    if (known) return known;
    throw new DlfsError(ErrorCode.argument, field, `the labeling configuration of project ${id || "?"} is not known`);
  }

  async #predict(body: JsonObject): Promise<unknown[]> {
    const { tasks } = body;
    if (!Array.isArray(tasks)) throw new DlfsError(ErrorCode.argument, "tasks", "expected a list");
    const config = this.#configOf(body, "label_config");
    const files = await this.#filesOf(tasks, config, credentialsIn(body.params));
    // Not before: while images come another model may take this one's place.
    const detector = this.#options.detector();
    const good = files.filter((file) => typeof file !== "string");
    const results = good.length === 0 ? [] : await detector.detect(good);
    let next = 0;
    return tasks.map((task, i) => {
      const file = files[i] as Uint8Array | string;
      const id = isObject(task) ? task.id : i;
      const image = typeof file === "string" ? null : (results[next++] as DetectedImage);
      const error = typeof file === "string" ? file : image?.error?.message;
      if (!image || error !== undefined) {
        this.#options.log(`task ${id}: ${error}`);
        return { model_version: detector.version, score: 0, result: [] };
      }
      const boxes = this.#named(image, detector, config);
      const result = boxes.map((box, k) => regionOf(box, image, config, `${id}-${k}`));
      return { model_version: detector.version, score: certainty(boxes), result };
    });
  }

  /** The images of tasks, some at a time; of one that cannot be had, why. */
  async #filesOf(tasks: readonly unknown[], { field }: LabelConfig, credentials?: Credentials) {
    const files: (Uint8Array | string)[] = [];
    for (let at = 0; at < tasks.length; at += READS) {
      const part = tasks.slice(at, at + READS).map(async (task): Promise<Uint8Array | string> => {
        const address = isObject(task) && isObject(task.data) ? task.data[field] : undefined;
        if (typeof address !== "string") return `data.${field}: expected the address of an image`;
        return await this.#options.images.read(address, credentials).catch((error: unknown) => {
          if (error instanceof DlfsError) return error.message;
          throw error;
        });
      });
      files.push(...(await Promise.all(part)));
    }
    return files;
  }

  /** What was found, by the project's own labels; classes that it does not have are left out. */
  #named({ detections }: DetectedImage, { classes }: Detector, { labels }: LabelConfig): NamedBox[] {
    const byName = new Map(labels.map((label) => [label.toLowerCase(), label]));
    return detections.flatMap(({ box, score, label: index }) => {
      const label = byName.get((classes[index] ?? "").toLowerCase());
      return label === undefined ? [] : [{ box, score, label }];
    });
  }

  async #webhook(body: JsonObject): Promise<Response> {
    const action = String(body.action);
    if (action === "START_TRAINING") {
      this.#options.retraining?.now();
      return Response.json({ result: {}, status: "ok" }, { status: 201 });
    }
    // Label Studio says ANNOTATIONS_CREATED of those that were made of predictions, and ANNOTATIONS_DELETED of all.
    const [, what] = /^ANNOTATIONS?_(CREATED|UPDATED|DELETED)$/.exec(action) ?? [];
    if (what === undefined) return Response.json({ status: "Unknown event" });
    const refused: string[] = [];
    for (const annotation of annotationsIn(body)) {
      try {
        const message = what === "DELETED" ? this.#deleted(annotation) : await this.#annotated(body, annotation);
        if (message) await this.#options.labels?.(message);
        this.#options.retraining?.note();
      } catch (error) {
        if (!(error instanceof DlfsError)) throw error;
        refused.push(error.message);
      }
    }
    if (refused.length > 0) throw new DlfsError(ErrorCode.argument, "webhook", refused.join("; "));
    return Response.json({ result: {}, status: "ok" }, { status: 201 });
  }

  /** All boxes of the annotation's image; null where it was cancelled. */
  async #annotated(body: JsonObject, annotation: unknown): Promise<LabelMessage | null> {
    const fail = (field: string, message: string): never => {
      throw new DlfsError(ErrorCode.argument, field, message);
    };
    const config = this.#configOf(body, "label_config");
    if (!isObject(annotation)) return fail("annotation", "expected an object");
    if (annotation.was_cancelled === true) return null;
    const tasks: unknown[] = [body.task].flat();
    const task = tasks.length === 1 ? tasks[0] : tasks.find((one) => isObject(one) && one.id === annotation.task);
    const data = isObject(task) && isObject(task.data) ? task.data : fail("task.data", "expected an object");
    const address = data[config.field];
    if (typeof address !== "string") return fail(`task.data.${config.field}`, "expected the address of an image");
    const image = this.#options.images.keyOf(address) ?? address;
    const changed = String(annotation.updated_at ?? annotation.created_at ?? "");
    const time = Date.parse(changed);
    const edits = boxesOf(annotation.result, config).map(({ label, ...box }) => {
      return { action: "add", category: label, ...box } as const;
    });
    const message: LabelMessage = {
      id: `label-studio-${annotation.id}-${changed || Bun.hash(JSON.stringify(annotation.result)).toString(36)}`,
      author: await this.#authorOf(annotation.completed_by),
      time: Number.isNaN(time) ? Date.now() : time,
      ...{ image, edits, replace: true },
    };
    const id = Number(annotation.id);
    if (Number.isSafeInteger(id)) {
      const given = this.#given.get(image) ?? new Map<number, LabelMessage>();
      this.#given.set(image, given);
      // The newest is the last.
      given.delete(id);
      given.set(id, message);
      this.#imageOf.set(id, image);
    }
    return message;
  }

  /** What the image of an annotation that is gone has now: the boxes of the one before, or none. As far as is known which it was. */
  #deleted(annotation: unknown): LabelMessage | null {
    const id = isObject(annotation) ? Number(annotation.id) : Number.NaN;
    const image = this.#imageOf.get(id);
    const given = image === undefined ? undefined : this.#given.get(image);
    if (image === undefined || !given) {
      this.#options.log(`the annotation ${id} that was deleted is not known here: its boxes stay`);
      return null;
    }
    const wasNewest = [...given.keys()].at(-1) === id;
    this.#imageOf.delete(id);
    given.delete(id);
    if (!wasNewest) return null;
    const before = [...given.values()].at(-1);
    const message = { id: `label-studio-${id}-deleted`, author: "", time: Date.now(), image, edits: [], replace: true };
    return before ? { ...before, id: message.id, time: message.time } : message;
  }

  /** Who annotated, of a number the address where it is known. */
  async #authorOf(who: unknown): Promise<string> {
    const id = isObject(who) ? (who.email ?? who.id) : who;
    const known = typeof id === "number" ? await this.#options.userAddress?.(id) : undefined;
    return String(known ?? id ?? "");
  }
}

/** What Label Studio is told to ask images' servers with (a project's "task data login"). */
function credentialsIn(params: unknown): Credentials | undefined {
  if (!isObject(params) || typeof params.login !== "string" || params.login === "") return undefined;
  return { name: params.login, password: typeof params.password === "string" ? params.password : "" };
}

/** The annotations that an event is about. */
function annotationsIn({ annotation, annotations }: JsonObject): unknown[] {
  if (Array.isArray(annotations)) return annotations;
  return Array.isArray(annotation) ? annotation : [annotation];
}

/**
 * How certain the model is of an image, 0 to 1: the mean of its boxes' scores, 0.5 where it finds none. Label Studio orders tasks by
 * it: the least certain ones first teach most.
 */
function certainty(boxes: readonly NamedBox[]): number {
  if (boxes.length === 0) return 0.5;
  return boxes.reduce((sum, { score = 1 }) => sum + score, 0) / boxes.length;
}
