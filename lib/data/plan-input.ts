/** How an image is drawn into a network's input when nothing is left to chance. */
import type { InputSize } from "./codec";
import { type ImagePlan, startPlan } from "./image-plan";
import { CounterRandom } from "./random";
import type { PreprocessOp } from "./transforms";

/** Plans an image of a size without boxes; random operations, which only training has, are as for its first image. */
export function planInput(
  { width, height }: { width: number; height: number },
  preprocessing: readonly PreprocessOp[],
  [inputHeight, inputWidth]: InputSize,
): ImagePlan {
  const random = new CounterRandom({ seed: 0, epoch: 0, image: 0, operation: 0, repeat: 0 });
  const start = startPlan(width, height, inputWidth, inputHeight, new Float64Array(0), new Int32Array(0));
  return preprocessing.reduce((before, op) => op.apply(before, random), start);
}
