/** Boxes of images at the dashboard: read, written to the data set or to the training that goes on, refused, and changed by two. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdir, mkdtemp, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DashboardServer, type Predictor } from "../../lib/dashboard";
import { EditRoutes } from "../../lib/dashboard/edit-routes";
import { LabelEditor } from "../../lib/dashboard/edits";
import { RunView } from "../../lib/dashboard/runs";
import { type AnnotationRecord, loadDataset, openKeptStore } from "../../lib/data";
import type { LabelMessage, Message } from "../../lib/formats";
import {
  type Answer,
  findLiveAddress,
  LiveBus,
  LiveServer,
  type LiveServerOptions,
  removeLiveAddress,
  writeLiveAddress,
} from "../../lib/live";
import { FakeCodec, fakeJpeg } from "../data/fakes";
import { sampleOf, writeRun, writeSamples } from "./run-fixture";

let root: string;
let data: string;
let run: string;
let writable: DashboardServer;
let readOnly: DashboardServer;
const cache = process.env.DLFS_CACHE;

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "dlfs-edits-"));
  process.env.DLFS_CACHE = join(root, "cache");
  data = join(root, "data");
  for (const split of ["train", "val"]) {
    const names = ["a.jpg", "b.jpg", "c.jpg"];
    for (const name of names) await Bun.write(join(data, split, name), fakeJpeg(200, 100));
    const images = names.map((file_name, i) => ({ id: i + 1, file_name, width: 200, height: 100 }));
    const box = { id: 1, image_id: 1, category_id: 3, bbox: [10, 20, 50, 60], area: 3000, iscrowd: 0 };
    const categories = [
      { id: 3, name: "cell" },
      { id: 7, name: "clot" },
    ];
    const path = join(data, "annotations", `instances_${split}.json`);
    await Bun.write(path, JSON.stringify({ images, annotations: [box], categories }));
  }
  using _ = await loadDataset(data, { codec: new FakeCodec(), trainSplit: "train", valSplit: "val" });
  const folder = await writeRun(join(root, "runs"), "cells", 10);
  const classes = ["cell", "clot"];
  await folder.writeConfig({ iterations: 20, data, trainSplit: "train", valSplit: "val", classes });
  folder.close();
  run = folder.path;
  const sample = (iteration: number) => ({ ...sampleOf(iteration, "val/a.jpg"), split: "val" });
  await writeSamples(run, [sample(5), sample(10)]);
  const options = { folders: [join(root, "runs")], port: 0, token: "secret" };
  writable = await DashboardServer.open({ ...options, edit: true });
  readOnly = await DashboardServer.open(options);
});
afterAll(async () => {
  await writable[Symbol.asyncDispose]();
  await readOnly[Symbol.asyncDispose]();
  if (cache === undefined) delete process.env.DLFS_CACHE;
  else process.env.DLFS_CACHE = cache;
  await rm(root, { recursive: true });
});

const authorized = { Authorization: "Bearer secret" };
const at = (path: string, server = writable) => new URL(`/api/runs/cells-1/${path}`, server.url);
const get = (path: string, server = writable) => fetch(at(path, server), { headers: authorized });
// biome-ignore lint/suspicious/noExplicitAny: answers are compared as a whole
async function look(image: string, split: string): Promise<any> {
  const answer = await get(`annotations?${new URLSearchParams({ image, split })}`);
  expect(answer.status).toBe(200);
  return await answer.json();
}
// biome-ignore lint/suspicious/noExplicitAny: answers are compared as a whole
async function post(body: unknown, headers: Record<string, string> = {}, server = writable): Promise<[number, any]> {
  const json = { "Content-Type": "application/json" };
  const text = typeof body === "string" ? body : JSON.stringify(body);
  const init = { method: "POST", headers: { ...authorized, ...json, ...headers }, body: text };
  const answer = await fetch(at("labels", server), init);
  return [answer.status, await answer.json()];
}
const labels = (seen: string, edits: readonly object[], more: object = {}) => ({
  ...{ id: crypto.randomUUID(), author: "ada", image: "val/a.jpg", split: "val", seen, edits, ...more },
});
const add = { action: "add", category: "clot", box: [100, 10, 180, 90], score: 0.6 };

/** A training's address, which answers as it is told. */
async function startTraining(
  answer: (message: LabelMessage) => Promise<Answer>,
  predict?: LiveServerOptions["predict"],
) {
  const heard: LabelMessage[] = [];
  const submit = async ({ value }: Message) => {
    heard.push(value as LabelMessage);
    return await answer(value as LabelMessage);
  };
  const server = new LiveServer({ port: 0, token: "live", bus: new LiveBus(), submit, predict });
  await mkdir(join(run, "live"), { recursive: true });
  await writeLiveAddress(run, { url: server.url, token: "live", split: "train" });
  const end = async () => {
    await removeLiveAddress(run);
    await server[Symbol.asyncDispose]();
  };
  return { heard, server, [Symbol.asyncDispose]: end };
}

