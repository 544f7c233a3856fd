/** What the dashboard says of evaluations: curves, confusion, histograms, which images, and their files. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DashboardServer } from "../../lib/dashboard";
import type { SampleMessage } from "../../lib/formats";
import { writeLiveFile } from "../../lib/live";
import { RunFolder } from "../../lib/monitor";
import { sampleOf, writeSamples } from "./run-fixture";

type Row = [box: number[], label: number, score?: number];
let place = 0;
/** An image with what was found (with scores) and what is known. */
function image(name: string, found: Row[], truth: Row[], loss = 0, crowd = 0): SampleMessage {
  const boxes = (rows: Row[]) => rows.flatMap(([box]) => box);
  return {
    ...{ iteration: 20, time: 1, split: "val", loss },
    predictions: {
      ...{ name, imageId: ++place, width: 100, height: 100 },
      boxes: Float32Array.from(boxes(found)),
      scores: Float32Array.from(found, ([, , score]) => score as number),
      labels: Uint32Array.from(found, ([, label]) => label),
    },
    truth: {
      boxes: Float64Array.from(boxes(truth)),
      labels: Uint32Array.from(truth, ([, label]) => label),
      ids: Float64Array.from(truth, (_, i) => i),
      crowd: Uint8Array.from(truth, () => crowd),
    },
  };
}
const A = [0, 0, 10, 10];
const B = [20, 20, 60, 60];
/** Of class 0: one found, one missed; of class 1: taken for class 0; and something where nothing is. */
const IMAGES = [
  image("val/right.jpg", [[A, 0, 0.9]], [[A, 0]], 0.1),
  image("val/missed.jpg", [], [[A, 0]], 4.6),
  image("val/confused.jpg", [[B, 0, 0.8]], [[B, 1]], 6.2),
  image("val/nothing.jpg", [[B, 1, 0.4]], [], 0.5),
  image("val/crowd.jpg", [], [[B, 1]], 0, 1),
];
const JPEG = Uint8Array.of(0xff, 0xd8, 0xff, 0xe0, 1, 2, 3);

let root: string;
let server: DashboardServer;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "dlfs-evaluations-"));
  const data = join(root, "data");
  await mkdir(join(data, "val"), { recursive: true });
  await Bun.write(join(data, "val", "right.jpg"), JPEG);
  await Bun.write(join(data, "secret.json"), "{}");
  const run = await RunFolder.create({ name: "cells", root });
  await run.writeConfig({ data, classes: ["cell", "clot"] });
  await mkdir(run.evaluationsFolder);
  const write = (iteration: number, images: SampleMessage[]) =>
    writeLiveFile(
      run.evaluationPath(iteration),
      images.map((value) => ({ type: "sample", value: { ...value, iteration } })),
    );
  await write(10, IMAGES.slice(0, 1));
  await write(20, IMAGES);
  await Bun.write(join(run.evaluationsFolder, "evaluation-00000030.dlvs.tmp"), "half");
  await writeSamples(run.path, [sampleOf(5, "val/gone.jpg", JPEG), sampleOf(20, "val/right.jpg", JPEG)]);
  run.close();
  server = await DashboardServer.open({ folders: [root], port: 0, token: "secret" });
});
afterAll(async () => {
  await server[Symbol.asyncDispose]();
  await rm(root, { recursive: true });
});

const ask = (path: string) =>
  fetch(new URL(`api/runs/cells-1/${path}`, server.url), { headers: { Authorization: "Bearer secret" } });
// biome-ignore lint/suspicious/noExplicitAny: answers are compared as a whole
const get = async (path: string): Promise<any> => await (await ask(`evaluations${path}`)).json();
const namesOf = async (query: string): Promise<string[]> =>
  (await get(`/20/images?${query}`)).images.map(({ name }: { name: string }) => name.slice(4, -4));

test("are listed, those of which only samples were kept too", async () => {
  expect(await get("")).toEqual({
    evaluations: [
      { iteration: 5, whole: false, version: expect.any(String) },
      { iteration: 10, whole: true, version: expect.any(String) },
      { iteration: 20, whole: true, version: expect.any(String) },
    ],
  });
  expect(await get("/latest")).toEqual({ iteration: 20, classes: ["cell", "clot"], images: 5, truth: 4, found: 3 });
  expect((await get("/5")).images).toBe(1);
  expect((await ask("evaluations/30")).status).toBe(404);
  expect((await ask("evaluations/x")).status).toBe(404);
});

test("that are damaged are refused by their file's name, and the others are there", async () => {
  const path = join(root, "cells-1", "evaluations", "evaluation-00000040.dlvs");
  const bytes = await Bun.file(path.replace("40", "20")).bytes();
  bytes[bytes.length - 20]! ^= 1;
  await Bun.write(path, bytes);
  const answer = await ask("evaluations/40");
  expect([answer.status, await answer.text()]).toEqual([500, expect.stringContaining("evaluation-00000040.dlvs")]);
  expect((await ask("evaluations/20")).status).toBe(200);
  await rm(path);
  expect((await ask("evaluations/40")).status).toBe(404);
});

