import { dirname } from "node:path";
import { type CheckpointTensorData, makeFolder, type StoredDType, writeModelFile } from "../formats";
import type { CalibrationTable } from "./calibration";
import type { TrainedModel } from "./trained-model";
import { versionsOf } from "./versions";

export interface SaveModelOptions {
  /** For convolutions of 8 bits: measured with these weights. Default: the model's own, where it has one. */
  readonly calibration?: CalibrationTable;
  /** More about where it comes from, or in place of what the training's configuration says. */
  readonly provenance?: Readonly<Record<string, string>>;
  /** What was measured of it. Default: what the training's last evaluation measured, where that was of these weights. */
  readonly metrics?: Readonly<Record<string, number>>;
}

/** Of a training's configuration, what a model file tells of where the model comes from. */
const PROVENANCE = ["data", "trainSplit", "valSplit", "precision", "seed"] as const;

/**
 * Writes a trained model as one file, which loadTrainedModel and Engine.load read: architecture, classes, preprocessing,
 * provenance, metrics and weights; optimizer and data loader stay behind. Makes the file's folder.
 *
 * @throws DlfsError of code `io` where writing fails; what stood at the path is as it was then
 */
export async function saveModel(path: string, trained: TrainedModel, options: SaveModelOptions = {}): Promise<void> {
  const { model, config, iteration } = trained;
  const { calibration: table = trained.calibration, metrics = trained.metrics } = options;
  const run = config as Partial<Record<(typeof PROVENANCE)[number], unknown>>;
  const known = PROVENANCE.flatMap((name) =>
    run[name] === undefined || run[name] === null
      ? []
      : ([[name, typeof run[name] === "string" ? run[name] : JSON.stringify(run[name])]] as const),
  );
  await makeFolder(dirname(path));
  await writeModelFile(
    path,
    {
      architecture: config.model,
      classes: [...config.classes],
      size: [...config.size],
      preprocessing: config.preprocessing,
      created: Date.now(),
      versions: versionsOf(model.device),
      provenance: { iteration: `${iteration}`, ...Object.fromEntries(known), ...options.provenance },
      metrics: { ...metrics },
      calibration: table && { method: table.method, images: table.images, ...table.ranges },
    },
    tensors(),
  );

  async function* tensors(): AsyncGenerator<CheckpointTensorData> {
    for (const [name, tensor] of model.stateDict()) {
      const { dtype, shape } = tensor;
      yield { name, dtype: dtype as StoredDType, shape, data: await tensor.readBytesAsync() };
    }
  }
}
