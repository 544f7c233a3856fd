import { type Node, type Spec, trace, Value, withoutUnused } from "../graph";
import { byteSize, planMemory } from "../graph/memory-plan";
import { check, ErrorCode } from "../native/error";
import type { ActivationDType, DType } from "../tensor";
import { elementCount } from "../tensor";
import type { Layer } from "./layer";

export interface SummaryOptions {
  /** Dtype of the inputs, and so of the activations. Default "f32". */
  precision?: ActivationDType;
}

/** What one layer itself computes and owns, without the layers inside it: the rows of a model add up to the whole. */
export interface LayerSummary {
  /** "backbone.layer1.0.conv1"; "" for the model itself. */
  readonly path: string;
  /** Name of the class. */
  readonly type: string;
  /** Shape of what it gave in each of its calls: a layer may be applied several times. */
  readonly outputs: readonly (readonly number[])[];
  /** Parameters that are trained, and that are not (requiresGrad is false); running statistics are in neither. */
  readonly trained: number;
  readonly frozen: number;
  /** Values of running statistics. */
  readonly buffers: number;
  /** Of forward: see `flopsOf`. */
  readonly flops: number;
  /** Bytes of everything that its operations write. Views of other tensors count nothing. */
  readonly activationBytes: number;
}

export interface ModelSummary {
  readonly inputs: readonly (readonly number[])[];
  readonly outputs: readonly (readonly number[])[];
  readonly precision: DType;
  /** In the order in which forward reaches them; layers that neither compute nor own anything themselves are left out. */
  readonly layers: readonly LayerSummary[];
  readonly total: {
    readonly trained: number;
    readonly frozen: number;
    readonly buffers: number;
    readonly flops: number;
    /** What all operations write, each into memory of its own: an upper bound of what training keeps for backward. */
    readonly activationBytes: number;
    /**
     * Bytes of inputs and activations that inference needs at the same time, when memory is used again as soon as nobody
     * reads it. Merging operations makes it smaller; scratch memory of the device's libraries comes on top.
     */
    readonly peakBytes: number;
    /** Parameters and running statistics, fp32. */
    readonly parameterBytes: number;
  };
  /** Kinds of operations whose FLOPs are not known, such as a user's own: they are counted as 0. */
  readonly uncounted: readonly string[];
  /** The table as text, without a newline at the end. */
  toString(): string;
}

/** Kinds that neither multiply nor add: they compare, copy, view, select, or evaluate a transcendental function. */
const FREE = new Set([
  "anchor_grid",
  "channel_shuffle",
  "cast",
  "concat",
  "constant",
  "fill",
  "match_anchors",
  "match_points",
  "max_pool",
  "nms",
  "reshape",
  "select_candidates",
  "select_class_candidates",
  "slice",
  "soft_nms",
  "transpose",
  "upsample_nearest",
]);

/** Of one element; activations that are not here only compare, or evaluate a transcendental function. */
const ACTIVATION_FLOPS: Record<string, number> = { silu: 1, leaky_relu: 1, hardsigmoid: 2, hardswish: 3 };

/**
 * Multiplications and additions of an operation, each counted as 1, so that a multiply-add is 2:
 *
 * - convolution, linear map: 2 for each weight that an output sees, and 1 for the bias. Padding is counted as if it were data.
 * - transposed convolution: 2 for each weight that an input is multiplied by, whether or not the result keeps the product.
 * - batch and group normalization: 2 an element, its scale and shift; 5 where two are added. Statistics are left out.
 * - addition, multiplication, scaling, dropout, FCOS's scores: 1 an element. SiLU, leaky ReLU: 1, their product.
 *   Hardsigmoid: 2, hardswish: 3.
 * - softmax: 3 an element: it subtracts the largest, adds up, divides.
 * - bilinear upsampling: 7 an element, four products and three sums.
 * - average pooling: 1 for each value of a window (additions but one, and the division).
 * - 0: comparisons (ReLU, ReLU6, max pooling), exponentials (sigmoid), and whatever moves data.
 *
 * null where the kind is not known.
 */
