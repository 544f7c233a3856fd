/** The RetinaNets of record.py. */
import { RetinaNet } from "../../../lib/models";
import { type BackboneCase, backboneRange } from "../detectors/backbones";
import { type Family, fanInBound } from "../detectors/network";

export const retinaNet: Family<BackboneCase> = {
  rate: 0.000002,
  outputs: ["logits", "deltas"],
  losses: ["classification", "boxRegression"],
  firstLabel: 0,
  build: ({ backbone, norm, trainableLayers, classes }) => new RetinaNet({ backbone, norm, trainableLayers, classes }),
  weightRange(name, shape) {
    const known = backboneRange(name, shape);
    if (known) return known;
    if (shape.length === 4) {
      const bound = fanInBound(shape) * (name.includes("cls_logits") ? 0.01 : name.includes("bbox_reg") ? 0.02 : 1);
      return [-bound, bound];
    }
    if (name.endsWith("cls_logits.bias")) return [-5, -3];
    return name.includes("_head.conv.") ? [0.6, 1.2] : [-0.1, 0.1];
  },
};
