import { dirname } from "node:path";
import packageJson from "../../package.json";
import { makeFolder, type OnnxModel, writeOnnx } from "../formats";
import { type Node, type OnnxLayout, type Spec, trace, Value, withoutUnused } from "../graph";
import type { Model } from "../layers";
import { check, DlfsError, ErrorCode } from "../native";
import { BATCH, GraphBuilder } from "./builder";
import { detectionRules } from "./detection-rules";
import { foldedConv, graphRules } from "./rules";

export interface OnnxOptions {
  /** Height and width of the images; the batch stays open. */
  readonly size: readonly [height: number, width: number];
  /** Channels of the images. Default 3. */
  readonly channels?: number;
  /**
   * Layout of the images, and of outputs that are image batches: "nchw" (default) is (N, C, H, W), as most runtimes and tools
   * want it, "nhwc" (N, H, W, C).
   */
  readonly layout?: "nchw" | "nhwc";
  /** Export `detect` of a detector instead of `forward`. Default false. */
  readonly postprocess?: boolean;
  /** Version of ai.onnx, 17 (default) to 22. */
  readonly opset?: number;
  /**
   * Put batch normalization with running statistics into the convolution before it (default). False keeps it as a node, with
   * the parameters' own names and values.
   */
  readonly foldBatchNorm?: boolean;
  /** Texts to keep in the file beside those that are always there: "dlfs.model", "dlfs.size", "dlfs.layout". */
  readonly metadata?: Readonly<Record<string, string>>;
}

/** The version of the file format that came with a version of the operator set. */
const irVersions: Readonly<Record<number, number>> = { 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10 };

const rules = { ...graphRules, ...detectionRules };

/** What a detector has besides a model: see `Detector.detect`. */
type Detects = { detect(images: Value, imageSizes: Value): { detections: Value; counts: Value } };

/**
 * Writes a model in inference mode as an ONNX file, in fp32 with the operators of ai.onnx alone. The input is "images": fp32,
 * normalised as the model wants it, of a fixed size and any number N. The outputs have the names that forward() gives them
 * ("logits" (N, A, classes) and "deltas" (N, A, 4) of a Detector), or "output", or "output.0" and so on for a list.
 *
 * With `postprocess` there is a second input, "image_sizes" (N, 2), height and width that boxes are clipped to, and the outputs
 * are those of `detect`: "detections" (N, maxDetections, 6), x1, y1, x2, y2, score, class, best first, zeros after the last of
 * "counts" (N) int32.
 *
 * Weights have their names in PyTorch and PyTorch's shapes. The file appears complete or not at all; its folder
 * is made.
 *
 * @returns the graph, without the weights
 * @throws DlfsError of code `unsupported` naming the layer whose operation has no rule for ONNX (an operation of one's own brings
 *   one as `Op.onnx`), or where the file would be larger than 2 GiB; `io` where it cannot be written
 */
export async function exportOnnx(model: Model, path: string, options: OnnxOptions): Promise<OnnxModel> {
  const { size, layout = "nchw", opset = 17, metadata = {} } = options;
  const irVersion = irVersions[opset];
  if (irVersion === undefined) {
    const known = Object.keys(irVersions).join(", ");
    throw new DlfsError(ErrorCode.argument, "exportOnnx", `opset: expected one of ${known}, got ${opset}`);
  }
  const builder = build(model, opset, options);
  const { nodes, initializers } = builder.used();
  const { inputs, outputs } = builder;
  const exported: OnnxModel = {
    irVersion,
    opset,
    producer: { name: "dlfs", version: packageJson.version },
    metadata: {
      "dlfs.model": model.constructor.name,
      "dlfs.size": JSON.stringify(size),
      "dlfs.layout": layout,
      ...metadata,
    },
    graph: { name: model.constructor.name, nodes, inputs, outputs },
  };
  await makeFolder(dirname(path));
  await writeOnnx(path, exported, initializers);
  return exported;
}

