/** Backbones from checkpoints: torchvision's classifiers by their own names, and other detectors. */
import { afterEach, expect, test } from "bun:test";
import { join } from "node:path";
import { loadWeights } from "../../lib/formats";
import {
  type DetectionModel,
  detectorNames,
  type LoadedWeights,
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

/** The i-th tensor of a recorded classifier has i / 1000 everywhere; those below `from` must be the backbone's. */
async function expectBackbone(
  model: DetectionModel,
  name: string,
  from: string,
  report: (weights: LoadedWeights) => void,
) {
  const bias = [...model.stateDict()].find(([path]) => path.endsWith("cls_logits.weight"))!;
  const before = bias[1].read();
  using file = await loadWeights(classifier(name));
  const loaded = loadBackboneWeights(model, file.tensors);
  report(loaded);
  expect([loaded.missing, loaded.unexpected, loaded.mismatched]).toEqual([[], [], []]);
  const state = model.stateDict();
  let compared = 0;
  for (const [i, path] of [...file.tensors.keys()].entries()) {
    const values = path.startsWith(from) ? state.get(`backbone.body.${path.slice(from.length)}`)?.read() : undefined;
    if (!values) continue;
    ++compared;
    expect([path, values[0], values.at(-1)]).toEqual([path, Math.fround(i / 1000), Math.fround(i / 1000)]);
  }
  expect(compared).toBe(loaded.loaded.length);
  expect(bias[1].read()).toEqual(before);
}

test("a classifier that was trained in DataParallel is taken as well", async () => {
  using file = await loadWeights(classifier("resnet18"));
  const wrapped = new Map([...file.tensors].map(([name, tensor]) => [`module.${name}`, tensor]));
  const { loaded, skipped } = loadBackboneWeights(detector("retinanet_resnet18_fpn"), wrapped);
  expect([loaded.length, skipped]).toEqual([100, ["fc.weight", "fc.bias"]]);
});

test.each(["frozen", "batch"] as const)("torchvision's ResNet-18 becomes a detector's backbone (%s)", async (norm) => {
  await expectBackbone(detector("retinanet_resnet18_fpn", { norm }), "resnet18", "", ({ loaded, skipped }) => {
    expect(loaded.length).toBe(100);
    expect(skipped).toEqual(["fc.weight", "fc.bias"]);
  });
});

test("torchvision's MobileNetV2 becomes a detector's backbone", async () => {
  await expectBackbone(detector("retinanet_mobilenet_v2_fpn"), "mobilenet_v2", "features.", ({ loaded, skipped }) => {
    expect([loaded.length, skipped]).toEqual([260, []]);
  });
});

test("torchvision's MobileNetV2 becomes SSDLite's backbone, which is cut within a block", async () => {
  const model = detector("ssdlite320_mobilenet_v2");
  using file = await loadWeights(classifier("mobilenet_v2"));
  const { loaded, missing } = loadBackboneWeights(model, file.tensors);
  expect([loaded.length, missing]).toEqual([260, []]);
  const state = torchWeights(model);
  for (const [ours, theirs] of [
    ["0.13.conv.0.0.weight", "13.conv.0.0.weight"],
    ["0.14.0.weight", "14.conv.0.0.weight"],
    ["0.14.1.bias", "14.conv.0.1.bias"],
    ["1.0.1.1.running_var", "14.conv.1.1.running_var"],
    ["1.0.2.weight", "14.conv.2.weight"],
    ["1.4.0.weight", "18.0.weight"],
  ]) {
    const expected = file.tensors.get(`features.${theirs}`)!.toFloat32();
    expect(state.get(`backbone.features.${ours}`)!.data).toEqual(expected);
  }
  const other = detector("ssdlite320_mobilenet_v2", { seed: 9 });
  expect(loadBackboneWeights(other, torchWeights(model)).loaded.length).toBe(260);
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
