/** Training as a whole: resuming exactly, stopping on a loss that is not finite, stopping on a signal. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { unlinkSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import {
  AspectRatioBatches,
  CocoDataLoader,
  type CocoDataLoaderOptions,
  DeviceBatchDecoder,
  DeviceImageCodec,
  HorizontalFlip,
  loadDataset,
  Normalize,
  RepeatFactorSampler,
  Resize,
} from "../../lib/data";
import { readCheckpoint } from "../../lib/formats";
import { CompactDetector } from "../../lib/models";
import { DlfsError } from "../../lib/native";
import type { Tensor } from "../../lib/tensor";
import {
  constantRate,
  Evaluator,
  type LossScaling,
  type StepResult,
  Trainer,
  type TrainerObserver,
  type TrainerOptions,
  type TrainingOutcome,
} from "../../lib/train";
import { testDevice } from "../support/device";
import { writeTinyDataset } from "../support/tiny-dataset";

const device = testDevice({ deterministic: true });
let folder = "";

beforeAll(async () => {
  folder = await writeTinyDataset(device);
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

interface RunOptions {
  iterations: number;
  rate?: number;
  checkpoints?: string;
  checkpointEvery?: number;
  resume?: string;
  evaluate?: boolean;
  signal?: AbortSignal;
  observer?: TrainerObserver;
  /** Evaluations, averages, plateaus. */
  more?: Partial<TrainerOptions>;
  sampling?: Pick<CocoDataLoaderOptions, "sampler" | "batchSampler" | "prefetch" | "concurrency" | "sizes">;
}

interface RunResult {
  outcome: TrainingOutcome;
  weights: Map<string, Uint8Array>;
  averages: Map<string, Uint8Array>;
  rateFactor: number;
}

async function run(options: RunOptions): Promise<RunResult> {
  using dataset = await loadDataset(folder, { codec: new DeviceImageCodec(device), store: ":memory:" });
  using model = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
  model.to(device, { seed: 5 });
  const preprocessing = [new HorizontalFlip(), new Resize(), new Normalize()];
  const shared = { batchSize: 2, height: 64, width: 64, preprocessing };
  using decoder = new DeviceBatchDecoder(device, shared);
  const loaderOptions = {
    store: dataset.store,
    source: dataset.source,
    decoder,
    batchSize: 2,
    size: [64, 64] as const,
    preprocessing,
  };
  await using loader = new CocoDataLoader({ ...loaderOptions, ...options.sampling, split: "train2017", seed: 3 });
  using evalDecoder = new DeviceBatchDecoder(device, shared);
  await using evalLoader = new CocoDataLoader({
    ...loaderOptions,
    decoder: evalDecoder,
    split: "val2017",
    shuffle: false,
    preprocessing: [new Resize(), new Normalize()],
  });
  using evaluator = new Evaluator({
    model,
    store: dataset.store,
    split: "val2017",
    loader: evalLoader,
    decoder: evalDecoder,
  });
  using trainer = new Trainer({
    model,
    loader,
    decoder,
    optimizer: { schedule: constantRate(options.rate ?? 0.01) },
    iterations: options.iterations,
    evaluator: options.evaluate ? evaluator : null,
    checkpointFolder: options.checkpoints,
    checkpointEvery: options.checkpointEvery,
    signal: options.signal,
    observer: options.observer,
    ...options.more,
  });
  if (options.resume) {
    await using checkpoint = await readCheckpoint(options.resume);
    await trainer.resume(checkpoint);
  }
  const outcome = await trainer.train();
  const bytesOf = (tensors: Iterable<[string, Tensor]>) =>
    new Map([...tensors].map(([name, tensor]) => [name, tensor.readBytes()]));
  const averages = bytesOf(trainer.ema?.averages ?? []);
  return { outcome, weights: bytesOf(model.stateDict()), averages, rateFactor: trainer.optimizer.rateFactor };
}

test("a resumed run ends with the bytes of an uninterrupted one", async () => {
  const checkpoints = join(folder, "resume");
  const whole = await run({ iterations: 7 });
  const stop = new AbortController();
  const observer = { onStep: (iteration: number) => void (iteration === 2 && stop.abort()) };
  const first = await run({ iterations: 7, checkpoints, signal: stop.signal, observer });
  expect(first.outcome).toMatchObject({ interrupted: true, iteration: 3 });
  const second = await run({ iterations: 7, resume: first.outcome.checkpoint as string });
  expect(second.outcome.iteration).toBe(7);
  for (const [name, bytes] of whole.weights) {
    expect(Buffer.compare(bytes, second.weights.get(name)!), `${name} differs after resuming`).toBe(0);
  }
  const differs = [...whole.weights].some(([name, bytes]) => Buffer.compare(bytes, first.weights.get(name)!) !== 0);
  expect(differs, "training after the interruption changed nothing").toBe(true);
});

