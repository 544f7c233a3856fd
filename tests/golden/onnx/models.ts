/** Models for the comparison with ONNX Runtime and for the tests of the exporter, with generated weights. */

import { AnchorGenerator, postprocessPoints, postprocessSoftmax } from "../../../lib/detection";
import type { OnnxOptions } from "../../../lib/export";
import {
  add,
  avgPool2d,
  channelShuffle,
  concat,
  hardsigmoid,
  hardswish,
  leakyRelu,
  multiply,
  relu,
  relu6,
  reshape,
  scale,
  sigmoid,
  slice,
  softmax,
  transpose,
  upsample,
  type Value,
} from "../../../lib/graph";
import {
  BatchNorm2d,
  Conv2d,
  ConvTranspose2d,
  Dropout,
  GroupNorm,
  Linear,
  MaxPool2d,
  Model,
  SiLU,
  SqueezeExcitation,
} from "../../../lib/layers";
import { backboneNames, CompactDetector, type DetectionModel, FCOS, RetinaNet, SSDLite } from "../../../lib/models";
import type { Device } from "../../../lib/tensor";
import { uniform } from "../detectors/network";

/** A model on a device, in inference mode, and how to export it. */
export interface OnnxCase {
  readonly name: string;
  readonly model: Model;
  readonly size: readonly [height: number, width: number];
  readonly options: Omit<OnnxOptions, "size">;
  /** The file of this folder that holds its export. */
  readonly golden?: string;
  /** What the exported file computes, by the names of its outputs. */
  readonly results: (images: Value, imageSizes: Value | undefined) => Record<string, Value>;
}

/** Range of the generated values of a parameter: activations keep their size, scores spread, boxes stay near their anchors. */
function rangeOf(name: string, shape: readonly number[]): [low: number, high: number] {
  if (name.endsWith("running_var")) return [0.5, 1.5];
  if (name.endsWith("running_mean")) return [-0.2, 0.2];
  const scores = /(cls_logits|class_head\.last)\.(weight|bias)$/.exec(name);
  const boxes = /(bbox_reg|box_head\.last)\.weight$/.test(name);
  if (scores?.[2] === "bias") return [-3, -2];
  if (shape.length > 1) {
    const fanIn = shape.slice(1).reduce((product, size) => product * size, 1);
    const bound = Math.sqrt(6 / fanIn) * (scores ? 2 : boxes ? 0.2 : 0.8);
    return [-bound, bound];
  }
  return name.endsWith("weight") ? [0.4, 0.9] : [-0.2, 0.2];
}

/** Puts a model on a device with weights that depend on their names alone. */
export function withWeights<M extends Model>(model: M, device: Device): M {
  model.to(device).eval();
  const state = [...model.namedState()];
  model.loadStateDict(
    new Map(state.map(([name, { shape, size }]) => [name, uniform(name, size, ...rangeOf(name, shape))])),
  );
  return model;
}

/** Every operation of lib/graph that inference has, in layouts that need transposes and in such that do not. */
export class EveryOperation extends Model {
  readonly conv1 = new Conv2d(3, 8, 3, { stride: 2, padding: [1, 2] });
  readonly norm1 = new BatchNorm2d(8);
  readonly conv2 = new Conv2d(8, 8, [3, 1], { padding: [2, 0], dilation: [2, 1], groups: 4, bias: false });
  readonly norm2 = new BatchNorm2d(8, { eps: 1e-3 });
  readonly alone = new BatchNorm2d(8);
  readonly pool = new MaxPool2d(3, { stride: 2, padding: 1 });
  readonly silu = new SiLU();
  readonly groups = new GroupNorm(2, 8);
  readonly squeeze = new SqueezeExcitation(8, 4);
  readonly dropout = new Dropout(0.5);
  readonly transposed = new ConvTranspose2d(8, 8, 3, { stride: 2, padding: 1, outputPadding: [0, 1], groups: 2 });
  // Output padding beyond the stride adds rows of zeros to the image first.
  readonly padded = new ConvTranspose2d(8, 8, [2, 1], { dilation: 2, outputPadding: 1, bias: false });
  readonly linear = new Linear(8, 5);
  readonly head = new Linear(5, 4, { bias: false });

