/** dlfs export: files that are what they say, and errors for what was typed or given wrongly. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Normalize, Resize } from "../../lib/data";
import { loadWeights, ModelFile, readOnnx } from "../../lib/formats";
import { type CalibrationTable, writeCalibration } from "../../lib/train";
import { backend } from "../support/device";
import { saveTrained } from "../support/trained-model";

const program = fileURLToPath(new URL("../../lib/cli/main.ts", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "dlfs-cli-export-"));
const run = join(folder, "run");
let values: Map<string, number[]>;

async function dlfsExport(...args: string[]): Promise<{ status: number; stdout: string; stderr: string }> {
  const env = { ...process.env, DLFS_BACKEND: backend };
  const child = Bun.spawn([process.execPath, program, "export", ...args], { env, stdout: "pipe", stderr: "pipe" });
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { status: await child.exited, stdout, stderr };
}

beforeAll(async () => {
  await mkdir(join(run, "checkpoints"), { recursive: true });
  const model = { name: "compact", classes: 2, width: 4, headConvs: 1 } as const;
  const preprocessing = [new Resize().toJSON(), new Normalize().toJSON()];
  const config = { model, classes: ["red", "green"], size: [64, 96], preprocessing };
  values = await saveTrained(join(run, "checkpoints", "checkpoint-00000007.dlck"), model, 3, config);
});
afterAll(() => rmSync(folder, { recursive: true }));

describe("dlfs export", () => {
  test("writes ONNX with post-processing, of training's size, and says what goes in and comes out", async () => {
    const out = join(folder, "made", "model.onnx");
    const { status, stdout, stderr } = await dlfsExport("--run", run, "--out", out, "--postprocess");
    expect(stderr).toBe("");
    expect(stdout.split("\n")).toEqual([
      `model: CompactDetector of iteration 7, ${join(run, "checkpoints", "checkpoint-00000007.dlck")}`,
      "input: images f32 (batch, 3, 64, 96)",
      "input: image_sizes f32 (batch, 2)",
      "output: detections f32 (batch, 300, 6)",
      "output: counts i32 (batch)",
      `written: ${out}`,
      "",
    ]);
    expect(status).toBe(0);
    using file = await readOnnx(out);
    expect(JSON.parse(file.values.get("names")!)).toEqual(["red", "green"]);
    expect(JSON.parse(file.values.get("preprocessing")!)).toMatchObject([{ name: "resize" }, { name: "normalize" }]);
  });

  test("writes head outputs with all options of the file", async () => {
    const out = join(folder, "heads.bin");
    const checkpoint = join(run, "checkpoints", "checkpoint-00000007.dlck");
    const options = ["--size", "32x64", "--layout", "nhwc", "--opset", "20", "--keep-batch-norm", "--format", "onnx"];
    const { status, stdout } = await dlfsExport("--checkpoint", checkpoint, "--out", out, ...options);
    expect(stdout).toContain("input: images f32 (batch, 32, 64, 3)");
    expect(status).toBe(0);
    using file = await readOnnx(out);
    expect(file.model.opset).toBe(20);
    expect([...file.tensors.get("stem.norm.running_var")!.toFloat32()]).toEqual(values.get("stem.norm.running_var")!);
  });

  test("writes the weights as safetensors", async () => {
    const out = join(folder, "weights.safetensors");
    const { status, stdout } = await dlfsExport("--run", run, "--out", out);
    expect([status, stdout.split("\n").slice(1)]).toEqual([0, [`written: ${out}`, ""]]);
    using file = await loadWeights(out);
    expect(file.format).toBe("safetensors");
    expect([...file.tensors.keys()].sort()).toEqual([...values.keys()].sort());
    expect(Object.fromEntries(file.values)).toMatchObject({ format: "pt", names: '["red","green"]', iteration: "7" });
  });

  test("writes a model file with the run's calibration, from which all other formats follow", async () => {
    const out = join(folder, "served", "model.dlfs");
    const table: CalibrationTable = {
      version: 1,
      method: "mse",
      images: 8,
      ranges: { f8: { "": 2 }, i8: { "": 1.5 } },
    };
    await writeCalibration(join(run, "calibration.json"), table);
    const { status, stdout, stderr } = await dlfsExport("--run", run, "--out", out);
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    expect(stdout).toContain(`calibration: ${join(run, "calibration.json")}\nwritten: ${out}\n`);
    {
      using file = await ModelFile.open(out);
      expect(file.metadata).toMatchObject({
        architecture: { name: "compact", classes: 2, width: 4 },
        classes: ["red", "green"],
        size: [64, 96],
        preprocessing: [{ name: "resize" }, { name: "normalize" }],
        provenance: { iteration: "7" },
        calibration: { method: "mse", images: 8, f8: { "": 2 }, i8: { "": 1.5 } },
      });
      expect([...file.tensors.keys()].sort()).toEqual([...values.keys()].sort());
      const name = "stem.conv.weight";
      expect([...new Float32Array(file.read(name).slice().buffer)]).toEqual(values.get(name)!);
    }
    const again = join(folder, "again.safetensors");
    expect((await dlfsExport("--checkpoint", out, "--out", again)).status).toBe(0);
    using weights = await loadWeights(again);
    expect([...weights.tensors.keys()].sort()).toEqual([...values.keys()].sort());
  });

  test.each<[string, string[], string]>([
    ["no model", ["--out", "a.onnx"], "expected one of --run and --checkpoint"],
    ["two models", ["--run", "a", "--checkpoint", "b", "--out", "a.onnx"], "expected one of --run and --checkpoint"],
    ["no file", ["--run", "a"], "expected --out"],
    ["an unknown ending", ["--run", "a", "--out", "a.pth"], '"a.pth" ends in none of .dlfs, .onnx and .safetensors'],
    ["an unknown format", ["--run", "a", "--out", "a", "--format", "pth"], "expected one of dlfs, onnx, safetensors"],
    ["a size", ["--run", "a", "--out", "a.onnx", "--size", "0"], '--size: expected N or HxW in pixels, got "0"'],
    ["a layout", ["--run", "a", "--out", "a.onnx", "--layout", "chw"], "--layout: expected one of nchw, nhwc"],
    ["another format's option", ["--run", "a", "--out", "a.safetensors", "--postprocess"], "is for --format onnx"],
    ["a calibration", ["--run", "a", "--out", "a.onnx", "--calibration", "c"], "--calibration is for --format dlfs"],
  ])("refuses %s as a usage error", async (_, args, message) => {
    const { status, stdout, stderr } = await dlfsExport(...args);
    expect(stderr).toContain(message);
    expect({ status, stdout }).toEqual({ status: 2, stdout: "" });
  });

  test("what cannot be exported is an error that names it, and writes nothing", async () => {
    const out = join(folder, "none.onnx");
    const missing = await dlfsExport("--run", join(folder, "other"), "--out", out);
    expect(missing).toMatchObject({
      status: 1,
      stderr: `dlfs export: ${join(folder, "other")}: it does not exist: expected a checkpoint or the folder of a run\n`,
    });
    const opset = await dlfsExport("--run", run, "--out", out, "--opset", "11");
    expect(opset.stderr).toContain("opset: expected one of 17, 18, 19, 20, 21, 22, got 11");
    expect([opset.status, existsSync(out)]).toEqual([1, false]);
  });
});
