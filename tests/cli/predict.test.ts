/** dlfs predict: every kind of source, results in every format, runs that go on where the last ended, damaged images named. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { cp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Normalize, Resize } from "../../lib/data";
import { PredictionsReader } from "../../lib/formats";
import { backend, testDevice } from "../support/device";
import { writeTinyDataset } from "../support/tiny-dataset";
import { saveTrained } from "../support/trained-model";

const program = fileURLToPath(new URL("../../lib/cli/main.ts", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "dlfs-cli-predict-"));
const model = join(folder, "a.dlck");
let data: string;
let photos: string;

beforeAll(async () => {
  data = await writeTinyDataset(testDevice());
  photos = join(folder, "photos");
  await cp(join(data, "val2017"), photos, { recursive: true });
  await cp(join(data, "train2017", "1.jpg"), join(photos, "more", "1.jpg"));
  writeFileSync(join(photos, "bad.jpg"), readFileSync(join(photos, "1.jpg")).subarray(0, 200));
  writeFileSync(join(photos, "notes.md"), "no image");
  const network = {
    ...({ name: "compact", classes: 2, width: 4, headConvs: 1 } as const),
    postprocess: { scoreThreshold: 0, topK: 50, maxDetections: 10 },
  };
  const preprocessing = [new Resize().toJSON(), new Normalize().toJSON()];
  await saveTrained(model, network, 3, { model: network, classes: ["red", "green"], size: [64, 64], preprocessing });
});
afterAll(() => {
  rmSync(folder, { recursive: true });
  rmSync(data, { recursive: true });
});

async function predict(...args: string[]) {
  const env = { ...process.env, DLFS_BACKEND: backend };
  const command = [process.execPath, program, "predict", ...args];
  const child = Bun.spawn(command, { env, cwd: folder, stdout: "pipe", stderr: "pipe" });
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { status: await child.exited, stdout, stderr };
}

async function read(out: string) {
  await using reader = await PredictionsReader.open(join(out, "predictions.dlpr"));
  return await Array.fromAsync(reader.predictions());
}

describe("dlfs predict", () => {
  test("detects on a folder, names what is damaged, goes on after being cut off, and writes other formats and pictures", async () => {
    const out = join(folder, "out");
    const first = await predict(model, photos, "--out", out, "--batch", "3", "--format", "jsonl,yolo", "--pictures");
    expect(first.stderr).toBe("");
    expect(first.status).toBe(0);
    expect(first.stdout).toContain(`10 images in ${photos}\n`);
    expect(first.stdout).toContain(", input 64x64, ");
    expect(first.stdout).toMatch(
      /\n10 images, 90 detections in [\d.]+ s, [\d.]+ images\/s\n1 images could not be used:\n {2}bad\.jpg: /,
    );
    const found = await read(out);
    const names = [...[1, 2, 3, 4, 5, 6, 7, 8].map((i) => `${i}.jpg`), "bad.jpg", "more/1.jpg"];
    expect(found.map(({ name }) => name)).toEqual(names);
    for (const { name, width, height, scores, error } of found) {
      expect([name, width > 0 && height > 0, scores.length, error === undefined]).toEqual(
        name === "bad.jpg" ? [name, width > 0, 0, false] : [name, true, 10, true],
      );
    }
    const lines = readFileSync(join(out, "predictions.jsonl"), "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(lines.map(({ image }) => image)).toEqual(names);
    expect(lines[0].detections[0]).toEqual({
      box: expect.any(Array),
      score: expect.any(Number),
      label: expect.any(Number),
      class: expect.stringMatching(/red|green/),
    });
    expect(readdirSync(join(out, "labels")).sort()).toEqual([
      ...names.slice(0, 8).map((name) => name.replace("jpg", "txt")),
      "more",
    ]);
    const yolo = readFileSync(join(out, "labels", "more", "1.txt"), "utf8")
      .trim()
      .split("\n");
    expect(yolo.length).toBe(10);
    for (const line of yolo)
      expect(
        line
          .split(" ")
          .map(Number)
          .every((x, i) => (i === 0 ? x <= 1 : x >= 0 && x <= 1)),
      ).toBe(true);
    expect(readdirSync(join(out, "pictures")).sort()).toEqual([...names.slice(0, 8), "more"]);

    // Cut off within the third image, as by a kill: the next run does what is left, and ends with the same.
    const size = readFileSync(join(out, "predictions.dlpr")).length;
    truncateSync(join(out, "predictions.dlpr"), size - Math.ceil(size * 0.7));
    const kept = (await read(out)).length;
    expect(kept).toBeLessThan(6);
    const second = await predict(model, photos, "--out", out, "--batch", "3");
    expect(second.stdout).toContain(`${kept} images were done before\n${10 - kept} images, `);
    const again = await read(out);
    expect(again.map(({ name }) => name)).toEqual(names);
    for (const [i, { scores }] of again.entries()) {
      for (const [k, score] of scores.entries()) expect(Math.abs(score - found[i]!.scores[k]!)).toBeLessThan(2e-3);
    }
    const third = await predict(model, photos, "--out", out, "--batch", "3");
    expect(third.stdout).toContain("10 images were done before\n0 images, 0 detections");
  });

  test("detects on a data set, whose results can be measured", async () => {
    const out = join(folder, "coco");
    const annotations = join(data, "annotations", "instances_val2017.json");
    const { status, stdout } = await predict(model, annotations, "--out", out, "--format", "coco", "--score", "0.005");
    expect([status, stdout.split("\n")[0]]).toEqual([0, `8 images of ${annotations}, in ${join(data, "val2017")}`]);
    const results = JSON.parse(readFileSync(join(out, "results.json"), "utf8"));
    expect(results.length).toBeGreaterThan(8);
    for (const { image_id, category_id, bbox, score } of results) {
      expect(
        image_id >= 1 && image_id <= 8 && [3, 4].includes(category_id) && bbox.length === 4 && score >= 0.005,
      ).toBe(true);
    }
    const command = [
      process.execPath,
      program,
      "eval",
      "--results",
      join(out, "results.json"),
      "--annotations",
      annotations,
    ];
    expect(Bun.spawnSync(command).exitCode).toBe(0);
  });

  test("takes patterns, lists and single images", async () => {
    writeFileSync(join(photos, "list.txt"), "# two\n2.jpg\n\n../photos/more/1.jpg\nnone.jpg\n");
    const cases: [string, string[]][] = [
      ["photos/**/1.jpg", ["photos/1.jpg", "photos/more/1.jpg"]],
      [join(photos, "list.txt"), ["2.jpg", "../photos/more/1.jpg", "none.jpg"]],
      [join(photos, "3.jpg"), ["3.jpg"]],
    ];
    for (const [i, [source, names]] of cases.entries()) {
      const out = join(folder, `list-${i}`);
      expect((await predict(model, source, "--out", out, "--format", "yolo")).status).toBe(0);
      const found = await read(out);
      expect(found.map(({ name }) => name)).toEqual(names);
      expect(found.filter(({ error }) => error !== undefined).map(({ name }) => name)).toEqual(
        names.filter((name) => name === "none.jpg"),
      );
    }
    expect(existsSync(join(folder, "list-1", "labels", "photos", "more", "1.txt"))).toBe(true);
    rmSync(join(photos, "list.txt"));
  });

  test("says what is wrong", async () => {
    const out = join(folder, "wrong");
    const cases: [string[], number, string][] = [
      [[model], 2, "expected MODEL and SOURCE, got 1 arguments"],
      [[model, photos], 2, "expected --out, the folder of the results"],
      [[model, photos, "--out", out, "--format", "voc"], 2, '--format: expected one of coco, jsonl, yolo, got "voc"'],
      [[model, photos, "--out", out, "--batch", "0"], 2, '--batch: expected an integer from 1, got "0"'],
      [[model, join(folder, "none"), "--out", out], 1, `${join(folder, "none")}: no such file or folder`],
      [[model, join(data, "annotations"), "--out", out], 1, "it has no .jpg, .jpeg, .png or .webp images"],
      [[join(folder, "none.dlfs"), photos, "--out", out], 1, "none.dlfs: it does not exist"],
      [[model, photos, "--out", out, "--quantize", "i8"], 1, "quantize: i8 needs a calibration"],
      [
        [model, photos, "--out", out, "--format", "coco"],
        1,
        "1.jpg has no id: coco's results are those of a data set's images",
      ],
      [
        [model, photos, "--out", out, "--score", "0.9"],
        1,
        "scoreThreshold: the file has predictions of 0, these are of 0.9",
      ],
    ];
    // One of them leaves results of another threshold than the last asks for.
    const [last, ...others] = cases.reverse();
    const check = async ([args, status, message]: (typeof cases)[0]) => {
      const found = await predict(...args);
      expect(found.stderr).toContain(message);
      expect(found.status).toBe(status);
    };
    await Promise.all(others.map(check));
    await check(last!);
  });
});
