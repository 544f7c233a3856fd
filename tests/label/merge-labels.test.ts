/** Labels that come back from a labeling tool: what is the same stays as it is, what is not becomes the work of who did it. */
import { describe, expect, test } from "bun:test";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { type AnnotationRecord, type ExportFormat, exportDataset, SQLiteAnnStore } from "../../lib/data";
import { addClasses, editsFor, importLabels, intoDataset, type MergeOptions, mergeLabels } from "../../lib/label";
import { inFolder, quiet } from "../data/fakes";
import { zipOf } from "../support/zip";

const DAY = 86_400_000;

/** Three images of two splits: boxes of a file, a person and a model, a crowd; one without. */
function filled(): SQLiteAnnStore {
  const store = new SQLiteAnnStore();
  store.addCategories([
    { id: 3, name: "cell", supercategory: "blood" },
    { id: 9, name: 'a "dust"', supercategory: null },
  ]);
  const image = (sourceId: number, fileName: string, folder: string) => ({
    ...{ sourceId, fileName, key: `${folder}/${fileName}`, width: 300, height: 200 },
  });
  const [first, second] = store.addImages("train", [
    image(31, "sub/1 ü.jpg", "train"),
    image(32, "2.jpg", "train"),
    image(40, "none.jpg", "train"),
  ]) as [number, number];
  store.addImages("val", [image(1, "2.jpg", "val")]);
  const box = (imageId: number, sourceId: number, bbox: readonly [number, number, number, number]) => ({
    ...{ imageId, sourceId, categoryId: 3, bbox, area: bbox[2] * bbox[3], isCrowd: false },
  });
  store.addAnnotations([
    {
      ...box(first, 501, [10.123456, 20, 30.3, 40]),
      area: 777.5,
      by: { source: "imported", author: "x.json", time: 5 },
    },
    { ...box(first, 502, [100, 50, 60, 70]), isCrowd: true, by: { source: "human", author: "ada", time: 6 } },
    { ...box(second, 777, [1, 2, 33, 44]), categoryId: 9, by: { source: "human", author: "ben", time: 7 } },
    { ...box(second, 778, [100, 100, 50, 50]), score: 0.5, by: { source: "model", author: "m1", time: 8 } },
  ]);
  return store;
}

const everything = (store: SQLiteAnnStore) => [
  store.categories(),
  store.images("train").map((image) => ({ image, boxes: store.annotationsOf(image.id) })),
  store.images("val").map((image) => ({ image, boxes: store.annotationsOf(image.id) })),
];

/** Writes a split, lets `change` do something to the file's text, and takes it back. */
async function roundTrip(
  format: ExportFormat,
  store: SQLiteAnnStore,
  change: (text: string) => string = (text) => text,
  options: Partial<MergeOptions> = {},
) {
  return await inFolder(async (folder) => {
    const path = join(folder, "labels");
    await exportDataset(store, format, path, { split: "train", progress: quiet });
    writeFileSync(path, change(readFileSync(path, "utf8")));
    using file = await importLabels(path, { progress: quiet });
    const explicit = { negatives: file.isExplicit, exact: file.isExplicit };
    const target = intoDataset({ store, classes: store.classes() });
    return await mergeLabels(store, file.store, file.inexact, { target, split: "train", ...explicit, ...options });
  });
}

describe("what comes back as it went", () => {
  test.each(["label-studio", "cvat", "cvat-xml"] as const)("changes nothing: %s", async (format) => {
    using store = filled();
    const before = everything(store);
    const last = store.lastChange();
    // CVAT rounds, and has no crowds but for the attribute.
    const rounded = (text: string) =>
      text.replace(/"iscrowd":1/g, '"iscrowd":0').replace(/(\d+\.\d{2})\d+/g, (_, short: string) => short);
    const report = await roundTrip(format, store, format === "label-studio" ? undefined : rounded);
    expect(report).toMatchObject({ changedImages: 0, added: 0, changed: 0, deleted: 0, refused: [] });
    expect([everything(store), store.lastChange()]).toEqual([before, last]);
  });
});

