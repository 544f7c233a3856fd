/** The images of a split with the boxes that are trained on, which may change while they are. */
import { check, DlfsError, ErrorCode } from "../native/error";
import type { AnnotationStore, ImageRecord } from "./annotation-store";
import type { BatchPlace } from "./batch-schedule";
import type { SampledImages } from "./sampler";

/** Boxes of an image that are training targets: no crowds, clipped to the image. */
export interface ImageBoxes {
  /** (n, 4): x1, y1, x2, y2 in image pixels. */
  readonly boxes: Float64Array;
  /** (n): class indices. */
  readonly labels: Int32Array;
}

/** What a training has taken in of one image, while it went on. */
export interface TargetChange {
  /** The first batch that is planned with it. */
  readonly from: BatchPlace;
  readonly image: ImageRecord;
  /** What the image had before; null: there was no such image. */
  readonly before: ImageBoxes | null;
  readonly after: ImageBoxes;
  /** The first pass that an image is in which was not there, and in which `weight` counts. */
  readonly pass: number;
  /** How many times as often as others the image is drawn; 1: in its turn. */
  readonly weight: number;
  /** Where it takes another image's place, once: in a batch of all ranks; null: it comes in its turn. */
  readonly seat: { readonly at: BatchPlace; readonly slot: number } | null;
}

/** An image that takes another one's place in a batch. */
export interface Insertion {
  readonly slot: number;
  /** Among the images, and how often it has come so before in the same pass. */
  readonly place: number;
  readonly turn: number;
}

/** Whether a batch comes before another one. */
export const isBefore = (a: BatchPlace, b: BatchPlace): boolean =>
  a.epoch < b.epoch || (a.epoch === b.epoch && a.index < b.index);

/** Images and boxes that a training has begun with. */
export interface TargetsStart {
  readonly images: number;
  readonly boxes: number;
  readonly fingerprint: string;
}

const NONE: ImageBoxes = { boxes: new Float64Array(0), labels: new Int32Array(0) };

/**
 * Images of a split, in the order of their ids, and behind them those that came later, in the order in which they came; with the
 * boxes of each at any batch. All follows from the store as it was and the changes, so a training that goes on from a checkpoint,
 * given the changes, has the batches of one that was never stopped, whatever the store says by then.
 */
export class Targets {
  readonly #records: ImageRecord[];
  /** Of the images that were there from the start. */
  readonly #starts: Uint32Array;
  readonly #base: ImageBoxes;
  readonly #baseLength: number;
  readonly #places: Map<number, number>;
  /** By place among the images, in their order. */
  readonly #changes = new Map<number, TargetChange[]>();
  /** The epoch whose passes a later image is the first to be in, by how many of them came before. */
  readonly #joins: number[] = [];
  /** By "epoch/index" of a batch. */
  readonly #insertions = new Map<string, Insertion[]>();
  /** The most boxes of one image, at any time. */
  #most = 0;
  readonly #classes: number;
  /** The last answer of sampledAt(), which changes seldom. */
  #sampled: SampledImages | null = null;

