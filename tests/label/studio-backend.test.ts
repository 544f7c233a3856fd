/** The backend for Label Studio: its requests as it sends them (1.x and older), images wherever they lie, corrections on their way. */
import { afterAll, afterEach, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { LocalDataSource, SQLiteAnnStore } from "../../lib/data";
import type { LabelMessage } from "../../lib/formats";
import {
  type DetectedImage,
  Retraining,
  regionOf,
  StudioBackend,
  type StudioBackendOptions,
  TaskImages,
} from "../../lib/label";
import { DlfsError, ErrorCode } from "../../lib/native";

const folder = mkdtempSync(join(tmpdir(), "dlfs-studio-"));
mkdirSync(join(folder, "train"));
writeFileSync(join(folder, "train", "a b.jpg"), Uint8Array.of(1));
writeFileSync(join(folder, "train", "2.jpg"), Uint8Array.of(2));
afterAll(() => rmSync(folder, { recursive: true }));
const owned: AsyncDisposable[] = [];
afterEach(async () => {
  for (const one of owned.splice(0)) await one[Symbol.asyncDispose]();
});

const xml = `<View><Header value="cells"/><Image name="img" value="$image" zoom="true"/>
  <RectangleLabels name="box" toName="img"><Label value="Car" background="red"/><Label value="R&amp;D"/></RectangleLabels></View>`;
const project = "3.1700000000";

interface Prediction {
  model_version: string;
  score: number;
  result: { id: string }[];
}

/** Of an answer to /predict. */
const resultsOf = ({ body }: { body: unknown }) => (body as { results: Prediction[] }).results;

/** Finds a car in every image, whose first byte is its number; a dog, which the project does not have; 9 is damaged. */
const detector = {
  version: "cells@900",
  classes: ["car", "dog", "R&D"],
  asked: [] as number[][],
  async detect(images: readonly Uint8Array[]): Promise<DetectedImage[]> {
    this.asked.push(images.map(([first]) => first as number));
    return images.map(([first]) => ({
      ...{ width: 200, height: 100 },
      detections: [
        { box: [20, 10, 120, 60], score: 0.75, label: 0 },
        { box: [0, 0, 50, 50], score: 0.5, label: 1 },
        { box: [0, 0, 200, 100], score: 0.25, label: 2 },
      ],
      error: first === 9 ? new DlfsError(ErrorCode.image, "jpeg", "it ends early") : null,
    }));
  },
};

function start(options: Partial<StudioBackendOptions> = {}, images: ConstructorParameters<typeof TaskImages>[0] = {}) {
  const said: string[] = [];
  const heard: LabelMessage[] = [];
  const backend = new StudioBackend({
    port: 0,
    detector: () => detector,
    images: new TaskImages(images),
    labels: async (message) => void heard.push(message),
    log: (line) => void said.push(line),
    ...options,
  });
  owned.push(backend);
  const post = async (path: string, body: unknown, headers: Record<string, string> = {}) => {
    const text = typeof body === "string" ? body : JSON.stringify(body);
    const answer = await fetch(new URL(path, backend.url), { method: "POST", body: text, headers });
    return { status: answer.status, body: (await answer.json()) as unknown };
  };
  return { backend, said, heard, post };
}

function makeData() {
  const store = new SQLiteAnnStore();
  const images = ["train/a b.jpg", "train/2.jpg"].map((key, i) => {
    return { sourceId: i + 1, key, fileName: key.slice(6), width: 200, height: 100 };
  });
  store.addImages("train", images);
  return { dataset: { store, source: new LocalDataSource(folder) } };
}

const dataUrl = (byte: number) => `data:image/jpeg;base64,${btoa(String.fromCharCode(byte))}`;
const predict = (...addresses: unknown[]) => ({
  tasks: addresses.map((image, i) => ({ id: 10 + i, data: { image } })),
  ...{ project, label_config: xml, params: { login: null, password: null, context: null } },
});

describe("a prediction", () => {
  test("is one for each task, in order, in percent and with the project's names", async () => {
    const { post } = start();
    const answer = await post("/predict", predict(dataUrl(1), dataUrl(2)));
    expect(answer.status).toBe(200);
    const [first, second, ...others] = resultsOf(answer) as [Prediction, Prediction];
    expect(others).toEqual([]);
    expect([first.model_version, first.score]).toEqual(["cells@900", 0.5]);
    expect(first.result as unknown).toEqual([
      {
        ...{ id: "dlfs-10-0", from_name: "box", to_name: "img", type: "rectanglelabels", image_rotation: 0 },
        ...{ original_width: 200, original_height: 100, score: 0.75 },
        value: { x: 10, y: 10, width: 50, height: 50, rotation: 0, rectanglelabels: ["Car"] },
      },
      {
        ...{ id: "dlfs-10-1", from_name: "box", to_name: "img", type: "rectanglelabels", image_rotation: 0 },
        ...{ original_width: 200, original_height: 100, score: 0.25 },
        value: { x: 0, y: 0, width: 100, height: 100, rotation: 0, rectanglelabels: ["R&D"] },
      },
    ]);
    expect(second.result[0]!.id).toBe("dlfs-11-0");
  });

  test("of a task whose image cannot be had is empty, is told of, and takes nothing from the others", async () => {
    const { post, said } = start();
    const addresses = [dataUrl(9), "https://images.example/1.jpg", dataUrl(3), undefined, "/data/upload/3/x.jpg"];
    const answer = await post("/predict", predict(...addresses));
    expect(answer.status).toBe(200);
    expect(resultsOf(answer).map(({ result }) => result.length)).toEqual([0, 0, 2, 0, 0]);
    expect(detector.asked.at(-1)).toEqual([9, 3]);
    expect(said).toEqual([
      "task 10: jpeg: it ends early",
      "task 11: image: https://images.example/1.jpg: images from https://images.example are not fetched, unless --allow names it",
      "task 13: data.image: expected the address of an image",
      "task 14: image: /data/upload/3/x.jpg: relative, and Label Studio's address is not known",
    ]);
  });

  test("is the model's that there is once its image has come, not of one that was replaced meanwhile", async () => {
    let current = {
      ...detector,
      version: "old",
      detect: () => Promise.reject(new Error("used after dispose()")) as never,
    };
    const server = Bun.serve({
      port: 0,
      fetch() {
        current = { ...detector, version: "new" } as never;
        return new Response(Uint8Array.of(1));
      },
    });
    const { post } = start({ detector: () => current as typeof detector }, { hosts: [server.url.origin] });
    expect(resultsOf(await post("/predict", predict(server.url.href)))).toMatchObject([{ model_version: "new" }]);
    await server.stop(true);
  });

  test("knows a project by its set-up, below a path, too", async () => {
    const { post } = start();
    const set = { project, schema: xml, hostname: "http://ls:8080", access_token: "t" };
    expect(await post("/studio/setup", set)).toEqual({ status: 200, body: { model_version: "cells@900" } });
    const { label_config: _, ...request } = predict(dataUrl(1));
    expect(resultsOf(await post("/studio/predict", request))[0]!.result.length).toBe(2);
    const other = await post("/predict", { ...request, project: "4.17" });
    expect(other).toEqual({
      status: 400,
      body: { error: "label_config: the labeling configuration of project 4 is not known" },
    });
  });
});

describe("images", () => {
  test("of a data set are known by the end of their address", async () => {
    const { post } = start({}, makeData());
    const addresses = [
      "gs://bucket/set/train/a%20b.jpg",
      "/data/local-files/?d=photos/train/2.jpg",
      "https://elsewhere.example/train/2.jpg?x=1",
    ];
    const answer = await post("/predict", predict(...addresses));
    expect(resultsOf(answer).map(({ result }) => result.length)).toEqual([2, 2, 2]);
    expect(detector.asked.at(-1)).toEqual([1, 2, 2]);
  });

  test("come from buckets, with what their own tools are told of credentials", async () => {
    const paths: string[] = [];
    const server = Bun.serve({
      ...{ port: 0, hostname: "127.0.0.1" },
      fetch(request) {
        const { pathname, searchParams } = new URL(request.url);
        paths.push(decodeURIComponent(pathname));
        if (pathname.endsWith("4.jpg")) return new Response("", { status: 404 });
        if (searchParams.get("alt") === "media") return new Response(Uint8Array.of(3));
        return Response.json({ name: "set/3.jpg", size: "1", updated: "2026-01-02T03:04:05Z", generation: "1" });
      },
    });
    const before = { ...process.env };
    Object.assign(process.env, { STORAGE_EMULATOR_HOST: server.url.origin, DLFS_CACHE: join(folder, "cache") });
    try {
      const { post, said } = start();
      const answer = await post("/predict", predict("gs://bucket/set/3.jpg", "gs://bucket/set/4.jpg"));
      expect(resultsOf(answer).map(({ result }) => result.length)).toEqual([2, 0]);
      expect(detector.asked.at(-1)).toEqual([3]);
      expect(paths.every((path) => /bucket\/.*set\/[34]\.jpg$/.test(path))).toBe(true);
      expect(said).toEqual([expect.stringContaining("gs://bucket/set/4.jpg: no such object")]);
    } finally {
      for (const name of ["STORAGE_EMULATOR_HOST", "DLFS_CACHE"]) {
        if (before[name] === undefined) delete process.env[name];
        else process.env[name] = before[name];
      }
      await server.stop(true);
    }
  });

  test("come from the folder of local files, and from nowhere above it", async () => {
    const { post, said } = start({}, { localFiles: join(folder, "train") });
    const answer = await post(
      "/predict",
      predict("/data/local-files/?d=2.jpg", "/data/local-files/?d=..%2F..%2Fetc%2Fpasswd", "/data/local-files/?d=%zz"),
    );
    expect(resultsOf(answer).map(({ result }) => result.length)).toEqual([2, 0, 0]);
    expect(said).toEqual([
      "task 11: image: ../../etc/passwd lies outside of the folder of local files",
      "task 12: image: there is no local file %zz",
    ]);
  });

  test("that were uploaded to Label Studio are asked of it with its token, which no other address gets", async () => {
    const seen: [string, string | null][] = [];
    const serve = () =>
      Bun.serve({
        ...{ port: 0, hostname: "127.0.0.1" },
        fetch(request) {
          seen.push([new URL(request.url).pathname, request.headers.get("authorization")]);
          return new Response(Uint8Array.of(7));
        },
      });
    const [studio, other] = [serve(), serve()];
    const labelStudio = { url: studio.url.href, token: "secret" };
    const { post } = start({}, { labelStudio, hosts: [other.url.origin] });
    const answer = await post("/predict", predict("/data/upload/3/x.jpg", `${other.url}y.jpg`));
    expect(resultsOf(answer).map(({ result }) => result.length)).toEqual([2, 2]);
    expect(seen.sort()).toEqual([
      ["/data/upload/3/x.jpg", "Token secret"],
      ["/y.jpg", null],
    ]);
    // What the project has for its images' servers goes to those that are allowed, and never to Label Studio.
    const asked = predict("/data/upload/3/x.jpg", `${other.url}z.jpg`);
    await post("/predict", { ...asked, params: { login: "ada", password: "p\u00fc" } });
    expect(seen.slice(2).sort()).toEqual([
      ["/data/upload/3/x.jpg", "Token secret"],
      ["/z.jpg", `Basic ${Buffer.from("ada:p\u00fc").toString("base64")}`],
    ]);
    await Promise.all([studio.stop(true), other.stop(true)]);
  });
});

const region = (more: object = {}, value: object = {}) => ({
  ...{ id: "r1", from_name: "box", to_name: "img", type: "rectanglelabels", original_width: 200, original_height: 100 },
  value: { x: 10, y: 20, width: 30, height: 40, rotation: 0, rectanglelabels: ["Car"], ...value },
  ...more,
});
const webhook = (result: unknown[], annotation: object = {}, action = "ANNOTATION_CREATED") => ({
  action,
  project: { id: 3, label_config: xml },
  task: { id: 10, data: { image: "gs://bucket/train/2.jpg" } },
  annotation: {
    id: 5,
    completed_by: { email: "ada@x.org" },
    updated_at: "2026-01-02T03:04:05Z",
    result,
    ...annotation,
  },
});

test("a box that is a rounding beyond its image is within it", () => {
  const config = { fromName: "box", toName: "img", field: "photo", labels: [] };
  const box = [-1e-6, 0, 200.0000001, 100.1] as const;
  const { value } = regionOf({ label: "Car", box }, { width: 200, height: 100 }, config, "1");
  expect(value).toMatchObject({ x: 0, y: 0, width: 100, height: 100 });
});

describe("a webhook", () => {
  test("gives all boxes of an image on, with author and time, and whether they were accepted as proposed", async () => {
    const { post, heard } = start({}, makeData());
    const crowd = region({ meta: { text: ["crowd"] } });
    const accepted = region({ id: "dlfs-10-0", score: 0.75 }, { x: 0, rectanglelabels: ["R&D"] });
    const answer = await post("/webhook", webhook([region(), accepted, crowd, { type: "choices", id: "c" }]));
    expect(answer).toEqual({ status: 201, body: { result: {}, status: "ok" } });
    expect(heard).toEqual([
      {
        id: "label-studio-5-2026-01-02T03:04:05Z",
        ...{ author: "ada@x.org", time: Date.parse("2026-01-02T03:04:05Z"), image: "train/2.jpg", replace: true },
        edits: [
          { action: "add", category: "Car", box: [20, 20, 80, 60] },
          { action: "add", category: "R&D", box: [0, 20, 60, 60], score: 0.75 },
          { action: "add", category: "Car", box: [20, 20, 80, 60], crowd: true },
        ],
      },
    ]);
  });

  test("of an image without boxes is a negative one, of a cancelled annotation nothing", async () => {
    const { post, heard } = start({}, makeData());
    await post("/webhook", webhook([], { was_cancelled: true }));
    expect(heard).toEqual([]);
    await post("/webhook", webhook([]));
    expect(heard).toMatchObject([{ image: "train/2.jpg", edits: [], replace: true }]);
  });

  test("of a deletion takes the boxes away that it had given", async () => {
    const { post, heard, said } = start({}, makeData());
    await post("/webhook", webhook([region()]));
    await post("/webhook", { action: "ANNOTATIONS_DELETED", project: { id: 3 }, annotations: [{ id: 5 }, { id: 77 }] });
    expect(heard.length).toBe(2);
    expect(heard[1]).toMatchObject({ id: "label-studio-5-deleted", image: "train/2.jpg", edits: [], replace: true });
    expect(said).toEqual(["the annotation 77 that was deleted is not known here: its boxes stay"]);
  });

  test("of a deletion gives back what an earlier annotation of the image said, and nothing where a later one did", async () => {
    const { post, heard } = start({}, makeData());
    await post("/webhook", webhook([region()]));
    await post("/webhook", webhook([], { id: 6 }));
    const gone = (id: number) => post("/webhook", { action: "ANNOTATIONS_DELETED", annotations: [{ id }] });
    await gone(6);
    expect(heard[2]).toMatchObject({ image: "train/2.jpg", edits: [{ category: "Car" }], author: "ada@x.org" });
    await post("/webhook", webhook([], { id: 7 }));
    await gone(5);
    expect(heard.length).toBe(4);
    await gone(7);
    expect(heard[4]).toMatchObject({ image: "train/2.jpg", edits: [], replace: true });
  });

  test("of several annotations, made of predictions, gives each on with its own image; what is wrong takes nothing from the others", async () => {
    const asked: number[] = [];
    const userAddress = async (id: number) => {
      asked.push(id);
      return id === 1 ? "eve@x.org" : undefined;
    };
    const { post, heard } = start({ userAddress }, makeData());
    const of = (id: number, task: number, completed_by: number, result: unknown[]) => ({
      id,
      task,
      completed_by,
      result,
    });
    const task = [10, 11].map((id) => ({ id, data: { image: `gs://b/train/${id === 10 ? "2" : "a b"}.jpg` } }));
    const annotation = [of(1, 11, 1, []), of(2, 11, 1, [region({}, { rotation: 3 })]), of(3, 10, 2, [region()])];
    const answer = await post("/webhook", { ...webhook([]), action: "ANNOTATIONS_CREATED", task, annotation });
    expect(answer).toEqual({
      status: 400,
      body: { error: "webhook: annotation.result[0]: rotation: expected 0, got 3: boxes are upright" },
    });
    expect(heard.map(({ image, author, edits }) => [image, author, edits.length])).toEqual([
      ["train/a b.jpg", "eve@x.org", 0],
      ["train/2.jpg", "2", 1],
    ]);
    expect(asked).toEqual([1, 2]);
  });

  test("that is not known is answered, and does nothing", async () => {
    const { post } = start();
    expect(await post("/webhook", { action: "PROJECT_UPDATED" })).toEqual({
      status: 200,
      body: { status: "Unknown event" },
    });
    for (const verb of ["validate", "delete", "duplicate_model", "job_status"]) {
      expect(await post(`/${verb}`, {})).toEqual({ status: 200, body: {} });
    }
  });

  test("with labels that cannot be taken is refused with the reason", async () => {
    const labels = () =>
      Promise.reject(new DlfsError(ErrorCode.argument, "edits[0].category", '"Car" is none of the 2 classes'));
    const { post } = start({ labels }, makeData());
    const refused = { status: 400, body: { error: 'webhook: edits[0].category: "Car" is none of the 2 classes' } };
    expect(await post("/webhook", webhook([region()]))).toEqual(refused);
  });
});

describe("what is wrong is named", () => {
  for (const [what, path, body, error] of [
    ["a body that is no JSON", "/predict", "{", "body: expected JSON"],
    ["a body that is a list", "/predict", "[]", "body: expected a JSON object"],
    ["tasks that are none", "/predict", { tasks: 3 }, "tasks: expected a list"],
    ["a configuration that is no XML", "/setup", { project, schema: "<View" }, "label_config: it is no XML"],
    [
      "one without rectangles",
      "/setup",
      { project, schema: "<View><Image name='i' value='$x'/></View>" },
      "it has no <RectangleLabels>",
    ],
    [
      "one without their image",
      "/setup",
      { project, schema: "<View><RectangleLabels name='b' toName='i'/></View>" },
      'is of "i", and no <Image>',
    ],
    [
      "one whose image has no field",
      "/setup",
      { project, schema: "<View><Image name='i' value='x.jpg'/><RectangleLabels name='b' toName='i'/></View>" },
      'expected a value such as "$image"',
    ],
    [
      "a rotated box",
      "/webhook",
      webhook([region(), region({}, { rotation: 30 })]),
      "annotation.result[1]: rotation: expected 0, got 30",
    ],
    [
      "a polygon",
      "/webhook",
      webhook([region({ type: "polygonlabels" })]),
      'annotation.result[0]: type: expected "rectanglelabels", got "polygonlabels"',
    ],
    [
      "a box without a label",
      "/webhook",
      webhook([region({}, { rectanglelabels: [] })]),
      "annotation.result[0]: rectanglelabels: expected a label",
    ],
    [
      "a box without a place",
      "/webhook",
      webhook([region({}, { x: "1" })]),
      'annotation.result[0]: x: expected a number, got "1"',
    ],
    ["a box without a width", "/webhook", webhook([region({}, { width: 0 })]), "expected a width and a height above 0"],
    ["results that are none", "/webhook", webhook("x" as never), "annotation.result: expected a list"],
  ] as const) {
    test(what, async () => {
      const { post, heard } = start();
      const answer = await post(path, body);
      expect(answer.status).toBe(400);
      expect((answer.body as { error: string }).error).toContain(error);
      expect(heard).toEqual([]);
    });
  }
});

test("without name and password nobody is answered", async () => {
  const { post, backend } = start({ user: { name: "ls", password: "p:w" } });
  expect((await post("/setup", {})).status).toBe(401);
  expect((await post("/setup", {}, { Authorization: `Basic ${btoa("ls:other")}` })).status).toBe(401);
  const headers = { Authorization: `Basic ${btoa("ls:p:w")}` };
  expect((await fetch(new URL("/health", backend.url), { headers })).status).toBe(200);
});

describe("training again", () => {
  test("begins some time after the last of enough annotations, one at a time, and never in a request", async () => {
    const trainings: PromiseWithResolvers<void>[] = [];
    const train = () => {
      trainings.push(Promise.withResolvers());
      return (trainings.at(-1) as PromiseWithResolvers<void>).promise;
    };
    const errors: string[] = [];
    using retraining = new Retraining({ train, after: 3, quietMs: 30, onError: ({ message }) => errors.push(message) });
    const { post, backend } = start({ retraining }, makeData());
    for (let i = 0; i < 2; i++) await post("/webhook", webhook([region()], { id: i }));
    await Bun.sleep(60);
    expect(trainings.length).toBe(0);
    for (let i = 2; i < 6; i++) await post("/webhook", webhook([region()], { id: i }));
    expect(trainings.length).toBe(0); // still quiet
    while (trainings.length === 0) await Bun.sleep(2);
    const health = await (await fetch(new URL("/health", backend.url))).json();
    expect(health).toEqual({
      status: "UP",
      model_class: "dlfs",
      model_version: "cells@900",
      pending: 0,
      training: true,
    });
    expect((await post("/webhook", { action: "START_TRAINING", project: { id: 3 } })).status).toBe(201);
    expect(trainings.length).toBe(1); // after this one
    trainings[0]!.reject(new Error("it has failed"));
    while (trainings.length === 1) await Bun.sleep(2);
    expect(errors).toEqual(["it has failed"]);
    trainings[1]!.resolve();
    await retraining.settled();
    expect(retraining.status).toEqual({ pending: 0, training: false });
  });
});
