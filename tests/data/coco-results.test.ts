/** COCO's results files: read as they are, and named errors for what is wrong in them. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { formatCocoResults, type ResultRow, readCocoAnnotations, readCocoResults } from "../../lib/data";
import { DlfsError, ErrorCode } from "../../lib/native";

const folder = mkdtempSync(join(tmpdir(), "dlfs-results-"));
afterAll(() => rmSync(folder, { recursive: true }));

const annotations = join(folder, "instances.json");
writeFileSync(
  annotations,
  JSON.stringify({
    images: [
      { id: 0, file_name: "a.jpg", width: 20, height: 10 },
      { id: 7, file_name: "b.jpg" },
    ],
    categories: [{ id: 18, name: "dog" }],
    annotations: [
      { id: 0, image_id: 0, category_id: 18, bbox: [1, 2, 3, 4], iscrowd: 1 },
      { id: 5, image_id: 7, category_id: 18, bbox: [0, 0, 0, 4], area: 9.5 },
    ],
  }),
);

async function read(text: string): Promise<ResultRow[]> {
  const path = join(folder, "results.json");
  writeFileSync(path, text);
  const rows: ResultRow[] = [];
  const count = await readCocoResults(path, await readCocoAnnotations(annotations), (row) => void rows.push(row));
  expect(count).toBe(rows.length);
  return rows;
}

const good = { image_id: 7, category_id: 18, bbox: [0.1, -2.5, 30, 40], score: 0.25 };
const changed = (field: object) => JSON.stringify([good, { ...good, ...field }]);

describe("results files", () => {
  test("annotations are kept as they are, boxes without area and on no image's pixels too", async () => {
    expect(await readCocoAnnotations(annotations)).toEqual({
      path: annotations,
      images: [
        { id: 0, fileName: "a.jpg" },
        { id: 7, fileName: "b.jpg" },
      ],
      categories: [{ id: 18, name: "dog", supercategory: null }],
      objects: [
        { id: 0, imageId: 0, categoryId: 18, bbox: [1, 2, 3, 4], area: 12, iscrowd: true },
        { id: 5, imageId: 7, categoryId: 18, bbox: [0, 0, 0, 4], area: 9.5, iscrowd: false },
      ],
    });
  });

  test("are written and read back with every digit", async () => {
    const rows: ResultRow[] = [
      { imageId: 0, categoryId: 18, bbox: [0.1, 1 / 3, 1e-7, 123456.789], score: 0.9999999999999999 },
      { imageId: 7, categoryId: 18, bbox: [0, 0, 0, 0], score: 0 },
    ];
    expect(await read(formatCocoResults(rows))).toEqual(rows);
    expect(await read(formatCocoResults([]))).toEqual([]);
    expect(await read(changed({ segmentation: { counts: "a", size: [1, 2] }, id: 3 }))).toHaveLength(2);
  });

  test.each([
    ["an unknown image", changed({ image_id: 8 }), `[1].image_id: no image of ${annotations} has id 8`],
    ["an unknown category", changed({ category_id: 1 }), `[1].category_id: no category of ${annotations} has id 1`],
    ["an id that is a text", changed({ image_id: "7" }), '[1].image_id: expected an image\'s id, got "7"'],
    ["a score that is NaN", changed({}).replace(/0\.25\}\]$/, "NaN}]"), "[1].score: not valid JSON"],
    ["a score of -Infinity", changed({}).replace(/0\.25\}\]$/, "-Infinity}]"), "got -Infinity"],
    [
      "a score too large for a number",
      changed({}).replace(/0\.25\}\]$/, "1e999}]"),
      "[1].score: expected a finite number",
    ],
    ["a score of null", changed({ score: null }), "[1].score: expected a number, got null"],
    ["no score", changed({ score: undefined }), "[1]: score is missing"],
    ["no box", changed({ bbox: undefined }), "[1]: bbox is missing"],
    [
      "a box of NaN",
      changed({}).replace("[0.1,", "[NaN,"),
      "[0].bbox[0]: not valid JSON at line 1, column 41: expected a value, but got NaN",
    ],
    ["a box of three", changed({ bbox: [1, 2, 3] }), "[1].bbox: expected 4 numbers (x, y, width, height), got 3"],
    ["a negative width", changed({ bbox: [1, 2, -3, 4] }), "[1].bbox[2]: expected a size >= 0, got -3"],
    ["no list", JSON.stringify(good), "expected a list, got an object"],
    ["a cut list", changed({}).slice(0, -5), "is it incomplete?"],
    ["an empty file", "", "the file is empty"],
  ])("%s is an error that names file and field", async (_, text, message) => {
    const error = await read(text).catch((error: unknown) => error);
    expect(error).toBeInstanceOf(DlfsError);
    expect((error as DlfsError).message).toContain(message);
    expect((error as DlfsError).op).toBe(join(folder, "results.json"));
    expect((error as DlfsError).code).toBe(ErrorCode.io);
  });

  test("a missing file is an error that names it", async () => {
    const path = join(folder, "none.json");
    await expect(readCocoAnnotations(path)).rejects.toThrow(path);
    const truth = await readCocoAnnotations(annotations);
    await expect(readCocoResults(path, truth, () => {})).rejects.toThrow(path);
  });
});
