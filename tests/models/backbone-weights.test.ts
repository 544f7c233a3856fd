/** Backbones from checkpoints: torchvision's classifiers by their own names, and other detectors. */
import { afterEach, expect, test } from "bun:test";
import { join } from "node:path";
import { loadWeights } from "../../lib/formats";
import {
  detectorNames,
  loadBackboneWeights,
  loadTorchWeights,
  type ModelConfig,
  modelFromConfig,
  namedModel,
  type TorchWeight,
  torchWeights,
} from "../../lib/models";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";

const device = testDevice();
const owned: Disposable[] = [];
afterEach(() => {
  for (const item of owned.splice(0).reverse()) item[Symbol.dispose]();
});

function detector(name: string, options: { classes?: number; norm?: "batch" | "frozen"; seed?: number } = {}) {
  const { classes = 3, norm = "frozen", seed = 1 } = options;
  const model = modelFromConfig({ ...namedModel(name), classes, norm } as ModelConfig).to(device, { seed });
  owned.push(model);
  return model;
}

const classifier = (name: string) => join(import.meta.dir, "../golden/classifiers", `${name}.pth`);

test.each(["frozen", "batch"] as const)("torchvision's ResNet-18 becomes a detector's backbone (%s)", async (norm) => {
  const model = detector("retinanet_resnet18_fpn", { norm });
  const head = model.stateDict().get("head.classification_head.cls_logits.weight")!.read();
  using file = await loadWeights(classifier("resnet18"));
  const report = loadBackboneWeights(model, file.tensors);
  expect(report.skipped).toEqual(["fc.weight", "fc.bias"]);
  expect([report.missing, report.unexpected, report.mismatched]).toEqual([[], [], []]);
  expect(report.loaded.length).toBe(100);
  const state = model.stateDict();
  for (const [i, name] of [...file.tensors.keys()].entries()) {
    const values = state.get(`backbone.body.${name}`)?.read();
    if (!values) continue;
    expect([name, values[0], values.at(-1)]).toEqual([name, Math.fround(i / 1000), Math.fround(i / 1000)]);
  }
  expect(state.get("head.classification_head.cls_logits.weight")!.read()).toEqual(head);
});

test("a detector's checkpoint gives its backbone to one for other classes, the head stays as drawn", () => {
  const source = detector("retinanet_resnet18_fpn", { classes: 5, seed: 2 });
  const weights = torchWeights(source);
  const model = detector("retinanet_resnet18_fpn");
  const { loaded, missing } = loadBackboneWeights(model, weights);
  expect([loaded.length, missing]).toEqual([100, []]);
  const bias = "backbone.body.layer4.1.conv2.weight";
  expect(model.stateDict().get(bias)!.read()).toEqual(source.stateDict().get(bias)!.read());

  // The rest of the detector but for the classes.
  const report = loadTorchWeights(model, weights, { ignoreMismatched: true });
  expect(report.mismatched.map(({ name }) => name)).toEqual([
    "head.classification_head.cls_logits.weight",
    "head.classification_head.cls_logits.bias",
  ]);
});

test("another backbone is one error that names the file and all that differs", async () => {
  using file = await loadWeights(classifier("mobilenet_v2"));
  const error = errorOf(() => loadBackboneWeights(detector("retinanet_resnet18_fpn"), file.tensors));
  expect(error.op).toBe(classifier("mobilenet_v2"));
  expect(error.message).toContain("100 missing: conv1.weight");
  expect(error.message).toContain("unexpected: 0.0.weight");
  const compact = modelFromConfig({ name: "compact", classes: 2 }).to(device);
  owned.push(compact);
  const weights = new Map<string, TorchWeight>([["conv1.weight", { shape: [1], data: new Float32Array(1) }]]);
  expect(errorOf(() => loadBackboneWeights(compact, weights)).message).toContain(
    'the model has no parameters under "backbone.body"',
  );
});

test("models have torchvision's names", () => {
  expect(detectorNames).toContain("retinanet_resnext50_32x4d_fpn");
  for (const name of detectorNames) expect(modelFromConfig({ ...namedModel(name), classes: 2 }).classes).toBe(2);
  expect(errorOf(() => namedModel("yolo")).message).toContain(
    "model: expected one of compact, retinanet_resnet18_fpn, retinanet_resnet34_fpn",
  );
});
