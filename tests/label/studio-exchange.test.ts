/** Images into a project of Label Studio, and people's work back, over answers that are lost, late and refused. */
import { afterEach, describe, expect, test } from "bun:test";
import { type DataSource, SQLiteAnnStore } from "../../lib/data";
import { intoDataset, mergeLabels, type PushOptions, pullLabels, pushLabels, StudioClient } from "../../lib/label";
import { TaskImages } from "../../lib/label/task-images";
import type { JsonObject } from "../../lib/native/json";
import { quiet } from "../data/fakes";
import { FakeLabelStudio, LEGACY_TOKEN, PERSONAL_TOKEN } from "../support/fake-label-studio";

let open: Disposable[] = [];
afterEach(() => {
  for (const one of open) one[Symbol.dispose]();
  open = [];
});

/** Five images: boxes of a person, of a file, of a model, of two people, none. */
function filled(): SQLiteAnnStore {
  const store = new SQLiteAnnStore();
  open.push(store);
  store.addCategories([
    { id: 1, name: "cell", supercategory: null },
    { id: 2, name: "dust", supercategory: null },
  ]);
  const images = ["1.jpg", "2.jpg", "3.jpg", "sub/4 ü.jpg", "5.jpg"].map((fileName, i) => {
    return { sourceId: 10 + i, fileName, key: `train/${fileName}`, width: 200, height: 100 };
  });
  const ids = store.addImages("train", images);
  const box = (place: number, x: number, by: object) => ({
    ...{ sourceId: 100 + x, imageId: ids[place] as number, categoryId: 1, area: 200, isCrowd: false },
    ...{ bbox: [x, 10, 10, 20] as const, by: { time: 5, ...by } as never },
  });
  store.addAnnotations([
    box(0, 1, { source: "human", author: "eve@x.org" }),
    box(1, 2, { source: "imported", author: "file.json" }),
    { ...box(2, 190, { source: "model", author: "run@7" }), bbox: [190, 10, 10.5, 20], score: 0.75 },
    box(3, 4, { source: "human", author: "nobody@y.org" }),
  ]);
  return store;
}

function start(token = LEGACY_TOKEN) {
  const studio = new FakeLabelStudio();
  open.push(studio);
  const retry = { attempts: 3, firstDelay: 1 };
  const client = new StudioClient({ url: studio.url, token, timeoutMs: 5000, retry });
  const store = filled();
  const push = async (options: Partial<PushOptions> = {}) =>
    pushLabels(client, await client.project(1), store, { split: "train", ...options });
  const pull = async () => {
    using pulled = await pullLabels(client, await client.project(1), { progress: quiet });
    const { inexact, annotated, tasks } = pulled;
    const target = intoDataset({ store, classes: store.classes() });
    const report = await mergeLabels(store, pulled.store, inexact, { target, negatives: true, exact: true });
    return { ...report, annotated, tasks };
  };
  return { studio, client, store, push, pull };
}

