/** A small checkpoint with every field set, shared by the tests of this folder. */
import type { CheckpointMetadata, CheckpointTensorData } from "../../lib/formats/index";

export function sampleMetadata(iteration = 1200): CheckpointMetadata {
  return {
    iteration,
    epoch: 3,
    created: 1_700_000_000_123,
    config: { name: "demo", lr: 0.01, sizes: [320, 384], nested: { ключ: null } },
    versions: { dlfs: "0.1.0", bun: "1.4.5", backend: "cpu", libraries: { onednn: "2.6.3", device: "AMD EPYC" } },
    random: [
      { name: "augment", seed: 7, counter: Number.MAX_SAFE_INTEGER },
      { name: "dropout", seed: 0, counter: 0 },
    ],
    loader: { epoch: 3, position: 640, seed: 42 },
    schedule: { name: "multi-step", step: iteration, values: { factor: 0.1, warmup: 0.001 } },
    history: [
      {
        kind: "evaluation",
        iteration: 600,
        epoch: 1,
        time: 1_700_000_000_000,
        values: { AP: 0.25, AP50: 0.5, APs: -1 },
      },
      { kind: "evaluation", iteration: 1200, epoch: 3, time: 1_700_000_100_000, values: { AP: 0.3, loss: NaN } },
    ],
    best: { name: "AP", value: 0.3, iteration },
    convPicks: [
      { key: "conv fwd 32x64x64x16 3x3", value: "engine 7" },
      { key: "conv wgrad 32x64x64x16 3x3", value: "engine 11" },
    ],
    state: { ema: Uint8Array.of(0, 1, 2, 255), note: "text of any length", empty: "", none: new Uint8Array(0) },
  };
}

/** The least that a checkpoint may hold. */
export function smallMetadata(iteration: number): CheckpointMetadata {
  return {
    iteration,
    epoch: 0,
    created: 0,
    config: null,
    versions: { dlfs: "", bun: "", backend: "", libraries: {} },
    random: [],
    history: [],
    convPicks: [],
    state: {},
  };
}

export function sampleTensors(): CheckpointTensorData[] {
  const bytes = (length: number, first: number) => Uint8Array.from({ length }, (_, i) => (first + 7 * i) & 0xff);
  return [
    { name: "model.conv1.weight", dtype: "f32", shape: [2, 3, 3, 1], data: bytes(72, 1) },
    { name: "model.conv1.bias", dtype: "bf16", shape: [2], data: bytes(4, 9) },
    { name: "model.bn1.num_batches", dtype: "i64", shape: [], data: bytes(8, 77) },
    { name: "empty", dtype: "f16", shape: [0, 4], data: new Uint8Array(0) },
    { name: "optimizer.momentum.model.conv1.weight", dtype: "f32", shape: [16], data: bytes(64, 3) },
    { name: "mask", dtype: "u8", shape: [1, 1, 5], data: bytes(5, 200) },
  ];
}
