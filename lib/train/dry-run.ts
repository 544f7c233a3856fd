import type { DetectionBatch, DetectionLoader } from "../data";
import { formatBytes } from "../layers/summary";
import type { Tensor } from "../tensor";
import type { Evaluator } from "./evaluator";
import type { HostTargets, StepResult, TrainStep } from "./train-step";

/** What a dry run has found. */
export interface DryRun {
  /** Bytes of the device's memory. */
  memory: {
    /** What a step's arena holds: activations, workspaces, inputs. */
    step: number;
    /** What dlfs holds in all: also weights, gradients, momentum, averages, batches, an evaluation's activations. */
    used: number;
    /** What the device has, and what is left of it beside that, libraries, and other processes. */
    total: number;
    left: number;
  };
  /** Images of a step, of all ranks, and the boxes that each of them has room for. */
  images: number;
  maxBoxes: number;
  /** The last step, which is a captured one where the device has graphs. */
  result: StepResult;
  /** Of that step, from its batch being there to its report. */
  stepMs: number;
  /** Of the one batch that was evaluated; null where there is no evaluation. */
  evaluation: { images: number; detections: number } | null;
  /** Of a checkpoint; so much pinned memory of the host, too. */
  checkpointBytes: number;
}

/** So many that the step is captured, and then launched. */
const STEPS = 3;

/** As many boxes as there is room for, of all sizes, all over the images. */
export function worstCaseTargets(
  { n, height, width, maxBoxes }: { n: number; height: number; width: number; maxBoxes: number },
  classes: number,
): HostTargets {
  const boxes = new Float32Array(n * maxBoxes * 4);
  const labels = new Int32Array(n * maxBoxes);
  for (let i = 0; i < n * maxBoxes; i++) {
    // Sides from 1 to 1 / 32 of the image's, places by the golden ratio.
    const side = 2 ** -(i % 6);
    const [x, y] = [(i * 0.618034) % 1, (i * 0.754878) % 1].map((at) => at * (1 - side)) as [number, number];
    boxes.set([x * width, y * height, (x + side) * width, (y + side) * height], 4 * i);
    labels[i] = i % classes;
  }
  return { boxes, labels, counts: new Int32Array(n).fill(maxBoxes) };
}

/**
 * Runs steps on one batch of the loader's images with as many boxes as there is room for, and evaluates one batch. Weights change by
 * those steps; nothing is written.
 */
export async function dryRun(parts: {
  step: TrainStep;
  loader: DetectionLoader;
  images: (batch: DetectionBatch) => Tensor;
  evaluator: Evaluator | null;
  accumulate: number;
  checkpointBytes: number;
  /** That train together. Default 1. */
  ranks?: number;
}): Promise<DryRun> {
  const { step, loader, images, evaluator, accumulate, checkpointBytes, ranks = 1 } = parts;
  const { device } = step.model;
  const { batchSize: n, height, width, maxBoxes } = loader;
  const targets = worstCaseTargets({ n, height, width, maxBoxes }, step.model.classes);
  const batch = await loader.getBatch();
  let result: StepResult | undefined;
  let stepMs = 0;
  try {
    for (let i = 0; i < STEPS; i++) {
      const start = performance.now();
      for (let part = 0; part < accumulate; part++) await step.submit(images(batch), targets);
      result = (await step.drain()).at(-1);
      stepMs = performance.now() - start;
    }
  } finally {
    batch.release();
  }
  const found = evaluator && (await evaluator.detect(undefined, 1));
  const { allocated: used, total, free: left } = device.memory();
  return {
    memory: { step: step.program.arenaBytes, used, total, left },
    images: n * accumulate * ranks,
    maxBoxes,
    result: result as StepResult,
    stepMs,
    evaluation: found && {
      images: found.length,
      detections: found.reduce((sum, { detections }) => sum + detections.length, 0),
    },
    checkpointBytes,
  };
}

/** In lines for a terminal. */
export function describeDryRun({ memory, images, maxBoxes, result, ...rest }: DryRun): string[] {
  const { stepMs, evaluation, checkpointBytes } = rest;
  const losses = Object.entries(result.losses).map(([name, value]) => `${name} ${value.toPrecision(4)}`);
  return [
    `a step of ${images} images with ${maxBoxes} boxes each: ${stepMs.toFixed(0)} ms, ${losses.join(", ")}`,
    ...(result.failed ? ["warning: a loss or the gradients' norm is not finite"] : []),
    evaluation
      ? `an evaluation of ${evaluation.images} images: ${evaluation.detections} detections`
      : "no evaluation: there is nothing to evaluate on",
    `memory: ${formatBytes(memory.used)} of ${formatBytes(memory.total)}, ${formatBytes(memory.step)} of that for a step's activations; ${formatBytes(memory.left)} left`,
    `a checkpoint: ${formatBytes(checkpointBytes)}`,
  ];
}
