import { check, DlfsError, ErrorCode } from "../native";
import type { DryRun } from "./dry-run";

export interface BatchSearch {
  /** Bytes of a step's arena by the number of images: TrainStep.estimate(). */
  arena: (n: number) => number;
  /**
   * Builds all that a training with batches of n images needs, tries it with Trainer.dryRun(), and releases it. Out of memory is an
   * error with ErrorCode.memory.
   */
  rehearse: (n: number) => Promise<DryRun>;
  /** The most images that a batch may have. Default 1024. */
  most?: number;
  /**
   * Share of the device's memory that stays free, for what differs from batch to batch, such as large images, and for other
   * programs. Default 0.08.
   */
  margin?: number;
}

export interface FoundBatch {
  batch: number;
  /** What was tried, with the memory that it left; null where it did not fit. */
  tried: { batch: number; left: number | null }[];
  /** Of the batch that was found. */
  dryRun: DryRun;
}

/** The largest number up to n of images that tensor cores and vector units share well: a multiple of 8, of fewer images of 4 or 2. */
export function roundBatch(n: number): number {
  const multiple = n >= 32 ? 8 : n >= 8 ? 4 : n >= 4 ? 2 : 1;
  return n - (n % multiple);
}

/**
 * The largest n up to `most` for which needed(n), which grows with n, is at most `room`; 1 where none is. As far as roundBatch() makes
 * a difference: planning takes its time, and bytes grow nearly in proportion, so that few plans are made.
 */
function largestFitting(needed: (n: number) => number, room: number, most: number): number {
  // It lies from `fits` to below `fails`.
  let [fits, fails] = [1, most + 1];
  let bytes = needed(1);
  if (bytes > room || most === 1) return 1;
  let slope = needed(2) - bytes;
  for (let tries = 1; roundBatch(fails - 1) !== roundBatch(fits); tries++) {
    const line = fits + Math.floor((room - bytes) / Math.max(slope, 1));
    const guess = tries % 4 === 0 ? (fits + fails) >> 1 : line;
    const n = Math.min(Math.max(guess, fits + 1), fails - 1);
    const taken = needed(n);
    slope = (taken - bytes) / (n - fits);
    if (taken <= room) [fits, bytes] = [n, taken];
    else fails = n;
  }
  return fits;
}

/**
 * The largest batch that fits with a margin: the memory planner says what a step takes, the trials of one and of two images what all
 * else does, weights, optimizer, batches, evaluation; then the batch is tried as it would be trained, with as many boxes as there
 * may be, and a smaller one where it does not fit after all.
 */
export async function largestBatch({ arena, rehearse, most = 1024, margin = 0.08 }: BatchSearch): Promise<FoundBatch> {
  check(Number.isSafeInteger(most) && most >= 1, "largestBatch", () => `most: expected an integer >= 1, got ${most}`);
  check(margin >= 0 && margin < 1, "largestBatch", () => `margin: expected a share below 1, got ${margin}`);
  const tried: FoundBatch["tried"] = [];
  const attempt = async (batch: number): Promise<DryRun | null> => {
    try {
      const found = await rehearse(batch);
      tried.push({ batch, left: found.memory.left });
      return found;
    } catch (error) {
      if (!(error instanceof DlfsError) || error.code !== ErrorCode.memory || batch === 1) throw error;
      tried.push({ batch, left: null });
      return null;
    }
  };
  const one = (await attempt(1)) as DryRun;
  const two = most > 1 ? await attempt(2) : null;
  if (!two) return { batch: 1, tried, dryRun: one };
  const { total, left, used, step } = one.memory;
  const besides = (found: DryRun) => found.memory.used - found.memory.step;
  // Of what dlfs itself allocates: what is free varies by what others do.
  const perImage = Math.max(0, besides(two) - besides(one));
  const others = total - left - used;
  const needed = (n: number) => others + used - step + perImage * (n - 1) + arena(n);
  const room = (1 - margin) * total;
  const fits = largestFitting(needed, room, most);
  for (let n = roundBatch(fits); n > 2; n = roundBatch(Math.min(n - 1, Math.floor(0.9 * n)))) {
    const found = await attempt(n);
    // What was estimated may be off by a little, but not by half of the margin.
    if (found && found.memory.left >= (margin / 2) * total) return { batch: n, tried, dryRun: found };
  }
  return fits >= 2 ? { batch: 2, tried, dryRun: two } : { batch: 1, tried, dryRun: one };
}
