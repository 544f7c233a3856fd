/** Weights by PyTorch's names, shapes and layouts: in both directions between a model and a state dict. */
import type { Parameter } from "../graph";
import type { Model } from "../layers";
import { check, DlfsError, ErrorCode } from "../native";
import { elementCount } from "../tensor";

/**
 * One entry of a PyTorch state dict, converted to fp32: row-major, convolution weights as (out, in / groups, height, width),
 * those of transposed convolutions as (in, out / groups, height, width).
 */
export interface TorchWeight {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

/** A state dict's entry, or a tensor of an open file (`loadWeights`), whose values are read when it is known that they fit. */
export type TorchWeightSource =
  | TorchWeight
  | { readonly path?: string; readonly shape: readonly number[]; toFloat32(): Float32Array<ArrayBuffer> };

/** Names: one or several prefixes of whole parts ("head.conv" has "head.conv.weight", not "head.conv2.weight"), or a test. */
export type NameFilter = string | readonly string[] | ((name: string) => boolean);

export interface LoadTorchOptions {
  /** The part of the model that is loaded: "backbone.body" for a classifier's checkpoint. Default: all of it. */
  readonly into?: string;
  /** The part of the weights that is taken: "backbone.body" of a detector's checkpoint. Default: all of them. */
  readonly from?: string;
  /** The model's name for a weight's, both relative to `into` and `from`. */
  readonly rename?: (name: string) => string;
  /** What is loaded; all else counts neither as missing nor as unexpected. The model's names, relative to `into`. */
  readonly only?: NameFilter;
  /** What is not loaded, nor counted: a classifier's last layer ("fc"), a head for other classes. Names as in `only`. */
  readonly skip?: NameFilter;
  /** Missing and unexpected names are errors (default); else they are told, and what is missing keeps its values. */
  readonly strict?: boolean;
  /** Weights of another shape are left out and told (a head for other classes). Default false: they are an error. */
  readonly ignoreMismatched?: boolean;
}

/** What became of a model's parameters and buffers and of the weights. */
export interface LoadedWeights {
  /** Names of the model. */
  readonly loaded: string[];
  /** Names of the model that the weights lack; they have kept their values. */
  readonly missing: string[];
  /** Names of the weights that the model lacks. */
  readonly unexpected: string[];
  /** Names of the model whose weights have another shape; they have kept their values. */
  readonly mismatched: { name: string; expected: readonly number[]; got: readonly number[] }[];
  /** Names of the weights that `only` and `skip` left out. */
  readonly skipped: string[];
}

/** How many names of a kind an error message lists. */
const MAX_LISTED = 20;

/**
 * The shape in PyTorch of a parameter: (K, R, S, C) here is (K, C, R, S) there, all others are the same. Of a transposed
 * convolution, whose weights are those of the convolution it reverses, K are the inputs in both.
 */
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

function matcher(filter: NameFilter): (name: string) => boolean {
  if (typeof filter === "function") return filter;
  const prefixes = typeof filter === "string" ? [filter] : filter;
  return (name) => prefixes.some((prefix) => prefix === "" || name === prefix || name.startsWith(`${prefix}.`));
}

/** Parameters and buffers that weights hold; as in PyTorch's state dicts, what layers share occurs by each of its names. */
function persistentUses(model: Model): [string, Parameter][] {
  return [...model.namedUses()].filter(([, { isPersistent }]) => isPersistent);
}

/** Entries below a prefix, named relative to it. */
function below<T>(entries: Iterable<readonly [string, T]>, part: string): [string, T][] {
  const prefix = part ? `${part}.` : "";
  return [...entries]
    .filter(([name]) => name.startsWith(prefix))
    .map(([name, entry]): [string, T] => [name.slice(prefix.length), entry]);
}

/** Weights by the names of the model itself where torch.nn.DataParallel wrapped it, which puts "module." before all of them. */
export function withoutWrapper<T>(weights: ReadonlyMap<string, T>): ReadonlyMap<string, T> {
  const isWrapped = weights.size > 0 && [...weights.keys()].every((name) => name.startsWith("module."));
  return isWrapped ? new Map(below(weights, "module")) : weights;
}

/**
 * Replaces a model's parameters and buffers by a PyTorch state dict's, or none of them where something does not fit; what is
 * missing, unexpected or of another shape is one error that names it all, unless the options allow it; where nothing fits that is
 * an error in any case. The model must be on its device. Convolution weights are brought into this library's layout;
 * "num_batches_tracked" is ignored; names of torchvision's checkpoints before 0.13 are understood, and those of a model in
 * DataParallel.
 *
 * ```ts
 * using file = await loadWeights("resnet50.pth");
 * loadTorchWeights(model, file.tensors, { into: "backbone.body", skip: "fc" });
 * ```
 */
export function loadTorchWeights(
  model: Model,
  weights: ReadonlyMap<string, TorchWeightSource>,
  options: LoadTorchOptions = {},
): LoadedWeights {
  const { into = "", from = "", rename = (name) => name, strict = true, ignoreMismatched = false } = options;
  const [first] = weights.values();
  const op = (first && "path" in first && first.path) || "loadTorchWeights";
  const [isOnly, isSkipped] = [matcher(options.only ?? ""), matcher(options.skip ?? [])];
  const isWanted = (name: string) => isOnly(name) && !isSkipped(name);
  const uses = below(persistentUses(model), into);
  check(uses.length > 0, op, () => `the model has no parameters under "${into}"`);
  const modelNames = new Set(uses.map(([name]) => name));
  // Of a parameter that layers share, the first name counts.
  const firstNames = new Map(uses.toReversed().map(([name, parameter]) => [parameter, name]));
  const sharedNames = new Map(
    uses.flatMap(([name, parameter]) => {
      const first = firstNames.get(parameter)!;
      return first === name ? [] : [[name, first] as const];
    }),
  );
  const state = new Map(uses.filter(([name]) => !sharedNames.has(name) && isWanted(name)));
  const namesModule = [...modelNames, from].some((name) => /^module(\.|$)/.test(name));
  const inWeights = below(namesModule ? weights : withoutWrapper(weights), from);
  check(inWeights.length > 0, op, () => `there are no weights${from ? ` under "${from}"` : ""}`);

  const found = new Map<string, { weight: TorchWeightSource; name: string }>();
  const unexpected: string[] = [];
  const skipped: string[] = [];
  const misfits: string[] = [];
  const mismatched: LoadedWeights["mismatched"] = [];
  const shared: { name: string; first: string; weight: TorchWeightSource }[] = [];
  const namesGiven = new Set(inWeights.map(([name]) => rename(name)));
  for (const [original, weight] of inWeights) {
    const given = rename(original);
    if (/(^|\.)num_batches_tracked$/.test(given)) continue;
    const known = modelNames.has(given) ? given : (renamed(given) ?? given);
    const name = sharedNames.get(known) ?? known;
    const parameter = state.get(name);
    if (!isWanted(name)) skipped.push(original);
    else if (!parameter) unexpected.push(original);
    else if (known !== name && (namesGiven.has(name) || found.has(name)))
      shared.push({ name: original, first: name, weight });
    else if (found.has(name)) unexpected.push(`${original} (besides ${found.get(name)!.name})`);
    else {
      found.set(name, { weight, name: original });
      const expected = torchShape(parameter);
      if (weight.shape.join() !== expected.join()) {
        mismatched.push({ name, expected, got: weight.shape });
        if (!ignoreMismatched)
          misfits.push(`${original}: expected (${expected.join(", ")}), got (${weight.shape.join(", ")})`);
      } else if ("data" in weight && weight.data.length !== elementCount(expected)) {
        misfits.push(`${original}: expected ${elementCount(expected)} values, got ${weight.data.length}`);
      }
    }
  }
  const missing = [...state.keys()].filter((name) => !found.has(name));
  const problems = [
    ...(strict && missing.length > 0 ? [`${missing.length} missing: ${list(missing)}`] : []),
    ...(strict && unexpected.length > 0 ? [`${unexpected.length} unexpected: ${list(unexpected)}`] : []),
    ...(misfits.length > 0 ? [`${misfits.length} of another shape: ${list(misfits)}`] : []),
  ];
  if (problems.length > 0)
    throw new DlfsError(misfits.length > 0 ? ErrorCode.shape : ErrorCode.argument, op, problems.join("; "));

  for (const { name } of mismatched) found.delete(name);
  check(
    found.size > 0,
    op,
    () => `none of the weights fits: the model has ${list([...state.keys()].slice(0, 3))}, ...`,
  );
  // All is read before anything is replaced: a damaged file leaves the model as it was.
  const values = new Map(
    [...found].map(([name, { weight }]) => [name, "data" in weight ? weight.data : weight.toFloat32()] as const),
  );
  for (const { name, first, weight } of shared) {
    const given = "data" in weight ? weight.data : weight.toFloat32();
    const same = values.get(first)?.every((value, i) => Object.is(value, given[i])) ?? true;
    check(same, op, () => `${name}: the model shares this parameter with ${first}, which has other values`);
  }
  for (const [name, data] of values) {
    const parameter = state.get(name)!;
    const [k, r, s, c] = parameter.shape as [number, number, number, number];
    parameter.tensor.write(parameter.shape.length === 4 ? transpose(data, k, c, r * s) : data);
  }
  model.refresh();
  const full = (name: string) => (into ? `${into}.${name}` : name);
  return {
    loaded: [...state.keys()].filter((name) => found.has(name)).map(full),
    missing: missing.map(full),
    unexpected,
    mismatched: mismatched.map(({ name, ...shapes }) => ({ name: full(name), ...shapes })),
    skipped,
  };
}

/** A report as text, a line for each kind that occurs: "320 loaded", "2 missing, which keep their values: ...". */
export function describeLoaded({ loaded, missing, unexpected, mismatched, skipped }: LoadedWeights): string[] {
  const shapes = mismatched.map(
    ({ name, expected, got }) => `${name} (${expected.join(", ")}), got (${got.join(", ")})`,
  );
  const line = (names: readonly string[], what: string) =>
    names.length > 0 ? [`${names.length} ${what}: ${list(names)}`] : [];
  return [
    `${loaded.length} loaded`,
    ...line(missing, "missing, which keep their values"),
    ...line(shapes, "of another shape, which keep their values"),
    ...line(unexpected, "that the model does not have"),
    ...line(skipped, "left out"),
  ];
}

/**
 * A model's parameters and buffers as a PyTorch state dict (without "num_batches_tracked", which torch fills in itself), copied
 * to the host. A parameter that layers share has an entry for each of them, as in PyTorch.
 *
 * @param from the part of the model to take, named relative to it: "backbone.body". Default: all of it
 */
export function torchWeights(model: Model, { from = "" }: { from?: string } = {}): Map<string, TorchWeight> {
  const prefix = from ? `${from}.` : "";
  const weights = new Map<string, TorchWeight>();
  for (const [name, parameter] of persistentUses(model)) {
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
