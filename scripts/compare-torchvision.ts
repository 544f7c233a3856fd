/**
 * Compares RetinaNet, number by number, with torchvision's: head outputs, detections, losses, gradients of all parameters, and
 * parameters after some steps of SGD, from generated weights and images; dlfs in fp32, torch in double precision or fp32.
 *
 *   bun run scripts/compare-torchvision.ts [--backbone resnet50] [--norm frozen|batch] [--trainable-layers 5]
 *     [--classes 11] [--batch 2] [--size 128x160] [--steps 10] [--backend cpu|cuda]
 *     [--python python3] [--reference float64|float32]
 *
 * Where rounding puts one ReLU's input on the other side of 0, gradients differ by up to some 1e-3 although nothing is wrong;
 * torch in fp32 and in double then disagree with each other as well. Compare with both references before looking for an error.
 *
 * Needs a Python with torch and torchvision (0.13 or later). Prints a table with the largest difference of each group and its
 * limit; exits with 1 when one is exceeded.
 */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { type ResNetName, resNetNames, type TorchWeight } from "../lib/models";
import { Device } from "../lib/tensor";
import { type Case, compute } from "../tests/golden/retinanet/network";

const { values: args } = parseArgs({
  options: {
    backbone: { type: "string", default: "resnet50" },
    norm: { type: "string", default: "frozen" },
    "trainable-layers": { type: "string", default: "5" },
    classes: { type: "string", default: "11" },
    batch: { type: "string", default: "2" },
    size: { type: "string", default: "128x160" },
    steps: { type: "string", default: "10" },
    backend: { type: "string" },
    python: { type: "string", default: "python3" },
    reference: { type: "string", default: "float64" },
  },
});

function fail(message: string): never {
  console.error(message);
  process.exit(2);
}

function count(text: string, name: string, least = 1): number {
  const value = Number(text);
  return Number.isInteger(value) && value >= least
    ? value
    : fail(`--${name}: expected a whole number from ${least}, got ${text}`);
}

const size = /^(\d+)x(\d+)$/.exec(args.size) ?? fail(`--size: expected HEIGHTxWIDTH, got ${args.size}`);
if (!resNetNames.includes(args.backbone as ResNetName))
  fail(`--backbone: expected one of ${resNetNames.join(", ")}, got ${args.backbone}`);
if (args.norm !== "frozen" && args.norm !== "batch") fail(`--norm: expected frozen or batch, got ${args.norm}`);
const given: Case = {
  backbone: args.backbone as ResNetName,
  norm: args.norm as Case["norm"],
  trainableLayers: count(args["trainable-layers"], "trainable-layers", 0),
  classes: count(args.classes, "classes", 2),
  n: count(args.batch, "batch"),
  height: Number(size[1]),
  width: Number(size[2]),
  steps: count(args.steps, "steps"),
};