describe("an image", () => {
  test("is told with its boxes, and what the last evaluation found on it", async () => {
    const seen = await look("val/a.jpg", "val");
    expect(seen).toMatchObject({
      image: { key: "val/a.jpg", split: "val", width: 200, height: 100 },
      ...{ classes: ["cell", "clot"], into: "data set", seen: expect.stringMatching(/^[0-9a-f]{16}$/) },
      boxes: [{ box: [10, 20, 60, 80], label: 0, crowd: false, score: null, source: "imported" }],
      found: { iteration: 10 },
    });
    expect(seen.found.boxes).toHaveLength(3);
    expect(seen.found.boxes[1]).toEqual({ box: [100, 10, 180, 90], label: 1, score: 0.6 });
    const before = await get("annotations?image=val/a.jpg&split=val&iteration=5");
    expect(((await before.json()) as { found: { iteration: number } }).found.iteration).toBe(5);
    // Another split's image of that name has no samples.
    expect(await look("train/a.jpg", "train")).toMatchObject({ found: null, boxes: [{ label: 0 }] });
  });

  test("that is not there is named", async () => {
    for (const [path, status, message] of [
      ["annotations?image=val/z.jpg&split=val", 404, 'the data set has no "val/z.jpg" in "val"'],
      ["annotations?image=val/a.jpg&split=train", 404, 'the data set has no "val/a.jpg" in "train"'],
      ["annotations?split=val", 400, "image: expected a text"],
      ["images?boxes=few", 400, "boxes: expected any, none, some"],
    ] as const) {
      const answer = await get(path);
      expect([path, answer.status]).toEqual([path, status]);
      expect(((await answer.json()) as { error: string }).error).toContain(message);
    }
  });

  test("is found among the others, page by page", async () => {
    const list = async (query: string) => await (await get(`images?${query}`)).json();
    expect(await list("limit=2")).toEqual({
      ...{ split: "train", trainSplit: "train", splits: ["train", "val"], total: 3 },
      ...{ images: ["train/a.jpg", "train/b.jpg"], next: 2 },
    });
    expect(await list("limit=2&after=2")).toMatchObject({ images: ["train/c.jpg"], next: null });
    expect(await list("split=val&boxes=none")).toMatchObject({ images: ["val/b.jpg", "val/c.jpg"], total: 2 });
    expect(await list("split=val&boxes=some&text=A.j")).toMatchObject({ images: ["val/a.jpg"] });
    expect(await list("split=val&boxes=none&text=A.j")).toMatchObject({ images: [], total: 0 });
  });
});

