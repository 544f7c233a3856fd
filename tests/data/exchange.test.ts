import { describe, expect, test } from "bun:test";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import type { AnnotationRecord } from "../../lib/data/annotation-store";
import {
  type ExportFormat,
  exportDataset,
  type ImportFormat,
  importDataset,
  importLabelStudio,
  importYolo,
} from "../../lib/data/exchange";
import { SQLiteAnnStore } from "../../lib/data/sqlite-ann-store";
import { failure, inFolder, quiet } from "./fakes";

/** Two images with boxes of people, files and a model, one without; names that formats have to escape. */
function filled(): SQLiteAnnStore {
  const store = new SQLiteAnnStore();
  store.addCategories([
    { id: 3, name: "traffic light", supercategory: "outdoor" },
    { id: 7, name: 'a "b", <c> & d', supercategory: null },
  ]);
  const image = (sourceId: number, fileName: string, width: number, height: number) => {
    return { sourceId, fileName, key: fileName, width, height };
  };
  const ids = store.addImages("train", [
    image(11, "a.jpg", 640, 480),
    image(12, "sub/b, c.jpg", 101, 77),
    image(13, "none.jpg", 64, 64),
  ]);
  const box = (
    place: number,
    sourceId: number,
    categoryId: number,
    bbox: readonly [number, number, number, number],
  ) => {
    return { sourceId, imageId: ids[place] as number, categoryId, bbox, area: bbox[2] * bbox[3], isCrowd: false };
  };
  store.addAnnotations([
    box(0, 21, 3, [10, 20, 30.5, 40.25]),
    { ...box(0, 22, 7, [0, 0, 640, 480]), isCrowd: true },
    { ...box(0, 23, 3, [100.125, 50, 7, 9]), score: 0.625, by: { source: "model", author: "run7", time: 1000 } },
    { ...box(1, 24, 7, [1, 2, 100, 75]), by: { source: "human", author: "anna@x.org", time: 86_400_000 } },
  ]);
  return store;
}

interface Plain {
  fileName: string;
  width: number | null;
  height: number | null;
  boxes: (Pick<AnnotationRecord, "score" | "isCrowd"> & { category: string; bbox: number[] })[];
}

function plain(store: SQLiteAnnStore, split = "train"): Plain[] {
  const names = new Map(store.categories().map(({ id, name }) => [id, name]));
  return store.images(split).map(({ id, fileName, width, height }) => ({
    fileName,
    width,
    height,
    boxes: store.annotationsOf(id).map(({ categoryId, bbox, isCrowd, score }) => {
      const rounded = bbox.map((value) => Math.round(value * 1e6) / 1e6);
      return { category: names.get(categoryId) as string, bbox: rounded, isCrowd, score };
    }),
  }));
}

/** What a format cannot say is taken out before comparing. */
type Loss = (image: Plain) => Plain;
const boxes = (change: (box: Plain["boxes"][0]) => Plain["boxes"]): Loss => {
  return (image) => ({ ...image, boxes: image.boxes.flatMap(change) });
};
const noScore = boxes((box) => [{ ...box, score: null }]);

const formats: [ExportFormat, ImportFormat, string, Loss][] = [
  ["coco", "coco", "x.json", noScore],
  ["cvat", "coco", "x.json", noScore],
  ["cvat-xml", "cvat-xml", "x.xml", noScore],
  ["voc", "voc", "voc", noScore],
  ["yolo", "yolo", "yolo", boxes((box) => (box.isCrowd ? [] : [box]))],
  ["csv", "csv", "x.csv", (image) => image],
  ["label-studio", "label-studio", "x.json", (image) => image],
];

