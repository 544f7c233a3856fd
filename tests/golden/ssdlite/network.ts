/** The SSDLite networks of record.py. */
import { SSDLite } from "../../../lib/models";
import { type Case, type Family, fanInBound } from "../detectors/network";

export interface SSDLiteCase extends Case {
  widthMultiplier: number;
  trainableLayers: number;
}

export const ssdLite: Family<SSDLiteCase> = {
  rate: 0.0001,
  outputs: ["logits", "deltas"],
  losses: ["classification", "boxRegression"],
  firstLabel: 1,
  build: ({ widthMultiplier, trainableLayers, classes }) =>
    new SSDLite({ widthMultiplier, trainableLayers, classes: classes - 1 }),
  weightRange(name, shape) {
    if (name.endsWith("running_var")) return [0.5, 1.5];
    if (name.endsWith("running_mean")) return [-0.2, 0.2];
    const parts = name.split(".");
    if (parts[0] === "head" && parts.length === 6 && parts[4] === "1") {
      const bound = shape.length === 4 ? 0.3 * fanInBound(shape) : 1;
      return [-bound, bound];
    }
    if (shape.length === 4) return [-fanInBound(shape), fanInBound(shape)];
    if (name.endsWith("weight")) return [0.3, 0.9];
    const linear = parts.at(-3) === "conv" || name.startsWith("backbone.features.1.0.3.");
    return linear ? [-0.1, 0.1] : [0, 3];
  },
};
