/** Detectors by one name each, in torchvision's manner. */
import { DlfsError, ErrorCode } from "../native";
import type { ModelConfig } from "./model-config";
import { backboneNames } from "./pyramid-backbone";

/** A configuration that lacks the number of classes. */
export type NamedModel = ModelConfig extends infer C ? (C extends unknown ? Omit<C, "classes"> : never) : never;

const named = new Map<string, NamedModel>([
  ["compact", { name: "compact" }],
  ...(["retinanet", "fcos"] as const).flatMap((name) =>
    backboneNames.map((backbone): [string, NamedModel] => [`${name}_${backbone}_fpn`, { name, backbone }]),
  ),
  ["ssdlite320_mobilenet_v2", { name: "ssdlite" }],
]);

/** "compact", "retinanet_resnet50_fpn", "fcos_resnet50_fpn", "ssdlite320_mobilenet_v2" and the like: what `namedModel` knows. */
export const detectorNames: readonly string[] = [...named.keys()];

/**
 * The configuration of a model by its name, to be completed by `classes` and other options for `modelFromConfig`.
 *
 * @throws DlfsError for an unknown name
 */
export function namedModel(name: string): NamedModel {
  const found = named.get(name);
  if (found) return found;
  const message = `expected one of ${detectorNames.join(", ")}, got ${JSON.stringify(name)}`;
  throw new DlfsError(ErrorCode.argument, "model", message);
}