describe("what is exported is imported as it was", () => {
  test.each(formats)("%s", async (format, importFormat, name, loss) => {
    await inFolder(async (folder) => {
      using store = filled();
      const out = join(folder, name);
      const report = await exportDataset(store, format, out, { split: "train", progress: quiet });
      expect(report).toMatchObject({ images: 3, annotations: format === "yolo" ? 3 : 4 });
      expect(report.leftOut).toBe(format === "yolo" ? 1 : 0);
      using back = new SQLiteAnnStore();
      const options = { split: "train", progress: quiet };
      if (format === "yolo") {
        for (const image of store.images("train")) {
          const path = join(out, "images", "train", image.fileName);
          mkdirSync(dirname(path), { recursive: true });
          writeFileSync(path, `${image.width}x${image.height}`);
        }
        const imageSize = async (path: string) => {
          const [width, height] = readFileSync(path, "utf8").split("x").map(Number) as [number, number];
          return { width, height };
        };
        await importYolo(back, out, { ...options, imageSize });
      } else {
        await importDataset(back, out, { ...options, format: importFormat, predictions: "always" });
      }
      const byName = (a: Plain, b: Plain): number => (a.fileName < b.fileName ? -1 : 1);
      const byBox = boxes((box) => [box]);
      const sorted = (list: Plain[]): Plain[] =>
        list
          .map((image) =>
            byBox({ ...image, boxes: [...image.boxes].sort((a, b) => (a.bbox[2] as number) - (b.bbox[2] as number)) }),
          )
          .sort(byName);
      expect(sorted(plain(back))).toEqual(sorted(plain(store).map(loss)));
      if (format === "csv" || format === "label-studio") {
        const [box] = back.annotationsOf(back.images("train").find((i) => i.fileName.startsWith("sub"))?.id as number);
        expect(box).toMatchObject({ source: "human", author: "anna@x.org", modified: 86_400_000 });
      }
      expect(readdirSync(folder).filter((file) => file.includes("partial"))).toEqual([]);
    });
  });

  test("tasks of Label Studio keep ids, areas, authors and times, also of what was moved there as far as it is the same", async () => {
    await inFolder(async (folder) => {
      using store = filled();
      const path = join(folder, "x.json");
      await exportDataset(store, "label-studio", path, { split: "train", progress: quiet });
      const tasks = JSON.parse(readFileSync(path, "utf8"));
      // Label Studio refuses annotations of people who are not its users.
      expect(JSON.stringify(tasks)).not.toContain("completed_by");
      // A person moves one box and accepts another, that a model has proposed.
      const { annotations, predictions } = tasks[0];
      annotations[0].result[0].value.x = 50;
      annotations[0].result.push(...predictions[0].result);
      Object.assign(annotations[0], { completed_by: 3, updated_at: "1970-01-01T00:00:09Z" });
      writeFileSync(path, JSON.stringify(tasks));
      using back = new SQLiteAnnStore();
      const users = new Map([[3, "ben@x.org"]]);
      await importLabelStudio(back, path, { split: "train", progress: quiet, predictions: "never", users });
      const all = (of: SQLiteAnnStore) =>
        of.images("train").map(({ id, sourceId }) => {
          const rows = of.annotationsOf(id).map(({ id: _id, imageId: _image, categoryId: _category, ...row }) => row);
          return { sourceId, rows };
        });
      const [first, ...others] = all(store);
      const [moved, crowd, proposed] = first!.rows;
      const bens = { source: "human", author: "ben@x.org", modified: 9000 };
      expect(all(back)).toEqual([
        {
          sourceId: 11,
          rows: [
            { ...moved!, ...bens, bbox: [320, expect.closeTo(20), 30.5, 40.25] },
            crowd!,
            { ...proposed!, ...bens },
          ] as never,
        },
        ...others,
      ]);
    });
  });

  test("Label Studio's own export names predictions by their ids alone, and people by theirs", async () => {
    await inFolder(async (folder) => {
      const path = join(folder, "x.json");
      const result = [
        { id: "r", ...region({}) },
        { id: "s", ...region({}), type: "polygonlabels" },
      ];
      const old = { result: [], completed_by: 1, updated_at: "2026-01-01T00:00:00Z" };
      const annotations = [{ result, completed_by: 1, updated_at: "2026-01-02T00:00:00Z" }, old];
      const tasks = [
        { id: 1, data: { image: "a.jpg" }, meta: {}, annotations: [], predictions: [1, 2] },
        { id: 2, data: { image: "b.jpg" }, meta: {}, annotations, predictions: [3] },
      ];
      writeFileSync(path, JSON.stringify(tasks));
      using store = new SQLiteAnnStore();
      const options = { split: "train", progress: quiet, annotatedOnly: true };
      const { images, annotations: boxes, inexact } = await importLabelStudio(store, path, options);
      expect([images, boxes]).toEqual([1, 1]);
      expect([...inexact.images.values()]).toEqual([
        '[1].annotations[0].result[1].type: expected "rectanglelabels", got "polygonlabels"',
      ]);
      using whole = new SQLiteAnnStore();
      expect((await importLabelStudio(whole, path, { split: "train", progress: quiet })).images).toBe(2);
    });
  });

  test("COCO for CVAT has licenses, empty segmentations and ids from 1", async () => {
    await inFolder(async (folder) => {
      using store = filled();
      const path = join(folder, "x.json");
      await exportDataset(store, "cvat", path, { split: "train", progress: quiet });
      const file = JSON.parse(readFileSync(path, "utf8"));
      expect(file.licenses).toEqual([{ id: 0, name: "", url: "" }]);
      expect(file.images.map((i: { id: number }) => i.id)).toEqual([1, 2, 3]);
      expect(file.categories.map((c: { id: number }) => c.id)).toEqual([1, 2]);
      expect(file.annotations.map((a: { id: number }) => a.id)).toEqual([1, 2, 3, 4]);
      for (const annotation of file.annotations) {
        expect(annotation).toMatchObject({ segmentation: [], attributes: { occluded: false } });
      }
    });
  });

  test("XML for CVAT names the task's labels and what their boxes may say, which other readers of it ask for", async () => {
    await inFolder(async (folder) => {
      using store = filled();
      const path = join(folder, "x.xml");
      await exportDataset(store, "cvat-xml", path, { split: "train", progress: quiet });
      const { annotations } = Bun.XML.parse(readFileSync(path, "utf8")) as { annotations: Record<string, unknown> };
      const attribute = {
        name: "crowd",
        input_type: "checkbox",
        mutable: "False",
        values: "false",
        default_value: "false",
      };
      const label = ["traffic light", 'a "b", <c> & d'].map((name) => ({
        name,
        type: "rectangle",
        attributes: { attribute },
      }));
      expect(annotations.meta).toEqual({ task: { name: "train", size: "3", mode: "annotation", labels: { label } } });
    });
  });

  test("Label Studio gets percent of the image, VOC pixels from 1, YOLO parts of it", async () => {
    await inFolder(async (folder) => {
      using store = filled();
      const options = { split: "train", progress: quiet, imagePrefix: "/data/local-files/?d=" };
      await exportDataset(store, "label-studio", join(folder, "x.json"), options);
      const tasks = JSON.parse(readFileSync(join(folder, "x.json"), "utf8"));
      expect(tasks[1].data.image).toBe("/data/local-files/?d=sub/b%2C%20c.jpg");
      const [region] = tasks[0].annotations[0].result;
      expect(region).toMatchObject({ type: "rectanglelabels", original_width: 640, original_height: 480 });
      expect(region.value.x).toBeCloseTo((100 * 10) / 640, 12);
      expect(region.value.height).toBeCloseTo((100 * 40.25) / 480, 12);
      expect(tasks[0].predictions[0]).toMatchObject({ model_version: "run7", score: 0.625 });
      await exportDataset(store, "voc", folder, options);
      const xml = readFileSync(join(folder, "Annotations", "a.xml"), "utf8");
      expect(xml).toContain("<xmin>11</xmin>");
      expect(xml).toContain("<xmax>40.5</xmax>");
      await exportDataset(store, "yolo", folder, options);
      const line = readFileSync(join(folder, "labels/train/sub/b, c.txt"), "utf8").trim().split(" ").map(Number);
      expect(line).toEqual([1, 51 / 101, 39.5 / 77, 100 / 101, 75 / 77]);
    });
  });
});

