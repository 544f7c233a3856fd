import { describe, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { inFolder } from "../data/fakes";

const program = fileURLToPath(new URL("../../lib/cli/main.ts", import.meta.url));

function dlfs(...args: string[]): { status: number; stdout: string; stderr: string } {
  const env = { ...process.env, DLFS_BACKEND: "cpu" };
  const { exitCode, stdout, stderr } = Bun.spawnSync([process.execPath, program, "data", ...args], { env });
  return { status: exitCode, stdout: stdout.toString(), stderr: stderr.toString() };
}

/** A data set in COCO's layout: eight JPEGs of 16x8, of which one is missing, and a box each. */
async function dataset(folder: string): Promise<string> {
  const jpeg = await new Bun.Image(
    Buffer.from(
      "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII=",
      "base64",
    ),
  )
    .resize(16, 8, { fit: "fill" })
    .jpeg({ quality: 90 })
    .bytes();
  const ids = [1, 2, 3, 4, 5, 6, 7, 8];
  const path = join(folder, "annotations", "instances_all.json");
  await Bun.write(
    path,
    JSON.stringify({
      images: ids.map((id) => ({ id, file_name: `${id}.jpg`, width: 16, height: 8 })),
      annotations: ids.map((id) => ({ id, image_id: id, category_id: 1, bbox: [1, 1, 8, 4 + (id === 2 ? 9 : 0)] })),
      categories: [{ id: 1, name: "cat" }],
    }),
  );
  for (const id of ids.slice(0, 7)) await Bun.write(join(folder, "images", `${id}.jpg`), jpeg);
  return path;
}

describe("dlfs data", () => {
  test("imports, checks, splits, measures and exports", async () => {
    await inFolder(async (folder) => {
      const input = await dataset(folder);
      const store = ["--store", join(folder, "store.sqlite")];
      const imported = dlfs("import", input, ...store);
      expect(imported.stderr).toBe("");
      expect(imported.stdout).toContain("all: 8 images, 8 boxes");
      expect(imported.stdout).toContain(`1 categories, images in ${folder}`);

      const rows = join(folder, "rows.jsonl");
      const checked = dlfs("check", ...store, "--no-duplicates", "--rows", rows);
      expect(checked.status).toBe(1);
      expect(checked.stdout).toContain("1 image skipped: no such file");
      expect(checked.stdout).toContain("1 box clipped: reaches outside the image");
      expect(
        readFileSync(rows, "utf8")
          .trim()
          .split("\n")
          .map((line) => JSON.parse(line).fix),
      ).toEqual(["clip box", "leave out image"]);
      const fixed = dlfs("check", ...store, "--fix", "--author", "anna");
      expect(fixed.stdout).toContain("6 images skipped: the same picture as another image");
      expect(fixed.status).toBe(0);

      const split = dlfs("split", ...store, "--shares", "train=0.5,val=0.5", "--seed", "3");
      expect(split.stdout).toMatch(/^train: \d images\nval: \d images\n$/);
      expect(dlfs("split", ...store, "--shares", "train=0.5,val=0.5", "--seed", "3").stdout).toBe(split.stdout);

      const stats = dlfs("stats", ...store, "--model", "compact", "--size", "64");
      expect(stats.stdout).toContain("1 images, 0 without boxes; 1 boxes and 0 crowds; 1 classes");
      expect(stats.stdout).toMatch(/at least 0.5: \d+\.\d %\s+below 0.4: \d+\.\d %/);

      const out = join(folder, "out.csv");
      const name = stats.status === 0 && split.stdout.includes("train: 0") ? "val" : "train";
      const exported = dlfs("export", ...store, "--split", name, "--unusable", "--format", "csv", "--out", out);
      expect(exported.status).toBe(0);
      expect(existsSync(out)).toBe(true);
    });
  }, 60_000);

  test("serves until it is interrupted", async () => {
    await inFolder(async (folder) => {
      const store = join(folder, "store.sqlite");
      dlfs("import", await dataset(folder), "--store", store);
      const free = Bun.serve({ port: 0, fetch: () => new Response() });
      const port = String(free.port);
      await free.stop(true);
      const child = Bun.spawn([process.execPath, program, "data", "view", "--store", store, "--port", port], {
        stdout: "pipe",
      });
      const { value } = await child.stdout.getReader().read();
      const url = new TextDecoder().decode(value).split(" ")[0] as string;
      const answer = (await (await fetch(new URL("/api/images", url))).json()) as { total: number };
      expect(answer.total).toBe(8);
      child.kill("SIGINT");
      expect(await child.exited).toBe(0);
    });
  }, 60_000);

  test.each([
    [[], "expected one of import, export, check, view, split, stats, download"],
    [["frob"], 'got "frob"'],
    [["import"], "expected a file or folder"],
    [["check"], "expected --store"],
    [["check", "--store", "/nowhere/x.sqlite"], 'no such file, "/nowhere/x.sqlite"'],
    [["stats", "--store", "x", "--fix"], "--fix is not for stats"],
    [["export", "--store", "x"], "expected --format, coco, cvat"],
    [["export", "--store", "x", "--format", "tfrecord"], 'got "tfrecord"'],
    [["split", "--store", "x", "--shares", "train"], '--shares: expected NAME=SHARE, got "train"'],
    [["split", "--store", "x", "--shares", "a=1", "--seed", "-1"], "seed"],
    [["check", "here", "--store", "x"], 'unexpected argument "here"'],
  ])("is called wrongly: %p", (args, message) => {
    const { status, stderr } = dlfs(...args);
    expect(stderr).toContain(message);
    expect(status).toBe(2);
  });

  test("packs a split into record files, does what is left, and refuses another pack's folder", async () => {
    await inFolder(async (folder) => {
      const input = await dataset(folder);
      const store = ["--store", join(folder, "store.sqlite")];
      dlfs("import", input, ...store);
      dlfs("check", ...store, "--no-duplicates", "--fix");
      const out = join(folder, "records");
      const pack = ["pack", ...store, "--split", "all", "--out", out];
      const packed = dlfs(...pack, "--size", "32");
      expect(packed.stderr).toBe("");
      expect(packed.stdout).toContain(`${out}: 7 records in 1 shards\n1 shards written`);
      expect(dlfs(...pack, "--size", "32").stdout).toContain("all shards were there already");
      const other = dlfs(...pack, "--size", "64");
      expect(other.status).toBe(1);
      expect(other.stderr).toContain(`${out}: it was packed otherwise: size: asked for [64,64], it has [32,32]`);
      for (const [args, message] of [
        [["--store", "x"], "expected --out"],
        [["--out", "x"], "expected one of --data and --store"],
        [["--out", "x", "--data", "demo", "--dtype", "u4"], "--dtype: expected one of u8, bf16, f16, f32"],
        [["--out", "x", "--data", "demo", "--dtype", "f16", "--padding", "drawn"], "--padding drawn is for --dtype u8"],
      ] as const) {
        const { status, stderr } = dlfs("pack", ...args);
        expect([status, stderr.includes(message)]).toEqual([2, true]);
      }
    });
  });
});