const named = (box: readonly number[], changes: object = {}) => ({
  ...{
    sourceId: 0,
    category: "cell",
    bbox: box as never,
    isCrowd: false,
    source: "human" as const,
    author: "eve",
    modified: DAY,
  },
  ...changes,
});
const own = (id: number, box: readonly number[], changes: object = {}) => ({
  ...{ id, ...named(box), sourceId: id },
  ...changes,
});

describe("edits", () => {
  test("are as few as lead from one to the other, and keep a box that was moved or relabelled", () => {
    const present = [
      own(1, [0, 0, 20, 20]),
      own(2, [50, 50, 20, 20]),
      own(3, [100, 0, 40, 40]),
      own(4, [100, 2, 40, 40], { category: "dust" }),
      own(5, [200, 100, 10, 10]),
      own(6, [0, 100, 10, 10], { isCrowd: true }),
    ];
    const given = [
      named([101, 1, 40, 40], { category: "dust" }),
      named([0.02, 0, 20, 20.01]),
      named([50, 50, 20, 20], { category: "dust" }),
      named([100, 1, 40, 41]),
      named([240, 100, 10, 10]),
      named([0, 100, 10, 10]),
    ];
    const { same, edits } = editsFor(present, given, { exact: true });
    expect([same, edits]).toEqual([
      1,
      [
        { action: "change", annotationId: 6, crowd: false },
        { action: "change", annotationId: 3, box: [100, 1, 140, 42] },
        { action: "change", annotationId: 4, box: [101, 1, 141, 41] },
        { action: "change", annotationId: 2, category: "dust" },
        { action: "add", category: "cell", box: [240, 100, 250, 110] },
        { action: "delete", annotationId: 5 },
      ],
    ]);
    expect(editsFor(present.slice(5), given.slice(5))).toEqual({ same: 1, edits: [], by: [] });
  });

  test("keep a box that was moved far where ids are kept, else it is another", () => {
    const [before, after] = [[own(1, [0, 0, 20, 20])], [named([100, 100, 20, 20], { sourceId: 1 })]];
    const change = { action: "change", annotationId: 1, box: [100, 100, 120, 120] } as const;
    expect(editsFor(before, after, { exact: true }).edits).toEqual([change]);
    expect(editsFor(before, after).edits.map(({ action }) => action)).toEqual(["add", "delete"]);
    // Also where the others lie where it was.
    const [others, left] = [[own(2, [0, 0, 20, 20])], [named([0, 0, 20, 20], { sourceId: 2 })]];
    const both = editsFor([...before, ...others], [...after, ...left], { exact: true });
    expect(both).toMatchObject({ same: 1, edits: [change] });
  });

  test("of two equal boxes leave one, where one is given", () => {
    const twins = [own(1, [0, 0, 20, 20]), own(2, [0, 0, 20, 20])];
    expect(editsFor(twins, [named([0, 0, 20, 20])]).edits).toEqual([{ action: "delete", annotationId: 2 }]);
    expect(editsFor(twins, twins)).toMatchObject({ same: 2, edits: [] });
  });

  test("accept what a model proposed, and reject it where a person changed the image or left none", () => {
    const proposal = own(1, [0, 0, 20, 20], { source: "model", author: "m1" });
    const beside = own(2, [50, 50, 20, 20]);
    const accepted = editsFor([proposal], [named([0, 0, 20, 20])]);
    expect(accepted).toMatchObject({
      same: 0,
      edits: [{ action: "change", annotationId: 1 }],
      by: [{ author: "eve" }],
    });
    expect(editsFor([proposal, beside], [beside]).edits).toEqual([]);
    expect(editsFor([proposal, beside], [named([55, 50, 20, 20])]).edits.map(({ action }) => action)).toEqual([
      "change",
      "delete",
    ]);
    expect(editsFor([proposal], []).edits).toEqual([{ action: "delete", annotationId: 1 }]);
  });
});

