/** What an evaluation found on all images, and what can be asked of it. */
import type { SampleMessage } from "../formats";
import { LiveFileReader } from "../live";
import {
  CocoEvaluator,
  type ConfusionMatrix,
  confusionMatrix,
  type DetectionCurves,
  detectionCurves,
  SIZE_BINS,
  SIZE_EDGES,
  sizeBin,
} from "../metrics";
import { check } from "../native/error";

/** Which images are wanted, and in which order. */
export interface ImageQuery {
  /** "loss": the hardest first; "data": as in the data set; "objects": those with most boxes first. */
  sort: "loss" | "data" | "objects";
  /** Detections below it do not count. */
  score: number;
  /** Only images on which this class is known or found. */
  label?: number;
  /** Only images whose names contain it. */
  text?: string;
  /** Only images that are counted in this place of the confusion matrix. */
  cell?: { row: number; column: number; iou: number };
}

/** Numbers of boxes by the sides of squares of their area. */
export interface BoxHistograms {
  /** By class. */
  classes: { truth: number[]; found: number[] };
  /** SIZE_EDGES, and the bins between them. */
  sizes: { edges: number[]; truth: number[]; found: number[] };
}

const MAX_CLASSES = 1 << 16;
/** The most matrices and curves that are kept. */
const MAX_KEPT = 8;

export class EvaluationSet {
  #evaluator: CocoEvaluator | null = null;
  readonly #curves = new Map<number, DetectionCurves>();
  readonly #confusions = new Map<string, { matrix: ConfusionMatrix; images: ReadonlyMap<number, Set<number>> }>();

  /**
   * @param classes names; more of them where images have labels beyond
   * @param images without their pictures
   */
  constructor(
    readonly iteration: number,
    readonly classes: readonly string[],
    readonly images: readonly SampleMessage[],
  ) {
    let count = classes.length;
    for (const { predictions, truth } of images) {
      for (const labels of [predictions.labels, truth.labels]) {
        for (const label of labels) {
          check(
            label < MAX_CLASSES,
            predictions.name,
            () => `label ${label}: there are at most ${MAX_CLASSES} classes`,
          );
          count = Math.max(count, label + 1);
        }
      }
    }
    this.classes = Array.from({ length: count }, (_, i) => classes[i] ?? `class ${i}`);
  }

  /** Reads a file of `evaluations/`. @throws DlfsError naming it where it is missing or damaged */
  static async read(path: string, iteration: number, classes: readonly string[]): Promise<EvaluationSet> {
    const images: SampleMessage[] = [];
    await using reader = await LiveFileReader.open(path);
    for await (const message of reader.messages()) if (message.type === "sample") images.push(message.value);
    return new EvaluationSet(iteration, classes, images);
  }

  /** Of all classes at an IoU; a category's id is its label. */
  curves(iou: number): DetectionCurves {
    return kept(this.#curves, iou, () => detectionCurves(this.#measured(), { iouThreshold: iou }));
  }

  confusion(scoreThreshold: number, iouThreshold: number): ConfusionMatrix {
    return this.#confusion(scoreThreshold, iouThreshold).matrix;
  }

  #confusion(scoreThreshold: number, iouThreshold: number) {
    return kept(this.#confusions, `${scoreThreshold}/${iouThreshold}`, () => {
      const images = new Map<number, Set<number>>();
      const size = this.classes.length + 1;
      const onCount = (row: number, column: number, image: number) => {
        const cell = row * size + column;
        const own = images.get(cell) ?? new Set();
        images.set(cell, own.add(image));
      };
      return { matrix: confusionMatrix(this.#measured(), { scoreThreshold, iouThreshold, onCount }), images };
    });
  }

  /** Boxes around groups do not count. @param label of one class alone */
  histograms(score: number, label?: number): BoxHistograms {
    const zeros = (length: number) => new Array<number>(length).fill(0);
    const classes = { truth: zeros(this.classes.length), found: zeros(this.classes.length) };
    const sizes = { edges: [...SIZE_EDGES], truth: zeros(SIZE_BINS), found: zeros(SIZE_BINS) };
    const count = (side: "truth" | "found", boxes: ArrayLike<number>, labels: ArrayLike<number>, i: number) => {
      const own = labels[i] as number;
      classes[side][own]!++;
      const [, , width, height] = boxAt(boxes, i);
      if (label === undefined || label === own) sizes[side][sizeBin(width, height)]!++;
    };
    for (const { predictions, truth } of this.images) {
      for (let i = 0; i < truth.labels.length; i++) if (!truth.crowd[i]) count("truth", truth.boxes, truth.labels, i);
      const { boxes, labels, scores } = predictions;
      for (let i = 0; i < labels.length; i++) if ((scores[i] as number) >= score) count("found", boxes, labels, i);
    }
    return { classes, sizes };
  }

  /** Places of images. */
  find({ sort, score, label, text, cell }: ImageQuery): number[] {
    const wanted = text?.toLowerCase();
    const counted =
      cell && this.#confusion(score, cell.iou).images.get(cell.row * (this.classes.length + 1) + cell.column);
    const found = this.images.flatMap(({ predictions, truth }, place) => {
      if (cell && !counted?.has(place)) return [];
      if (wanted && !predictions.name.toLowerCase().includes(wanted)) return [];
      const { labels, scores } = predictions;
      const has =
        label === undefined ||
        truth.labels.includes(label) ||
        labels.some((own, i) => own === label && (scores[i] as number) >= score);
      return has ? [place] : [];
    });
    const image = (place: number) => this.images[place] as SampleMessage;
    if (sort === "loss") found.sort((a, b) => (image(b).loss ?? -1) - (image(a).loss ?? -1) || a - b);
    if (sort === "objects") found.sort((a, b) => image(b).truth.labels.length - image(a).truth.labels.length || a - b);
    return found;
  }

  #measured(): CocoEvaluator {
    if (this.#evaluator) return this.#evaluator;
    const evaluator = new CocoEvaluator({
      categories: this.classes.map((_, label) => label),
      images: this.images.map((_, place) => place),
    });
    for (const [imageId, { predictions, truth }] of this.images.entries()) {
      for (let i = 0; i < truth.labels.length; i++) {
        const bbox = boxAt(truth.boxes, i);
        evaluator.addGroundTruth([
          { imageId, categoryId: truth.labels[i] as number, bbox, iscrowd: truth.crowd[i] === 1 },
        ]);
      }
      for (let i = 0; i < predictions.labels.length; i++) {
        const { boxes, labels, scores } = predictions;
        evaluator.addDetection(imageId, labels[i] as number, boxAt(boxes, i), scores[i] as number);
      }
    }
    this.#evaluator = evaluator;
    return evaluator;
  }
}

/** x, y, width, height of a box of corners. */
function boxAt(boxes: ArrayLike<number>, i: number): [number, number, number, number] {
  const [x1, y1, x2, y2] = [0, 1, 2, 3].map((k) => boxes[4 * i + k] as number) as [number, number, number, number];
  return [x1, y1, Math.max(0, x2 - x1), Math.max(0, y2 - y1)];
}

/** What was made for a key before, or is made now; what was made first is let go where there are many. */
function kept<K, V>(all: Map<K, V>, key: K, make: () => V): V {
  const value = all.get(key) ?? make();
  all.delete(key);
  all.set(key, value);
  if (all.size > MAX_KEPT) all.delete(all.keys().next().value as K);
  return value;
}