  forward(images: Value): { map: Value; rows: Value; vector: Value } {
    const [n] = images.shape as [number];
    const x = this.silu.forward(this.norm1.forward(this.conv1.forward(images)));
    const [, h, w] = x.shape as [number, number, number];
    const y = add(relu(this.norm2.forward(this.conv2.forward(x))), hardswish(this.groups.forward(x)));
    // Read twice, so that it stays a node of its own.
    const z = add(this.alone.forward(this.squeeze.forward(y)), scale(channelShuffle(y, 4), 0.5));
    const small = concat([this.pool.forward(z), avgPool2d(z, 3, { stride: 2, padding: 1, countIncludePad: false })]);
    const [, p, q] = small.shape as [number, number, number];
    const doubled = upsample(slice(small, 3, 2, 8), { size: [2 * p, 2 * q] });
    const map = add(slice(slice(doubled, 1, 0, h), 2, 0, w), upsample(slice(small, 3, 0, 8), { size: [h, w] }));
    // Resized by two factors that are no ratio of the sizes, to sizes, and to the corners.
    const finer = this.padded.forward(this.transposed.forward(slice(small, 3, 0, 8)));
    const factors = upsample(finer, { mode: "bilinear", scale: [1.7, 2.3] });
    const corners = upsample(factors, { mode: "bilinear", size: [h + 3, w - 2], alignCorners: true });
    const resized = upsample(corners, { mode: "bilinear", size: [p, q] });
    const rows = concat([reshape(map, [n, h * w, 8]), reshape(add(slice(small, 3, 4, 8), resized), [n, p * q, 8])], 1);
    const pooled = reshape(avgPool2d(map, [h, w]), [n, 8]);
    return {
      map: multiply(sigmoid(map), softmax(leakyRelu(this.dropout.forward(map), 0.2))),
      rows: transpose(softmax(this.linear.forward(rows))),
      vector: this.head.forward(add(relu6(this.linear.forward(pooled)), hardsigmoid(this.linear.forward(pooled)))),
    };
  }
}

/** Post-processing as FCOS and SSD have it, and suppression of all classes together, on one level of a small network. */
export class OtherPostprocessing extends Model {
  readonly conv = new Conv2d(3, 8, 3, { stride: 8 });
  readonly clsLogits = new Conv2d(8, 4, 1);
  readonly boxes = new Conv2d(8, 4, 1);
  readonly centerness = new Conv2d(8, 1, 1);
  readonly anchors = new AnchorGenerator({ sizes: [[20]], aspectRatios: [1] });

  constructor(readonly kind: "points" | "softmax") {
    super();
  }

  forward(images: Value): { logits: Value; deltas: Value; centerness: Value } {
    return this.predict(images).rows;
  }

  detect(images: Value, imageSizes: Value): { detections: Value; counts: Value } {
    const { rows, anchors } = this.predict(images);
    const { centerness, ...given } = { ...rows, anchors, imageSizes };
    const options = { scoreThreshold: 0.1, topK: 20, nmsThreshold: 0.4, maxDetections: 30 };
    if (this.kind === "softmax") return postprocessSoftmax(given, options);
    return postprocessPoints({ ...given, centerness }, { ...options, classAware: false });
  }

  private predict(images: Value) {
    const x = relu(this.conv.forward(images));
    const [n, h, w] = x.shape as [number, number, number];
    const rows = (conv: Conv2d) => reshape(conv.forward(x), [n, h * w, conv.outChannels]);
    const deltas = rows(this.boxes);
    return {
      rows: {
        logits: rows(this.clsLogits),
        deltas: this.kind === "points" ? relu(deltas) : deltas,
        centerness: rows(this.centerness),
      },
      anchors: this.anchors.forward(images, [x]),
    };
  }
}

const detections = { scoreThreshold: 0.1, topK: 100, nmsThreshold: 0.5, maxDetections: 60 };

