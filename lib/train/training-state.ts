import type { DataLoader, DetectionBatch, LoaderState } from "../data";
import type { BestMetric, Checkpoint, CheckpointMetadata, MetricsRecord } from "../formats";
import { convPicks, restoreConvPicks } from "../graph";
import type { DetectionModel } from "../models";
import { check, DlfsError, ErrorCode } from "../native";
import type { Tensor } from "../tensor";
import type { Ema } from "./ema";
import type { PlateauState } from "./schedule";
import type { SGD } from "./sgd";
import { versionsOf } from "./versions";

/** Tensors of dynamic loss scaling: a training that goes on in another precision starts a scale, or drops it. */
const SCALING = "scaling.";

/** Everything a run needs to go on as if it had never stopped. */
export interface TrainingState {
  /** Steps done. */
  iteration: number;
  loader: LoaderState;
  history: MetricsRecord[];
  best?: BestMetric;
  /** Of a schedule that is reduced on a plateau. */
  plateau?: PlateauState;
  /** Whether the evaluation of this state was not finished, and is done again. */
  evaluationDue?: boolean;
}

/** The tensors of a checkpoint by name: parameters and buffers, momentum, the step counter, the loss scale, moving averages. */
export function* namedTensors(model: DetectionModel, optimizer: SGD, ema: Ema | null): Generator<[string, Tensor]> {
  for (const [name, tensor] of model.stateDict()) yield [`model.${name}`, tensor];
  for (const [name, tensor] of optimizer.momenta) yield [`momentum.${name}`, tensor];
  yield ["optimizer.step", optimizer.step];
  if (optimizer.scaler) {
    yield [`${SCALING}scale`, optimizer.scaler.scale];
    yield [`${SCALING}counters`, optimizer.scaler.counters];
  }
  if (!ema) return;
  for (const [name, tensor] of ema.averages) yield [`ema.${name}`, tensor];
  yield ["ema.step", ema.step];
}

/** What a checkpoint says of a training besides the tensors; as it is now, whatever becomes of `state`. */
export function checkpointMetadata(model: DetectionModel, state: TrainingState, config: unknown): CheckpointMetadata {
  const { iteration, loader, history, best, plateau, evaluationDue } = state;
  const { device } = model;
  return {
    iteration,
    epoch: loader.epoch,
    created: Date.now(),
    config,
    versions: versionsOf(device),
    random: [{ name: "loader", seed: loader.seed, counter: loader.epoch }],
    loader: { epoch: loader.epoch, position: loader.position * loader.batchSize, seed: loader.seed },
    schedule: { name: "table", step: iteration, values: plateau ? { factor: plateau.factor } : {} },
    history: [...history],
    best,
    convPicks: convPicks(device).map((line) => {
      const split = line.indexOf("=");
      return { key: line.slice(0, split), value: line.slice(split + 1) };
    }),
    state: {
      loader: JSON.stringify(loader),
      precision: model.precision,
      ...(plateau && { plateau: JSON.stringify(plateau) }),
      ...(evaluationDue && { evaluation: "due" }),
    },
  };
}

/** Uses a checkpoint's convolution algorithms for what is planned from now on; before programs are built. */
export function restoreAlgorithms(model: DetectionModel, checkpoint: Checkpoint): void {
  const { versions, convPicks: picks } = checkpoint.metadata;
  const { device } = model;
  // Other libraries or devices number their algorithms differently.
  const here = versionsOf(device);
  if (versions.backend !== here.backend || JSON.stringify(versions.libraries) !== JSON.stringify(here.libraries))
    return;
  restoreConvPicks(
    device,
    picks.map(({ key, value }) => `${key}=${value}`),
  );
}

/** Replaces weights, statistics, momentum, counters and the loader's position by a checkpoint's. */
export async function restoreTraining(
  checkpoint: Checkpoint,
  model: DetectionModel,
  optimizer: SGD,
  ema: Ema | null,
  loader: DataLoader<DetectionBatch>,
): Promise<TrainingState> {
  const { path } = checkpoint;
  const stored = checkpoint.tensors;
  const isScaling = (name: string) => name.startsWith(SCALING);
  const wanted = [...namedTensors(model, optimizer, ema)].filter(([name]) => stored.has(name) || !isScaling(name));
  const names = new Set(wanted.map(([name]) => name));
  const missing = [...names].filter((name) => !stored.has(name));
  const unexpected = [...stored.keys()].filter((name) => !names.has(name) && !isScaling(name));
  const isAverage = (name: string) => name.startsWith("ema.");
  check(
    !missing.some(isAverage) && !unexpected.some(isAverage),
    path,
    () =>
      `was written ${ema ? "without" : "with"} moving averages of the weights, but this training has ${ema ? "some" : "none"}`,
  );
  check(
    missing.length === 0 && unexpected.length === 0,
    path,
    () =>
      `is of another model: ${missing.length} tensors missing (${missing.slice(0, 3).join(", ")}), ${unexpected.length} unexpected (${unexpected.slice(0, 3).join(", ")})`,
  );
  for (const [name, tensor] of wanted) {
    const entry = stored.get(name)!;
    check(
      entry.dtype === tensor.dtype && entry.shape.join() === tensor.shape.join(),
      path,
      () =>
        `${name}: expected ${tensor.dtype} (${tensor.shape.join(", ")}), got ${entry.dtype} (${entry.shape.join(", ")})`,
      ErrorCode.shape,
    );
    tensor.writeBytes(await checkpoint.read(name));
  }
  model.refresh();
  const { iteration, history, best, state } = checkpoint.metadata;
  const position = parseLoader(path, state.loader);
  loader.restore(position);
  const plateau = typeof state.plateau === "string" ? (JSON.parse(state.plateau) as PlateauState) : undefined;
  const evaluationDue = state.evaluation === "due";
  return { iteration, loader: position, history: [...history], best, plateau, evaluationDue };
}

function parseLoader(path: string, text: string | Uint8Array | undefined): LoaderState {
  if (typeof text !== "string") throw new DlfsError(ErrorCode.io, path, "state.loader: expected text, got nothing");
  return JSON.parse(text) as LoaderState;
}
