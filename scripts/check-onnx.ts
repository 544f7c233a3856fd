/**
 * Exports each model to ONNX, with and without post-processing, lets ONNX's checker judge the files, runs them in ONNX Runtime at
 * batch 1, 3 and 8, and compares what comes out with the model's own output.
 *
 *   bun run scripts/check-onnx.ts --python PYTHON [--backend cpu|cuda] [--only TEXT] [--opset 17] [--batches 1,3,8] [--record]
 *
 * PYTHON needs onnx, onnxruntime and numpy. --record keeps the files that tests/export compares with, when they pass. Prints a
 * table with the largest difference of each output relative to its largest value; exits with 1 when one is beyond 1e-4, or when
 * a file is refused.
 */
import { copyFile, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { exportOnnx } from "../lib/export";
import { permute } from "../lib/export/permute";
import { Program } from "../lib/graph";
import { Device, Tensor } from "../lib/tensor";
import { type OnnxCase, onnxCases } from "../tests/golden/onnx/models";

const { values: args } = parseArgs({
  options: {
    python: { type: "string", default: "python3" },
    backend: { type: "string" },
    only: { type: "string", default: "" },
    opset: { type: "string", default: "17" },
    batches: { type: "string", default: "1,3,8" },
    record: { type: "boolean", default: false },
  },
});

/** Differences relative to the largest value. */
const LIMIT = 1e-4;

interface Output {
  readonly shape: readonly number[];
  readonly data: Float32Array | Int32Array;
}

interface Run {
  readonly batch: number;
  readonly expected: Map<string, Output>;
}

interface Exported {
  readonly name: string;
  readonly file: string;
  readonly runs: Run[];
  readonly golden: string | undefined;
}

const device = new Device({ backend: args.backend });
const folder = await mkdtemp(join(tmpdir(), "dlfs-onnx-"));
const batches = args.batches.split(",").map(Number);

/** Numbers from -2 to 2 that look like noise, the same each time. */
function noise(count: number, seed: number): Float32Array {
  return Float32Array.from({ length: count }, (_, i) => {
    const x = Math.sin((i + 1) * 12.9898 + seed * 78.233) * 43758.5453;
    return 4 * (x - Math.floor(x)) - 2;
  });
}

/** (N, H, W, C) as (N, C, H, W). */
function toNchw(data: Float32Array, shape: readonly number[]): Float32Array {
  return permute(data, shape, [0, 3, 1, 2]);
}

/** What the model itself computes, by the names of the outputs; results that are image batches in the exported layout. */
function compute(given: OnnxCase, images: Float32Array, sizes: Float32Array, batch: number): Map<string, Output> {
  const [h, w] = given.size;
  const { options } = given;
  const shape = [batch, h, w, 3];
  const specs = {
    images: { shape, dtype: "f32" as const },
    ...(options.postprocess && { image_sizes: { shape: [batch, 2], dtype: "f32" as const } }),
  };
  using program = new Program(device, specs, (inputs) => given.results(inputs.images!, inputs.image_sizes));
  using input = Tensor.from(device, images, shape);
  program.inputs.images!.copyFrom(input);
  if (options.postprocess) {
    using given = Tensor.from(device, sizes, [batch, 2]);
    program.inputs.image_sizes!.copyFrom(given);
  }
  program.run();
  const { layout = "nchw" } = options;
  return new Map(
    Object.entries(program.results).map(([name, tensor]) => {
      const data = tensor.read() as Float32Array;
      const [n, p, q, k] = tensor.shape as [number, number, number, number];
      const image = tensor.shape.length === 4 && layout === "nchw";
      return [name, image ? { shape: [n, k, p, q], data: toNchw(data, tensor.shape) } : { shape: tensor.shape, data }];
    }),
  );
}

/** Largest difference relative to the largest expected value. */
function difference(actual: Output, expected: Output): number {
  if (actual.shape.join() !== expected.shape.join()) return Number.NaN;
  let [worst, largest] = [0, 0];
  for (const [i, value] of expected.data.entries()) {
    const distance = Math.abs(actual.data[i]! - value);
    if (!(distance <= worst)) worst = distance; // NaN stays
    largest = Math.max(largest, Math.abs(value));
  }
  return worst / (largest || 1);
}

/**
 * The same for detections: where scores agree to their last digit but one, rows may come in another order, so that each expected
 * row is compared with the nearest row of its image that is left.
 */
function detectionDifference(actual: Output, expected: Output): number {
  const [n = 0, rows = 0, columns = 0] = expected.shape;
  if (actual.shape.join() !== expected.shape.join()) return Number.NaN;
  const largest = Math.max(...expected.data.map(Math.abs)) || 1;
  let worst = 0;
  for (let image = 0; image < n; ++image) {
    const rowsOf = ({ data }: Output) =>
      Array.from({ length: rows }, (_, i) => {
        const start = (image * rows + i) * columns;
        return [...data.subarray(start, start + columns)];
      });
    const left = rowsOf(actual);
    for (const row of rowsOf(expected)) {
      const distances = left.map((other) => Math.max(...other.map((value, i) => Math.abs(value - row[i]!))));
      const nearest = distances.indexOf(Math.min(...distances));
      worst = Math.max(worst, (distances[nearest] ?? Number.NaN) / largest);
      left.splice(nearest, 1);
    }
  }
  return worst;
}

const cases: Exported[] = [];
const requests: unknown[] = [];
let number = 0;
for (const given of onnxCases(device, { opset: Number(args.opset) })) {
  using model = given.model;
  ++number;
  if (!given.name.includes(args.only)) continue;
  const file = `${number}.onnx`;
  await exportOnnx(model, join(folder, file), { ...given.options, size: given.size });
  const [h, w] = given.size;
  const runs: Run[] = [];
  const inputs: unknown[] = [];
  for (const batch of batches) {
    const images = noise(batch * h * w * 3, batch);
    const sizes = Float32Array.from({ length: 2 * batch }, (_, i) => given.size[i % 2]! - 8 * Math.floor(i / 2));
    runs.push({ batch, expected: compute(given, images, sizes, batch) });
    const nhwc = given.options.layout === "nhwc";
    const feed: Record<string, { data: Float32Array; shape: number[] }> = {
      images: nhwc
        ? { data: images, shape: [batch, h, w, 3] }
        : { data: toNchw(images, [batch, h, w, 3]), shape: [batch, 3, h, w] },
    };
    if (given.options.postprocess) feed.image_sizes = { data: sizes, shape: [batch, 2] };
    const entries: Record<string, unknown> = {};
    for (const [name, { data, shape }] of Object.entries(feed)) {
      const input = `${number}-${batch}-${name}.bin`;
      await Bun.write(join(folder, input), new Uint8Array(data.buffer));
      entries[name] = { file: input, shape };
    }
    inputs.push({ inputs: entries, outputs: `${number}-${batch}-out` });
  }
  cases.push({ name: given.name, file, runs, golden: given.golden });
  requests.push({ model: file, runs: inputs });
}
await Bun.write(join(folder, "cases.json"), JSON.stringify(requests));

const script = fileURLToPath(new URL("run-onnx.py", import.meta.url));
const python = Bun.spawn([args.python, script, folder], { stdout: "inherit", stderr: "inherit" });
if ((await python.exited) !== 0) {
  console.error(`${args.python} ${script} failed; --python names one with onnx and onnxruntime`);
  process.exit(2);
}

interface Results {
  versions: { onnx: string; onnxruntime: string };
  cases: { error: string | null; runs: Record<string, { file: string; shape: number[]; dtype: string }>[] }[];
}

const results = (await Bun.file(join(folder, "results.json")).json()) as Results;
const { onnx, onnxruntime } = results.versions;
console.log(
  `${device.info.name} (${device.backend}) against ONNX Runtime ${onnxruntime}, onnx ${onnx}, opset ${args.opset}`,
);
let failed = cases.length === 0;
for (const [i, { name, file, runs, golden }] of cases.entries()) {
  const result = results.cases[i]!;
  let allPassed = true;
  if (result.error) {
    failed = true;
    console.log(`FAIL ${name}: ${result.error}`);
    continue;
  }
  for (const [j, { batch, expected }] of runs.entries()) {
    const actual = result.runs[j]!;
    const parts: string[] = [];
    let passed = Object.keys(actual).join() === [...expected.keys()].join();
    for (const [output, { file: values, shape, dtype }] of Object.entries(actual)) {
      const bytes = await Bun.file(join(folder, values)).arrayBuffer();
      const data = dtype === "int32" ? new Int32Array(bytes) : new Float32Array(bytes);
      const compare = output === "detections" ? detectionDifference : difference;
      const worst = expected.has(output) ? compare({ shape, data }, expected.get(output)!) : Number.NaN;
      passed &&= worst <= LIMIT;
      parts.push(`${output} (${shape.join(", ")}) ${worst.toExponential(1)}`);
    }
    const counts = expected.get("counts")?.data;
    if (counts) {
      parts.push(`${counts.join(" ")} detections`);
      passed &&= counts.some((count) => count > 0);
    }
    failed ||= !passed;
    allPassed &&= passed;
    console.log(`${passed ? "ok  " : "FAIL"} ${name.padEnd(46)} batch ${batch}  ${parts.join("  ")}`);
  }
  if (args.record && golden && allPassed) {
    await copyFile(join(folder, file), fileURLToPath(new URL(`../tests/golden/onnx/${golden}`, import.meta.url)));
  }
}
device.dispose();
await rm(folder, { recursive: true });
process.exit(failed ? 1 : 0);
