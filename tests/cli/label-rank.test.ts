/** dlfs label rank: images of a folder and of a data set, in every format, and what is refused. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { importDataset, SQLiteAnnStore } from "../../lib/data";
import { runDlfs } from "../support/run-dlfs";
import { saveTinyModel, tinyJpeg } from "../support/tiny-model";

const folder = mkdtempSync(join(tmpdir(), "dlfs-cli-rank-"));
afterAll(() => rmSync(folder, { recursive: true }));
const env = { DLFS_CACHE: join(folder, "cache") };
const model = await saveTinyModel(folder);
const second = await saveTinyModel(folder, "second", 5);

const shots = join(folder, "shots");
for (let i = 1; i <= 4; i++) await Bun.write(join(shots, `${i}.jpg`), tinyJpeg(60 + 10 * i, 50, i));
await Bun.write(join(shots, "bad.jpg"), "no image");

interface Row {
  rank: number;
  image: string;
  path: string;
  value: number;
  [criterion: string]: unknown;
}

const lines = async (path: string) =>
  (await Bun.file(path).text())
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Row);

test("orders a folder's images by all criteria at once, and passes over one that is damaged", async () => {
  const out = join(folder, "mixed.jsonl");
  const run = await runDlfs(["label", "rank", model, shots, "--by", "mixed", "--out", out], { env });
  expect([run.exitCode, run.stderr.includes("Error")]).toEqual([0, false]);
  expect(run.stdout).toContain("1 images could not be used:\n  bad.jpg");
  const rows = await lines(out);
  expect(rows.map(({ rank }) => rank)).toEqual([1, 2, 3, 4]);
  expect(rows.map(({ image }) => image).sort()).toEqual(["1.jpg", "2.jpg", "3.jpg", "4.jpg"]);
  for (const { image, path, value, ...rest } of rows) {
    expect(path).toBe(join(shots, image));
    expect(Object.keys(rest)).toEqual(["rank", "uncertainty", "disagreement", "balance", "diversity"]);
    for (const number of [value, ...Object.values(rest)]) expect(Number.isFinite(number)).toBe(true);
  }
}, 60_000);

test("compares models, chooses some, and writes tasks for Label Studio", async () => {
  const out = join(folder, "tasks.json");
  const args = ["--by", "disagreement", "--count", "2", "--score", "0.001", "--out", out, "--prefix", "gs://b/"];
  const run = await runDlfs(["label", "rank", model, second, shots, ...args], { env });
  expect(run.exitCode).toBe(0);
  expect(run.stdout).toContain("2 of 4 images, by disagreement");
  const tasks = (await Bun.file(out).json()) as { data: { image: string; score: number }; predictions: object[] }[];
  expect(tasks.length).toBe(2);
  expect(tasks[0]!.data.image).toMatch(/^gs:\/\/b\/\d\.jpg$/);
  expect(tasks[0]!.data.score).toBeGreaterThan(0);
  expect(tasks[0]!.data.score).toBeGreaterThanOrEqual(tasks[1]!.data.score);
  // What is written can be read again by the import of Label Studio's tasks.
  using store = new SQLiteAnnStore();
  await importDataset(store, out, { format: "label-studio", split: "next", imagePrefix: "gs://b/" });
  expect(store.images("next").length).toBe(2);
}, 60_000);

test("of a data set orders what has no boxes, apart from what has some", async () => {
  const data = join(folder, "data");
  const images = [1, 2, 3, 4].map((id) => ({ id, file_name: `${id}.jpg`, width: 60 + 10 * id, height: 50 }));
  const categories = [
    { id: 4, name: "green" },
    { id: 9, name: "red" },
  ];
  const annotations = [{ id: 1, image_id: 2, category_id: 9, bbox: [1, 2, 30, 40], area: 1200, iscrowd: 0 }];
  await Bun.write(join(data, "annotations", "instances_all.json"), JSON.stringify({ images, annotations, categories }));
  for (let i = 1; i <= 4; i++) await Bun.write(join(data, "all", `${i}.jpg`), Bun.file(join(shots, `${i}.jpg`)));
  const out = join(folder, "next.txt");
  const args = ["--data", data, "--split", "all", "--by", "diversity"];
  const run = await runDlfs(["label", "rank", model, ...args, "--out", out], { env });
  expect([run.exitCode, run.stderr.includes("Error")]).toEqual([0, false]);
  expect(run.stdout).toContain("3 images of all to order, 1 labelled in all");
  const paths = (await Bun.file(out).text()).trimEnd().split("\n");
  expect(paths.toSorted()).toEqual([1, 3, 4].map((i) => join(data, "all", `${i}.jpg`)));
  const all = await runDlfs(["label", "rank", model, ...args, "--all", "--out", out], { env });
  expect(all.stdout).toContain("4 images of all to order, 0 labelled in all");
}, 60_000);

test("is called wrongly", async () => {
  const out = join(folder, "x.txt");
  for (const [args, status, expected] of [
    [[model], 2, "expected MODEL and SOURCE, or MODEL and --data"],
    [[model, shots], 2, "expected --out"],
    [[model, shots, "--out", out, "--by", "luck"], 2, "--by: expected one of uncertainty, margin"],
    [[model, shots, "--out", out, "--weights", "margin=1"], 2, "--weights is for --by mixed"],
    [[model, shots, "--out", out, "--by", "mixed", "--weights", "margin=0"], 2, "--weights: all of them are 0"],
    [[model, second, shots, "--out", out], 2, "--by uncertainty takes one MODEL"],
    [[model, shots, "--out", out, "--split", "a"], 2, "--split is for --data"],
    [[model, shots, "--out", join(folder, "x.csv")], 1, "expected a name that ends with .txt, .jsonl or .json"],
    [[model, join(folder, "none"), "--out", out], 1, "no such file or folder"],
  ] as const) {
    const { exitCode, stderr } = await runDlfs(["label", "rank", ...args], { env });
    expect([exitCode, stderr.includes(expected) ? expected : stderr]).toEqual([status, expected]);
  }
  expect(await Bun.file(out).exists()).toBe(false);
}, 60_000);
