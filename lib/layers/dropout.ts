import { dropout, Parameter, useParameter, type Value } from "../graph";
import { check } from "../native";
import { Layer } from "./layer";

/**
 * In training, zeros each element with probability p and scales the others by 1 / (1 - p), as torch.nn.Dropout (Srivastava et
 * al. 2014); in inference mode the identity. What is zeroed depends on the seed, the layer's path in the model and the number
 * of draws before: the same on every backend, and a run that goes on from a checkpoint draws what it would have drawn.
 */
export class Dropout extends Layer {
  /** Draws so far, modulo 2^24: a buffer of the training, in checkpoints and not in exported weights. */
  readonly counter = new Parameter([1], { kind: "constant", value: 0 }, { buffer: true, persistent: false });
  readonly seed: number;

  /**
   * @param p in [0, 1); default 0.5
   * @param options seed: a whole number from 0 to 2^20 - 1; default 0
   */
  constructor(
    readonly p = 0.5,
    { seed = 0 }: { seed?: number } = {},
  ) {
    super();
    check(p >= 0 && p < 1, "Dropout", () => `expected p in [0, 1), got ${p}`);
    check(
      Number.isInteger(seed) && seed >= 0 && seed < 2 ** 20,
      "Dropout",
      () => `expected a seed from 0 to 2^20 - 1, got ${seed}`,
    );
    this.seed = seed;
  }

  forward(x: Value): Value {
    if (!this.training || this.p === 0) return x;
    // Layers of one model must not drop the same elements: the path tells them apart.
    const seed = this.seed * 2 ** 32 + hash(this.counter.name);
    return dropout(x, useParameter(this.counter), { p: this.p, seed });
  }
}

/** FNV-1a (Fowler, Noll, Vo), 32 bits. */
function hash(text: string): number {
  let value = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) value = Math.imul(value ^ byte, 0x01000193);
  return value >>> 0;
}