describe("labels", () => {
  test("are written to the data set, as their author's work, and told as they are then", async () => {
    const { seen, boxes } = await look("val/a.jpg", "val");
    const edits = [add, { action: "change", id: boxes[0].id, box: [12, 22, 60, 80] }];
    const message = labels(seen, edits);
    const [status, answer] = await post(message);
    expect([status, answer.into]).toEqual([200, "data set"]);
    expect(answer.now).toEqual(await look("val/a.jpg", "val"));
    expect(answer.now.boxes).toMatchObject([
      { id: boxes[0].id, box: [12, 22, 60, 80], label: 0, author: "ada", source: "human" },
      { box: [100, 10, 180, 90], label: 1, score: 0.6, author: "ada", source: "human" },
    ]);
    // Sent again since its answer was lost, it changes nothing.
    expect(await post(message)).toEqual([200, answer]);
    const store = await openKeptStore(data);
    expect(store.changesSince(0).filter(({ author }) => author === "ada")).toHaveLength(2);
    store.close();
    const [, last] = answer.now.boxes;
    const removal = labels(answer.now.seen, [{ action: "delete", id: last.id }]);
    expect((await post(removal))[1].now.boxes).toHaveLength(1);
  });

  test("of an image that somebody else has changed are a conflict, told with what it has now", async () => {
    const { seen } = await look("val/b.jpg", "val");
    const image = { image: "val/b.jpg" };
    expect((await post(labels(seen, [add], image)))[0]).toBe(200);
    const [status, answer] = await post(labels(seen, [add], { ...image, author: "eve" }));
    expect(status).toBe(409);
    expect(answer.error).toContain(
      "val/b.jpg has been changed since it was looked at: boxes now: 1, the last one by ada",
    );
    expect(answer.now).toEqual(await look("val/b.jpg", "val"));
  });

  test("that are wrong are refused by name, and nothing is done", async () => {
    const { seen } = await look("val/c.jpg", "val");
    const image = { image: "val/c.jpg" };
    for (const [message, status, named] of [
      [labels(seen, [add, { ...add, category: "cat" }], image), 422, "edits[1].category"],
      [labels(seen, [add, { ...add, box: [300, 10, 400, 50] }], image), 422, "edits[1].box"],
      [labels(seen, [add, { ...add, box: [5, 5, 5, 50] }], image), 400, "edits[1].box"],
      [labels(seen, [add, { ...add, box: "all" }], image), 400, "edits[1].box"],
      [labels(seen, [add, { ...add, score: 2 }], image), 400, "edits[1].score"],
      [labels(seen, [add, { ...add, crowd: 1 }], image), 400, "edits[1].crowd"],
      [labels(seen, [add, { action: "paint" }], image), 400, "edits[1].action"],
      [labels(seen, [add, { action: "delete", id: 12345 }], image), 422, "edits[1].annotation_id"],
      [labels(seen, [add, { action: "delete" }], image), 400, "edits[1].id"],
      [labels(seen, [add, null as never], image), 400, "edits[1]"],
      [labels(seen, [add], { ...image, split: "test" }), 404, "image"],
      [labels(seen, [add], { ...image, author: 3 }), 400, "author"],
      [labels(seen, [add], { ...image, atOnce: "yes" }), 400, "atOnce"],
      [{ ...labels(seen, [], image), edits: 1 }, 400, "edits"],
      [{ ...labels(seen, [], image), seen: undefined }, 400, "seen"],
      ["{", 400, "body"],
      ["[]", 400, "body"],
    ] as const) {
      const [got, { error }] = await post(message);
      expect([named, got]).toEqual([named, status]);
      expect(error).toContain(named);
    }
    expect((await look("val/c.jpg", "val")).boxes).toEqual([]);
  });

  test("are taken from who has the token and a page of this address alone, and from no form", async () => {
    const { seen } = await look("val/c.jpg", "val");
    const message = labels(seen, [add], { image: "val/c.jpg" });
    expect((await post(message, { Authorization: "Bearer other" }))[0]).toBe(401);
    expect((await post(message, { Origin: "https://evil.example" }))[0]).toBe(403);
    expect((await post(message, { Origin: "null" }))[0]).toBe(403);
    expect((await post(message, { "Content-Type": "text/plain" }))[0]).toBe(415);
    expect((await fetch(at("labels"), { method: "PUT", headers: authorized, body: "{}" })).status).toBe(405);
    expect((await fetch(at("log"), { method: "POST", headers: authorized, body: "{}" })).status).toBe(404);
    expect((await post(" ".repeat(3 << 20)).catch(() => [413]))[0]).toBe(413);
    expect((await look("val/c.jpg", "val")).boxes).toEqual([]);
    expect((await post(message, { Origin: new URL(writable.url).origin }))[0]).toBe(200);
  });
});

