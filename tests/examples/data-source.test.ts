/** The example of a data source of one's own, as a user runs it. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { backend, testDevice } from "../support/device";
import { writeTinyDataset } from "../support/tiny-dataset";

const root = fileURLToPath(new URL("../../", import.meta.url));
let folder = "";

beforeAll(async () => {
  folder = await writeTinyDataset(testDevice());
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

test("a class of four methods is a source that data sets are read from", async () => {
  // A file that is damaged in the database as it was on the disk: checks see through the source.
  await Bun.write(join(folder, "val2017", "3.jpg"), "no picture");
  const child = Bun.spawn([process.execPath, "run", "examples/05_data_source.ts", folder], {
    cwd: root,
    env: { ...process.env, DLFS_BACKEND: backend, XDG_CACHE_HOME: join(folder, "cache"), HOME: folder },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  expect(stderr).toBe("");
  expect(await child.exited).toBe(0);
  const lines = stdout.trimEnd().split("\n");
  expect(lines[1]).toMatch(/^18 objects, 0\.\d MB, from /);
  expect(lines.slice(2)).toEqual([
    "train2017: 8 images, 12 boxes, 2 classes",
    "val2017: 7 images, 11 boxes, 2 classes",
    "1 image skipped: not a JPEG, PNG or WebP file (3.jpg)",
    "7 images of val2017 decoded, 0 failed",
  ]);
});
