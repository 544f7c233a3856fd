/** dlfs label audit: labels that contradict what a model finds are named, in a table and as JSON lines. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Engine, type EngineResult } from "../../lib/engine";
import { testDevice } from "../support/device";
import { runDlfs } from "../support/run-dlfs";
import { saveTinyModel, tinyJpeg } from "../support/tiny-model";

const folder = mkdtempSync(join(tmpdir(), "dlfs-cli-audit-"));
afterAll(() => rmSync(folder, { recursive: true }));
const env = { DLFS_CACHE: join(folder, "cache") };
const model = await saveTinyModel(folder);

/** Ids are neither the model's labels nor in their order, and one class the model does not know. */
const categories = [
  { id: 4, name: "green" },
  { id: 6, name: "blue" },
  { id: 9, name: "red" },
];
const idOf = [9, 4];

/** Labels as the model sees it, but for the best box of images 1 (left out), 2 (of the other class) and 3 (half beside it). */
async function makeData(threshold: number, results: readonly EngineResult[], files: readonly Uint8Array[]) {
  const annotations: object[] = [];
  for (const [i, { detections }] of results.entries()) {
    for (const [k, { box, score, label }] of detections.entries()) {
      if (score < threshold || (k === 0 && i === 0)) continue;
      const [x1, y1, x2, y2] = box;
      const category_id = idOf[k === 0 && i === 1 ? 1 - label : label];
      const x = k === 0 && i === 2 ? x1 + (x2 - x1) / 2 : x1;
      const [width, height] = [x2 - x1, y2 - y1];
      const id = annotations.length + 1;
      annotations.push({
        id,
        image_id: i + 1,
        category_id,
        bbox: [x, y1, width, height],
        area: width * height,
        iscrowd: 0,
      });
    }
  }
  const images = results.map(({ width, height }, i) => ({ id: i + 1, file_name: `${i + 1}.jpg`, width, height }));
  const data = join(folder, "data");
  await Bun.write(join(data, "annotations", "instances_val.json"), JSON.stringify({ images, annotations, categories }));
  for (const [i, file] of files.entries()) await Bun.write(join(data, "val", `${i + 1}.jpg`), file);
  return data;
}

test("finds a box that is missing, and boxes of another class and place, and nothing else of the same model", async () => {
  const files = [1, 2, 3, 4].map((i) => tinyJpeg(80 + 10 * i, 60, i));
  const device = testDevice();
  // As the command loads it, whatever precision the device has.
  await using engine = await Engine.load(model, { device, batchSizes: [4], warmUp: false });
  const results = await engine.detect(files);
  for (const { detections } of results) expect(detections.length).toBeGreaterThan(0);
  // Below the least score of an image's best box: one object an image.
  const least = Math.min(...results.map(({ detections }) => detections[0]!.score));
  const threshold = 0.98 * least;
  const first = results.map((result) => ({ ...result, detections: result.detections.slice(0, 1) }));
  const data = await makeData(threshold, first, files);
  const out = join(folder, "findings.jsonl");
  const args = ["label", "audit", model, "--data", data, "--split", "val", "--out", out, "--score", `${threshold}`];
  const run = await runDlfs(args, { env });
  expect([run.exitCode, run.stderr.includes("Error")]).toEqual([0, false]);
  const rows = (await Bun.file(out).text())
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as { image: string; problem: string; given: { class: string } | null });
  const of = (name: string) => rows.filter(({ image }) => image === `val/${name}.jpg`).map(({ problem }) => problem);
  expect(of("1")).toContain("missing");
  expect(of("2")).toContain("wrong");
  expect(of("3")).toContain("loose");
  for (const problem of ["wrong", "loose"]) expect(of("4")).not.toContain(problem);
  expect(rows.find(({ problem }) => problem === "wrong")!.given!.class).toBe(
    ["green", "red"][first[1]!.detections[0]!.label]!,
  );
  expect(run.stdout).toMatch(/^value +problem +image +class +score +box$/m);
  expect(run.stdout).toContain(`${rows.length} boxes in question: `);
  expect(run.stdout).not.toContain("confident");
}, 60_000);

test("says so where the model is never confident", async () => {
  const data = join(folder, "elsewhere");
  const annotations = [{ id: 1, image_id: 1, category_id: 4, bbox: [0, 0, 2, 2], area: 4, iscrowd: 0 }];
  const images = [{ id: 1, file_name: "1.jpg", width: 90, height: 60 }];
  await Bun.write(join(data, "annotations", "instances_val.json"), JSON.stringify({ images, annotations, categories }));
  await Bun.write(join(data, "val", "1.jpg"), tinyJpeg(90, 60, 1));
  const { exitCode, stdout } = await runDlfs(["label", "audit", model, "--data", data, "--split", "val"], { env });
  expect([exitCode, stdout]).toEqual([
    0,
    expect.stringContaining("0 boxes in question: 0 missing, 0 wrong, 0 loose\nthe model is never confident"),
  ]);
}, 60_000);

test("is called wrongly", async () => {
  for (const [args, status, expected] of [
    [[], 2, "expected one MODEL"],
    [[model], 2, "expected --data, the data set"],
    [[model, "--data", folder, "--score", "2"], 2, "--score: expected 0 to 1, got 2"],
    [[model, "--data", join(folder, "none")], 1, "none"],
  ] as const) {
    const { exitCode, stderr } = await runDlfs(["label", "audit", ...args], { env });
    expect([exitCode, stderr.includes(expected) ? expected : stderr]).toEqual([status, expected]);
  }
}, 60_000);
