/** The FCOS networks of record.py. */
import { FCOS } from "../../../lib/models";
import { type BackboneCase, backboneRange } from "../detectors/backbones";
import { type Family, fanInBound } from "../detectors/network";

export const fcos: Family<BackboneCase> = {
  rate: 0.0001,
  outputs: ["logits", "deltas", "centerness"],
  losses: ["classification", "boxRegression", "centerness"],
  firstLabel: 0,
  build: ({ backbone, norm, trainableLayers, classes }) => new FCOS({ backbone, norm, trainableLayers, classes }),
  weightRange(name, shape) {
    const known = backboneRange(name, shape);
    if (known) return known;
    if (shape.length === 4) {
      const last = name.includes("cls_logits") || name.includes("ctrness");
      const bound = fanInBound(shape) * (name.includes("bbox_reg") ? 0.8 : last ? 0.5 : 1);
      return [-bound, bound];
    }
    if (name.endsWith("cls_logits.bias")) return [-4, -1.5];
    if (name.endsWith("bbox_reg.bias")) return [1, 3];
    if (name.endsWith("bbox_ctrness.bias")) return [-0.5, 0.5];
    const isNorm = Number(name.split(".").at(-2)) % 3 === 1;
    if (isNorm) return name.endsWith("weight") ? [0.3, 0.9] : [0.6, 1.2];
    return [-0.1, 0.1];
  },
};
