/** What the dashboard answers about evaluations: curves, confusion, histograms, and the images themselves. */
import type { SampleMessage } from "../formats";
import { failure } from "../live";
import type { CategoryCurve, DetectionCurves } from "../metrics";
import { PICTURE_HEADERS } from "../monitor";
import { DlfsError } from "../native/error";
import type { EvaluationSet } from "./evaluation-set";
import { integer, json, optionalInteger, real, share, word, wrong } from "./query";
import type { RunView } from "./runs";

/** Boxes of an image that are shown, the best ones. */
const MAX_BOXES = 300;
/** Points of a curve, and images, of one answer. */
const MAX_POINTS = 1000;
const MAX_IMAGES = 200;

/**
 * The answer to what follows `evaluations`; null where there is no such thing.
 *
 * @param rest [] for a list of them; ["1500"], ["latest"], ["1500", "confusion"], ... for one
 */
export async function evaluations(run: RunView, rest: string[], query: URLSearchParams): Promise<Response | null> {
  const [which, part, item, detail] = rest;
  if (which === undefined) return json({ evaluations: await run.evaluations.list() });
  const iteration = which === "latest" ? await run.evaluations.latest() : Number(which);
  const set = iteration === null ? null : await run.evaluations.get(iteration);
  if (!set) return failure(404, `${run.name} has no evaluation ${which}`);
  if (rest.length === 1) return json(about(set));
  if (rest.length === 2) {
    if (part === "curves") return json(curvesOf(set, share(query, "iou", 0.5), labelOf(set, query)));
    if (part === "confusion") return json(confusionOf(set, query));
    if (part === "histograms") return json(set.histograms(share(query, "score", 0.3), labelOf(set, query)));
    if (part === "images") return json(imagesOf(set, query));
  }
  if (rest.length === 4 && part === "images" && detail === "image") {
    const name = set.images[Number(item)]?.predictions.name;
    if (name === undefined) return failure(404, `evaluation ${which} has no image ${item}`);
    return await imageNamed(run, name);
  }
  return null;
}

/** An image of the run's data set; where that cannot be had, what --live kept of it. */
export async function imageNamed(run: RunView, name: string): Promise<Response> {
  const answer = (bytes: Uint8Array, type: string) =>
    new Response(bytes as Uint8Array<ArrayBuffer>, {
      headers: { ...PICTURE_HEADERS, "Content-Type": type, "Cache-Control": "private, max-age=300" },
    });
  try {
    const { bytes, type } = await run.images.read(name);
    return answer(bytes, type);
  } catch (error) {
    if (!(error instanceof DlfsError)) throw error;
    await run.samples.refresh();
    const index = run.samples.places.findLastIndex((place) => place.name === name);
    const thumbnail = index < 0 ? undefined : (await run.samples.read(index)).thumbnail;
    return thumbnail ? answer(thumbnail, "image/jpeg") : failure(404, error.message);
  }
}

/** One image; boxes are [x1, y1, x2, y2] in its pixels. */
export function sampleJson(index: number, { predictions, truth, split, thumbnail, loss }: SampleMessage) {
  const { name, imageId, width, height, boxes, scores, labels } = predictions;
  const box = (all: ArrayLike<number>, i: number) => Array.from({ length: 4 }, (_, k) => tenths(all[4 * i + k] ?? 0));
  const count = Math.min(MAX_BOXES, scores.length);
  return {
    ...{ index, name, imageId, split, width, height, loss, hasImage: thumbnail !== undefined },
    found: Array.from({ length: count }, (_, i) => ({
      ...{ box: box(boxes, i), score: Number((scores[i] ?? 0).toFixed(4)), label: labels[i] },
    })),
    truth: Array.from(truth.labels, (label, i) => ({
      ...{ box: box(truth.boxes, i), label, id: truth.ids[i], crowd: truth.crowd[i] === 1 },
    })),
  };
}

function about({ iteration, classes, images }: EvaluationSet) {
  const sum = (of: (image: SampleMessage) => number) => images.reduce((total, image) => total + of(image), 0);
  return {
    ...{ iteration, classes, images: images.length },
    ...{ truth: sum(({ truth }) => truth.labels.length), found: sum(({ predictions }) => predictions.labels.length) },
  };
}

