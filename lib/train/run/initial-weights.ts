import { existsSync, statSync } from "node:fs";
import { loadWeights } from "../../formats";
import {
  type DetectionModel,
  describeLoaded,
  type LoadedWeights,
  loadBackboneWeights,
  loadTorchWeights,
  torchWeights,
} from "../../models";
import { loadTrainedModel } from "../trained-model";

/** What a training starts from besides weights drawn at random. */
export interface InitialWeights {
  /** A classifier's file, or a detector's with a backbone: see loadBackboneWeights. */
  readonly backboneWeights?: string;
  /** A detector's file, a checkpoint, or a run folder. */
  readonly weights?: string;
  /** Whether `weights` may lack some, have others, or be of other sizes. */
  readonly partial?: boolean;
}

/**
 * Replaces a model's weights by those of files. `log` hears what became of them. Throws DlfsError, which names file and tensor, where
 * they do not fit.
 */
export async function loadInitialWeights(
  model: DetectionModel,
  { backboneWeights, weights, partial = false }: InitialWeights,
  log: (line: string) => void,
): Promise<void> {
  const tell = (path: string, report: LoadedWeights) => log(`${path}: ${describeLoaded(report).join("\n  ")}`);
  if (backboneWeights !== undefined) {
    using file = await loadWeights(backboneWeights);
    tell(backboneWeights, loadBackboneWeights(model, file.tensors));
  }
  if (weights === undefined) return;
  const options = { strict: !partial, ignoreMismatched: partial };
  if (weights.endsWith(".dlck") || (existsSync(weights) && statSync(weights).isDirectory())) {
    using trained = await loadTrainedModel(weights, model.device);
    tell(trained.path, loadTorchWeights(model, torchWeights(trained.model), options));
    return;
  }
  using file = await loadWeights(weights);
  // An ONNX file has constants besides.
  const parts = new Set([...model.namedState().keys()].map((name) => name.split(".")[0] as string));
  const only = file.format === "onnx" ? { only: [...parts] } : {};
  tell(weights, loadTorchWeights(model, file.tensors, { ...options, ...only }));
}