describe("without --edit", () => {
  test("nothing is written, and what evaluations have alone can be looked at", async () => {
    expect(await post(labels("0", [add]), {}, readOnly)).toEqual([
      405,
      { error: "this address is for reading alone: --edit lets write" },
    ]);
    expect((await get("images", readOnly)).status).toBe(403);
    const answer = await get("annotations?image=val/a.jpg&split=val", readOnly);
    expect(await answer.json()).toMatchObject({
      ...{ image: { width: 200, height: 100 }, seen: null, into: null, classes: ["cell", "clot"] },
      ...{ boxes: [{ id: 41, box: [12, 22, 58, 82], label: 0, crowd: false }], found: { iteration: 10 } },
    });
    expect((await get("annotations?image=val/b.jpg&split=val", readOnly)).status).toBe(404);
    const runs = async (server: DashboardServer) =>
      ((await (await fetch(new URL("api/runs", server.url), { headers: authorized })).json()) as { edit: boolean })
        .edit;
    expect([await runs(readOnly), await runs(writable)]).toEqual([false, true]);
  });
});

describe("a training that goes on", () => {
  const train = { image: "train/a.jpg", split: "train" };

  test("is given the labels of its split, and its answer is told", async () => {
    await using training = await startTraining(async () => ({ accepted: true, from: 12 }));
    const { seen, into } = await look("train/a.jpg", "train");
    expect(into).toBe("training");
    const [status, answer] = await post(labels(seen, [add], { ...train, atOnce: true }));
    expect([status, answer.into, answer.from]).toEqual([200, "training", 12]);
    expect(training.heard).toMatchObject([
      { author: "ada", ...train, seen, atOnce: true, edits: [{ action: "add", category: "clot", score: 0.6 }] },
    ]);
    // What it is evaluated on is not its own.
    expect((await look("val/a.jpg", "val")).into).toBe("data set");
  });

  test("that refuses labels is heard", async () => {
    await using _ = await startTraining(async () => ({ accepted: false, reason: "the training has ended" }));
    const { seen } = await look("train/a.jpg", "train");
    expect(await post(labels(seen, [add], train))).toEqual([422, { error: "labels: the training has ended" }]);
  });

  test("that refuses labels since others came before is a conflict", async () => {
    const { seen } = await look("train/a.jpg", "train");
    const store = await openKeptStore(data);
    await using _ = await startTraining(async () => {
      const [{ id }] = store.annotationsOf(1) as AnnotationRecord[] as [AnnotationRecord];
      store.updateAnnotations([{ id, bbox: [1, 2, 3, 4] }], { source: "human", author: "eve" });
      return { accepted: false, reason: "seen: it is of other boxes" };
    });
    const [status, answer] = await post(labels(seen, [add], train));
    store.close();
    expect([status, answer.error, answer.now.boxes[0].author]).toEqual([
      409,
      "labels: seen: it is of other boxes",
      "eve",
    ]);
  });

  test("that takes its time is asked on, and takes the labels once", async () => {
    const evaluated = Promise.withResolvers<void>();
    await using training = await startTraining(async () => {
      await evaluated.promise;
      return { accepted: true, from: 3 };
    });
    using editor = new LabelEditor({ edit: true });
    const routes = new EditRoutes(editor, 5);
    const message = labels((await look("train/a.jpg", "train")).seen, [add], train);
    const send = () => {
      const headers = { "Content-Type": "application/json" };
      const request = new Request("http://x", { method: "POST", headers, body: JSON.stringify(message) });
      return routes.write(new RunView("cells-1", run), request);
    };
    const first = await send();
    expect([first.status, await first.json()]).toEqual([202, { waiting: true }]);
    expect((await send()).status).toBe(202);
    evaluated.resolve();
    let last = await send();
    while (last.status === 202) last = await send();
    expect(await last.json()).toMatchObject({ into: "training", from: 3 });
    expect(training.heard).toHaveLength(1);
  });

  test("that cannot be reached, has another token, or is of another machine is named; one that was killed is none", async () => {
    const { seen } = await look("train/b.jpg", "train");
    const b = { image: "train/b.jpg", split: "train" };
    const training = await startTraining(async () => ({ accepted: true, from: 1 }));
    const { url } = training.server;
    await writeLiveAddress(run, { url, token: "other", split: "train" });
    expect((await post(labels(seen, [add], b)))[1].error).toContain("wants another token");
    // Its token is the user's own, and this dashboard has another one.
    await writeLiveAddress(run, { url, split: "train" });
    expect((await post(labels(seen, [add], b)))[1].error).toContain("wants another token");
    await training.server[Symbol.asyncDispose]();
    const [status, { error }] = await post(labels(seen, [add], b));
    expect([status, error]).toEqual([502, expect.stringContaining(`${new URL(url).origin} cannot be reached`)]);
    const path = join(run, "live", "address.json");
    const stored = await Bun.file(path).json();
    await Bun.write(path, JSON.stringify({ ...stored, host: "elsewhere" }));
    expect((await post(labels(seen, [add], b)))[1].error).toContain("the training goes on at elsewhere");
    await Bun.write(path, "{}");
    expect((await post(labels(seen, [add], b)))[1].error).toContain("address.json: damaged");
    // No process has such a number.
    await Bun.write(path, JSON.stringify({ ...stored, pid: 2 ** 30 }));
    expect((await post(labels(seen, [add], b)))[1].into).toBe("data set");
    await removeLiveAddress(run);
  });

  test("leaves its address for its user alone, and for the time that it goes on", async () => {
    const training = await startTraining(async () => ({ accepted: true, from: 1 }));
    const path = join(run, "live", "address.json");
    expect((await stat(path)).mode & 0o777).toBe(0o600);
    expect(await findLiveAddress(run)).toEqual({ url: training.server.url, token: "live", split: "train" });
    await training[Symbol.asyncDispose]();
    expect(await findLiveAddress(run)).toBeNull();
  });
});

