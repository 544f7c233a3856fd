/** Slots of device memory that batches are prepared in, with the arrays of their boxes; what the loaders of detection share. */

import type { PlannedInput } from "./batch-planner";
import type { DetectionBatch } from "./coco-data-loader";
import { SlotRing } from "./queues";

/** The boxes of a batch: see DetectionBatch. */
export type TargetArrays = Pick<DetectionBatch, "boxes" | "labels" | "counts">;

/** What a batch consists of, without the ways to release it. */
type BatchContent = Omit<DetectionBatch, "release" | typeof Symbol.dispose>;

export class BatchSlots {
  readonly #ring: SlotRing;
  readonly #arrays = new Map<number, TargetArrays>();

  constructor(
    slots: number,
    /** Images, and boxes of an image, that the arrays have room for. */
    readonly batchSize: number,
    readonly maxBoxes: number,
  ) {
    this.#ring = new SlotRing(slots);
  }

  /** Rejects what waits for a slot, now and later. */
  close(error: Error): void {
    this.#ring.close(error);
  }

  /**
   * Prepares a batch in a slot, which is asked for at once, so that slots go to the batches in the order of the calls: a later one
   * can never starve an earlier one. `prepare` waits for it when it needs it. Where preparing fails, the slot goes back.
   */
  async prepare<Prepared>(prepare: (granted: () => Promise<number>) => Promise<Prepared>): Promise<Prepared> {
    const slot = this.#ring.acquire();
    slot.catch(() => {});
    try {
      return await prepare(() => slot);
    } catch (error) {
      // It must go back whether it was granted before the failure or will be later.
      slot.then((late) => this.#ring.release(late)).catch(() => {});
      throw error;
    }
  }

  /** A slot's arrays with the boxes of these images, none for those that failed. */
  fill(
    slot: number,
    inputs: readonly Pick<PlannedInput, "boxes" | "labels">[],
    hasFailed: (index: number) => boolean,
  ): TargetArrays {
    const arrays = this.#arraysOf(slot);
    arrays.boxes.fill(0);
    arrays.labels.fill(0);
    arrays.counts.fill(0);
    for (const [i, { boxes, labels }] of inputs.entries()) {
      if (hasFailed(i)) continue;
      arrays.boxes.set(boxes, 4 * i * this.maxBoxes);
      arrays.labels.set(labels, i * this.maxBoxes);
      arrays.counts[i] = labels.length;
    }
    return arrays;
  }

  /** The batch of these contents, which gives its slot back when it is released, once. */
  batch(content: BatchContent): DetectionBatch {
    let held = true;
    const release = (): void => {
      if (held) this.#ring.release(content.slot);
      held = false;
    };
    return { ...content, release, [Symbol.dispose]: release };
  }

  #arraysOf(slot: number): TargetArrays {
    const known = this.#arrays.get(slot);
    if (known) return known;
    const boxes = this.batchSize * this.maxBoxes;
    const made = {
      boxes: new Float32Array(4 * boxes),
      labels: new Int32Array(boxes),
      counts: new Int32Array(this.batchSize),
    };
    this.#arrays.set(slot, made);
    return made;
  }
}
