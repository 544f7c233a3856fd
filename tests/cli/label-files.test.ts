/** dlfs label export and import: to a tool and back, of a store and of a data set without any boxes yet. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SQLiteAnnStore } from "../../lib/data";
import { parseLabelConfig } from "../../lib/label";
import { runDlfs } from "../support/run-dlfs";
import { tinyJpeg } from "../support/tiny-model";

const folder = mkdtempSync(join(tmpdir(), "dlfs-cli-label-files-"));
afterAll(() => rmSync(folder, { recursive: true }));

const label = (...args: string[]) => runDlfs(["label", ...args], { env: { DLFS_CACHE: join(folder, "cache") } });

test("a store's labels go to Label Studio and CVAT with what their tasks are set up with, and come back changed", async () => {
  const path = join(folder, "store.sqlite");
  {
    using store = new SQLiteAnnStore(path);
    store.addCategories([{ id: 4, name: "a & b", supercategory: null }]);
    const image = { sourceId: 1, fileName: "1.jpg", key: "x/1.jpg", width: 100, height: 100 };
    const [imageId] = store.addImages("x", [image]) as [number];
    store.addAnnotations([{ sourceId: 8, imageId, categoryId: 4, bbox: [1, 2, 30, 40], area: 1200, isCrowd: false }]);
  }
  const at = ["--store", path, "--split", "x"];
  const tasks = join(folder, "tasks.json");
  const [studio, cvat] = await Promise.all([
    label("export", ...at, "--format", "label-studio", "--out", tasks, "--image-prefix", "/data/local-files/?d="),
    label("export", ...at, "--format", "cvat-xml", "--out", join(folder, "cvat.xml")),
  ]);
  expect([studio.exitCode, studio.stdout, cvat.exitCode]).toEqual([
    0,
    `x: 1 images, 1 boxes\nwritten: ${tasks}\nwritten: ${tasks}.labels.xml\n`,
    0,
  ]);
  const config = parseLabelConfig(readFileSync(`${tasks}.labels.xml`, "utf8"));
  expect(config).toEqual({ fromName: "label", toName: "image", field: "image", labels: ["a & b"] });
  const [setup] = JSON.parse(readFileSync(join(folder, "cvat.xml.labels.json"), "utf8"));
  expect(setup).toMatchObject({ name: "a & b", attributes: [{ name: "crowd", input_type: "checkbox" }] });

  const [task] = JSON.parse(readFileSync(tasks, "utf8"));
  expect(task.data.image).toBe("/data/local-files/?d=1.jpg");
  task.annotations[0].result[0].value.x = 5;
  const turned = structuredClone(task);
  turned.data.image = turned.meta.dlfs.file = "2.jpg";
  turned.annotations[0].result[0].value.rotation = 1;
  await Bun.write(tasks, JSON.stringify([task, turned]));
  const expected = (would: string) => [
    `1 images compared, 1${would} changed in ${path}`,
    "boxes: 0 as they were, 0 added, 1 changed, 0 deleted",
    "refused, 1 images:",
    "  2.jpg: [1].annotations[0].result[0].value.rotation: expected 0, got 1: boxes are upright",
  ];
  const dry = await label("import", tasks, ...at, "--dry-run");
  const real = await label("import", tasks, ...at, "--author", "ada");
  expect([dry.exitCode, dry.stdout.trimEnd().split("\n").slice(-4)]).toEqual([1, expected(" would be")]);
  expect([real.exitCode, real.stdout.trimEnd().split("\n").slice(-4)]).toEqual([1, expected("")]);
  using store = new SQLiteAnnStore(path);
  expect(store.annotationsOf(1)).toMatchObject([{ id: 1, sourceId: 8, bbox: [5, 2, 30, 40], author: "ada" }]);
}, 60_000);

test("a data set without boxes gets its first ones, which a training will find", async () => {
  const data = join(folder, "data");
  const images = [{ id: 1, file_name: "1.jpg", width: 120, height: 80 }];
  const content = { images, categories: [{ id: 1, name: "cell" }], annotations: [] };
  await Bun.write(join(data, "annotations", "instances_train.json"), JSON.stringify(content));
  await Bun.write(join(data, "train", "1.jpg"), tinyJpeg(120, 80, 3));
  const box = { id: 1, image_id: 1, category_id: 2, bbox: [10, 20, 30, 40], area: 1200, iscrowd: 0 };
  const labels = join(folder, "instances_default.json");
  const categories = [...content.categories, { id: 2, name: "dust" }];
  await Bun.write(labels, JSON.stringify({ images, categories, annotations: [box] }));
  const at = ["--data", data, "--split", "train"];
  const refused = await label("import", labels, ...at);
  expect([refused.exitCode, refused.stdout]).toEqual([
    1,
    expect.stringContaining('"dust" is none of the 1 classes: cell'),
  ]);
  const taken = await label("import", labels, ...at, "--add-classes");
  expect([taken.exitCode, taken.stdout]).toEqual([
    0,
    expect.stringContaining("new class: dust\n1 images compared, 1 changed"),
  ]);
  const again = await label("import", labels, ...at);
  expect([again.exitCode, again.stdout]).toEqual([
    0,
    expect.stringContaining("boxes: 1 as they were, 0 added, 0 changed"),
  ]);
}, 60_000);

test("are called wrongly", async () => {
  for (const [args, expected] of [
    [["import"], "expected one FILE"],
    [["import", "x.json"], "expected --data, a data set, or --store"],
    [["import", "x.json", "--store", join(folder, "none")], "--store: no such file"],
    [["export", "--split", "x", "--out", "y"], "expected --format: label-studio, cvat, cvat-xml"],
    [["export", "--split", "x", "--out", "y", "--format", "voc"], "--format: expected one of label-studio"],
  ] as const) {
    const { exitCode, stderr } = await label(...args);
    expect([exitCode, stderr]).toEqual([2, expect.stringContaining(expected)]);
  }
}, 60_000);
