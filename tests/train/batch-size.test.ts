/** The largest batch that memory has room for: what the search makes of what it finds, and a real one on a device with little. */
import { expect, test } from "bun:test";
import { CompactDetector } from "../../lib/models";
import { DlfsError, ErrorCode } from "../../lib/native";
import { Device, Tensor } from "../../lib/tensor";
import {
  constantRate,
  type DryRun,
  keepWeights,
  largestBatch,
  roundBatch,
  SGD,
  TrainStep,
  worstCaseTargets,
} from "../../lib/train";
import { backend } from "../support/device";

/** A device with 1000 bytes: a step takes 4 + 10 n, all else 100 + 2 n, of which 60 are not dlfs's. */
function pretend({ extra = () => 0, failing = () => false }: Partial<Pretended> = {}) {
  const arena = (n: number) => 4 + 10 * n;
  const rehearse = async (n: number): Promise<DryRun> => {
    const step = arena(n) + extra(n);
    const used = step + 40 + 2 * n;
    const left = 1000 - 60 - used;
    if (failing(n) || left < 0) throw new DlfsError(ErrorCode.memory, "test", "no memory");
    return { memory: { step, used, total: 1000, left } } as DryRun;
  };
  return { arena, rehearse };
}
interface Pretended {
  /** Bytes that the planner does not know of. */
  extra: (n: number) => number;
  failing: (n: number) => boolean;
}

test("the planner's sizes and two trials say what fits, with the margin", async () => {
  // 104 + 12 n <= 920: 68, of which 64 is a multiple of 8.
  const found = await largestBatch(pretend());
  expect(found.batch).toBe(64);
  expect(found.tried.map(({ batch }) => batch)).toEqual([1, 2, 64]);
  expect(found.dryRun.memory.left).toBe(1000 - 104 - 12 * 64);
  expect((await largestBatch({ ...pretend(), margin: 0 })).batch).toBe(72);
  expect((await largestBatch({ ...pretend(), most: 21 })).batch).toBe(20);
  expect((await largestBatch({ ...pretend(), most: 2 })).batch).toBe(2);
  expect((await largestBatch({ ...pretend(), most: 1 })).tried).toEqual([{ batch: 1, left: 884 }]);
});

test("few plans are made, also where memory does not grow in proportion", async () => {
  for (const shape of [(n: number) => 10 * n, (n: number) => n ** 1.5, (n: number) => 100 * Math.ceil(n / 30)]) {
    let plans = 0;
    const arena = (n: number) => {
      plans++;
      return shape(n);
    };
    const rehearse = async (n: number) => {
      const step = shape(n);
      return { memory: { step, used: step, total: 10_000, left: 10_000 - step } } as DryRun;
    };
    const { batch } = await largestBatch({ arena, rehearse, margin: 0 });
    const fitting = Array.from({ length: 1024 }, (_, i) => i + 1).findLast((n) => shape(n) <= 10_000)!;
    expect(batch).toBe(roundBatch(fitting));
    expect(plans).toBeLessThan(20);
  }
});

test("what does not fit after all, or leaves less than half of the margin, makes room for a smaller batch", async () => {
  const found = await largestBatch(pretend({ failing: (n) => n > 50 }));
  expect([found.batch, found.tried.map(({ batch, left }) => [batch, left === null])]).toEqual([
    48,
    [
      [1, false],
      [2, false],
      [64, true],
      [56, true],
      [48, false],
    ],
  ]);
  expect((await largestBatch(pretend({ extra: (n) => (n > 2 ? 100 : 0) }))).batch).toBe(56);
  expect((await largestBatch(pretend({ failing: (n) => n > 2 }))).batch).toBe(2);
  expect((await largestBatch(pretend({ failing: (n) => n > 1 }))).batch).toBe(1);
  expect(largestBatch(pretend({ failing: () => true }))).rejects.toThrow("test: no memory");
  const broken = { ...pretend(), rehearse: () => Promise.reject(new Error("no data")) };
  expect(largestBatch(broken)).rejects.toThrow("no data");
});

test("batches are rounded to what the hardware shares well", () => {
  expect([1, 3, 5, 7, 9, 15, 31, 33, 71].map(roundBatch)).toEqual([1, 3, 4, 6, 8, 12, 28, 32, 64]);
});

test("on a device with little memory, the largest batch trains, and the next does not fit with the margin", async () => {
  using device = new Device({ backend, memoryLimit: 40 * 2 ** 20 });
  using model = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
  model.to(device, { seed: 4 });
  const weights = () => model.parameters().map(({ tensor }) => Buffer.from(tensor.readBytes()));
  const before = weights();
  const restore = keepWeights(model);
  const shape = { height: 128, width: 128, maxBoxes: 5 };
  const rehearse = async (batchSize: number): Promise<DryRun> => {
    using optimizer = new SGD(model, { schedule: constantRate(0.01), iterations: 1 });
    using images = Tensor.zeros(device, [batchSize, 128, 128, 3]);
    using step = new TrainStep(model, optimizer, { ...shape, batchSize });
    await step.submit(images, worstCaseTargets({ n: batchSize, ...shape }, 2));
    const [result] = await step.drain();
    expect(result!.failed).toBe(false);
    const { allocated: used, total, free: left } = device.memory();
    return { memory: { step: step.program.arenaBytes, used, total, left } } as DryRun;
  };
  const arena = TrainStep.estimate(model, { ...shape, batchSize: 2 });
  const { batch, dryRun } = await largestBatch({ arena, rehearse, margin: 0.1 });
  restore();
  expect(batch).toBeGreaterThan(8);
  expect(dryRun.memory.left).toBeGreaterThanOrEqual(0.05 * dryRun.memory.total);
  const planned = TrainStep.plan(model, { ...shape, batchSize: batch }).bytes;
  expect(Math.abs(arena(batch) / planned - 1)).toBeLessThan(0.05);
  const more = await rehearse(roundBatch(batch + 8)).then(
    ({ memory }) => memory.left < 0.1 * memory.total,
    (error: DlfsError) => error.code === ErrorCode.memory,
  );
  expect(more).toBe(true);
  restore();
  expect(weights()).toEqual(before);
});
