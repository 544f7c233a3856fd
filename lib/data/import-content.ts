import { basename } from "node:path";
import { check, ErrorCode } from "../native/error";
import type { AnnotationStore, Attribution, Category, CocoBox, NewAnnotation, NewImage } from "./annotation-store";
import { ANNOTATION_FIELDS, sameId } from "./coco-reader";
import { IdSet, ImageTable } from "./compact-tables";
import { keyProblem } from "./local-data-source";
import { type ProblemAction, ProblemList } from "./problems";
import type { ProgressListener } from "./progress";
import { RecordSpool } from "./record-spool";

export interface ImportOptions {
  /** The split that the images become part of; it must not have any yet. */
  split: string;
  /** Folder of the image files, put before their names to make the keys of a DataSource: "train2017". Default: none. */
  folder?: string;
  /** What messages call the annotation file. Default: its path. */
  name?: string;
  /** Whose work the boxes are; default: imported from the file. */
  by?: Attribution;
  /** Values for AnnotationStore.setMetadata, set together with the import or not at all. */
  metadata?: Record<string, string>;
  progress?: ProgressListener;
}

/** What an import brought in, and what it left out. */
export interface ImportReport {
  split: string;
  source: string;
  images: number;
  /** Boxes, crowds included. */
  annotations: number;
  crowds: number;
  categories: number;
  problems: ProblemList;
  inexact: Inexact;
}

/** What of a file boxes cannot say: turned ones, other shapes. */
export interface Inexact {
  /** Where it is, by the image's sourceId: of each image the last. */
  readonly images: ReadonlyMap<number, string>;
  /** The reasons under which `problems` has what became of it. */
  readonly reasons: ReadonlySet<string>;
}

/** A box may reach this far, in pixels, outside its image before that is worth a word: files round coordinates. */
const ROUNDING = 1;

/** Buckets that boxes are sorted by image through; one of them is in memory at a time. */
const BUCKETS = 128;

/**
 * A row: coco-reader's ANNOTATION_FIELDS with the image's place instead of its id; where boxes have them, the score (NaN: none)
 * and the place in the list of attributions (-1: the import's); and, until the row has its place, the place in the file's list.
 */
const ROW = 12;
const [SCORE, BY, INDEX] = [9, 10, 11];

/** What is known of a box besides its ANNOTATION_FIELDS. */
export interface BoxExtras {
  score?: number | null;
  by?: Attribution;
  /** Names the box in messages; default: its place in the list of annotations. */
  where?: () => string;
}

/** Entries between two reports of progress. */
const STEP = 100_000;

/**
 * What is read of annotation files, and what of it can be used: takes images and boxes in the manner of a CocoVisitor, gives
 * them to a store image by image. Boxes may come before their images; what is in memory stays
 * smaller where imagesDone is called before the first box.
 */
export class ImportContent implements Disposable {
  readonly categories: Category[] = [];
  readonly images: ImageTable;
  readonly problems = new ProblemList();
  readonly #inexact = { images: new Map<number, string>(), reasons: new Set<string>() };
  crowds = 0;
  readonly #categoryRows = new Map<number, number>();
  /** The categories that annotations name, and the first annotation that does. */
  readonly #named = new Map<number, number>();
  readonly #ids = new IdSet();
  readonly #row = new Float64Array(ROW);
  readonly #attributions: Attribution[] = [];
  readonly #attributionPlaces = new Map<string, number>();
  /** Annotations that came before the images, with ids of images. */
  #early: RecordSpool | null = null;
  #sorted: RecordSpool | null = null;
  #perBucket = 1;
  #count = 0;
  #orphans = 0;
  #firstImage = 0;

  constructor(
    readonly name: string,
    folder: string,
    readonly scratch: string,
    /** Boxes may have scores and attributions of their own. */
    readonly extras = false,
  ) {
    const parents = folder.split("/").filter((part) => part !== "" && part !== ".");
    const prefix = parents.map((part) => `${part}/`).join("");
    this.images = new ImageTable((fileName) =>
      // "./a.jpg" and "a.jpg" are one file.
      /(^|\/)(\.?\/|\.$)/.test(fileName)
        ? prefix +
          fileName
            .split("/")
            .filter((part) => part !== "" && part !== ".")
            .join("/")
        : prefix + fileName,
    );
  }

  /** Boxes that can be used. */
  get boxes(): number {
    return this.#sorted?.length ?? 0;
  }

  category(category: Category, index: number): void {
    const first = this.#categoryRows.get(category.id);
    if (first !== undefined) throw sameId(this.name, "categories", index, category.id, first);
    this.#categoryRows.set(category.id, index);
    this.categories.push(category);
  }

  image(image: NewImage, index: number): void {
    const { sourceId, fileName } = image;
    const first = this.images.rowOf(sourceId);
    if (first >= 0) throw sameId(this.name, "images", index, sourceId, first);
    const row = this.images.add(image);
    const bad = keyProblem(fileName);
    if (bad !== null) {
      this.problems.add("image", "skipped", `its file name ${bad}`, `${JSON.stringify(fileName)}, id ${sourceId}`);
      return;
    }
    const other = this.images.use(row);
    if (other < 0) return;
    const example = `${fileName}: id ${sourceId} skipped, id ${this.images.idOf(other)} used`;
    this.problems.add("image", "skipped", "another image has the same file name", example);
  }

