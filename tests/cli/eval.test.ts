/** dlfs eval: of results files, of a trained model, and the two agreeing; what is wrong ends with a named error. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Normalize, Resize } from "../../lib/data";
import { evaluateCoco } from "../../lib/metrics";
import { evaluateModel, evaluateResultsFile, formatReport, readCalibration, reportOf } from "../../lib/train";
import { detectionOf, truthOf } from "../metrics/coco-rows";
import { randomCase } from "../metrics/random-cases";
import { backend, missing, testDevice } from "../support/device";
import { writeTinyDataset } from "../support/tiny-dataset";
import { saveTrained } from "../support/trained-model";

const program = fileURLToPath(new URL("../../lib/cli/main.ts", import.meta.url));
let folder = "";

async function dlfsEval(...args: string[]): Promise<{ status: number; stdout: string; stderr: string }> {
  const env = { ...process.env, DLFS_BACKEND: backend, XDG_CACHE_HOME: join(folder, "cache") };
  const child = Bun.spawn([process.execPath, program, "eval", ...args], { env, stdout: "pipe", stderr: "pipe" });
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { status: await child.exited, stdout, stderr };
}

/** A run of an untrained model that finds something everywhere, for its threshold is 0. */
async function writeRun(path: string, names = ["red", "green"]): Promise<void> {
  await mkdir(join(path, "checkpoints"), { recursive: true });
  const model = {
    name: "compact" as const,
    classes: 2,
    width: 4,
    headConvs: 1,
    postprocess: { scoreThreshold: 0, topK: 50, nmsThreshold: 0.5, maxDetections: 20 },
  };
  const config = {
    model,
    classes: names,
    size: [64, 64],
    preprocessing: [new Resize().toJSON(), new Normalize().toJSON()],
    data: folder,
    valSplit: "val2017",
  };
  await saveTrained(join(path, "checkpoints", "checkpoint-00000007.dlck"), model, 4, config);
}