describe("push", () => {
  test("adds a task for each image, with the project's names, whose boxes they are, and predictions within the image", async () => {
    const { studio, push, pull, store } = start();
    const before = store.lastChange();
    expect(await push({ imagePrefix: "/data/local-files/?d=" })).toEqual({
      ...{ tasks: 5, present: 0, annotations: 3, predictions: 1, annotated: 0 },
    });
    expect(studio.tasks.map(({ data }) => data)).toEqual(
      ["1.jpg", "2.jpg", "3.jpg", "sub/4%20%C3%BC.jpg", "5.jpg"].map((name) => ({
        photo: `/data/local-files/?d=${name}`,
      })),
    );
    // Label Studio knows eve, and has the others' work as the token owner's.
    expect(studio.tasks.map(({ annotations }) => annotations.map((one) => one.completed_by))).toEqual([
      [2],
      [1],
      [],
      [1],
      [],
    ]);
    const [{ result }] = studio.tasks[2]!.predictions as [{ result: JsonObject[] }];
    expect(result).toMatchObject([
      { from_name: "box", to_name: "img", score: 0.75, value: { x: 95, y: 10, width: 5, height: 20, rotation: 0 } },
    ]);
    // What comes back untouched changes nothing, also whose it is.
    expect(await pull()).toMatchObject({ annotated: 3, tasks: 5, images: 3, same: 3, changedImages: 0, refused: [] });
    expect(store.lastChange()).toBe(before);
  });

  test("does nothing the second time, and adds what tasks lack without touching what people did", async () => {
    const { studio, push, store } = start();
    await push({ images: store.images("train").slice(2) });
    const [third, fourth] = studio.tasks;
    third!.predictions = [];
    fourth!.annotations = [];
    // Somebody else's task, without what ours keep, and one of another image.
    studio.tasks.push({
      id: 900,
      project: 1,
      data: { photo: "gs://b/x/train/2.jpg" },
      annotations: [{ result: [] }],
      predictions: [],
    });
    studio.tasks.push({ id: 901, project: 1, data: { photo: "other.jpg" }, annotations: [], predictions: [] });
    expect(await push()).toEqual({ tasks: 1, present: 2, annotations: 2, predictions: 1, annotated: 1 });
    expect(studio.tasks.length).toBe(6);
    expect([third!.predictions.length, fourth!.annotations.length, studio.tasks[3]!.annotations]).toEqual([
      1,
      1,
      [{ result: [] }],
    ]);
    expect(await push()).toMatchObject({ tasks: 0, annotations: 0, predictions: 0, present: 5 });
  });

  test("uploads images, and knows them again; of images without boxes says that they are negatives", async () => {
    const { studio, push, pull, store } = start();
    const upload = { read: async (key: string) => new Uint8Array(key.length) } as unknown as DataSource;
    await push({ upload, negatives: true });
    expect(studio.uploads.map(({ name }) => name)).toEqual(["1.jpg", "2.jpg", "3.jpg", "4 ü.jpg", "5.jpg"]);
    expect(studio.tasks[3]!.data).toEqual({ photo: "/data/upload/1/0a1b2c3d-4_%C3%BC.jpg" });
    expect(studio.tasks.map(({ annotations }) => annotations.length)).toEqual([1, 1, 0, 1, 1]);
    expect(await push({ upload })).toMatchObject({ tasks: 0, present: 5 });
    // Also without what the task keeps of it.
    for (const task of studio.tasks) task.meta = {};
    studio.tasks[3]!.data = { photo: "/data/upload/1/0a1b2c3d-4_ü.jpg" };
    const { refused, images } = await pull();
    expect([images, refused]).toEqual([
      3,
      [{ image: "data/upload/1/0a1b2c3d-4_ü.jpg", reason: "the data set has no such image" }],
    ]);
    expect(store.lastChange()).toBeGreaterThan(0);
  });

  test("sends nothing where the project lacks a class", async () => {
    const { studio, client, store } = start();
    const xml =
      "<View><Image name='i' value='$x'/><RectangleLabels name='b' toName='i'><Label value='dust'/></RectangleLabels></View>";
    const id = studio.addProject("other", xml);
    const pushing = pushLabels(client, await client.project(id), store, { split: "train" });
    await expect(pushing).rejects.toThrow('project "other": its labeling configuration lacks cell; it has dust');
    expect(studio.tasks).toEqual([]);
  });

  test("makes no task twice where an answer came too late", async () => {
    const fault = () => new Response("", { status: 504 });
    const { studio, push, store } = start();
    let left = 1;
    studio.after = ({ path }) => (path.endsWith("/import") && left-- > 0 ? fault() : undefined);
    expect(await push()).toMatchObject({ tasks: 5 });
    expect([studio.tasks.length, left]).toEqual([5, 0]);
    // Nor an annotation or a prediction.
    for (const task of studio.tasks) Object.assign(task, { annotations: [], predictions: [] });
    let lost = 0;
    studio.after = ({ method }) => (method === "POST" && lost++ % 2 === 0 ? fault() : undefined);
    expect(await push()).toMatchObject({ annotations: 3, predictions: 1 });
    const counts = studio.tasks.map(({ annotations, predictions }) => annotations.length + predictions.length);
    expect([counts, store.images("train").length]).toEqual([[1, 1, 1, 1, 0], 5]);
  });

  test("waits while it is asked to, gives up in the end, and says what was refused and why", async () => {
    const { studio, push } = start();
    let busy = 2;
    studio.fault = ({ path }) => {
      return path.endsWith("/import") && busy-- > 0
        ? new Response("", { status: 429, headers: { "Retry-After": "0" } })
        : undefined;
    };
    expect(await push()).toMatchObject({ tasks: 5 });
    studio.fault = () => new Response("", { status: 503 });
    await expect(push()).rejects.toThrow(/^label studio: GET api\/projects\/1\/: HTTP 503 \(3 attempts in/);
    studio.fault = ({ path }) => (path === "/api/users/" ? new Response("{}", { status: 403 }) : undefined);
    studio.tasks.length = 0;
    expect(await push()).toMatchObject({ tasks: 5 });
    const wrong = { detail: "Validation error", validation_errors: { non_field_errors: ["no such field"] } };
    studio.fault = ({ path }) => (path.endsWith("/import") ? Response.json(wrong, { status: 400 }) : undefined);
    studio.tasks.length = 0;
    await expect(push()).rejects.toThrow(
      'POST api/projects/1/import: HTTP 400: Validation error {"non_field_errors":["no such field"]}',
    );
  });
});

describe("pull", () => {
  test("takes the newest annotation of a task that was not skipped, as the work of the user's address", async () => {
    const { studio, push, pull, store } = start();
    await push();
    const [first, second, third, , fifth] = studio.tasks;
    const region = (first!.annotations[0] as { result: JsonObject[] }).result[0]!;
    const at = (x: number) => ({ ...region, id: `r${x}`, value: { ...(region.value as object), x } });
    const time = (day: number) => new Date(Date.UTC(2026, 5, day)).toISOString();
    first!.annotations.push(
      { id: 71, result: [at(50)], completed_by: 2, updated_at: time(9) },
      { id: 70, result: [], completed_by: 1, updated_at: time(8) },
    );
    second!.annotations = [{ id: 72, result: [at(1)], was_cancelled: true, completed_by: 2, updated_at: time(9) }];
    third!.annotations = [{ id: 73, result: [], completed_by: 2, updated_at: time(9) }];
    fifth!.annotations = [{ id: 74, result: [{ ...at(3), value: { ...(at(3).value as object), rotation: 90 } }] }];
    const { refused, ...report } = await pull();
    expect(report).toMatchObject({ annotated: 4, images: 3, added: 1, changed: 0, deleted: 2, same: 1 });
    expect(refused).toEqual([
      {
        image: "5.jpg",
        reason: `task ${fifth!.id}.annotations[0].result[0].value.rotation: expected 0, got 90: boxes are upright`,
      },
    ]);
    const boxes = store.images("train").map(({ id }) => store.annotationsOf(id));
    expect(boxes.map((rows) => rows.length)).toEqual([1, 1, 0, 1, 0]);
    expect(boxes[0]).toMatchObject([{ bbox: [100, 10, 10, 20], author: "eve@x.org", modified: Date.parse(time(9)) }]);
    expect(await pull()).toMatchObject({ changedImages: 0 });
  });

  test("goes through all pages, and through none of an empty project", async () => {
    const { studio, client, push, pull } = start();
    expect(await pull()).toMatchObject({ tasks: 0, annotated: 0, images: 0 });
    await push();
    const ids: number[] = [];
    for await (const page of client.tasks(1)) ids.push(...page.map(({ id }) => id));
    expect(ids).toEqual(studio.tasks.map(({ id }) => id));
  });
});

describe("a client", () => {
  test("exchanges a personal token for short ones, once for all requests, and again when they have ended", async () => {
    const { studio, client, push } = start(PERSONAL_TOKEN);
    expect(await push()).toMatchObject({ tasks: 5 });
    const refreshed = () => studio.asked.filter(({ path }) => path === "/api/token/refresh/").length;
    expect([refreshed(), studio.asked.some(({ authorization }) => authorization?.includes(PERSONAL_TOKEN))]).toEqual([
      1,
      false,
    ]);
    const images = new TaskImages({ labelStudio: { url: studio.url, token: PERSONAL_TOKEN } });
    await expect(images.read("/data/upload/1/x.jpg")).rejects.toThrow("the answer is 404");
    expect(studio.asked.at(-1)?.authorization).toStartWith("Bearer ");
    const wrong = new StudioClient({ url: studio.url, token: PERSONAL_TOKEN.replace(/.$/, "x") });
    await expect(wrong.project(1)).rejects.toThrow("the personal access token is not taken (HTTP 401)");
    expect((await client.project(1)).title).toBe("cells");
  });

  test("finds projects by title, makes new ones, and names what is wrong", async () => {
    const { studio, client } = start();
    expect(await client.projectNamed("none")).toBeNull();
    expect(await client.projectNamed("cells")).toMatchObject({
      id: 1,
      config: { field: "photo", labels: ["cell", "dust"] },
    });
    studio.addProject("cells");
    await expect(client.projectNamed("cells")).rejects.toThrow(
      'projects 1, 2 are called "cells": say which by its number',
    );
    await expect(client.project(9)).rejects.toThrow(
      "GET api/projects/9/: HTTP 404: No Project matches the given query.",
    );
    const other = new StudioClient({ url: studio.url, token: "wrong" });
    await expect(other.project(1)).rejects.toThrow("HTTP 401: Invalid token.");
    expect(() => new StudioClient({ url: "studio", token: "x" })).toThrow(
      'label studio: expected its address, such as http://127.0.0.1:8080, got "studio"',
    );
    studio.fault = () => new Response("<html>", { headers: { "Content-Type": "text/html" } });
    await expect(client.project(1)).rejects.toThrow('expected JSON, got "<html>"');
    studio.fault = () => Response.json({ other: 1 });
    await expect(client.project(1)).rejects.toThrow("the answer has no label_config: is this Label Studio's address?");
    studio.fault = () => new Response("", { status: 301, headers: { Location: "https://studio.example/" } });
    await expect(client.project(1)).rejects.toThrow("sends elsewhere, to https://studio.example/: give that address");
    const nowhere = new StudioClient({ url: "http://127.0.0.1:1", token: "x", retry: { attempts: 2, firstDelay: 1 } });
    await expect(nowhere.project(1)).rejects.toThrow(/cannot connect \(2 attempts/);
  });
});