  annotation(values: Float64Array, index: number, extras?: BoxExtras): void {
    const row = this.#row;
    for (let i = 0; i < values.length; i++) row[i] = values[i] as number;
    row[SCORE] = extras?.score ?? Number.NaN;
    row[BY] = extras?.by ? this.#attribution(extras.by) : -1;
    row[INDEX] = index;
    if (this.#count++ === 0) this.#firstImage = row[1] as number;
    const categoryId = row[2] as number;
    if (!this.#named.has(categoryId)) this.#named.set(categoryId, index);
    if (this.#sorted) {
      this.#place(row, extras?.where);
    } else {
      this.#early ??= new RecordSpool(1, ROW, this.scratch);
      this.#early.push(0, row);
    }
  }

  turned(values: Float64Array, index: number, degrees: number): void {
    const where = `annotations[${index}]`;
    const place = `${where}.attributes.rotation: expected 0, got ${degrees}: boxes are upright`;
    this.inexact(values[1] as number, place, "kept", "it is turned, the box before turning is used", where);
  }

  /**
   * Something of an image that boxes cannot say, and what becomes of it.
   *
   * @param place where it is and what was expected; the other parameters are ProblemList.add's
   */
  inexact(image: number, place: string, action: ProblemAction, reason: string, example: string): void {
    this.problems.add("box", action, reason, example);
    this.#inexact.images.set(image, place);
    this.#inexact.reasons.add(reason);
  }

  #attribution(by: Attribution): number {
    const key = JSON.stringify([by.source, by.author, by.time]);
    let place = this.#attributionPlaces.get(key);
    if (place === undefined) {
      place = this.#attributions.push(by) - 1;
      this.#attributionPlaces.set(key, place);
    }
    return place;
  }

  imagesDone(): void {
    const { usable } = this.images;
    // Where images are yet to come, so many of them share a bucket as usually fit into memory.
    this.#perBucket = usable === 0 ? 8192 : Math.ceil(usable / BUCKETS);
    const buckets = usable === 0 ? 4096 : Math.ceil(usable / this.#perBucket);
    this.#sorted = new RecordSpool(buckets, this.extras ? INDEX : ANNOTATION_FIELDS, this.scratch);
  }

  /** Sorts in what came before the images, and checks what could not be checked before everything was read. */
  finish(): void {
    const known = new Set(this.categories.map((c) => c.id));
    for (const [id, index] of this.#named) {
      check(
        known.has(id),
        this.name,
        () => `annotations[${index}].category_id: no category has id ${id}`,
        ErrorCode.io,
      );
    }
    if (this.#early) {
      for (const piece of this.#early.pieces(0)) {
        for (let at = 0; at < piece.length; at += ROW) this.#place(piece.slice(at, at + ROW));
      }
      this.#early[Symbol.dispose]();
    }
    check(
      this.#count === 0 || this.#orphans < this.#count,
      this.name,
      () =>
        `annotations[].image_id: none of the ${this.#count} annotations belongs to an image of the file, ` +
        `the first to ${this.#firstImage}`,
      ErrorCode.io,
    );
  }

  /** Puts a row where its image's are, or counts why it is left out. */
  #place(row: Float64Array, where = () => `annotations[${row[INDEX]}]`): void {
    const { images, problems } = this;
    const sourceId = row[0] as number;
    const imageId = row[1] as number;
    const image = images.rowOf(imageId);
    if (image < 0) {
      this.#orphans++;
      problems.add("box", "skipped", "no image has its image_id", `${where()}, image_id ${imageId}`);
      return;
    }
    const place = images.placeOf(image);
    if (place < 0) {
      problems.add("box", "skipped", "its image is skipped", `${where()}, image_id ${imageId}`);
      return;
    }
    const box = [row[3] as number, row[4] as number, row[5] as number, row[6] as number] as const;
    const placement = placeBox(box, images.widthOf(image), images.heightOf(image));
    if (placement !== "inside") {
      const skipped = placement !== "partly";
      const example = `${where()} of ${images.fileName(image)}: [${box.join(", ")}]`;
      problems.add("box", skipped ? "skipped" : "clipped", BOX_REASONS[placement], example);
      if (skipped) return;
    }
    if (!this.#ids.add(sourceId)) {
      problems.add("box", "kept", "its id is not unique", `${where()}, id ${sourceId}`);
    }
    if (row[8] === 1) this.crowds++;
    if (!((row[7] as number) >= 0)) row[7] = box[2] * box[3];
    row[1] = place;
    const sorted = this.#sorted as RecordSpool;
    sorted.push(Math.min(sorted.buckets - 1, Math.floor(place / this.#perBucket)), row);
  }

  /**
   * The boxes that can be used, image by image, each image's as the file has them. `ids` are the images', by place. One object
   * for all of them: what it holds is valid until the next one is asked for.
   */
  *#annotations(ids: readonly number[], progress: (done: number) => void): Generator<NewAnnotation> {
    const sorted = this.#sorted as RecordSpool;
    const { width } = sorted;
    let done = 0;
    const bbox: [number, number, number, number] = [0, 0, 0, 0];
    const box: NewAnnotation = { sourceId: 0, imageId: 0, categoryId: 0, bbox, area: 0, isCrowd: false };
    for (let bucket = 0; bucket < sorted.buckets; bucket++) {
      const rows = sorted.rows(bucket);
      const order = byPlace(rows, width, bucket * this.#perBucket);
      // By index: an iterator of an array within a generator takes a tenth of the time of storing.
      for (let i = 0; i < order.length; i++) {
        const at = (order[i] as number) * width;
        box.sourceId = rows[at] as number;
        box.imageId = ids[rows[at + 1] as number] as number;
        box.categoryId = rows[at + 2] as number;
        for (let k = 0; k < 4; k++) bbox[k] = rows[at + 3 + k] as number;
        box.area = rows[at + 7] as number;
        box.isCrowd = rows[at + 8] === 1;
        if (width > ANNOTATION_FIELDS) {
          const score = rows[at + SCORE] as number;
          box.score = Number.isNaN(score) ? null : score;
          box.by = this.#attributions[rows[at + BY] as number];
        }
        yield box;
        if (++done % STEP === 0) progress(done);
      }
    }
  }

  /** Puts everything into a store, completely or not at all. */
  store(
    store: AnnotationStore,
    from: { size: number | null; modified: number | null },
    options: ImportOptions & { by: Attribution; progress: ProgressListener },
  ): ImportReport {
    const { problems, name } = this;
    const { split, by, progress, metadata = {} } = options;
    const label = `storing ${basename(name)}`;
    return store.bulk(this.boxes, () => {
      store.addCategories(this.categories);
      const ids = store.addImages(split, this.images.images(), by);
      // Of a million images' names nothing is needed any more, and the collector does not hurry where memory is plenty.
      if (ids.length > STEP) Bun.gc(true);
      progress(label, 0, this.boxes);
      const boxes = this.#annotations(ids, (done) => progress(label, done, this.boxes));
      const annotations = store.addAnnotations(boxes, { by, expected: this.boxes });
      progress(label, this.boxes, this.boxes);
      for (const [key, value] of Object.entries(metadata)) store.setMetadata(key, value);
      const entries = problems.entries();
      store.recordImport({ split, source: name, ...from, importedAt: Date.now(), problems: entries });
      const counts = { images: ids.length, annotations, crowds: this.crowds, categories: this.categories.length };
      return { split, source: name, ...counts, problems, inexact: this.#inexact };
    });
  }

  [Symbol.dispose](): void {
    this.#early?.[Symbol.dispose]();
    this.#sorted?.[Symbol.dispose]();
  }
}

/** The rows' numbers by ascending place, those of one place in their order; places start at `first`. */
function byPlace(rows: Float64Array, width: number, first: number): Uint32Array {
  const count = rows.length / width;
  let most = 0;
  for (let i = 0; i < count; i++) most = Math.max(most, (rows[i * width + 1] as number) - first);
  const starts = new Uint32Array(most + 2);
  for (let i = 0; i < count; i++) (starts[(rows[i * width + 1] as number) - first + 1] as number)++;
  for (let i = 1; i < starts.length; i++) (starts[i] as number) += starts[i - 1] as number;
  const order = new Uint32Array(count);
  for (let i = 0; i < count; i++) {
    const place = (rows[i * width + 1] as number) - first;
    order[(starts[place] as number)++] = i;
  }
  return order;
}

/** A split that is to be imported must be new. */
export function checkNewSplit(op: string, store: AnnotationStore, split: string, name: string): void {
  check(split !== "", op, () => "the split's name is empty");
  check(
    store.countImages({ split }) === 0,
    op,
    () => `${name}: split "${split}" has images already, delete it first to import it again`,
  );
}

/** Reasons that a ProblemList gives for what placeBox finds. */
export const BOX_REASONS = {
  empty: "no area",
  outside: "lies outside the image",
  partly: "reaches outside the image",
} as const;

/** How a box lies in an image of this size (null: unknown). */
export function placeBox(
  box: CocoBox,
  imageWidth: number | null,
  imageHeight: number | null,
): "inside" | "partly" | "outside" | "empty" {
  const x = box[0];
  const y = box[1];
  const width = box[2];
  const height = box[3];
  if (!(width > 0 && height > 0)) return "empty";
  if (imageWidth === null || imageHeight === null) return "inside";
  if (x >= imageWidth || y >= imageHeight || x + width <= 0 || y + height <= 0) return "outside";
  const over = Math.max(-x, -y, x + width - imageWidth, y + height - imageHeight);
  return over > ROUNDING ? "partly" : "inside";
}
