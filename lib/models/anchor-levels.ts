import { type AnchorCells, defaultBoxCells, pyramidCells } from "../detection/anchor-coverage";
import { trace } from "../graph";
import { DlfsError, ErrorCode } from "../native";
import type { DetectionModel } from "./detection-model";
import { Detector } from "./detector";
import { SSDLite } from "./ssdlite";

/**
 * The anchors that a model has for an input of this size. Nothing is computed: its forward is only traced, for the sizes of its
 * maps.
 *
 * @throws DlfsError for a model without anchors
 */
export function anchorLevels(model: DetectionModel, size: readonly [height: number, width: number]): AnchorCells[] {
  const [height, width] = size;
  const mapsOf = (heads: (images: never) => readonly { logits: { shape: readonly number[] } }[]) =>
    trace({ images: { shape: [2, height, width, 3], dtype: "f32" } }, ({ images }) =>
      heads(images as never),
    ).result.map(({ logits }) => [logits.shape[1], logits.shape[2]] as [number, number]);
  if (model instanceof Detector) {
    return pyramidCells(
      model.anchorGenerator.options,
      size,
      mapsOf((images) => model.heads(images)),
    );
  }
  if (model instanceof SSDLite) {
    return defaultBoxCells(
      model.anchorGenerator,
      size,
      mapsOf((images) => model.head.forward(model.backbone.forward(images))),
    );
  }
  const message = `${model.constructor.name} has no anchors`;
  throw new DlfsError(ErrorCode.argument, "anchorLevels", message);
}
