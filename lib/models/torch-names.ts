/** Weights by PyTorch's names, shapes and layouts: in both directions between a model and a state dict. */
import type { Parameter } from "../graph";
import type { Model } from "../layers";
import { check, DlfsError, ErrorCode } from "../native";
import { elementCount } from "../tensor";

/** One entry of a PyTorch state dict, converted to fp32: row-major, convolution weights as (out, in / groups, height, width). */
export interface TorchWeight {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

export interface LoadTorchOptions {
  /** The part of the model whose state dict this is: "backbone.body" for a classifier's checkpoint. Default: all of it. */
  readonly into?: string;
  /** Names of weights to leave out, such as a classifier's last layer ("fc.weight"). */
  readonly skip?: (name: string) => boolean;
  /** Parameters that the weights lack keep their values (fine-tuning with a new head). Default false: an error. */
  readonly partial?: boolean;
}

/** Names of the model's parameters and buffers. */
export interface LoadedWeights {
  readonly loaded: string[];
  /** Not in the weights; only with `partial`. */
  readonly kept: string[];
}

/** How many names of a kind an error message lists. */
const MAX_LISTED = 20;

/** The shape in PyTorch of a parameter: (K, R, S, C) here is (K, C, R, S) there, all others are the same. */
function torchShape({ shape }: Parameter): readonly number[] {
  const [k, r, s, c] = shape as [number, number, number, number];
  return shape.length === 4 ? [k, c, r, s] : shape;
}

/** (K, C, R, S) to (K, R, S, C), or with the last two sizes swapped the way back: transposes each of K matrices. */
function transpose(data: Float32Array, count: number, rows: number, columns: number): Float32Array {
  const out = new Float32Array(data.length);
  const size = rows * columns;
  for (let k = 0; k < count; ++k) {
    const base = k * size;
    for (let i = 0; i < rows; ++i) {
      for (let j = 0; j < columns; ++j) out[base + j * rows + i] = data[base + i * columns + j] as number;
    }
  }
  return out;
}

/**
 * The name since torchvision 0.13 of a weight in an older checkpoint, or null: pyramid blocks were convolutions themselves, and
 * the heads' convolutions alternated with ReLUs in one sequence.
 */
function renamed(name: string): string | null {
  const pyramid = /^(.*\b(?:inner|layer)_blocks\.\d+)\.(weight|bias)$/.exec(name);
  if (pyramid) return `${pyramid[1]}.0.${pyramid[2]}`;
  const head = /^(.*_head\.conv)\.(\d+)\.(weight|bias)$/.exec(name);
  if (head && Number(head[2]) % 2 === 0) return `${head[1]}.${Number(head[2]) / 2}.0.${head[3]}`;
  return null;
}

function list(names: readonly string[]): string {
  const more = names.length > MAX_LISTED ? `, and ${names.length - MAX_LISTED} more` : "";
  return `${names.slice(0, MAX_LISTED).join(", ")}${more}`;
}

/**
 * Replaces a model's parameters and buffers by a PyTorch state dict's, or none of them where something does not fit; what is
 * missing, unexpected or of another shape is one error that names it all. The model must be on its device. Convolution weights
 * are brought into this library's layout; "num_batches_tracked" is ignored; names of torchvision's checkpoints before 0.13 are
 * understood.
 */
export function loadTorchWeights(
  model: Model,
  weights: ReadonlyMap<string, TorchWeight>,
  { into = "", skip = () => false, partial = false }: LoadTorchOptions = {},
): LoadedWeights {
  const op = "loadTorchWeights";
  const prefix = into ? `${into}.` : "";
  const state = new Map(
    [...model.namedState()]
      .filter(([name]) => name.startsWith(prefix))
      .map(([name, parameter]) => [name.slice(prefix.length), parameter]),
  );
  check(state.size > 0, op, () => `the model has no parameters under "${into}"`);

  const found = new Map<Parameter, TorchWeight>();
  const names = new Map<Parameter, string>();
  const unexpected: string[] = [];
  const misfits: string[] = [];
  for (const [name, weight] of weights) {
    if (skip(name) || /(^|\.)num_batches_tracked$/.test(name)) continue;
    const now = state.has(name) ? name : renamed(name);
    const parameter = now === null ? undefined : state.get(now);
    if (now === null || !parameter) {
      unexpected.push(name);
      continue;
    }
    if (found.has(parameter)) unexpected.push(`${name} (besides ${names.get(parameter)})`);
    found.set(parameter, weight);
    names.set(parameter, name);
    const expected = torchShape(parameter);
    if (weight.shape.join() !== expected.join())
      misfits.push(`${name}: expected (${expected.join(", ")}), got (${weight.shape.join(", ")})`);
    else if (weight.data.length !== elementCount(expected))
      misfits.push(`${name}: expected ${elementCount(expected)} values, got ${weight.data.length}`);
  }
  const missing = [...state].flatMap(([name, parameter]) => (found.has(parameter) ? [] : [name]));
  const problems = [
    ...(missing.length > 0 && !partial ? [`${missing.length} missing: ${list(missing)}`] : []),
    ...(unexpected.length > 0 ? [`${unexpected.length} unexpected: ${list(unexpected)}`] : []),
    ...(misfits.length > 0 ? [`${misfits.length} of another shape: ${list(misfits)}`] : []),
  ];
  if (problems.length > 0)
    throw new DlfsError(misfits.length > 0 ? ErrorCode.shape : ErrorCode.argument, op, problems.join("; "));

  for (const [parameter, { data }] of found) {
    const [k, r, s, c] = parameter.shape as [number, number, number, number];
    parameter.tensor.write(parameter.shape.length === 4 ? transpose(data, k, c, r * s) : data);
  }
  model.refresh();
  const full = (name: string) => `${prefix}${name}`;
  const loaded = [...state].flatMap(([name, parameter]) => (found.has(parameter) ? [full(name)] : []));
  return { loaded, kept: missing.map(full) };
}

/**
 * A model's parameters and buffers as a PyTorch state dict (without "num_batches_tracked", which torch fills in itself), copied
 * to the host.
 *
 * @param from the part of the model to take, named relative to it: "backbone.body". Default: all of it
 */
export function torchWeights(model: Model, { from = "" }: { from?: string } = {}): Map<string, TorchWeight> {
  const prefix = from ? `${from}.` : "";
  const weights = new Map<string, TorchWeight>();
  for (const [name, parameter] of model.namedState()) {
    if (!name.startsWith(prefix)) continue;
    const data = parameter.tensor.read() as Float32Array;
    const [k, r, s, c] = parameter.shape as [number, number, number, number];
    weights.set(name.slice(prefix.length), {
      shape: torchShape(parameter),
      data: parameter.shape.length === 4 ? transpose(data, k, r * s, c) : data,
    });
  }
  check(weights.size > 0, "torchWeights", () => `the model has no parameters under "${from}"`);
  return weights;
}