/** Label Studio's tasks of filled(), as somebody has changed them. */
const inStudio = (change: (tasks: Task[]) => void) => (text: string) => {
  const tasks = JSON.parse(text) as Task[];
  change(tasks);
  return JSON.stringify(tasks);
};
interface Task {
  data: { image: string };
  meta: object;
  annotations: { result: Region[]; completed_by?: object; updated_at?: string }[];
  predictions: { result: Region[] }[];
}
interface Region {
  id: string;
  type: string;
  value: { x: number; rotation: number; rectanglelabels: string[] };
}

describe("what was changed in Label Studio", () => {
  test("is its annotator's work from then on, and the rest stays whose it was", async () => {
    using store = filled();
    const change = inStudio(([first, second, none]) => {
      const by = { completed_by: { email: "eve@x.org" }, updated_at: new Date(DAY).toISOString() };
      for (const task of [first!, second!, none!]) Object.assign(task.annotations[0]!, by);
      first!.annotations[0]!.result[0]!.value.x += 10;
      second!.annotations[0]!.result.push(...second!.predictions[0]!.result);
      none!.annotations[0]!.result.push({ ...first!.annotations[0]!.result[0]!, id: "new" });
      // An upload loses the image's name, but not what the task keeps.
      first!.data.image = "/data/upload/3/0a1b2c3d-1__.jpg";
    });
    const report = await roundTrip("label-studio", store, change);
    expect(report).toMatchObject({
      images: 3,
      changedImages: 3,
      same: 2,
      added: 1,
      changed: 2,
      deleted: 0,
      refused: [],
    });
    const boxes = store.images("train").map(({ id }) => store.annotationsOf(id)) as AnnotationRecord[][];
    const eves = { source: "human", author: "eve@x.org", modified: DAY };
    expect(boxes).toMatchObject([
      [
        { sourceId: 501, ...eves, bbox: [expect.closeTo(40.123456), 20, expect.closeTo(30.3), 40] },
        { sourceId: 502, author: "ada", modified: 6, isCrowd: true },
      ],
      [
        { sourceId: 777, author: "ben", modified: 7 },
        { sourceId: 778, ...eves, score: 0.5, bbox: [100, 100, 50, 50] },
      ],
      [eves],
    ]);
  });

  test("takes all boxes away where an annotation is empty; where nobody annotated nothing is changed", async () => {
    using store = filled();
    const change = inStudio(([first, second]) => {
      first!.annotations[0]!.result = [];
      second!.annotations = [];
    });
    expect(await roundTrip("label-studio", store, change)).toMatchObject({
      images: 2,
      deleted: 2,
      changed: 0,
      kept: 0,
    });
    expect(store.images("train").map(({ id }) => store.annotationsOf(id).length)).toEqual([0, 2, 0]);
  });

  test("is refused by name, image by image, where boxes cannot say it; nothing of these images changes", async () => {
    using store = filled();
    const before = everything(store);
    const change = inStudio((tasks) => {
      const [first, second, none] = tasks as [Task, Task, Task];
      const [region] = first.annotations[0]!.result as [Region];
      first.annotations[0]!.result.push({ ...region, id: "r", value: { ...region.value, rotation: 30 } });
      second.annotations[0]!.result = [{ ...region, type: "polygonlabels" }];
      const moth = { ...region, id: "r", value: { ...region.value, rectanglelabels: ["moth"] } };
      none.annotations[0]!.result = [moth];
      tasks.push(
        { ...none, data: { image: "gs://elsewhere/7.jpg" }, meta: {} },
        { ...none, meta: {}, data: { image: "none.jpg" } },
      );
    });
    const report = await roundTrip("label-studio", store, change);
    expect(report.refused).toEqual([
      {
        image: "sub/1 ü.jpg",
        reason: "[0].annotations[0].result[2].value.rotation: expected 0, got 30: boxes are upright",
      },
      { image: "2.jpg", reason: '[1].annotations[0].result[0].type: expected "rectanglelabels", got "polygonlabels"' },
      { image: "none.jpg", reason: 'edits[0].category: "moth" is none of the 2 classes: cell, a "dust"' },
      { image: "7.jpg", reason: "the data set has no such image" },
    ]);
    expect([report.changedImages, everything(store)]).toEqual([0, before]);
  });
});