export function flopsOf(node: Node): number | null {
  const { kind } = node.op;
  const [y] = node.outputs;
  if (FREE.has(kind) || !y) return 0;
  const elements = elementCount(y.shape);
  const attrs = node.attrs as { bias?: boolean; activation?: string; kernel?: readonly [number, number] };
  switch (kind) {
    case "conv2d":
    case "linear":
      return elements * (2 * elementCount(node.inputs[1]!.shape.slice(1)) + (attrs.bias ? 1 : 0));
    case "batch_norm":
    case "batch_norm_infer":
    case "group_norm":
      return 2 * elements;
    case "batch_norm_join":
      return 5 * elements;
    case "conv_transpose2d":
      return 2 * elementCount(node.inputs[0]!.shape) * elementCount(node.inputs[1]!.shape.slice(1));
    case "add":
    case "point_scores":
    case "add_bias":
    case "scale":
    case "multiply":
    case "channel_scale":
    case "dropout":
      return elements;
    case "activation":
      return elements * (ACTIVATION_FLOPS[attrs.activation ?? ""] ?? 0);
    case "softmax":
      return 3 * elements;
    case "upsample_bilinear":
      return 7 * elements;
    case "avg_pool":
      return elements * attrs.kernel![0] * attrs.kernel![1];
    default:
      return null;
  }
}

/**
 * Traces a layer's forward and adds up what its layers compute. Needs no device, and neither allocates nor runs anything.
 *
 * @param inputShapes the shape of each argument of forward, such as [[1, 640, 640, 3]]
 * @throws DlfsError with the layer's path where a layer does not accept what reaches it
 */
export function summarize(
  model: Layer,
  inputShapes: readonly (readonly number[])[],
  { precision = "f32" }: SummaryOptions = {},
): ModelSummary {
  const valid = inputShapes.every(
    (shape) => Array.isArray(shape) && shape.every((size) => Number.isSafeInteger(size) && size > 0),
  );
  check(
    inputShapes.length > 0 && valid,
    `${model.constructor.name}.summary`,
    () => `expected shapes of positive integers such as [[1, 640, 640, 3]], got ${JSON.stringify(inputShapes)}`,
    ErrorCode.shape,
  );
  model.assignNames();
  const specs = inputShapes.map((shape, i): [string, Spec] => [`${i}`, { shape, dtype: precision }]);
  const forward = model.forward as unknown as (...inputs: Value[]) => unknown;
  const { graph, result } = trace(Object.fromEntries(specs), (values) =>
    valuesOf(forward(...specs.map(([name]) => values[name] as Value))),
  );
  const nodes = withoutUnused(graph.nodes, result);
  const uncounted = new Set<string>();
  const rows = new Map<string, Row>();
  const types = new Map([...model.namedLayers()].map(([path, layer]) => [path, layer.constructor.name]));
  const rowOf = (path: string): Row => {
    let row = rows.get(path);
    if (!row) {
      row = {
        path,
        type: types.get(path) ?? "",
        outputs: [],
        trained: 0,
        frozen: 0,
        buffers: 0,
        flops: 0,
        activationBytes: 0,
      };
      rows.set(path, row);
    }
    return row;
  };

  for (const [index, node] of nodes.entries()) {
    const row = rowOf(node.path);
    const flops = flopsOf(node);
    if (flops === null) uncounted.add(node.op.kind);
    row.flops += flops ?? 0;
    if (!node.op.alias) row.activationBytes += node.outputs.reduce((sum, output) => sum + byteSize(output), 0);
    // Of a run of operations of one layer, the last one's result is what the layer gives.
    if (nodes[index + 1]?.path !== node.path || nodes[index + 1]?.inputs.every((x) => x.node !== node)) {
      row.outputs.push(node.outputs[0]!.shape);
    }
  }
  for (const [name, parameter] of model.namedState()) {
    const row = rowOf(name.slice(0, Math.max(0, name.lastIndexOf("."))));
    if (parameter.isBuffer) row.buffers += parameter.size;
    else if (parameter.requiresGrad) row.trained += parameter.size;
    else row.frozen += parameter.size;
  }

  const layers = [...rows.values()];
  const sum = (name: "trained" | "frozen" | "buffers" | "flops" | "activationBytes") =>
    layers.reduce((total, row) => total + row[name], 0);
  const plan = planMemory({
    nodes,
    permanent: [...graph.inputs.values()],
    results: result,
    bound: new Set(),
    workspaces: new Map(),
    keepAll: false,
  });
  const [trained, frozen, buffers] = [sum("trained"), sum("frozen"), sum("buffers")];
  const summary = {
    inputs: inputShapes,
    outputs: result.map(({ shape }) => shape),
    precision,
    layers,
    total: {
      trained,
      frozen,
      buffers,
      flops: sum("flops"),
      activationBytes: sum("activationBytes"),
      peakBytes: plan.bytes,
      parameterBytes: 4 * (trained + frozen + buffers),
    },
    uncounted: [...uncounted].sort(),
  };
  return { ...summary, toString: () => formatSummary(model.constructor.name, summary) };
}

