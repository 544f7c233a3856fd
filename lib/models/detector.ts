import {
  AnchorGenerator,
  type AnchorOptions,
  type BoxLossOptions,
  boxLoss,
  type FocalLossOptions,
  focalLoss,
  type MatcherOptions,
  matchAnchors,
  type PostprocessOptions,
  postprocess,
  type Targets,
} from "../detection";
import type { Value } from "../graph";
import { checkMaps, DetectionModel, joinLevels, mapsOf } from "./detection-model";

export interface DetectorOptions {
  /** Number of object classes; labels are 0 to classes - 1. */
  readonly classes: number;
  readonly anchors: AnchorOptions;
  /** Default: foreground from IoU 0.5, background below 0.4, every box keeps its best anchor (torchvision's RetinaNet). */
  readonly matcher?: MatcherOptions;
  /** Focal loss; default alpha 0.25, gamma 2. */
  readonly focal?: Pick<FocalLossOptions, "alpha" | "gamma">;
  /** torchvision's box_loss_type: kind "l1" (default), "smooth_l1" with its beta, "giou", "ciou", "diou" or "iou". */
  readonly boxLoss?: Pick<BoxLossOptions, "kind" | "beta">;
  /** Where a field is missing: score 0.05, 1000 a level, NMS 0.5, 300 detections. */
  readonly postprocess?: Partial<PostprocessOptions>;
}

/** What a detector's heads give for one pyramid level: maps (N, h, w, perCell * classes) and (N, h, w, perCell * 4). */
export interface HeadOutput {
  readonly logits: Value;
  readonly deltas: Value;
}

interface Prediction {
  /** Of each level. */
  logits: Value[];
  deltas: Value[];
  anchors: Value;
}

/**
 * A dense, anchor-based, one-stage detector. A subclass gives the maps of every pyramid level in `heads`; anchors, matching,
 * losses and post-processing are here, with torchvision's RetinaNet's meaning.
 */
export abstract class Detector extends DetectionModel {
  readonly anchorGenerator: AnchorGenerator;
  readonly detectorOptions: Required<DetectorOptions> & { readonly postprocess: PostprocessOptions };

  constructor(options: DetectorOptions) {
    super(options.classes);
    this.anchorGenerator = new AnchorGenerator(options.anchors);
    this.detectorOptions = {
      matcher: { high: 0.5, low: 0.4, allowLowQuality: true },
      focal: { alpha: 0.25, gamma: 2 },
      boxLoss: { kind: "l1" },
      ...options,
      postprocess: {
        scoreThreshold: 0.05,
        topK: 1000,
        nmsThreshold: 0.5,
        maxDetections: 300,
        ...options.postprocess,
      },
    };
  }

  /** Maps of every pyramid level, finest first, from images (N, H, W, 3), normalised. */
  abstract heads(images: Value): HeadOutput[];

  /** Class logits (N, A, classes) and box deltas (N, A, 4) of all anchors. */
  forward(images: Value): { logits: Value; deltas: Value } {
    const { logits, deltas } = this.predict(images);
    return { logits: joinLevels(logits, this.classes), deltas: joinLevels(deltas, 4) };
  }

  maps(images: Value): Value[] {
    const { logits, deltas } = this.predict(images);
    return [...logits, ...deltas];
  }

  /** The losses of a batch by name, scalars. */
  losses(images: Value, targets: Targets): { classification: Value; boxRegression: Value } {
    const { matcher, focal, boxLoss: regression } = this.detectorOptions;
    const { logits, deltas, anchors } = this.predict(images);
    const matched = matchAnchors(anchors, targets, matcher);
    return {
      classification: focalLoss(logits, matched, targets, focal),
      boxRegression: boxLoss(deltas, anchors, matched, targets, regression),
    };
  }

  /**
   * Detections (N, maxDetections, 6): x1, y1, x2, y2, score, class, best first, zeros after the last of `counts` (N).
   *
   * @param imageSizes (N, 2) fp32: height and width that boxes are clipped to
   */
  detect(images: Value, imageSizes: Value): { detections: Value; counts: Value } {
    return postprocess({ ...this.predict(images), imageSizes }, this.detectorOptions.postprocess);
  }

  private predict(images: Value): Prediction {
    const { perCell } = this.anchorGenerator;
    const maps = this.heads(images);
    checkMaps(maps, { logits: this.classes, deltas: 4 }, perCell);
    const logits = mapsOf(maps, "logits");
    return { logits, deltas: mapsOf(maps, "deltas"), anchors: this.anchorGenerator.forward(images, logits) };
  }
}