describe("predictions", () => {
  const found = { iteration: 12, boxes: [{ box: [1, 2, 3, 4], label: 1, score: 0.5 }] };
  const ask = async (path: string, server = writable) => {
    const answer = await get(`predictions?${path}`, server);
    return [answer.status, await answer.json()];
  };

  test("are the training's, of any split, where it goes on", async () => {
    const asked: string[][] = [];
    const accept = async (): Promise<Answer> => ({ accepted: true, from: 1 });
    await using _ = await startTraining(accept, async (...image) => {
      asked.push(image);
      return found;
    });
    expect((await look("val/b.jpg", "val")).predicts).toBe(true);
    expect(await ask("image=val/b.jpg&split=val")).toEqual([200, found]);
    expect(asked).toEqual([["val/b.jpg", "val"]]);
    expect(await ask("image=val/z.jpg&split=val")).toMatchObject([404, {}]);
    expect((await ask("image=val/b.jpg&split=val", readOnly))[0]).toBe(403);
  });

  test("are the kept weights' where it does not, and none where nothing makes them", async () => {
    expect((await look("val/b.jpg", "val")).predicts).toBe(false);
    expect((await ask("image=val/b.jpg&split=val"))[0]).toBe(404);
    const asked: [string, number][] = [];
    const predict: Predictor = async (path, bytes) => {
      asked.push([path, bytes.length]);
      return found;
    };
    await using server = await DashboardServer.open({
      folders: [join(root, "runs")],
      ...{ port: 0, token: "secret", edit: true, predict },
    });
    expect(await ask("image=val/b.jpg&split=val", server)).toEqual([200, found]);
    expect(asked).toEqual([[run, fakeJpeg(200, 100).length]]);
  });
});

test("a run whose data set is not known here, or not kept, is named", async () => {
  const other = await writeRun(join(root, "runs"), "other", 1);
  other.close();
  const ask = async () => {
    const path = "api/runs/other-1/annotations?image=a&split=val";
    const answer = await fetch(new URL(path, writable.url), { headers: authorized });
    return [answer.status, ((await answer.json()) as { error: string }).error];
  };
  expect(await ask()).toEqual([500, expect.stringContaining("config.json: data: expected a text")]);
  await mkdir(join(root, "empty"));
  await other.writeConfig({ data: join(root, "empty"), trainSplit: "train" });
  expect(await ask()).toEqual([500, expect.stringContaining("no annotations are kept of it here")]);
  await other.writeConfig({ data: join(root, "none"), trainSplit: "train" });
  expect(await ask()).toEqual([500, expect.stringContaining(join(root, "none"))]);
});
