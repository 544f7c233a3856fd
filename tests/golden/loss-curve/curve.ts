/** The training run whose losses are compared across backends: one stored batch, twenty steps. */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { CompactDetector } from "../../../lib/models";
import { type Device, Tensor } from "../../../lib/tensor";
import { constantRate, SGD, TrainStep } from "../../../lib/train";

export const STEPS = 20;
export const SIZE = 96;
export const MAX_BOXES = 8;
const LEARNING_RATE = 1e-3;

/** A batch as it is stored: pixels (N, SIZE, SIZE, 3) uint8, and padded targets. */
export interface StoredBatch {
  n: number;
  pixels: Uint8Array;
  boxes: Float32Array;
  labels: Int32Array;
  counts: Int32Array;
}

export function goldenPath(name: string): string {
  return fileURLToPath(new URL(name, import.meta.url));
}

/** batch.bin: n as int32, then counts, labels, boxes and pixels without gaps, little-endian. */
export function serializeBatch({ n, pixels, boxes, labels, counts }: StoredBatch): Uint8Array {
  const parts = [Int32Array.of(n), counts, labels, boxes, pixels];
  return Buffer.concat(parts.map((part) => new Uint8Array(part.buffer, part.byteOffset, part.byteLength)));
}

export function readBatch(): StoredBatch {
  const { buffer } = Uint8Array.from(readFileSync(goldenPath("batch.bin")));
  const n = new Int32Array(buffer, 0, 1)[0] as number;
  const counts = new Int32Array(buffer, 4, n);
  const labels = new Int32Array(buffer, 4 + 4 * n, n * MAX_BOXES);
  const boxes = new Float32Array(buffer, 4 + 4 * n + 4 * n * MAX_BOXES, n * MAX_BOXES * 4);
  const pixels = new Uint8Array(buffer, 4 + 4 * n + 20 * n * MAX_BOXES);
  return { n, pixels, boxes, labels, counts };
}

/** The losses of each of STEPS steps on the stored batch, fp32, seeded weights. */
export async function lossCurve(device: Device): Promise<Record<string, number>[]> {
  const { n, pixels, ...targets } = readBatch();
  using model = new CompactDetector({ classes: 8, width: 8 });
  model.to(device, { seed: 11 });
  using optimizer = new SGD(model, { schedule: constantRate(LEARNING_RATE), iterations: STEPS });
  using images = Tensor.from(
    device,
    Float32Array.from(pixels, (value) => (value / 255 - 0.45) / 0.225),
    [n, SIZE, SIZE, 3],
  );
  using step = new TrainStep(model, optimizer, { batchSize: n, height: SIZE, width: SIZE, maxBoxes: MAX_BOXES });
  const curve: Record<string, number>[] = [];
  while (step.iteration < STEPS) {
    const { finished } = await step.submit(images, targets);
    if (finished) curve.push(finished.losses);
  }
  for (const { losses } of await step.drain()) curve.push(losses);
  return curve;
}