/** What torchvision computes, from record.py. */
async function reference(): Promise<{ versions: Record<string, string>; tensors: Map<string, TorchWeight> }> {
  const folder = await mkdtemp(join(tmpdir(), "dlfs-torchvision-"));
  try {
    const script = fileURLToPath(new URL("../tests/golden/retinanet/record.py", import.meta.url));
    const python = Bun.spawn(
      [args.python, script, "--full", folder, JSON.stringify(given), "--dtype", args.reference],
      {
        stdout: "inherit",
        stderr: "inherit",
      },
    );
    if ((await python.exited) !== 0) fail(`${args.python} ${script} failed; --python names one with torchvision`);
    const { versions, tensors } = JSON.parse(await readFile(join(folder, "index.json"), "utf8")) as {
      versions: Record<string, string>;
      tensors: Record<string, { shape: number[]; offset: number }>;
    };
    const { buffer, byteOffset } = await readFile(join(folder, "tensors.bin"));
    const view = ({ shape, offset }: { shape: number[]; offset: number }): TorchWeight => {
      const length = shape.reduce((a, b) => a * b, 1);
      return { shape, data: new Float32Array(buffer.slice(byteOffset + offset, byteOffset + offset + 4 * length)) };
    };
    return { versions, tensors: new Map(Object.entries(tensors).map(([name, entry]) => [name, view(entry)])) };
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** The largest difference relative to the largest expected value. */
function relativeToLargest(actual: Float32Array, expected: Float32Array): number {
  let [difference, largest] = [0, 0];
  for (let i = 0; i < expected.length; ++i) {
    const d = Math.abs((actual[i] as number) - (expected[i] as number));
    if (!(d <= difference)) difference = d; // NaN stays
    largest = Math.max(largest, Math.abs(expected[i] as number));
  }
  return difference / (largest || 1);
}

/** The norm of the difference relative to the expected norm. */
function relativeInNorm(actual: Float32Array, expected: Float32Array): number {
  let [difference, norm] = [0, 0];
  for (let i = 0; i < expected.length; ++i) {
    difference += ((actual[i] as number) - (expected[i] as number)) ** 2;
    norm += (expected[i] as number) ** 2;
  }
  return Math.sqrt(difference) / (Math.sqrt(norm) || 1);
}

/** The largest difference relative to each expected value. */
function relativeEach(actual: Float32Array, expected: Float32Array): number {
  return expected.reduce((worst, e, i) => Math.max(worst, Math.abs((actual[i] as number) - e) / Math.abs(e)), 0);
}

/** The share of detections without a counterpart: the same label, boxes within 0.1 pixel, scores within 1e-4. */
function unmatched(actual: Float32Array, expected: Float32Array): number {
  const rows = (data: Float32Array) =>
    Array.from({ length: data.length / 6 }, (_, i) => [...data.subarray(6 * i, 6 * i + 6)]);
  const left = rows(actual);
  let lost = Math.max(0, left.length - expected.length / 6);
  for (const row of rows(expected)) {
    const limits = [0.1, 0.1, 0.1, 0.1, 1e-4, 0];
    const at = left.findIndex((found) => found.every((x, i) => Math.abs(x - row[i]!) <= limits[i]!));
    if (at < 0) ++lost;
    else left.splice(at, 1);
  }
  return lost / Math.max(1, expected.length / 6);
}

const groups = [
  { title: "head outputs, relative to the largest", of: /^(logits|deltas)$/, measure: relativeToLargest, limit: 1e-4 },
  { title: "detections without a counterpart", of: /^detections\./, measure: unmatched, limit: 0 },
  { title: "losses, first step, relative", of: /^losses$/, measure: relativeEach, limit: 1e-5, first: 2 },
  { title: "losses, all steps, relative", of: /^losses$/, measure: relativeEach, limit: 1e-3 },
  { title: "gradients, relative in norm", of: /^grad\./, measure: relativeInNorm, limit: 1e-3 },
  { title: `parameters after ${given.steps} steps`, of: /^after\./, measure: relativeToLargest, limit: 1e-4 },
];

const { versions, tensors: expected } = await reference();
const device = new Device({ backend: args.backend });
const actual = await compute(device, given);
console.log(
  `${device.info.name} (${device.backend}) against torchvision ${versions.torchvision}, torch ${versions.torch}`,
);
console.log(JSON.stringify(given));
let failed = false;
const names = new Set([...expected.keys(), ...actual.keys()]);
for (const { title, of, measure, limit, first } of groups) {
  const members = [...names].filter((name) => of.test(name));
  let [worst, worstName] = [0, members[0] ?? "none"];
  for (const name of members) {
    const [a, e] = [actual.get(name), expected.get(name)];
    const comparable = a && e && (name.startsWith("detections") || a.shape.join() === e.shape.join());
    const difference = comparable ? measure(a.data.subarray(0, first), e.data.subarray(0, first)) : Number.NaN;
    if (!(difference <= worst)) [worst, worstName] = [difference, name];
    if (!comparable) break;
  }
  const passed = members.length > 0 && worst <= limit;
  failed ||= !passed;
  const figures = `${worst.toExponential(2).padStart(9)}  limit ${limit.toExponential(0)}`;
  console.log(
    `${passed ? "ok  " : "FAIL"} ${title.padEnd(40)} ${String(members.length).padStart(4)} tensors  ${figures}  ${worstName}`,
  );
}
device.dispose();
process.exit(failed ? 1 : 0);
