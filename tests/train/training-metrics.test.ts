/** The figures of a training that Prometheus collects. */
import { expect, spyOn, test } from "bun:test";
import type { CocoResult } from "../../lib/metrics";
import { prometheusText } from "../../lib/monitor";
import { TrainingMetrics } from "../../lib/train";

test("figures are those of the last reports, and counters those of this process", () => {
  let clock = 0;
  const now = spyOn(performance, "now").mockImplementation(() => clock);
  let skipped = 0;
  const info = { run: "cells-3", model: "RetinaNet" };
  const metrics = new TrainingMetrics({
    info,
    iterations: 110,
    start: 100,
    memory: () => 4096,
    skipped: () => skipped,
  });
  const figures = () => {
    const lines = prometheusText(metrics.collect()).split("\n");
    const values = lines.flatMap((line) => {
      const [, name, value] = /^dlfs_train_(\S+) (\S+)$/.exec(line) ?? [];
      return name === undefined ? [] : [[name, Number(value)] as const];
    });
    return Object.fromEntries(values);
  };
  const first = figures();
  expect(first).toMatchObject({ iteration: 100, iterations_total: 0, planned_iterations: 110, images_total: 0 });
  // What is not known yet is not there.
  for (const name of ["remaining_seconds", "learning_rate", "gradient_norm", "loss_scale", "checkpoint_iteration"]) {
    expect(first).not.toHaveProperty(name);
  }

  for (const i of [0, 1, 2, 3]) {
    clock += 500;
    metrics.onStep(100 + i, 16, 0.125, 2);
  }
  const losses = { boxRegression: 0.25, classification: 0.5 };
  const scaling = { scale: 1024, skipped: false, overflows: 3 };
  metrics.onResult({ iteration: 103, losses, rate: 0.1, gradNorm: 2, scaling, failed: false });
  metrics.onEvaluationStart(104, false);
  clock += 10_000;
  metrics.onEvaluation(104, { stats: { AP: 0.5, AP50: 0.75 } } as CocoResult);
  metrics.onCheckpoint("checkpoint", 104);
  metrics.onCheckpointError();
  skipped = 5;
  const found = figures();
  now.mockRestore();
  expect(found).toMatchObject({
    ...{ 'info{run="cells-3",model="RetinaNet"}': 1, iteration: 104, epoch: 2, learning_rate: 0.1, gradient_norm: 2 },
    ...{ iterations_total: 4, images_total: 64, seconds_total: 1.625, data_wait_seconds_total: 0.5 },
    ...{ 'loss{loss="boxRegression"}': 0.25, 'loss{loss="classification"}': 0.5, skipped_images_total: 5 },
    ...{ loss_scale: 1024, overflowed_steps: 3, device_memory_bytes: 4096, remaining_seconds: (6 * 1.625) / 4 },
    ...{ 'evaluation_ratio{metric="AP"}': 0.5, 'evaluation_ratio{metric="AP50"}': 0.75, evaluation_iteration: 104 },
    ...{ evaluations_total: 1, evaluation_seconds_total: 10, checkpoints_total: 1, checkpoint_failures_total: 1 },
    checkpoint_iteration: 104,
  });
  expect(found.checkpoint_time_seconds).toBeCloseTo(Date.now() / 1000, -2);
});