describe("what was changed in CVAT", () => {
  test.each([
    [
      "cvat",
      (text: string) =>
        text.replace('"rotation":0', '"rotation":0').replace('{"occluded":false', '{"rotation":12.5,"occluded":false'),
    ],
    ["cvat-xml", (text: string) => text.replace("<box ", '<box rotation="12.5" ')],
  ] as const)("is refused where a box is turned: %s", async (format, turn) => {
    using store = filled();
    const { refused, images } = await roundTrip(format, store, turn);
    expect(images).toBe(2);
    expect(refused).toEqual([
      { image: "sub/1 ü.jpg", reason: expect.stringMatching(/rotation: expected 0, got 12.5: boxes are upright$/) },
    ]);
  });

  test.each([
    ["cvat", (text: string) => text.replace(/"annotations": \[[\s\S]*\n\]/, '"annotations": []')],
    ["cvat-xml", (text: string) => text.replace(/<box [\s\S]*?(<\/box>|\/>)/g, "")],
  ] as const)(
    "leaves boxes where an image has none, unless it is said to have been looked at: %s",
    async (format, empty) => {
      using store = filled();
      const options = { author: "carl" };
      expect(await roundTrip(format, store, empty, options)).toMatchObject({ images: 3, kept: 2, deleted: 0 });
      expect(await roundTrip(format, store, empty, { ...options, negatives: true })).toMatchObject({
        kept: 0,
        deleted: 4,
      });
      const deleted = store.changesSince(0).filter(({ action }) => action === "delete");
      expect(deleted.map(({ source, author }) => [source, author])).toEqual(Array(4).fill(["human", "carl"]));
    },
  );
});

test("CVAT's archives are taken as they are: its labels of each subset, and nothing else in them", async () => {
  await inFolder(async (folder) => {
    const file = (id: number, name: string) => {
      const images = [{ id: 1, file_name: name, width: 300, height: 200 }];
      const annotations = [{ id, image_id: 1, category_id: 1, bbox: [1, 2, 30, 40], area: 1200, iscrowd: 0 }];
      return JSON.stringify({ images, annotations, categories: [{ id: 1, name: "cell" }], licenses: [], info: {} });
    };
    const path = join(folder, "task.zip");
    const turned = file(2, "b.jpg").replace(
      '"iscrowd":0',
      '"iscrowd":0,"attributes":{"rotation":20.0,"occluded":false}',
    );
    const files = {
      "annotations/instances_a.json": file(1, "a.jpg"),
      "annotations/instances_b.json": turned,
      "images/a/a.json": "{",
    };
    writeFileSync(path, zipOf(files));
    using labels = await importLabels(path, { progress: quiet });
    const images = labels.store.findImages({});
    expect(images.map(({ fileName }) => fileName)).toEqual(["a.jpg", "b.jpg"]);
    expect([...labels.inexact]).toEqual([
      [images[1]!.id, "annotations[0].attributes.rotation: expected 0, got 20: boxes are upright"],
    ]);
    expect(labels.isExplicit).toBe(false);
    writeFileSync(path, zipOf({ "readme.txt": "nothing" }));
    await expect(importLabels(path, { progress: quiet })).rejects.toThrow(
      "expected annotations/*.json or annotations.xml in it",
    );
  });
});

