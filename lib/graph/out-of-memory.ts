import { DlfsError, ErrorCode } from "../native";
import { type Device, dtypeSize, elementCount } from "../tensor";
import { type Lowering, type LoweringOptions, lower } from "./lowering";
import type { Node } from "./node";
import type { Spec, Value } from "./value";

/** A program whose arena could not be allocated. */
export interface UnfitProgram {
  device: Device;
  /** Its inputs by name, (N, ...) each. */
  specs: Record<string, Spec>;
  forward: (inputs: Record<string, Value>) => Record<string, Value>;
  options: LoweringOptions;
  lowering: Lowering;
}

/** How many of the largest values an error names. */
const LARGEST = 4;

const size = (bytes: number): string =>
  bytes >= 2 ** 30 ? `${(bytes / 2 ** 30).toFixed(2)} GiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`;

/**
 * The error for a program that does not fit: what was asked for and which values are the largest, what is in use and free, and
 * which settings would fit. An error of another kind is handed back as it is.
 */
export function outOfMemory(error: unknown, program: UnfitProgram): unknown {
  if (!(error instanceof DlfsError) || error.code !== ErrorCode.memory) return error;
  const { device, specs, options, lowering } = program;
  const { bytes } = lowering.memory;
  const { free, total, allocated } = device.memory();
  const batch = batchOf(specs);
  const what = `the arena of this ${options.seeds ? "training " : ""}program takes ${size(bytes)}`;
  const message = [
    `out of memory: ${what}${batch ? ` for a batch of ${batch}` : ""}; ` +
      `${size(free)} of ${size(total)} are free on ${device.info.name}, ${size(allocated)} are in use by this device object`,
    `largest values: ${largestValues(lowering.nodes).join(", ")}`,
    ...suggestions(program, batch, free),
  ];
  return new DlfsError(ErrorCode.memory, "Program", message.join(". "), { cause: error });
}

/** The first size of the first input, where that is a batch. */
function batchOf(specs: Record<string, Spec>): number | null {
  const shape = Object.values(specs)[0]?.shape;
  return shape && shape.length > 1 ? shape[0]! : null;
}

/** Results of nodes by size, equal ones of one layer once. */
function largestValues(nodes: readonly Node[]): string[] {
  const sizes = new Map<string, number>();
  for (const { op, path, outputs } of nodes) {
    if (op.alias) continue;
    for (const { shape, dtype } of outputs) {
      sizes.set(
        `${path || "outside of layers"} (${op.kind}, ${dtype} ${shape.join("x")})`,
        elementCount(shape) * dtypeSize(dtype),
      );
    }
  }
  return [...sizes]
    .sort((a, b) => b[1] - a[1])
    .slice(0, LARGEST)
    .map(([name, bytes]) => `${name} ${size(bytes)}`);
}

function suggestions({ device, specs, forward, options, lowering }: UnfitProgram, batch: number | null, free: number) {
  const found: string[] = [];
  // A little of what is free goes to the alignment of blocks.
  const room = 0.99 * free;
  /** The arena's bytes for another batch or other options; null where the program cannot be had with them. */
  const bytesAt = (n: number, other: LoweringOptions = {}): number | null => {
    const scaled = Object.entries(specs).map(([name, { shape, dtype }]): [string, Spec] => [
      name,
      { shape: shape[0] === batch ? [n, ...shape.slice(1)] : shape, dtype },
    ]);
    const share = batch === null ? 1 : n / batch;
    const workspaces = lowering.workspaces.map((workspace) => Math.ceil(workspace * share));
    try {
      return lower(device, Object.fromEntries(scaled), forward, { ...options, ...other }, workspaces).memory.bytes;
    } catch {
      return null;
    }
  };
  if (batch && batch > 1) {
    // bytes grow with the batch: the largest that fits lies from `fits` to below `fails`.
    let [fits, fails, fitting] = [0, batch, 0];
    while (fails - fits > 1) {
      const n = (fits + fails) >> 1;
      const bytes = bytesAt(n);
      if (bytes !== null && bytes <= room) [fits, fitting] = [n, bytes];
      else fails = n;
    }
    const one = fits === 0 ? bytesAt(1) : null;
    if (fits > 0) found.push(`a batch of ${fits} fits (${size(fitting)})`);
    else if (one !== null) found.push(`a batch of 1 would take ${size(one)}`);
  }
  if (options.seeds && !options.recompute) {
    const bytes = bytesAt(batch ?? 1, { recompute: true });
    if (bytes !== null && bytes <= room) found.push(`recompute fits (${size(bytes)}), for more time a step`);
  }
  const [input] = Object.values(specs);
  const half = (["bf16", "f16"] as const).filter((dtype) => device.supports(`conv.${dtype}`));
  if (input?.dtype === "f32" && half.length > 0) {
    found.push(`precision ${half.join(" or ")} takes about half as much as f32`);
  }
  found.push("smaller images take less in proportion to their pixels");
  return found;
}
