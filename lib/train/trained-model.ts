import { existsSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import { type PreprocessJson, type PreprocessOp, parsePreprocessing } from "../data";
import { type Checkpoint, CheckpointStore, readCheckpoint } from "../formats";
import type { ModelOptions } from "../layers";
import { type DetectionModel, type ModelConfig, modelFromConfig } from "../models";
import { check, DlfsError, ErrorCode } from "../native";
import type { Device } from "../tensor";

/** What a run's configuration holds for making its model again; runs add what else they like. */
export interface RunConfig {
  readonly model: ModelConfig;
  /** Names of the classes, by class index. */
  readonly classes: readonly string[];
  /** Network input in pixels. */
  readonly size: readonly [height: number, width: number];
  /** From a decoded image to the network input, without augmentation. */
  readonly preprocessing: readonly PreprocessJson[];
}

/** A model as it was when a checkpoint was written. */
export interface TrainedModel extends Disposable {
  /** On the device that was asked for, in inference mode. */
  readonly model: DetectionModel;
  /** The checkpoint. */
  readonly path: string;
  /** Optimizer steps that it had been trained for. */
  readonly iteration: number;
  readonly config: RunConfig;
  /** `config.preprocessing` as operations. */
  readonly preprocessing: PreprocessOp[];
}

/** The checkpoint at a path: that file, or the newest intact one of a run folder. */
async function openCheckpoint(path: string): Promise<Checkpoint> {
  check(existsSync(path), path, () => "it does not exist: expected a checkpoint or the folder of a run", ErrorCode.io);
  if (!statSync(path).isDirectory()) return await readCheckpoint(path);
  const latest = await new CheckpointStore(join(path, "checkpoints")).latest();
  check(latest !== undefined, path, () => "it has no checkpoint", ErrorCode.io);
  return latest.checkpoint;
}

function checkedConfig(path: string, value: unknown): RunConfig {
  const field = (name: string, good: boolean, expected: string) =>
    check(good, path, () => `config.${name}: expected ${expected}; was it written by an earlier version of dlfs?`);
  const config = (typeof value === "object" && value !== null ? value : {}) as Partial<RunConfig>;
  const { classes, size, preprocessing } = config;
  const isNames = Array.isArray(classes) && classes.every((name) => typeof name === "string");
  field("classes", isNames, "the names of the classes");
  const isSize = Array.isArray(size) && size.length === 2 && size.every((x) => Number.isSafeInteger(x) && x > 0);
  field("size", isSize, "height and width");
  const isList = Array.isArray(preprocessing) && preprocessing.every((op) => typeof op === "object" && op !== null);
  field("preprocessing", isList, "a list of operations");
  return config as RunConfig;
}

/**
 * Makes the model of a run again, with the weights of a checkpoint.
 *
 * @param path a checkpoint, or the folder of a run, whose newest intact checkpoint is used
 * @throws DlfsError naming the file: one that is missing or damaged, whose configuration lacks what a model needs, or whose
 *   weights are of another model
 */
export async function loadTrainedModel(
  path: string,
  device: Device,
  options: ModelOptions = {},
): Promise<TrainedModel> {
  const checkpoint = await openCheckpoint(resolve(path));
  let model: DetectionModel | undefined;
  try {
    const config = checkedConfig(checkpoint.path, checkpoint.metadata.config);
    const preprocessing = parsePreprocessing(config.preprocessing);
    model = modelFromConfig(config.model, `${checkpoint.path}: config.model`).to(device, options).eval();
    check(
      config.classes.length === model.classes,
      checkpoint.path,
      () => `config.classes: ${config.classes.length} names, the model has ${model?.classes} classes`,
    );
    await restoreWeights(checkpoint, model);
    const loaded = model;
    return {
      model,
      path: checkpoint.path,
      iteration: checkpoint.metadata.iteration,
      config,
      preprocessing,
      [Symbol.dispose]: () => loaded.dispose(),
    };
  } catch (error) {
    model?.dispose();
    throw error;
  } finally {
    await checkpoint.close();
  }
}

/**
 * What users of an exported model need to know, as texts for the file's metadata: "names" of the classes by index and
 * "preprocessing", both JSON, and the "iteration".
 */
export function trainedMetadata({ config, iteration }: TrainedModel): Record<string, string> {
  return {
    names: JSON.stringify(config.classes),
    preprocessing: JSON.stringify(config.preprocessing),
    iteration: String(iteration),
  };
}

/**
 * Replaces parameters and running statistics by a checkpoint's, their moving averages where it has those; what else it holds
 * (momentum, ...) is left out.
 */
async function restoreWeights(checkpoint: Checkpoint, model: DetectionModel): Promise<void> {
  for (const [name, tensor] of model.stateDict()) {
    const stored = checkpoint.tensors.has(`ema.${name}`) ? `ema.${name}` : `model.${name}`;
    const entry = checkpoint.tensors.get(stored);
    const found = entry ? `${entry.dtype} (${entry.shape.join(", ")})` : "nothing";
    const expected = `${tensor.dtype} (${tensor.shape.join(", ")})`;
    if (found !== expected) {
      throw new DlfsError(ErrorCode.shape, checkpoint.path, `${stored}: expected ${expected}, got ${found}`);
    }
    tensor.writeBytes(await checkpoint.read(stored));
  }
  model.refresh();
}