function build(model: Model, opset: number, options: OnnxOptions): GraphBuilder {
  const { size, channels = 3, layout = "nchw", postprocess = false, foldBatchNorm = true } = options;
  check(
    [...size, channels].every((x) => Number.isSafeInteger(x) && x > 0 && x < BATCH) && size.length === 2,
    "exportOnnx",
    () => `expected a height, a width and channels, got ${size.join("x")} and ${channels}`,
    ErrorCode.shape,
  );
  const detects = "detect" in model ? (model as Model & Detects) : null;
  check(!postprocess || detects !== null, "exportOnnx", () => `${model.constructor.name} has no detect() to export`);
  const [height, width] = size;
  const specs: Record<string, Spec> = { images: { shape: [BATCH, height, width, channels], dtype: "f32" } };
  if (postprocess) specs.image_sizes = { shape: [BATCH, 2], dtype: "f32" };
  const forward = model.forward as unknown as (images: Value) => unknown;
  model.assignNames();
  const { graph, result } = inInference(model, () =>
    trace(specs, (inputs) =>
      named(postprocess ? detects!.detect(inputs.images!, inputs.image_sizes!) : forward(inputs.images!)),
    ),
  );

  const builder = new GraphBuilder(opset);
  builder.reserve([...result.keys()]);
  const imageLayout: OnnxLayout = layout === "nchw" ? "nchw" : "plain";
  for (const [name, value] of graph.inputs) builder.addInput(value, name, name === "images" ? imageLayout : "plain");
  const values = [...result.values()];
  const nodes = withoutUnused(graph.nodes, values);
  const folded = foldBatchNorm ? foldable(nodes, values) : new Map<Node, Node>();
  const merged = new Set(folded.values());
  for (const node of nodes) {
    if (merged.has(node)) continue;
    const convolution = folded.get(node);
    builder.path = (convolution ?? node).path;
    if (convolution) foldedConv(builder, convolution, node);
    else exportNode(builder, node);
  }
  builder.path = "";
  for (const [name, value] of result) {
    check(value.dtype !== "u8", name, () => "an output of dtype u8 cannot be exported", ErrorCode.unsupported);
    const dtype = value.dtype === "i32" ? "i32" : "f32";
    builder.addOutput(value, name, dtype, value.shape.length === 4 ? imageLayout : "plain");
  }
  return builder;
}

function exportNode(builder: GraphBuilder, node: Node): void {
  const { kind } = node.op;
  if (node.op.onnx) node.op.onnx(builder, node);
  else if (Object.hasOwn(rules, kind)) rules[kind]!(builder, node);
  else {
    const message = `the operation ${kind} has no rule for ONNX; an operation of one's own brings it as "onnx"`;
    throw new DlfsError(ErrorCode.unsupported, node.path || kind, message);
  }
}

/** Runs `body` with all layers in inference mode, and puts them back into their modes. */
function inInference<R>(model: Model, body: () => R): R {
  const layers = [...model.namedLayers()].map(([, layer]) => layer);
  const modes = layers.map(({ training }) => training);
  try {
    for (const layer of layers) layer.training = false;
    return body();
  } finally {
    for (const [i, layer] of layers.entries()) layer.training = modes[i]!;
  }
}

/** What forward gives, by name. */
function named(result: unknown, name = ""): Map<string, Value> {
  if (result instanceof Value) return new Map([[name || "output", result]]);
  if (typeof result !== "object" || result === null) return new Map();
  const prefix = name || (Array.isArray(result) ? "output" : "");
  return new Map(
    Object.entries(result).flatMap(([key, value]) => [...named(value, prefix ? `${prefix}.${key}` : key)]),
  );
}

/** Batch normalizations by running statistics of a convolution that nothing else reads, with that convolution. */
function foldable(nodes: readonly Node[], results: readonly Value[]): Map<Node, Node> {
  const readers = new Map<Value, number>();
  const read = (value: Value) => readers.set(value, (readers.get(value) ?? 0) + 1);
  for (const { inputs } of nodes) inputs.forEach(read);
  results.forEach(read);
  const folded = new Map<Node, Node>();
  for (const node of nodes) {
    const convolution = node.inputs[0]?.node;
    if (node.op.kind !== "batch_norm_infer" || convolution?.op.kind !== "conv2d") continue;
    const { residual, activation } = convolution.attrs as { residual: boolean; activation: string };
    const operands = [...convolution.inputs.slice(1), ...node.inputs.slice(1, 5)];
    const known = operands.every(({ leaf }) => leaf !== null && leaf.leaf !== "input");
    if (known && !residual && activation === "none" && readers.get(node.inputs[0]!) === 1)
      folded.set(node, convolution);
  }
  return folded;
}
