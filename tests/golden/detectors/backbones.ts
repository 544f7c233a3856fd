/** Backbones with a pyramid, which RetinaNet and FCOS have in common, and the ranges of their generated weights: backbones.py. */
import type { BackboneName } from "../../../lib/models";
import { type Case, fanInBound } from "./network";

export interface BackboneCase extends Case {
  backbone: BackboneName;
  norm: "batch" | "frozen";
  trainableLayers: number;
}

type Range = [low: number, high: number];

/** As backbones.py's backbone_range, which says why. */
export function backboneRange(name: string, shape: readonly number[]): Range | null {
  if (name.endsWith("running_var")) return [0.5, 1.5];
  if (name.endsWith("running_mean")) return [-0.2, 0.2];
  const mobile = name.includes(".body.") && ![".layer", ".conv1.", ".bn1."].some((part) => name.includes(part));
  if (mobile) return mobileRange(name, shape);
  if (name.includes("backbone.") && shape.length === 4) return [-fanInBound(shape), fanInBound(shape)];
  if (name.includes("backbone.body.")) return name.endsWith("weight") ? [0.3, 0.9] : [1, 2];
  return name.includes("backbone.") ? [-0.1, 0.1] : null;
}

/** As backbones.py's mobile_range. */
export function mobileRange(name: string, shape: readonly number[]): Range {
  if (shape.length === 4) return [-0.3 * fanInBound(shape), 0.3 * fanInBound(shape)];
  if (name.endsWith("weight")) return [0.3, 0.9];
  return name.split(".").at(-3) === "conv" ? [-0.1, 0.1] : [1, 5];
}