test("new classes get new ids; a try says what is refused, and changes nothing", async () => {
  using store = filled();
  using given = new SQLiteAnnStore();
  given.addCategories([
    { id: 1, name: "moth", supercategory: "insect" },
    { id: 2, name: "cell", supercategory: null },
  ]);
  const [id] = given.addImages("x", [
    { sourceId: 1, fileName: "none.jpg", key: "none.jpg", width: null, height: null },
  ]);
  const box = {
    sourceId: 1,
    imageId: id as number,
    categoryId: 1,
    bbox: [1, 2, 3, 4],
    area: 12,
    isCrowd: false,
  } as const;
  given.addAnnotations([box]);
  const before = everything(store);
  const attempt = () => {
    const target = intoDataset({ store, classes: store.classes() }, { undo: true });
    return mergeLabels(store, given, new Map(), { target });
  };
  expect((await attempt()).refused.length).toBe(1);
  expect(addClasses(store, given)).toEqual(["moth"]);
  expect(store.categories().at(-1)).toEqual({ id: 10, name: "moth", supercategory: "insect" });
  expect(await attempt()).toMatchObject({ added: 1, refused: [] });
  expect(everything(store).slice(1)).toEqual(before.slice(1));
});

test("an image that somebody changes meanwhile keeps that, and is named", async () => {
  using store = filled();
  const into = intoDataset({ store, classes: store.classes() });
  const target: typeof into = async (message) => {
    store.updateAnnotations([{ id: 1, bbox: [0, 0, 5, 5] }], { source: "human", author: "zoe" });
    await into(message);
  };
  const change = inStudio(([first]) => {
    first!.annotations[0]!.result[0]!.value.x += 10;
  });
  const { refused, changedImages } = await roundTrip("label-studio", store, change, { target });
  expect([changedImages, refused]).toEqual([
    0,
    [
      {
        image: "sub/1 ü.jpg",
        reason: "seen: train/sub/1 ü.jpg has been changed since it was looked at: boxes now: 2, the last one by zoe",
      },
    ],
  ]);
  expect(store.annotationsOf(1)[0]).toMatchObject({ bbox: [0, 0, 5, 5], author: "zoe" });
});

test("a name that several splits have is nobody's, unless the split is said", async () => {
  using store = filled();
  const change = inStudio((tasks) => tasks.splice(0, 3, { ...tasks[1]!, annotations: [{ result: [] }] }));
  const without = await roundTrip("label-studio", store, change, { split: undefined });
  expect(without.refused).toEqual([
    { image: "2.jpg", reason: 'several images are called "2.jpg": say which split is meant' },
  ]);
  expect(await roundTrip("label-studio", store, change)).toMatchObject({ deleted: 2, refused: [] });
});

test("files that are nobody's labels are named", async () => {
  await inFolder(async (folder) => {
    const reading = (name: string, text: string) => {
      mkdirSync(dirname(join(folder, name)), { recursive: true });
      writeFileSync(join(folder, name), text);
      return importLabels(join(folder, name), { progress: quiet });
    };
    await expect(reading("a.txt", "hello")).rejects.toThrow(
      "Label Studio's or CVAT's labels, got a file that begins with \"h\"",
    );
    await expect(reading("b.json", "")).rejects.toThrow("got nothing");
    await expect(importLabels(join(folder, "none.json"))).rejects.toThrow("there is none");
    await expect(reading("c.xml", "<annotations><track/></annotations>")).rejects.toThrow(
      "annotations.track: expected images",
    );
    await expect(reading("d.xml", "<annotations/>")).rejects.toThrow("annotations.image: missing");
    const box =
      '<annotations><image id="1" name="a" width="2" height="2"><box label="x" xtl="z"/></image></annotations>';
    await expect(reading("e.xml", box)).rejects.toThrow('annotations.image[0].box[0].xtl: expected a number, got "z"');
    await expect(reading("f.zip", "no archive")).rejects.toThrow("f.zip");
  });
});