test("a run that repeats and groups images resumes in the middle of a pass, with other reading", async () => {
  const checkpoints = join(folder, "resume-sampled");
  const sampling = { sampler: new RepeatFactorSampler({ threshold: 1 }), batchSampler: new AspectRatioBatches() };
  const whole = await run({ iterations: 12, sampling });
  const stop = new AbortController();
  const observer = { onStep: (iteration: number) => void (iteration === 6 && stop.abort()) };
  const first = await run({ iterations: 12, checkpoints, signal: stop.signal, observer, sampling });
  const resume = first.outcome.checkpoint as string;
  const second = await run({ iterations: 12, resume, sampling: { ...sampling, prefetch: 2, concurrency: 1 } });
  for (const [name, bytes] of whole.weights) {
    expect(Buffer.compare(bytes, second.weights.get(name)!), `${name} differs after resuming`).toBe(0);
  }
  const other = await run({ iterations: 12, resume }).then(
    () => null,
    (reason: unknown) => reason,
  );
  expect(String(other)).toContain(
    'CocoDataLoader.restore: sampler was {"name":"RepeatFactorSampler","threshold":1}, but this loader has none',
  );
});

test("a run on images of several sizes resumes with the bytes of an uninterrupted one", async () => {
  const checkpoints = join(folder, "resume-sizes");
  const sampling = {
    sizes: [
      [64, 64],
      [64, 32],
      [32, 64],
    ] as const,
  };
  const whole = await run({ iterations: 12, sampling });
  const stop = new AbortController();
  const observer = { onStep: (iteration: number) => void (iteration === 6 && stop.abort()) };
  const first = await run({ iterations: 12, checkpoints, signal: stop.signal, observer, sampling });
  const second = await run({ iterations: 12, resume: first.outcome.checkpoint as string, sampling });
  const fixed = await run({ iterations: 12 });
  const differs = [...whole.weights].some(([name, bytes]) => Buffer.compare(bytes, fixed.weights.get(name)!) !== 0);
  expect(differs).toBe(true);
  for (const [name, bytes] of whole.weights) {
    expect(Buffer.compare(bytes, second.weights.get(name)!), `${name} differs after resuming`).toBe(0);
  }
});

test("moving averages and a rate reduced on a plateau go on from a checkpoint, and the averages are what is evaluated", async () => {
  const checkpoints = join(folder, "resume-ema");
  // No evaluation is that much better: the rate is reduced at each.
  const plateau = { patience: 0, threshold: 100, factor: 0.5, metric: "AR100" } as const;
  const more = { ema: { decay: 0.9, warmup: 4 }, plateau, evaluateEvery: 2 };
  const whole = await run({ iterations: 9, evaluate: true, more });
  expect(whole.rateFactor).toBe(0.5 ** 4);
  const stop = new AbortController();
  const observer = { onStep: (iteration: number) => void (iteration === 4 && stop.abort()) };
  const first = await run({ iterations: 9, checkpoints, signal: stop.signal, observer, evaluate: true, more });
  const resume = first.outcome.checkpoint as string;
  const second = await run({ iterations: 9, resume, evaluate: true, more });
  expect(second.rateFactor).toBe(whole.rateFactor);
  for (const part of ["weights", "averages"] as const) {
    expect(whole[part].size).toBeGreaterThan(10);
    for (const [name, bytes] of whole[part]) {
      expect(Buffer.compare(bytes, second[part].get(name)!), `${part}: ${name} differs after resuming`).toBe(0);
    }
  }
  const [name, bytes] = [...whole.averages].find(([key]) => key.endsWith("weight"))!;
  expect(Buffer.compare(bytes, whole.weights.get(name)!)).not.toBe(0);
  // Averages that never leave the first weights score as those, however far the weights have gone.
  const stuck = { ema: { decay: 1 - 1e-7, warmup: 0 } };
  const scores = async (iterations: number, options: Partial<TrainerOptions>) =>
    (await run({ iterations, evaluate: true, rate: 0.02, more: options })).outcome.evaluation?.result.stats;
  expect(await scores(12, stuck)).toEqual((await scores(1, stuck))!);
  expect(await scores(12, {})).not.toEqual((await scores(12, stuck))!);
  const without = await run({ iterations: 9, resume }).catch((e: unknown) => e);
  expect(String(without)).toContain("was written with moving averages of the weights, but this training has none");
});