/** Writes files and imports one of them. */
async function importing(files: Record<string, string>, input: string, format?: ImportFormat, split?: string) {
  return inFolder(async (folder) => {
    for (const [name, text] of Object.entries(files)) {
      mkdirSync(dirname(join(folder, name)), { recursive: true });
      writeFileSync(join(folder, name), text);
    }
    using store = new SQLiteAnnStore();
    const error = await failure(() => importDataset(store, join(folder, input), { format, split, progress: quiet }));
    expect([store.splits(), store.categories()]).toEqual([[], []]);
    return error.message.replaceAll(`${folder}/`, "");
  });
}

const object =
  "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>x</ymax></bndbox></object>";
const region = (changes: object) => ({
  type: "rectanglelabels",
  original_width: 10,
  original_height: 10,
  value: { x: 1, y: 1, width: 5, height: 5, rectanglelabels: ["cat"] },
  ...changes,
});
const task = (changes: object, data: object = { image: "a.jpg" }) =>
  JSON.stringify([{ data: { image: "z.jpg" } }, { data, annotations: [{ result: [region(changes)] }] }]);

describe("errors name file, place, what was expected and what came", () => {
  test.each([
    ["a.csv", "", "a.csv: the file is empty, expected a line with names of columns"],
    [
      "a.csv",
      "file_name,category,x,y,width\n",
      "a.csv, line 1: column height: missing; got file_name, category, x, y, width",
    ],
    [
      "a.csv",
      'file_name,category,x,y,width,height\n"a\nb",cat,1,2,3,4\nc,cat,1,two,3,4\n',
      'a.csv, line 4: y: expected a number, got "two"',
    ],
    ["a.csv", "file_name,category,x,y,width,height\na,cat,1,2\n", "a.csv, line 2: expected at least 6 fields, got 4"],
    [
      "a.csv",
      'file_name,category,x,y,width,height\na,"cat,1,2,3,4\n',
      "a.csv, line 2: the file ends before the closing quote of a text",
    ],
    [
      "a.csv",
      "file_name,category,x,y,width,height,source\na,cat,1,2,3,4,cow\n",
      'a.csv, line 2: source: expected human, imported or model, got "cow"',
    ],
    ["t.json", task({ value: { x: "left" } }), "t.json: [1].annotations[0].result[0].value.rectanglelabels"],
    [
      "t.json",
      task({ original_width: "wide" }),
      't.json: [1].annotations[0].result[0].original_width: expected a number, got "wide"',
    ],
    ["t.json", task({}, {}), "t.json: [1].data.image: expected a text, got nothing"],
    ["t.json", '[{"data": ', "t.json: [0].data: not valid JSON at line 1, column 11"],
  ])("%s %#", async (name, text, message) => {
    // A region without labels is left out and no error; the task without an image is one.
    if (message.endsWith("rectanglelabels")) {
      using store = new SQLiteAnnStore();
      await inFolder(async (folder) => {
        writeFileSync(join(folder, name), text);
        const [report] = await importDataset(store, join(folder, name), { progress: quiet });
        expect(report?.problems.lines()).toEqual([
          "1 box skipped: it has no label ([1].annotations[0].result[0] of a.jpg)",
        ]);
      });
      return;
    }
    expect(await importing({ [name]: text }, name)).toContain(message);
  });

  test.each([
    [
      `<annotation><filename>a.jpg</filename>${object}</annotation>`,
      'annotation.object[0].bndbox.ymax: expected a number, got "x"',
    ],
    ["<annotation></annotation>", "annotation.filename: missing"],
    ["<annotation><filename>a</filename><object/></annotation>", "annotation.object[0].name: missing"],
    ["<annotation><filename>a</filename>", "not valid XML: "],
    ["<image/>", "annotation: missing"],
  ])("VOC %#", async (xml, message) => {
    const ok = "<annotation><filename>0.jpg</filename></annotation>";
    expect(await importing({ "Annotations/0.xml": ok, "Annotations/1.xml": xml }, ".")).toContain(
      `Annotations/1.xml: ${message}`,
    );
  });

  const yaml = "path: .\ntrain: images/train\nnames: [cat, dog]\n";
  const pixel = Buffer.from(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII=",
    "base64",
  ).toString("latin1");
  test.each([
    ["0 0.5 0.5 0.2 0.2\n5 0.5 0.5 0.2 0.2", "line 2: field 1: expected a class from 0 to 1, got 5"],
    ["\n0 0.5 0.5 x 0.2", 'line 2: field 4: expected a number, got "x"'],
    ["0 0.5 0.5", "line 1: expected class, x, y, width, height, got 3 fields"],
    ["1 320 240 50 60", "line 1: field 2: expected a part of the image from 0 to 1, got 320"],
  ])("YOLO labels %#", async (labels, message) => {
    await inFolder(async (folder) => {
      for (const name of ["images/train", "labels/train"]) mkdirSync(join(folder, name), { recursive: true });
      writeFileSync(join(folder, "data.yaml"), yaml);
      writeFileSync(join(folder, "images/train/a.png"), pixel, "latin1");
      writeFileSync(join(folder, "labels/train/a.txt"), labels);
      using store = new SQLiteAnnStore();
      const error = await failure(() => importDataset(store, folder, { progress: quiet }));
      expect(error.message).toBe(`${join(folder, "labels/train/a.txt")}, ${message}`);
    });
  });

  test.each([
    ["names: []", "data.yaml: names: expected a list of classes, got []"],
    ["names: [a]\nnc: 3", "data.yaml: nc: expected 1, the number of names, got 3"],
    ["names:\n  0: a\n  2: b", "data.yaml: names[1]: expected a name, got undefined"],
    ["names: [a]\ntrain: images\nval: [1]", "data.yaml: val: expected folders or files, got [1]"],
    ["names:\n  - a\n\t- b", "data.yaml: not valid YAML at line 3: "],
    ["names: [a]\ntrain: nowhere", "no such file"],
  ])("data.yaml %#", async (text, message) => {
    expect(await importing({ "data.yaml": text }, ".")).toContain(message);
  });

  test("formats that cannot be told", async () => {
    expect(await importing({ "a.txt": "hello" }, "a.txt")).toContain(
      'a.txt: starts with "h"; --format says what it is',
    );
    expect(await importing({ "annotations/x.json": "{}" }, ".")).toContain("annotations/x.json: images: missing");
    const splits = { "annotations/instances_a.json": "{}", "annotations/instances_b.json": "{}" };
    expect(await importing(splits, ".", undefined, "c")).toContain('no split "c", there are a, b');
    expect(await importing({}, "gone.json")).toContain("gone.json: no such file or folder");
  });
});