type Row = { -readonly [K in keyof LayerSummary]: LayerSummary[K] } & { outputs: (readonly number[])[] };

/** The values in what forward returns: one, or arrays and objects of them. */
function valuesOf(result: unknown): Value[] {
  if (result instanceof Value) return [result];
  return typeof result === "object" && result !== null ? Object.values(result).flatMap(valuesOf) : [];
}

function formatSummary(name: string, summary: Omit<ModelSummary, "toString">): string {
  const { layers, total, inputs, outputs, precision, uncounted } = summary;
  const shapeText = (shape: readonly number[]) => `(${shape.join(", ")})`;
  const frozen = total.frozen > 0;
  const row = (path: string, type: string, shape: string, figures: Omit<LayerSummary, "path" | "type" | "outputs">) => [
    path,
    type,
    shape,
    figures.trained.toLocaleString("en-US"),
    ...(frozen ? [figures.frozen.toLocaleString("en-US")] : []),
    formatCount(figures.flops),
    formatBytes(figures.activationBytes),
  ];
  const heading = ["layer", "type", "output", "trained", ...(frozen ? ["frozen"] : []), "FLOPs", "activations"];
  const body = layers.map((layer) => row(layer.path || "(model)", layer.type, outputText(layer.outputs), layer));
  const last = row("total", name, "", total);
  const all = [heading, ...body, last];
  const widths = heading.map((_, column) => Math.max(...all.map((cells) => cells[column]!.length)));
  const line = (cells: string[]) =>
    cells
      .map((cell, column) => (column < 3 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)))
      .join("  ")
      .trimEnd();
  const rule = "-".repeat(widths.reduce((sum, width) => sum + width + 2, -2));
  return [
    `${name}: ${precision} ${inputs.map(shapeText).join(", ")} -> ${outputs.map(shapeText).join(", ")}`,
    line(heading),
    rule,
    ...body.map(line),
    rule,
    line(last),
    `parameters and running statistics ${formatBytes(total.parameterBytes)}; ` +
      `activations, all kept ${formatBytes(total.activationBytes)}, at once in inference ${formatBytes(total.peakBytes)}`,
    ...(uncounted.length > 0 ? [`FLOPs not known and counted as 0: ${uncounted.join(", ")}`] : []),
  ].join("\n");
}

/** "(1, 32, 32, 8)", or all of a layer that is called several times: "(1, 8, 8, 4), (1, 4, 4, 4)", "3 x (1, 8, 8, 4)". */
function outputText(outputs: readonly (readonly number[])[]): string {
  const counts = new Map<string, number>();
  for (const shape of outputs) {
    const text = `(${shape.join(", ")})`;
    counts.set(text, (counts.get(text) ?? 0) + 1);
  }
  const parts = [...counts].map(([text, count]) => (count > 1 ? `${count} x ${text}` : text));
  return parts.length > 3 ? `${parts.slice(0, 2).join(", ")}, ... ${parts.length - 2} more` : parts.join(", ");
}

/** "0", "950", "1.23 M", "4.56 G": three digits. */
function formatCount(count: number): string {
  const units = ["", " k", " M", " G", " T", " P"];
  let [value, unit] = [count, 0];
  // 999.5 would round up to a fourth digit.
  while (value >= 999.5 && unit < units.length - 1) [value, unit] = [value / 1000, unit + 1];
  return unit === 0 ? String(count) : `${value.toPrecision(3)}${units[unit]}`;
}

/** "12.3 MiB". */
export function formatBytes(bytes: number): string {
  const units = [" B", " KiB", " MiB", " GiB", " TiB"];
  let [value, unit] = [bytes, 0];
  while (value >= 1000 && unit < units.length - 1) [value, unit] = [value / 1024, unit + 1];
  return unit === 0 ? `${bytes} B` : `${value.toPrecision(3)}${units[unit]}`;
}