beforeAll(async () => {
  folder = await writeTinyDataset(testDevice());
  await writeRun(join(folder, "run"));
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

describe("of results files", () => {
  test("gives pycocotools' figures, a table of the classes, and files where they are wanted", async () => {
    const { images, categories, groundTruth, detections } = randomCase(11);
    const [annotations, results] = [join(folder, "instances.json"), join(folder, "results.json")];
    const files = images.map((id) => ({ id, file_name: `${id}.jpg` }));
    const named = categories.map((id) => ({ id, name: `class ${id}` }));
    const objects = groundTruth.map(([image_id, category_id, x, y, w, h, area, iscrowd, id]) => {
      return { id, image_id, category_id, bbox: [x, y, w, h], area, iscrowd };
    });
    const rows = detections.map(([image_id, category_id, x, y, w, h, score]) => {
      return { image_id, category_id, bbox: [x, y, w, h], score };
    });
    writeFileSync(annotations, JSON.stringify({ images: files, categories: named, annotations: objects }));
    writeFileSync(results, JSON.stringify(rows));
    const expected = evaluateCoco(groundTruth.map(truthOf), detections.map(detectionOf), { images, categories });

    const out = join(folder, "report");
    const { status, stdout, stderr } = await dlfsEval("--results", results, "--annotations", annotations, "--out", out);
    expect(stderr).toBe("");
    expect(status).toBe(0);
    expect(stdout).toStartWith(expected.summarize());
    for (const id of categories) expect(stdout).toMatch(new RegExp(`^class ${id} +\\d`, "m"));
    expect(stdout).toContain("AP50 lost to errors: classification ");
    expect(readdirSync(out).sort()).toEqual(["confusion-matrix.svg", "f1-curve.svg", "metrics.json", "pr-curve.svg"]);
    const metrics = JSON.parse(readFileSync(join(out, "metrics.json"), "utf8"));
    expect(metrics.stats).toEqual(expected.stats);
    expect(metrics.images).toBe(images.length);
    expect(metrics.classes.map(({ AP }: { AP: number }) => AP)).toEqual(
      [...expected.perCategory.values()].map(({ AP }) => AP),
    );
  });

  test("an unknown image ends it with an error that names file and field", async () => {
    const annotations = join(folder, "annotations", "instances_val2017.json");
    const results = join(folder, "wrong.json");
    writeFileSync(results, JSON.stringify([{ image_id: 99, category_id: 3, bbox: [1, 2, 3, 4], score: 0.5 }]));
    expect(await dlfsEval("--results", results, "--annotations", annotations)).toEqual({
      status: 1,
      stdout: "",
      stderr: `dlfs eval: ${results}: [0].image_id: no image of ${annotations} has id 99\n`,
    });
  });
});

describe("of a trained model", () => {
  test("writes detections that measure the same as a results file", async () => {
    const run = join(folder, "run");
    const { status, stdout, stderr } = await dlfsEval("--run", run, "--batch", "3");
    expect(stderr).toBe("");
    expect(status).toBe(0);
    expect(stdout).toContain("checkpoint-00000007.dlck, 7 iterations");
    const out = join(run, "evaluation-val2017");
    expect(stdout).toEndWith(`written: ${out}\n`);
    const { stats } = JSON.parse(readFileSync(join(out, "metrics.json"), "utf8"));
    const again = await evaluateResultsFile(
      join(folder, "annotations", "instances_val2017.json"),
      join(out, "detections.json"),
    );
    expect(again.evaluator.detectionCount).toBeGreaterThan(100);
    expect(again.result.stats).toEqual(stats);
    expect(stdout).toContain(formatReport(reportOf(again)).join("\n"));
  });

  test("measures it in 8 bits, too, after a calibration that is kept", async () => {
    const reason = missing(testDevice(), "f32", ["conv.f8", "conv.i8"]);
    if (reason) return;
    const run = join(folder, "run");
    const out = join(folder, "in-8-bits");
    const args = ["--run", run, "--precision", "f32", "--quantize", "f8,i8", "--calibration-images", "5", "--out", out];
    const { status, stdout } = await dlfsEval(...args);
    expect(status).toBe(0);
    expect(stdout).toMatch(/^fp32 +\d\.\d{4}/m);
    for (const dtype of ["f8", "i8"]) {
      expect(stdout).toMatch(new RegExp(`^${dtype}( +\\d\\.\\d{4}){3} {3}AP [+-]\\d+\\.\\d\\d points$`, "m"));
    }
    const table = await readCalibration(join(run, "calibration.json"));
    expect(table).toMatchObject({ method: "mse", images: 5 });
  });

  test("takes another split, size and checkpoint", async () => {
    const path = join(folder, "run", "checkpoints", "checkpoint-00000007.dlck");
    const lines: string[] = [];
    const device = testDevice();
    const options = { split: "train2017", size: [96, 128] as const, log: (line: string) => void lines.push(line) };
    const evaluation = await evaluateModel(path, device, options);
    expect(lines.join("\n")).toContain("train2017, 8 images, input 96x128, fp32");
    expect(evaluation.images).toBe(8);
    expect(evaluation.detections.length).toBeGreaterThan(100);
    for (const { imageId, categoryId } of evaluation.detections) {
      expect([imageId >= 1 && imageId <= 8, categoryId === 3 || categoryId === 4]).toEqual([true, true]);
    }
  });

  test("refuses data of other classes and what is no run", async () => {
    await writeRun(join(folder, "other"), ["red", "blue"]);
    const other = await dlfsEval("--run", join(folder, "other"));
    expect(other.status).toBe(1);
    expect(other.stderr).toContain('class 1 is "green", expected "blue"');
    const none = await dlfsEval("--run", join(folder, "nowhere"));
    expect([none.status, none.stderr]).toEqual([
      1,
      expect.stringContaining(`${join(folder, "nowhere")}: it does not exist`),
    ]);
  });
});

test("wrong calls end with 2 and say what is expected", async () => {
  for (const [args, message] of [
    [[], "expected one of --run, --checkpoint and --results"],
    [["--run", "a", "--results", "b"], "expected one of --run, --checkpoint and --results"],
    [["--results", "b"], "--results needs --annotations"],
    [["--run", "a", "--annotations", "b"], "--annotations is for --results"],
    [["--results", "a", "--annotations", "b", "--size", "64"], "--size is for --run and --checkpoint"],
    [["--run", "a", "--size", "64x"], '--size: expected N or HxW in pixels, got "64x"'],
    [["--run", "a", "--batch", "0"], '--batch: expected an integer from 1, got "0"'],
    [["--run", "a", "--precision", "f8"], '--precision: expected one of fp32, tf32, bf16, fp16, f32, f16, got "f8"'],
    [["--run", "a", "--quantize", "f8,f4"], '--quantize: expected one of f8, i8, got "f4"'],
    [["--run", "a", "--calibration-images", "9"], "--calibration-images is for --quantize"],
    [["--rnu", "a"], "'--rnu'"],
  ] as const) {
    const { status, stderr } = await dlfsEval(...args);
    expect([status, stderr]).toEqual([2, expect.stringContaining(message)]);
  }
});
