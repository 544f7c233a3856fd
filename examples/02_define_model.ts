/**
 * Defines a detector from layers, as a user would: a backbone with residual joins, an anchor head, and a model of both; then
 * trains it for some steps on the demo's images and shows what it finds.
 *
 *   bun run examples/02_define_model.ts
 */
import {
  Add,
  BatchNorm2d,
  CocoDataLoader,
  Conv2d,
  Detector,
  DetectStep,
  Device,
  DeviceBatchDecoder,
  DeviceImageCodec,
  demoFolder,
  generateDemo,
  type HeadOutput,
  HorizontalFlip,
  InputLayer,
  Layer,
  loadDataset,
  Normalize,
  ReLU,
  Resize,
  SeparableConv2d,
  Sequential,
  SGD,
  SiLU,
  showProgress,
  TrainStep,
  type Value,
  warmup,
} from "dlfs";

/** y = relu(x + f(x)): two separable convolutions around a residual join. */
class ResidualBlock extends Layer {
  readonly body: Sequential;
  readonly join = new Add();
  readonly activation = new ReLU();

  constructor(channels: number) {
    super();
    this.body = new Sequential(
      new SeparableConv2d(channels, channels, 3, { padding: 1, bias: false }),
      new BatchNorm2d(channels),
      new SiLU(),
      new SeparableConv2d(channels, channels, 3, { padding: 1, bias: false }),
      new BatchNorm2d(channels),
    );
  }

  forward(x: Value): Value {
    return this.activation.forward(this.join.forward(this.body.forward(x), x));
  }
}

/** Four stages that halve the resolution; gives the maps at strides 8 and 16. */
class Backbone extends Layer {
  readonly stem = downsample(3, 16);
  readonly stage1 = new Sequential(downsample(16, 32), new ResidualBlock(32));
  readonly stage2 = new Sequential(downsample(32, 64), new ResidualBlock(64), new ResidualBlock(64));
  readonly stage3 = new Sequential(downsample(64, 96), new ResidualBlock(96), new ResidualBlock(96));

  forward(x: Value): [Value, Value] {
    const stride8 = this.stage2.forward(this.stage1.forward(this.stem.forward(x)));
    return [stride8, this.stage3.forward(stride8)];
  }
}

function downsample(from: number, to: number): Sequential {
  return new Sequential(
    new Conv2d(from, to, 3, { stride: 2, padding: 1, bias: false }),
    new BatchNorm2d(to),
    new ReLU(),
  );
}

/** Class scores and box corrections for every anchor of a map. */
class AnchorHead extends Layer {
  readonly tower: Sequential;
  readonly scores: Conv2d;
  readonly boxes: Conv2d;

  constructor(channels: number, anchors: number, classes: number) {
    super();
    this.tower = new Sequential(
      new Conv2d(channels, 64, 3, { padding: 1, bias: false }),
      new BatchNorm2d(64),
      new ReLU(),
    );
    // Rare objects: every anchor starts out believing in one with a probability of 0.01.
    const init = {
      weight: { kind: "normal", mean: 0, std: 0.01 },
      bias: { kind: "constant", value: -Math.log(99) },
    } as const;
    this.scores = new Conv2d(64, anchors * classes, 3, { padding: 1, init });
    this.boxes = new Conv2d(64, anchors * 4, 3, { padding: 1 });
  }

  forward(x: Value): HeadOutput {
    const features = this.tower.forward(x);
    return { logits: this.scores.forward(features), deltas: this.boxes.forward(features) };
  }
}

/** The model: what Detector adds are anchors, matching, losses and post-processing. */
class MyDetector extends Detector {
  readonly input = new InputLayer(3);
  readonly backbone = new Backbone();
  readonly near: AnchorHead;
  readonly far: AnchorHead;

  constructor(classes: number) {
    super({
      classes,
      anchors: {
        sizes: [
          [24, 36],
          [56, 88],
        ],
        aspectRatios: [0.5, 1, 2],
      },
    });
    const { perCell } = this.anchorGenerator;
    this.near = new AnchorHead(64, perCell, classes);
    this.far = new AnchorHead(96, perCell, classes);
  }

  heads(images: Value): HeadOutput[] {
    const [stride8, stride16] = this.backbone.forward(this.input.forward(images));
    return [this.near.forward(stride8), this.far.forward(stride16)];
  }
}

const STEPS = Number(process.env.STEPS ?? 60);
const batchSize = 8;
const size = [192, 192] as const;

using device = new Device({}, console.log);
const codec = new DeviceImageCodec(device);
const folder = demoFolder();
await generateDemo(folder, {
  encode: (data, width, height, quality) => codec.encode({ data, width, height }, quality),
  progress: showProgress(),
});
using dataset = await loadDataset(folder, { codec });

using model = new MyDetector(dataset.classes.length);
model.to(device, { seed: 1 });

const preprocessing = [new HorizontalFlip(), new Resize(), new Normalize()];
using decoder = new DeviceBatchDecoder(device, { batchSize, height: size[0], width: size[1], preprocessing });
await using loader = new CocoDataLoader({
  store: dataset.store,
  source: dataset.source,
  split: dataset.trainSplit,
  decoder,
  batchSize,
  size,
  preprocessing,
});
using optimizer = new SGD(model, { schedule: warmup(() => 0.01, 20), iterations: STEPS });
{
  using step = new TrainStep(model, optimizer, {
    batchSize,
    height: size[0],
    width: size[1],
    maxBoxes: loader.maxBoxes,
  });
  const { calls, arenaBytes, memory } = step.program;
  console.log(
    `one step is ${calls.length} native calls; activations take ${(arenaBytes / 2 ** 20).toFixed(1)} MiB of memory ` +
      `(${(memory.unshared / 2 ** 20).toFixed(1)} MiB without sharing)`,
  );
  const show = ({ iteration, losses }: { iteration: number; losses: Record<string, number> }): void => {
    if (iteration % 10 !== 0 && iteration !== STEPS - 1) return;
    const parts = Object.entries(losses).map(([name, loss]) => `${name} ${loss.toFixed(4)}`);
    console.log(`step ${iteration}: ${parts.join("  ")}`);
  };
  while (step.iteration < STEPS) {
    const batch = await loader.getBatch();
    const { finished, copied } = await step.submit(decoder.images(batch.slot), batch);
    copied.then(batch.release);
    if (finished) show(finished);
  }
  for (const result of await step.drain()) show(result);
}

const batch = await loader.getBatch();
using detect = new DetectStep(model, { batchSize, height: size[0], width: size[1] });
const found = await detect.run(decoder.images(batch.slot), batch.n);
for (const { box, score, label } of (found[0] ?? []).slice(0, 3)) {
  console.log(
    `${batch.images[0]?.fileName}: ${dataset.classes.nameOf(label)} ${score.toFixed(2)} at ${box.map(Math.round).join(", ")}`,
  );
}
batch.release();
