import { expect, test } from "bun:test";
import { CompactDetector } from "../../lib/models";
import { Tensor } from "../../lib/tensor";
import { constantRate, SGD, TrainStep } from "../../lib/train";
import { testDevice } from "../support/device";

const device = testDevice();
const targets = { boxes: Float32Array.of(4, 4, 30, 30), labels: new Int32Array(1), counts: Int32Array.of(1) };

test("disposing of a step in flight releases its images and leaves nothing behind that fails later", async () => {
  const rejected: unknown[] = [];
  const listen = (reason: unknown): void => void rejected.push(reason);
  process.on("unhandledRejection", listen);
  using model = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
  model.to(device);
  using optimizer = new SGD(model, { schedule: constantRate(0.001), iterations: 3 });
  using images = Tensor.zeros(device, [1, 64, 64, 3]);
  const released: number[] = [];
  {
    using step = new TrainStep(model, optimizer, { batchSize: 1, height: 64, width: 64, maxBoxes: 1 });
    for (let i = 0; i < 3; ++i) {
      const { copied } = await step.submit(images, targets);
      copied.then(() => released.push(i));
    }
    expect(released).toEqual([0]);
  }
  await Bun.sleep(20);
  process.off("unhandledRejection", listen);
  expect(released.sort()).toEqual([0, 1, 2]);
  expect(rejected).toEqual([]);
});