/** All classes in short, and all points of one, or of their mean. */
function curvesOf(set: EvaluationSet, iou: number, label: number | undefined) {
  const curves = set.curves(iou);
  const classes = curves.categories.map(({ positives, AP, best }, i) => ({
    ...{ name: set.classes[i], objects: positives, AP: short(AP), best: best && pointOf(best) },
  }));
  return {
    ...{ iteration: set.iteration, iou, classes, mean: { AP: short(curves.mean.AP), best: curves.mean.best } },
    points: label === undefined ? meanPoints(curves) : classPoints(curves.categories[label] as CategoryCurve),
  };
}

const short = (value: number): number => Number(value.toPrecision(6));

const pointOf = ({
  threshold,
  precision,
  recall,
  f1,
}: Record<"threshold" | "precision" | "recall" | "f1", number>) => ({
  ...{ score: short(threshold), precision: short(precision), recall: short(recall), f1: short(f1) },
});

/** Precision, recall and F1 at falling scores; of many points some, spread evenly, and the best one. */
function classPoints({ thresholds, precision, recall, f1, best }: CategoryCurve) {
  const n = thresholds.length;
  const stride = Math.ceil(n / MAX_POINTS);
  const wanted = Array.from({ length: n }, (_, i) => i).filter(
    (i) => i % stride === 0 || i === n - 1 || thresholds[i] === best?.threshold,
  );
  const column = (values: Float64Array) => wanted.map((i) => short(values[i] as number));
  return { score: column(thresholds), precision: column(precision), recall: column(recall), f1: column(f1) };
}

/** Mean of the classes' precision at each recall level; there is no one score that belongs to it. */
function meanPoints({ mean }: DetectionCurves) {
  const recall = [...mean.recallLevels].map(short);
  return { score: null, precision: [...mean.interpolated].map(short), recall, f1: null };
}

/** The cells that count anything, as [row, column, count]. */
function confusionOf(set: EvaluationSet, query: URLSearchParams) {
  const [score, iou] = [share(query, "score", 0.25), matchIou(query, 0.45)];
  const { size, counts } = set.confusion(score, iou);
  const cells: number[][] = [];
  for (const [at, count] of counts.entries()) if (count > 0) cells.push([Math.floor(at / size), at % size, count]);
  return { iteration: set.iteration, classes: set.classes, score, iou, cells };
}

function matchIou(query: URLSearchParams, otherwise: number): number {
  const iou = real(query, "iou") ?? otherwise;
  if (iou < 0 || iou >= 1) throw wrong("iou", `from 0 to below 1, got ${iou}`);
  return iou;
}

function labelOf({ classes }: EvaluationSet, query: URLSearchParams): number | undefined {
  const label = optionalInteger(query, "class");
  if (label !== undefined && label >= classes.length) throw wrong("class", `below ${classes.length}, got ${label}`);
  return label;
}

function imagesOf(set: EvaluationSet, query: URLSearchParams) {
  const from = optionalInteger(query, "from") ?? 0;
  const count = integer(query, "count", 50, 0, MAX_IMAGES);
  const size = set.classes.length + 1;
  const row = query.has("row") ? integer(query, "row", 0, 0, size - 1) : null;
  const cell = row === null ? undefined : { row, column: integer(query, "column", 0, 0, size - 1) };
  const score = share(query, "score", 0.3);
  const places = set.find({
    sort: word(query, "sort", ["loss", "data", "objects"] as const),
    score,
    label: labelOf(set, query),
    text: query.get("text") ?? undefined,
    ...(cell && { cell: { ...cell, iou: matchIou(query, 0.45) } }),
  });
  const images = places.slice(from, from + count).map((place) => {
    const sample = sampleJson(place, set.images[place] as SampleMessage);
    return { ...sample, hasImage: true, found: sample.found.filter((box) => box.score >= score) };
  });
  return { iteration: set.iteration, total: places.length, from, images };
}

const tenths = (value: number): number => Math.round(value * 10) / 10;