describe("curves", () => {
  test("of classes in short, and of one in full", async () => {
    const { classes, points } = await get("/20/curves?class=0");
    // The one right detection is the best of two; one of two objects is found.
    expect(classes[0]).toEqual({
      ...{ name: "cell", objects: 2, AP: expect.closeTo(51 / 101, 5) },
      best: { score: expect.closeTo(0.9, 5), precision: 1, recall: 0.5, f1: expect.closeTo(2 / 3, 5) },
    });
    expect(classes[1]).toMatchObject({ name: "clot", objects: 1, AP: 0 });
    expect(points).toEqual({
      score: [expect.closeTo(0.9, 5), expect.closeTo(0.8, 5)],
      ...{ precision: [1, 0.5], recall: [0.5, 0.5], f1: [expect.closeTo(2 / 3, 5), 0.5] },
    });
  });

  test("of the mean are precision at recall levels", async () => {
    const { mean, points } = await get("/20/curves");
    expect(mean.AP).toBeCloseTo(51 / 202, 5);
    expect(points.recall).toHaveLength(101);
    expect([points.precision[50], points.precision[51]]).toEqual([0.5, 0]);
  });

  test("refuse what makes no sense by its name", async () => {
    for (const [query, field] of [
      ["iou=2", "iou"],
      ["class=2", "class"],
    ]) {
      const answer = await ask(`evaluations/20/curves?${query}`);
      expect([answer.status, ((await answer.json()) as { error: string }).error]).toEqual([
        400,
        expect.stringContaining(`${field}: expected`),
      ]);
    }
  });
});

describe("confusion", () => {
  test("counts who is taken for whom", async () => {
    const { classes, cells } = await get("/20/confusion");
    expect(classes).toEqual(["cell", "clot"]);
    expect(cells).toEqual([
      [0, 0, 1],
      [0, 2, 1],
      [1, 0, 1],
      [2, 1, 1],
    ]);
  });

  test("leaves out what is below the score", async () => {
    expect((await get("/20/confusion?score=0.5")).cells).not.toContainEqual([2, 1, 1]);
  });

  test("leads to the images of each place", async () => {
    expect(await namesOf("row=1&column=0")).toEqual(["confused"]);
    expect(await namesOf("row=0&column=2")).toEqual(["missed"]);
    expect(await namesOf("row=1&column=1")).toEqual([]);
    expect(await namesOf("row=2&column=1&score=0.5")).toEqual([]);
  });
});

test("what makes no sense is refused, and nothing breaks", async () => {
  const refused = [
    "confusion?score=2",
    "confusion?iou=1",
    "histograms?class=9",
    "histograms?class=-1",
    "histograms?score=x",
  ];
  refused.push(
    "images?count=1000",
    "images?from=-1",
    "images?row=3&column=0",
    "images?row=0&column=7",
    "images?sort=name",
  );
  for (const path of refused) expect([path, (await ask(`evaluations/20/${path}`)).status]).toEqual([path, 400]);
  const missing = [
    "20/images/-1/image",
    "20/images/x/image",
    "20/nothing",
    "20/images/0",
    "1e400",
    "5.5",
    "..%2f20",
    "",
  ];
  for (const path of missing) expect([path, (await ask(`evaluations/${path}`)).status]).toEqual([path, 404]);
});

test("histograms count boxes by class and size, crowds apart", async () => {
  const { classes, sizes } = await get("/20/histograms?score=0.5");
  expect(classes).toEqual({ truth: [2, 1], found: [2, 0] });
  const at = (side: number) => sizes.edges.findLastIndex((edge: number) => edge <= side);
  expect([sizes.truth[at(10)], sizes.truth[at(40)], sizes.found[at(40)]]).toEqual([2, 1, 1]);
  const clots = (await get("/20/histograms?score=0&class=1")).sizes;
  expect([clots.truth[at(10)], clots.truth[at(40)], clots.found[at(40)]]).toEqual([0, 1, 1]);
});

describe("images", () => {
  test("come hardest first, and by their places", async () => {
    const { total, images } = await get("/20/images?from=1&count=2");
    expect(total).toBe(5);
    expect(images.map(({ index, name }: { index: number; name: string }) => [index, name])).toEqual([
      [1, "val/missed.jpg"],
      [3, "val/nothing.jpg"],
    ]);
    expect(images[0]).toMatchObject({ loss: 4.6, split: "val", truth: [{ box: A, label: 0, id: 0, crowd: false }] });
    const found = async (score: number) => (await get(`/20/images?text=nothing&score=${score}`)).images[0].found;
    expect([await found(0.3), await found(0.5)]).toEqual([[{ box: B, score: 0.4, label: 1 }], []]);
    expect(await namesOf("sort=data")).toEqual(["right", "missed", "confused", "nothing", "crowd"]);
  });

  test("are those with a class, from a score on, and of a name", async () => {
    expect(await namesOf("class=1&sort=data")).toEqual(["confused", "nothing", "crowd"]);
    expect(await namesOf("class=1&sort=data&score=0.5")).toEqual(["confused", "crowd"]);
    expect(await namesOf("text=RIGHT")).toEqual(["right"]);
  });

  test("have their files, or what --live kept of them", async () => {
    const answer = await ask("evaluations/20/images/0/image");
    expect(answer.headers.get("content-type")).toBe("image/jpeg");
    expect(await answer.bytes()).toEqual(JPEG);
    const kept = await ask("evaluations/5/images/0/image");
    expect([kept.status, kept.headers.get("content-type")]).toEqual([200, "image/jpeg"]);
    expect((await ask("evaluations/20/images/1/image")).status).toBe(404);
    expect((await ask("evaluations/20/images/9/image")).status).toBe(404);
    expect(await (await ask("image?key=val/right.jpg")).bytes()).toEqual(JPEG);
  });

  test("are not what is no image, nor what lies outside of the data", async () => {
    for (const key of ["secret.json", "../cells-1/config.json", "/etc/hostname", "val", ""]) {
      expect((await ask(`image?key=${encodeURIComponent(key)}`)).status).toBe(404);
    }
  });
});