test("frozen parameters stay as they are until their iteration, and a run resumes on either side of it", async () => {
  const freeze = [{ match: "stem.conv" }, { match: /^stage\d[.]/, until: 4 }, { match: "{lateral,stem}", until: 6 }];
  // Weight decay would change them without any gradient.
  const optimizer = { schedule: constantRate(0.02), weightDecay: 0.1 };
  const keep = { keepLast: 10 };
  const more = { freeze, ema: { decay: 0.5, warmup: 0 }, optimizer, keep };
  const start = await run({ iterations: 1, more: { ...more, optimizer: { schedule: constantRate(0) } } });
  /** Whether the weights and biases of some layers have changed: none of them, or all. */
  const changed = (result: RunResult, layers: RegExp) => {
    const names = [...start.weights.keys()].filter((name) => layers.test(name) && /[.](weight|bias)$/.test(name));
    return new Set(names.map((name) => Buffer.compare(result.weights.get(name)!, start.weights.get(name)!) !== 0));
  };
  const layers = [/^stem[.]conv/, /^stage\d/, /^lateral|^stem[.]norm/, /^smooth|Head/];
  const expected: [number, boolean[]][] = [
    [4, [false, false, false, true]],
    [5, [false, true, false, true]],
    [7, [false, true, true, true]],
  ];
  for (const [iterations, changes] of expected) {
    const result = await run({ iterations, more });
    expect(layers.map((names) => changed(result, names))).toEqual(changes.map((value) => new Set([value])));
  }
  const checkpoints = join(folder, "resume-frozen");
  const paths: string[] = [];
  const observer = { onCheckpoint: (path: string) => void paths.push(path) };
  const whole = await run({ iterations: 8, more, checkpoints, checkpointEvery: 2, observer });
  expect(paths).toHaveLength(4);
  for (const resume of paths.slice(0, 3)) {
    const rest = await run({ iterations: 8, more, resume });
    for (const part of ["weights", "averages"] as const) {
      for (const [name, bytes] of whole[part]) {
        expect(Buffer.compare(bytes, rest[part].get(name)!), `${resume}: ${name} differs`).toBe(0);
      }
    }
  }
});

test("a run with loss scaling goes on with its scale and counters, and one without starts or drops them", async () => {
  const checkpoints = join(folder, "resume-scaled");
  // Changes every other step: too large at first for some steps, and grows between.
  const lossScaling = { initial: 2 ** 126, backoff: 2 ** -40, interval: 2 };
  const reports = () => {
    const found: [number, LossScaling | undefined][] = [];
    return { found, onResult: ({ iteration, scaling }: StepResult) => void found.push([iteration, scaling]) };
  };
  const more = { optimizer: { schedule: constantRate(0.01), lossScaling } };
  const [all, part] = [reports(), reports()];
  const whole = await run({ iterations: 9, more, observer: all });
  const scales = all.found.map(([, found]) => found!.scale);
  expect(new Set(scales).size).toBeGreaterThan(2);
  const stop = new AbortController();
  const observer = { onStep: (iteration: number) => void (iteration === 3 && stop.abort()) };
  const first = await run({ iterations: 9, checkpoints, signal: stop.signal, observer, more });
  const resume = first.outcome.checkpoint as string;
  const second = await run({ iterations: 9, resume, more, observer: part });
  expect(part.found).toEqual(all.found.slice(4));
  for (const [name, bytes] of whole.weights) {
    expect(Buffer.compare(bytes, second.weights.get(name)!), `${name} differs after resuming`).toBe(0);
  }
  // As a training that goes on in another precision.
  const plain = { optimizer: { schedule: constantRate(1e-3) } };
  const dropped = reports();
  expect((await run({ iterations: 6, resume, more: plain, observer: dropped })).outcome.iteration).toBe(6);
  expect(dropped.found.map(([, found]) => found)).toEqual([undefined, undefined]);
  const unscaled = await run({ iterations: 2, checkpoints: join(folder, "resume-unscaled"), more: plain });
  const started = reports();
  const scaled = { optimizer: { schedule: constantRate(1e-3), lossScaling: true } };
  await run({ iterations: 4, resume: unscaled.outcome.checkpoint as string, more: scaled, observer: started });
  expect(started.found.map(([, found]) => found!.scale)).toEqual([65536, 65536]);
});