  /** @throws DlfsError where the changes are not of these images */
  constructor(store: AnnotationStore, split: string, changes: readonly TargetChange[] = []) {
    const added = new Map(changes.flatMap(({ before, image }) => (before === null ? [[image.id, image]] : [])));
    this.#records = store.images(split, { usable: true }).filter((record) => {
      const image = added.get(record.id);
      if (image) checkSame(image, record);
      return !image;
    });
    const collected = collectTargets(store, split, this.#records, originals(changes));
    this.#base = collected;
    this.#starts = collected.starts;
    this.#baseLength = this.#records.length;
    this.#places = new Map(this.#records.map(({ id }, i) => [id, i]));
    this.#classes = store.classes().length;
    for (let i = 0; i < this.#baseLength; i++) this.#count(this.#baseBoxes(i));
    for (const change of changes) this.add(change);
  }

  /** What the images were at the start, in short: the same for the same images, of the same sizes, with the same boxes. */
  get start(): TargetsStart {
    const hash = new Bun.CryptoHasher("sha256");
    for (const { key, width, height } of this.#records.slice(0, this.#baseLength))
      hash.update(`${width}x${height} ${key}\n`);
    const { boxes, labels } = this.#base;
    for (const array of [this.#starts, boxes, labels])
      hash.update(new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
    return { images: this.#baseLength, boxes: labels.length, fingerprint: hash.digest("hex").slice(0, 32) };
  }

  get records(): readonly ImageRecord[] {
    return this.#records;
  }

  /** The most boxes that one image has, or had. */
  get most(): number {
    return this.#most;
  }

  /** Where an image is, by its id in the store; undefined where it is not there. */
  placeOf(imageId: number): number | undefined {
    return this.#places.get(imageId);
  }

  /** How many images a pass is made of. */
  lengthAt(epoch: number): number {
    let later = this.#joins.length;
    while (later > 0 && (this.#joins[later - 1] as number) > epoch) later--;
    return this.#baseLength + later;
  }

  /** The boxes of an image in a batch. */
  boxesOf(place: number, at: BatchPlace): ImageBoxes {
    const changes = this.#changes.get(place);
    if (!changes) return this.#baseBoxes(place);
    const last = changes.findLast(({ from }) => !isBefore(at, from));
    return last?.after ?? changes[0]?.before ?? NONE;
  }

  /** What samplers go by: images with the boxes that they had when they came. */
  sampledAt(epoch: number): SampledImages {
    const length = this.lengthAt(epoch);
    if (this.#sampled?.length !== length) this.#sampled = this.#sampledOf(length);
    return this.#sampled;
  }

  #sampledOf(length: number): SampledImages {
    const records = this.#records.slice(0, length);
    const sampled = {
      ids: records.map(({ sourceId }) => sourceId),
      aspectRatios: records.map(({ width, height }) => (height as number) / (width as number)),
      classes: this.#classes,
    };
    if (length === this.#baseLength) return { length, ...sampled, starts: this.#starts, labels: this.#base.labels };
    const later = records.slice(this.#baseLength).map((_, i) => this.#firstOf(this.#baseLength + i).labels);
    const starts = [...this.#starts];
    for (const { length: count } of later) starts.push((starts.at(-1) as number) + count);
    return { length, ...sampled, starts, labels: [...this.#base.labels, ...later.flatMap((labels) => [...labels])] };
  }

  /** Images that are drawn more or less often than others in a pass, by place. */
  weightsAt(epoch: number): ReadonlyMap<number, number> {
    const weights = new Map<number, number>();
    for (const [place, changes] of this.#changes) {
      const last = changes.findLast(({ pass }) => pass <= epoch);
      if (last && last.weight !== 1) weights.set(place, last.weight);
    }
    return weights;
  }

  insertionsAt({ epoch, index }: BatchPlace): readonly Insertion[] {
    return this.#insertions.get(`${epoch}/${index}`) ?? [];
  }

  /** What an image has by all that was taken in; null for one that is not there. */
  latestOf(imageId: number): ImageBoxes | null {
    const place = this.#places.get(imageId);
    if (place === undefined) return null;
    return this.#changes.get(place)?.at(-1)?.after ?? this.#baseBoxes(place);
  }

  /** From which batch on an image has what latestOf() says; null where it has had that from the start. */
  latestFrom(imageId: number): BatchPlace | null {
    const place = this.#places.get(imageId);
    return (place !== undefined && this.#changes.get(place)?.at(-1)?.from) || null;
  }

  /** Takes a change in; those of an image come in the order of their batches. */
  add(change: TargetChange): void {
    const { image, before, from, pass, seat } = change;
    let place = this.#places.get(image.id);
    if (before === null && place === undefined) {
      place = this.#records.length;
      this.#records.push(image);
      this.#places.set(image.id, place);
      this.#joins.push(Math.max(pass, this.#joins.at(-1) ?? 0));
    }
    check(place !== undefined, "Targets", () => `${image.fileName} is none of the images`, ErrorCode.io);
    checkSame(image, this.#records[place] as ImageRecord);
    const changes = this.#changes.get(place) ?? [];
    const last = changes.at(-1);
    if (last && isBefore(from, last.from)) {
      throw new DlfsError(ErrorCode.argument, "Targets", `${image.fileName}: its changes are not in their order`);
    }
    changes.push(change);
    this.#changes.set(place, changes);
    this.#count(change.after);
    if (seat === null) return;
    const { epoch, index } = seat.at;
    const key = `${epoch}/${index}`;
    const inPass = [...this.#insertions].filter(([at]) => at.startsWith(`${epoch}/`)).flatMap(([, list]) => list);
    const turn = inPass.filter((one) => one.place === place).length;
    this.#insertions.set(key, [...(this.#insertions.get(key) ?? []), { slot: seat.slot, place, turn }]);
  }

  #count({ labels }: ImageBoxes): void {
    this.#most = Math.max(this.#most, labels.length);
  }

  #baseBoxes(place: number): ImageBoxes {
    const [start, end] = [this.#starts[place] as number, this.#starts[place + 1] as number];
    const { boxes, labels } = this.#base;
    return { boxes: boxes.subarray(4 * start, 4 * end), labels: labels.subarray(start, end) };
  }

  /** The boxes that a later image came with. */
  #firstOf(place: number): ImageBoxes {
    return this.#changes.get(place)?.[0]?.after ?? NONE;
  }
}

/** Changes know images by the ids of a store: one that was made anew may have given them to others. */
function checkSame({ id, key }: ImageRecord, found: ImageRecord): void {
  check(
    found.key === key,
    "Targets",
    () => `image ${id} was ${key}, and is ${found.key} in this data set`,
    ErrorCode.io,
  );
}

/** What the images that have been changed had before, by id: the store may say otherwise by now. */
function originals(changes: readonly TargetChange[]): ReadonlyMap<number, ImageBoxes> {
  const first = new Map<number, ImageBoxes>();
  for (const { image, before } of changes) {
    if (before !== null && !first.has(image.id)) first.set(image.id, before);
  }
  return first;
}

/** The boxes of annotations that are training targets, clipped to their image of that size. */
export function targetsOf(
  annotations: Iterable<{ categoryId: number; bbox: readonly number[]; isCrowd: boolean }>,
  { width, height }: Pick<ImageRecord, "width" | "height">,
  classOf: (categoryId: number) => number,
): ImageBoxes {
  const boxes: number[] = [];
  const labels: number[] = [];
  for (const { categoryId, bbox, isCrowd } of annotations) {
    if (isCrowd) continue;
    const [x, y, w, h] = bbox as [number, number, number, number];
    const [x1, y1] = [Math.max(0, x), Math.max(0, y)];
    const [x2, y2] = [Math.min(width as number, x + w), Math.min(height as number, y + h)];
    if (!(x2 > x1 && y2 > y1)) continue;
    boxes.push(x1, y1, x2, y2);
    labels.push(classOf(categoryId));
  }
  return { boxes: Float64Array.from(boxes), labels: Int32Array.from(labels) };
}

/** The boxes of all images; `instead` says what some of them have. */
function collectTargets(
  store: AnnotationStore,
  split: string,
  images: readonly ImageRecord[],
  instead: ReadonlyMap<number, ImageBoxes>,
): ImageBoxes & { starts: Uint32Array } {
  const classes = store.classes();
  const classOf = (categoryId: number) => classes.indexOf(categoryId);
  const places = new Map(images.map((image, i) => [image.id, i]));
  const perImage: { categoryId: number; bbox: readonly number[]; isCrowd: boolean }[][] = images.map(() => []);
  for (const annotation of store.annotations(split)) {
    const place = places.get(annotation.imageId);
    if (place !== undefined) (perImage[place] as (typeof perImage)[0]).push(annotation);
  }
  const all = images.map(
    (image, i) => instead.get(image.id) ?? targetsOf(perImage[i] as (typeof perImage)[0], image, classOf),
  );
  const starts = new Uint32Array(images.length + 1);
  for (const [i, { labels }] of all.entries()) starts[i + 1] = (starts[i] as number) + labels.length;
  const total = starts[images.length] as number;
  const boxes = new Float64Array(4 * total);
  const labels = new Int32Array(total);
  for (const [i, own] of all.entries()) {
    boxes.set(own.boxes, 4 * (starts[i] as number));
    labels.set(own.labels, starts[i] as number);
  }
  return { starts, boxes, labels };
}
