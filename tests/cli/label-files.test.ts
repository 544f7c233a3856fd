/** dlfs label export, import, push and pull: to a tool and back, of a store and of a data set without any boxes yet. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SQLiteAnnStore } from "../../lib/data";
import { parseLabelConfig } from "../../lib/label";
import { FakeLabelStudio, LEGACY_TOKEN } from "../support/fake-label-studio";
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
  const coco = join(folder, "corrected.json");
  await label("export", ...at, "--format", "coco", "--out", coco);
  expect(JSON.parse(readFileSync(coco, "utf8"))).toMatchObject({
    images: [{ id: 1 }],
    annotations: [{ id: 1, category_id: 2 }],
  });
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
    [["export", "--split", "x", "--out", "y"], "expected --format: label-studio, cvat, cvat-xml, coco"],
    [["export", "--split", "x", "--out", "y", "--format", "voc"], "--format: expected one of label-studio"],
  ] as const) {
    const { exitCode, stderr } = await label(...args);
    expect([exitCode, stderr]).toEqual([2, expect.stringContaining(expected)]);
  }
}, 60_000);

test("push and pull take a store's images to a project of Label Studio that they make, and its labels back", async () => {
  using studio = new FakeLabelStudio();
  const path = join(folder, "pushed.sqlite");
  {
    using store = new SQLiteAnnStore(path);
    store.addCategories([{ id: 1, name: "cell", supercategory: null }]);
    const images = [1, 2].map((id) => ({
      sourceId: id,
      fileName: `${id}.jpg`,
      key: `x/${id}.jpg`,
      width: 100,
      height: 50,
    }));
    store.addImages("x", images);
    store.setMetadata("images", folder);
  }
  await Bun.write(join(folder, "x", "2.jpg"), "an image");
  const list = join(folder, "next.jsonl");
  await Bun.write(list, `{"image": "x/2.jpg"}\n`);
  const env = { LABEL_STUDIO_URL: studio.url, LABEL_STUDIO_API_KEY: LEGACY_TOKEN };
  const at = ["--store", path, "--split", "x", "--title", "mine"];
  const pushed = await runDlfs(["label", "push", ...at, "--list", list, "--upload"], { env });
  expect([pushed.exitCode, pushed.stdout]).toEqual([
    0,
    "project 2: mine\n1 tasks added, 0 annotations, 0 predictions; 0 were there\n",
  ]);
  const [task] = studio.tasks;
  expect([task!.data, studio.uploads]).toEqual([
    { image: "/data/upload/1/0a1b2c3d-2.jpg" },
    [{ name: "2.jpg", bytes: 8 }],
  ]);
  const region = {
    id: "r",
    from_name: "label",
    to_name: "image",
    type: "rectanglelabels",
    original_width: 100,
    original_height: 50,
  };
  const value = { x: 10, y: 20, width: 30, height: 40, rotation: 0, rectanglelabels: ["cell"] };
  task!.annotations.push({
    id: 9,
    completed_by: 2,
    updated_at: "2026-01-02T03:04:05Z",
    result: [{ ...region, value }],
  });
  const pulled = await runDlfs(["label", "pull", ...at], { env });
  expect([pulled.exitCode, pulled.stdout]).toEqual([
    0,
    `project 2: mine, 1 of 1 tasks annotated\n1 images compared, 1 changed in ${path}\nboxes: 0 as they were, 1 added, 0 changed, 0 deleted\n`,
  ]);
  using store = new SQLiteAnnStore(path);
  expect(store.annotationsOf(2)).toMatchObject([{ bbox: [10, 10, 30, 20], author: "eve@x.org" }]);
  for (const [args, expected, more] of [
    [["push", ...at.slice(0, 4)], "expected --project, a number, or --title", {}],
    [["push", ...at, "--list", join(folder, "none")], "--list: ENOENT", {}],
    [["pull", "--store", path, "--project", "1"], "expected LABEL_STUDIO_API_KEY", { LABEL_STUDIO_API_KEY: "" }],
  ] as const) {
    const { exitCode, stderr } = await runDlfs(["label", ...args], { env: { ...env, ...more } });
    expect([exitCode, stderr]).toEqual([2, expect.stringContaining(expected)]);
  }
}, 60_000);