test("overflows at the least loss scale stop the run, which names them", async () => {
  const more = { optimizer: { schedule: constantRate(1e18), lossScaling: { initial: 4, patience: 3 } } };
  const skipped: boolean[] = [];
  const observer = { onResult: ({ scaling }: StepResult) => void skipped.push(scaling!.skipped) };
  const error = (await run({ iterations: 60, more, observer }).catch((e: unknown) => e)) as DlfsError;
  expect(error.message).toMatch(
    /is not finite in iteration \d+, as in 2 before at the least loss scale, 1: .*no checkpoint/,
  );
  // Two halvings and three overflows; those before may have come and gone.
  expect(skipped.slice(-3)).toEqual([true, true, true]);
});

test("a run of steps of several batches resumes with the bytes of an uninterrupted one", async () => {
  const checkpoints = join(folder, "resume-accumulated");
  const more = { accumulate: 3 };
  const steps: [number, number][] = [];
  const whole = await run({ iterations: 5, more, observer: { onStep: (i, images) => void steps.push([i, images]) } });
  expect(steps).toEqual([0, 1, 2, 3, 4].map((i) => [i, 6]));
  const stop = new AbortController();
  const observer = { onStep: (iteration: number) => void (iteration === 1 && stop.abort()) };
  const first = await run({ iterations: 5, checkpoints, signal: stop.signal, observer, more });
  const second = await run({ iterations: 5, resume: first.outcome.checkpoint as string, more });
  for (const [name, bytes] of whole.weights) {
    expect(Buffer.compare(bytes, second.weights.get(name)!), `${name} differs after resuming`).toBe(0);
  }
});

test("patience ends a training that gets no better", async () => {
  const more = { evaluateEvery: 2, patience: 3 };
  const { outcome } = await run({ iterations: 40, rate: 0, evaluate: true, more });
  // The first is the best; three others are no better.
  expect(outcome).toMatchObject({ iteration: 8, interrupted: false, settled: true });
});

test("training learns: the losses fall and an evaluation reports COCO's figures", async () => {
  const losses: number[] = [];
  const observer = {
    onResult: ({ losses: l }: { losses: Record<string, number> }) =>
      void losses.push(l.classification! + l.boxRegression!),
  };
  const { outcome } = await run({ iterations: 120, evaluate: true, observer, rate: 0.02 });
  expect(losses).toHaveLength(120);
  const mean = (part: number[]) => part.reduce((sum, loss) => sum + loss, 0) / part.length;
  expect(mean(losses.slice(-8))).toBeLessThan(0.7 * mean(losses.slice(0, 8)));
  expect(outcome.evaluation?.result.stats.AP50).toBeGreaterThanOrEqual(0);
});

test("a checkpoint that cannot be written is told of; training goes on and tries again, or ends where nobody listens", async () => {
  const checkpoints = join(folder, "blocked");
  const block = () => writeFileSync(checkpoints, "a file where the folder belongs");
  block();
  const errors: [number, string][] = [];
  const saved: number[] = [];
  const { outcome } = await run({
    iterations: 7,
    checkpoints,
    checkpointEvery: 2,
    observer: {
      onCheckpointError: ({ message }, iteration) => {
        errors.push([iteration, message]);
        if (errors.length === 2) unlinkSync(checkpoints);
      },
      onCheckpoint: (_, iteration) => void saved.push(iteration),
    },
  });
  expect(errors.map(([iteration]) => iteration)).toEqual([2, 4]);
  expect(errors[0]![1]).toContain(checkpoints);
  expect(saved).toEqual([6, 7]);
  expect(outcome.checkpoint).toBe(join(checkpoints, "checkpoint-00000007.dlck"));
  await rm(checkpoints, { recursive: true });
  block();
  const unheard = await run({ iterations: 7, checkpoints, checkpointEvery: 2 }).catch((e: unknown) => e);
  expect(String(unheard)).toContain(checkpoints);
  const last = { iterations: 3, checkpoints, observer: { onCheckpointError: () => {} } };
  expect(String(await run(last).catch((e: unknown) => e))).toContain(checkpoints);
});

test("a loss that is not finite stops the run by name and keeps the last good checkpoint", async () => {
  const checkpoints = join(folder, "nonfinite");
  const saved: string[] = [];
  const error = await run({
    iterations: 60,
    rate: 1e18,
    checkpoints,
    checkpointEvery: 1,
    observer: { onCheckpoint: (path) => void saved.push(path) },
  }).then(
    () => null,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(DlfsError);
  const { message } = error as DlfsError;
  expect(message).toMatch(
    /a loss is not finite in iteration \d+: classification .*, boxRegression .*, learning rate \d+/,
  );
  expect(saved.length).toBeGreaterThan(0);
  expect(message).toContain(saved.at(-1)!);
  await using checkpoint = await readCheckpoint(saved.at(-1)!);
  await checkpoint.verify();
});
