import { existsSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import { type PreprocessJson, type PreprocessOp, parsePreprocessing } from "../data";
import {
  type Checkpoint,
  type CheckpointEntry,
  CheckpointStore,
  isModelFile,
  ModelFile,
  readCheckpoint,
} from "../formats";
import type { ModelOptions } from "../layers";
import { type DetectionModel, type ModelConfig, modelFromConfig, type RegisteredConfig } from "../models";
import { check, DlfsError, ErrorCode } from "../native";
import type { Device } from "../tensor";
import type { CalibrationTable } from "./calibration";

/** What a run's configuration holds for making its model again; runs add what else they like. */
export interface RunConfig {
  readonly model: ModelConfig | RegisteredConfig;
  /** Names of the classes, by class index. */
  readonly classes: readonly string[];
  /** Network input in pixels. */
  readonly size: readonly [height: number, width: number];
  /** From a decoded image to the network input, without augmentation. */
  readonly preprocessing: readonly PreprocessJson[];
}

/** A model as it was when a checkpoint, or a model file, was written. */
export interface TrainedModel extends Disposable {
  /** On the device that was asked for, in inference mode. */
  readonly model: DetectionModel;
  /** The checkpoint or model file. */
  readonly path: string;
  /** Optimizer steps that it had been trained for. */
  readonly iteration: number;
  readonly config: RunConfig;
  /** What an evaluation of these weights measured, where there was one: "AP", ... */
  readonly metrics: Readonly<Record<string, number>>;
  /** What a model file was calibrated to, for convolutions of 8 bits. */
  readonly calibration?: CalibrationTable;
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

function checkedConfig(path: string, value: unknown, prefix: string): RunConfig {
  const field = (name: string, good: boolean, expected: string) =>
    check(good, path, () => `${prefix}${name}: expected ${expected}; was it written by an earlier version of dlfs?`);
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

/** What a model is made of: what a file says of it, and its tensors by the names of the model's stateDict(). */
interface StoredModel {
  readonly path: string;
  readonly iteration: number;
  readonly config: unknown;
  /** What the file calls `config`, for messages. */
  readonly field: string;
  readonly metrics: Readonly<Record<string, number>>;
  readonly calibration?: CalibrationTable;
  /** The name in the file of a tensor of the model. */
  nameOf(name: string): string;
  readonly tensors: ReadonlyMap<string, CheckpointEntry>;
  read(stored: string): Promise<Uint8Array> | Uint8Array;
}

function fromCheckpoint(checkpoint: Checkpoint): StoredModel {
  const { path, tensors, metadata } = checkpoint;
  const { iteration, config, history } = metadata;
  return {
    ...{ path, tensors, iteration, config, field: "config." },
    metrics: history.findLast((record) => record.kind === "evaluation" && record.iteration === iteration)?.values ?? {},
    // The moving averages where it has those; what else it holds (momentum, ...) is left out.
    nameOf: (name) => (tensors.has(`ema.${name}`) ? `ema.${name}` : `model.${name}`),
    read: (stored) => checkpoint.read(stored),
  };
}

function fromModelFile(file: ModelFile): StoredModel {
  const { path, tensors, metadata } = file;
  const { architecture, classes, size, preprocessing, provenance, metrics, calibration: found } = metadata;
  const { iteration = "0", ...rest } = provenance;
  return {
    ...{ path, tensors, metrics, field: "" },
    iteration: Number(iteration),
    config: { ...rest, model: architecture, classes, size, preprocessing },
    calibration: found && {
      version: 1,
      method: found.method as CalibrationTable["method"],
      images: found.images,
      ranges: { f8: found.f8, i8: found.i8 },
    },
    nameOf: (name) => name,
    read: (stored) => file.read(stored),
  };
}

/**
 * Makes a trained model again.
 *
 * @param path a model file, a checkpoint, or the folder of a run, whose newest intact checkpoint is used
 * @throws DlfsError naming the file: one that is missing or damaged, whose configuration lacks what a model needs, or whose
 *   weights are of another model
 */
export async function loadTrainedModel(
  path: string,
  device: Device,
  options: ModelOptions = {},
): Promise<TrainedModel> {
  const resolved = resolve(path);
  if (await isModelFile(resolved)) {
    using file = await ModelFile.open(resolved);
    return await restore(fromModelFile(file), device, options);
  }
  await using checkpoint = await openCheckpoint(resolved);
  return await restore(fromCheckpoint(checkpoint), device, options);
}

async function restore(stored: StoredModel, device: Device, options: ModelOptions): Promise<TrainedModel> {
  const { path, iteration, metrics, calibration, field } = stored;
  const config = checkedConfig(path, stored.config, field);
  const preprocessing = readPreprocessing(path, config, field);
  const source = field === "" ? "architecture" : `${field}model`;
  const model = modelFromConfig(config.model, `${path}: ${source}`).to(device, options).eval();
  try {
    check(
      config.classes.length === model.classes,
      path,
      () => `${field}classes: ${config.classes.length} names, the model has ${model.classes} classes`,
    );
    await restoreWeights(stored, model);
  } catch (error) {
    model.dispose();
    throw error;
  }
  return {
    model,
    path,
    iteration,
    config,
    metrics,
    calibration,
    preprocessing,
    [Symbol.dispose]: () => model.dispose(),
  };
}

/** Throws DlfsError naming the file where an operation is unknown, or its options are none. */
function readPreprocessing(path: string, { preprocessing }: RunConfig, field: string): PreprocessOp[] {
  try {
    return parsePreprocessing(preprocessing);
  } catch (error) {
    const code = error instanceof DlfsError ? error.code : ErrorCode.argument;
    const { message } = error as Error;
    throw new DlfsError(code, path, `${field}${error instanceof DlfsError ? "" : "preprocessing: "}${message}`, {
      cause: error,
    });
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

/** Replaces parameters and running statistics by a file's. */
async function restoreWeights(stored: StoredModel, model: DetectionModel): Promise<void> {
  for (const [name, tensor] of model.stateDict()) {
    const there = stored.nameOf(name);
    const entry = stored.tensors.get(there);
    const found = entry ? `${entry.dtype} (${entry.shape.join(", ")})` : "nothing";
    const expected = `${tensor.dtype} (${tensor.shape.join(", ")})`;
    if (found !== expected) {
      throw new DlfsError(ErrorCode.shape, stored.path, `${there}: expected ${expected}, got ${found}`);
    }
    tensor.writeBytes(await stored.read(there));
  }
  model.refresh();
}