type Size = readonly [number, number];
type Way = Omit<OnnxOptions, "size"> & { label?: string };

function* detectorCases(make: () => DetectionModel, name: string, size: Size, ways: Way[]): Generator<OnnxCase> {
  for (const { label, ...given } of ways) {
    const model = make();
    yield {
      name: `${name}${label ? `, ${label}` : ""}${given.postprocess ? ", detections" : ""}`,
      model,
      size,
      options: given,
      results: (images, sizes) => ({ ...(given.postprocess ? model.detect(images, sizes!) : model.forward(images)) }),
    };
  }
}

/** Small models whose exports are committed once ONNX Runtime has agreed with them. */
export function* goldenCases(device: Device, common: Partial<OnnxOptions> = {}): Generator<OnnxCase> {
  const every = withWeights(new EveryOperation(), device);
  yield {
    name: "every operation",
    model: every,
    size: [25, 38],
    options: common,
    golden: "every-operation.onnx",
    results: (images) => ({ ...every.forward(images) }),
  };
  const options = { classes: 2, width: 2, pyramidChannels: 4, headConvs: 1, postprocess: detections } as const;
  const tiny = withWeights(new CompactDetector(options), device);
  yield {
    name: "tiny detector, detections",
    model: tiny,
    size: [32, 64],
    options: { ...common, postprocess: true },
    golden: "tiny-detector.onnx",
    results: (images, sizes) => ({ ...tiny.detect(images, sizes!) }),
  };
  for (const kind of ["points", "softmax"] as const) {
    const model = withWeights(new OtherPostprocessing(kind), device);
    yield {
      name: `post-processing of ${kind}, detections`,
      model,
      size: [48, 64],
      options: { ...common, postprocess: true },
      golden: `${kind}.onnx`,
      results: (images, sizes) => ({ ...model.detect(images, sizes!) }),
    };
  }
}

/** All models of the library, some in several ways, one after the other; who takes a case disposes of its model. */
export function* onnxCases(device: Device, common: Partial<OnnxOptions> = {}): Generator<OnnxCase> {
  const both = [{ ...common }, { ...common, postprocess: true }];
  yield* goldenCases(device, common);
  const model = withWeights(new EveryOperation(), device);
  const results = (images: Value) => ({ ...model.forward(images) });
  yield { name: "every operation, nhwc", model, size: [25, 38], options: { ...common, layout: "nhwc" }, results };
  const compact = () => withWeights(new CompactDetector({ classes: 5, width: 8, postprocess: detections }), device);
  yield* detectorCases(
    compact,
    "CompactDetector",
    [64, 96],
    [
      ...both,
      {
        ...common,
        label: "nhwc, batch normalization as nodes",
        layout: "nhwc",
        foldBatchNorm: false,
        postprocess: true,
      },
    ],
  );
  const few = { ...detections, topK: 3, maxDetections: 300 };
  const padded = () => withWeights(new CompactDetector({ classes: 5, width: 8, postprocess: few }), device);
  yield* detectorCases(padded, "CompactDetector, few candidates", [64, 96], [{ ...common, postprocess: true }]);
  for (const backbone of backboneNames) {
    const retinaNet = () => withWeights(new RetinaNet({ classes: 7, backbone, postprocess: detections }), device);
    yield* detectorCases(retinaNet, `RetinaNet on ${backbone}`, [72, 100], both);
  }
  const points = () => withWeights(new FCOS({ classes: 7, backbone: "resnet18", postprocess: detections }), device);
  yield* detectorCases(points, "FCOS on resnet18", [72, 100], both);
  const ssd = () => withWeights(new SSDLite({ classes: 7, postprocess: { ...detections, topK: 20 } }), device);
  yield* detectorCases(ssd, "SSDLite", [128, 160], both);
  const frozen = () =>
    withWeights(
      new RetinaNet({ classes: 91, backbone: "resnet18", norm: "frozen", p6From: "c5", postprocess: detections }),
      device,
    );
  yield* detectorCases(frozen, "RetinaNet, frozen normalization, P6 of C5", [64, 64], both);
}
