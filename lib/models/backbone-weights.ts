/** Classifiers' and detectors' checkpoints as the start of a detector: only its backbone is replaced. */
import type { Model } from "../layers";
import { SSDLite, splitFeatureName } from "./ssdlite";
import { type LoadedWeights, loadTorchWeights, type TorchWeightSource, withoutWrapper } from "./torch-names";

/** Where torchvision's detectors keep their backbone, and those here. */
const BODY = "backbone.body";
/** Where SSDLite keeps it, cut in two. */
const SPLIT_FEATURES = "backbone.features";
/** Where a checkpoint has a backbone: a detector's, a MobileNet's. A ResNet's is all of it but for the last layer. */
const PARTS = [BODY, SPLIT_FEATURES, "features"];
/** What a classifier has behind its features. */
const CLASSIFIERS = ["fc", "classifier"];

/**
 * Replaces the parameters, and frozen or running statistics, of a detector's backbone ("backbone.body") by those of a checkpoint
 * in torchvision's names: a ResNet or MobileNetV2 that classifies ("conv1.weight", "layer1.0.bn1.running_mean";
 * "features.0.0.weight"; the classifier itself is left out), or a detector ("backbone.body.conv1.weight"; the rest is left out).
 * SSDLite takes MobileNetV2's ("backbone.features").
 *
 * @throws DlfsError where the backbone is another one: everything missing, unexpected or of another shape in one message
 */
export function loadBackboneWeights(model: Model, given: ReadonlyMap<string, TorchWeightSource>): LoadedWeights {
  const weights = withoutWrapper(given);
  const from = PARTS.find((part) => [...weights.keys()].some((name) => name.startsWith(`${part}.`))) ?? "";
  if (!(model instanceof SSDLite)) return loadTorchWeights(model, weights, { from, into: BODY, skip: CLASSIFIERS });
  const rename = from === SPLIT_FEATURES ? undefined : splitFeatureName;
  return loadTorchWeights(model, weights, { from, into: SPLIT_FEATURES, rename, skip: CLASSIFIERS });
}