describe("importers", () => {
  test("bring in all splits of a folder in COCO's layout, none twice", async () => {
    await inFolder(async (folder) => {
      const write = (name: string, ids: number[]) => {
        const images = ids.map((id) => ({ id, file_name: `${id}.jpg`, width: 8, height: 8 }));
        const content = { images, annotations: [], categories: [{ id: 1, name: "cell" }] };
        writeFileSync(join(folder, "annotations", name), JSON.stringify(content));
      };
      mkdirSync(join(folder, "annotations"));
      write("instances_train.json", [1, 2]);
      write("instances_val.json", [3]);
      write("instances_trainval.json", [1, 2, 3]);
      write("captions_train.json", [1, 2]);
      using store = new SQLiteAnnStore();
      const reports = await importDataset(store, folder, { progress: quiet });
      expect(reports.map(({ split, images }) => [split, images])).toEqual([
        ["train", 2],
        ["val", 1],
      ]);
      using one = new SQLiteAnnStore();
      await importDataset(one, folder, { progress: quiet, split: "trainval" });
      expect(one.images("trainval").map(({ key }) => key)).toEqual(["1.jpg", "2.jpg", "3.jpg"]);
    });
  });

  test("leave out and report what a store cannot hold", async () => {
    await inFolder(async (folder) => {
      const path = join(folder, "x.csv");
      writeFileSync(
        path,
        "file_name,image_width,image_height,category,xmin,ymin,xmax,ymax\na,10,10,cat,2,2,2,5\na,10,10,cat,20,2,25,5\na,10,10,cat,1,1,5,15\n",
      );
      using store = new SQLiteAnnStore();
      const [report] = await importDataset(store, path, { progress: quiet });
      expect(report?.problems.lines().map((line) => line.replaceAll(`${folder}/`, ""))).toEqual([
        "1 box skipped: no area (x.csv, line 2 of a: [2, 2, 0, 3])",
        "1 box skipped: lies outside the image (x.csv, line 3 of a: [20, 2, 5, 3])",
        "1 box clipped: reaches outside the image (x.csv, line 4 of a: [1, 1, 4, 14])",
      ]);
    });
  });

  test("use the ids that a store has for categories' names", async () => {
    await inFolder(async (folder) => {
      using store = filled();
      const path = join(folder, "x.csv");
      writeFileSync(path, "file_name,category,x,y,width,height\nn.jpg,new,1,1,2,2\nn.jpg,traffic light,1,1,2,2\n");
      await importDataset(store, path, { split: "more", progress: quiet });
      expect(store.categories().map(({ id, name }) => [id, name])).toContainEqual([8, "new"]);
      expect([...store.annotations("more")].map((a) => a.categoryId)).toEqual([8, 3]);
    });
  });

  test("take the hull of turned boxes and the last annotation that was not cancelled", async () => {
    await inFolder(async (folder) => {
      const path = join(folder, "x.json");
      const turned = region({ value: { x: 50, y: 50, width: 20, height: 10, rotation: 90, rectanglelabels: ["cat"] } });
      const annotations = [{ result: [region({})] }, { result: [turned] }, { result: [], was_cancelled: true }];
      const data = { image: "gs://bucket/some/a%20b.jpg" };
      writeFileSync(path, JSON.stringify([{ data, annotations, predictions: [{ result: [region({})] }] }]));
      using store = new SQLiteAnnStore();
      await importDataset(store, path, { progress: quiet });
      const [image] = plain(store);
      expect(image?.fileName).toBe("some/a b.jpg");
      expect(image?.boxes.map((box) => box.bbox)).toEqual([[4, 5, 1, 2]]);
    });
  });
});
