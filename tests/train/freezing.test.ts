import { expect, test } from "bun:test";
import { FrozenBatchNorm2d } from "../../lib/layers";
import { CompactDetector } from "../../lib/models";
import { constantRate, Freezing, matchesPath, SGD } from "../../lib/train";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";

const name = "backbone.body.layer1.0.conv1.weight";

test.each([
  [name, true],
  ["backbone", true],
  ["backbone.body.layer1", true],
  ["backbone.body.layer[12]", true],
  ["backbone.body.layer2", false],
  ["body.layer1", false],
  ["backbone.body.layer", false],
  ["backbone.*", true],
  ["*.layer1", false],
  ["**.layer1", true],
  ["**.conv?.weight", true],
  ["**.{bn1,conv1}", true],
  ["**.bias", false],
  [/layer1/, true],
  [/^layer1/, false],
])("%p matches a weight of layer1: %p", (pattern, expected) => {
  expect(matchesPath(pattern, name)).toBe(expected);
});

const made = () => new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
const trained = (model: CompactDetector) =>
  [...model.namedParameters()].flatMap(([path, { requiresGrad }]) => (requiresGrad ? [path] : []));

test("rules hold in their order, and leave alone what the model itself has frozen", () => {
  const model = made();
  Object.assign(model.stem, { norm: new FrozenBatchNorm2d(4) });
  model.stem.conv.weight.requiresGrad = false;
  const all = trained(model);
  const freezing = new Freezing(model, [
    { match: "stage1", until: 10 },
    { match: "stage[12]" },
    { match: "{lateral,smooth}.0", until: 20 },
  ]);
  const of = (...layers: string[]) => all.filter((path) => !layers.some((layer) => path.startsWith(`${layer}.`)));
  expect(freezing.apply(0)).toBe(10);
  expect(trained(model)).toEqual(of("stage1", "stage2", "lateral.0", "smooth.0"));
  expect(freezing.apply(10)).toBe(20);
  expect(trained(model)).toEqual(of("stage2", "lateral.0", "smooth.0"));
  expect(freezing.apply(25)).toBe(Number.POSITIVE_INFINITY);
  expect(trained(model)).toEqual(of("stage2"));
  // As where a training goes on from an earlier checkpoint.
  expect(freezing.apply(3)).toBe(10);
  expect(trained(model)).toEqual(of("stage1", "stage2", "lateral.0", "smooth.0"));
});

test.each([
  [
    [{ match: "backbone" }],
    /^freeze\[0\].match: backbone matches no parameter that would train; they begin with stem.conv, /,
  ],
  [[{ match: "stem" }, { match: /^y/ }], /^freeze\[1\].match: \/\^y\/ matches no parameter/],
  [[{ match: "**" }], /^freeze\[0\].match: \*\* leaves no parameter to train at first$/],
  [[{ match: "**", until: 5 }], /^freeze\[0\].match: \*\* leaves no parameter to train at first$/],
  [[{ match: "stem", until: 0 }], /^freeze\[0\].until: expected an iteration from 1, got 0$/],
])("%p is refused", (rules, message) => {
  expect(errorOf(() => new Freezing(made(), rules)).message).toMatch(message);
});

test("what trains later has its momentum from the start, what never does has none", () => {
  using model = made().to(testDevice());
  const freezing = new Freezing(model, [{ match: "stem" }, { match: "stage1", until: 3 }]);
  using optimizer = new SGD(model, { schedule: constantRate(0.1), iterations: 5 });
  freezing.apply(0);
  optimizer.selectTrained();
  const layers = new Set([...optimizer.momenta.keys()].map((path) => path.split(".")[0]));
  expect(layers.has("stage1")).toBe(true);
  expect(layers.has("stem")).toBe(false);
});
