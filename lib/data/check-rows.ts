import { DlfsError } from "../native/error";
import type {
  AnnotationRecord,
  AnnotationStore,
  AnnotationUpdate,
  Attribution,
  CocoBox,
  FileFacts,
  ImageRecord,
  ImageUpdate,
} from "./annotation-store";
import { imageFault, inspectFile, NO_FACTS, SIZE_DIFFERS } from "./check-images";
import type { ImageCodec } from "./codec";
import type { DataSource } from "./data-source";
import { BOX_REASONS, placeBox } from "./import-content";
import { ProblemList } from "./problems";
import { type ProgressListener, showProgress } from "./progress";

/** Something that is wrong with one image or box. */
export interface Finding {
  split: string;
  imageId: number;
  key: string;
  /** Of the box, where it is one's. */
  annotationId: number | null;
  reason: string;
  detail: string;
  /** What --fix does about it. */
  fix: "leave out image" | "use image again" | "set size" | "turn boxes" | "delete box" | "clip box";
}

export interface CheckRowsOptions {
  /** Default: all. */
  splits?: readonly string[];
  codec: ImageCodec;
  /** Look for images that are the same byte for byte, for which every file is read as a whole. Default true. */
  duplicates?: boolean;
  /** Set right what can be; all of it goes into the log of changes, with what was there before. Default false. */
  fix?: boolean;
  /** Default: a person without a name. */
  by?: Attribution;
  /** Images of more pixels cannot be used. Default 2^28. */
  maxPixels?: number;
  /** Is told of everything that is found, in the order of the images. */
  onFinding?: (finding: Finding) => void;
  /** Files read at a time. */
  concurrency?: number;
  progress?: ProgressListener;
  signal?: AbortSignal;
}

export interface CheckRowsReport {
  images: number;
  boxes: number;
  /** Counts by reason, with examples. */
  problems: ProblemList;
  /** Findings that were fixed. */
  fixed: number;
}

const PAGE = 512;

/** What a file turned out to be. */
interface FileState {
  facts: FileFacts | null;
  /** 53 bits of a hash of all bytes; null where the file was not read as a whole. */
  hash: number | null;
}

/**
 * Checks every row of a store against its image file: is the file there, an image that can be read, of the size that the row
 * says, not the same as another one; do the boxes lie in the image, have an area and a known category? With `fix`, images that
 * cannot be used are marked (ImageRecord.problem) and those that have become usable are not any more, unknown sizes are filled
 * in, boxes that reach outside are clipped, and those without area, outside or without category are deleted. The log of changes
 * keeps what was there before.
 *
 * @throws DlfsError only for the store; trouble with a file is a finding
 */
export async function checkRows(
  store: AnnotationStore,
  source: DataSource,
  options: CheckRowsOptions,
): Promise<CheckRowsReport> {
  const { splits = store.splits(), fix = false, by, progress = showProgress(), signal } = options;
  const { codec, concurrency = 16, onFinding, maxPixels = 2 ** 28 } = options;
  const report: CheckRowsReport = { images: 0, boxes: 0, problems: new ProblemList(), fixed: 0 };
  const categories = new Set(store.categories().map((category) => category.id));
  const firstOf = new Map<number, string>();
  const total = splits.reduce((sum, split) => sum + store.countImages({ split }), 0);
  const label = "checking images";
  progress(label, 0, total);
  for (const split of splits) {
    let page = store.findImages({ split }, { limit: PAGE });
    while (page.length > 0) {
      const files = await readFiles(page, source, options, concurrency, (n) =>
        progress(label, report.images + n, total),
      );
      const boxes = store.annotationsOfBatch(page.map((image) => image.id));
      const changes = new Changes();
      for (const [i, record] of page.entries()) {
        signal?.throwIfAborted();
        const findings = new Findings(record, onFinding, report.problems);
        const state = files[i] as FileState;
        const { image, rows } = turnUpright(record, boxes[i] as AnnotationRecord[], state.facts, findings, changes);
        checkFile(image, state.facts, source, codec, maxPixels, findings, changes);
        await checkDuplicate(image, state, source, firstOf, findings);
        checkBoxes(image, rows, state.facts, categories, findings, changes);
        findings.settle(changes);
        report.boxes += (boxes[i] as AnnotationRecord[]).length;
      }
      report.images += page.length;
      if (fix) report.fixed += changes.apply(store, by);
      progress(label, report.images, total);
      page = store.findImages({ split }, { limit: PAGE, after: (page.at(-1) as ImageRecord).id });
    }
  }
  return report;
}

async function readFiles(
  page: readonly ImageRecord[],
  source: DataSource,
  { codec, duplicates = true, signal }: CheckRowsOptions,
  concurrency: number,
  done: (count: number) => void,
): Promise<FileState[]> {
  const states: FileState[] = page.map(() => ({ facts: null, hash: null }));
  let next = 0;
  let finished = 0;
  const worker = async (): Promise<void> => {
    for (let i = next++; i < page.length; i = next++) {
      signal?.throwIfAborted();
      const { key } = page[i] as ImageRecord;
      const state = states[i] as FileState;
      try {
        const info = await source.stat(key);
        if (info) {
          state.facts = await inspectFile(source, info, codec, signal);
          if (duplicates && info.size > 0) state.hash = hashOf(await source.read(key, { signal }));
        }
      } catch (error) {
        if (!(error instanceof DlfsError)) throw error;
        const problem = `cannot be read: ${error.message}`;
        state.facts = { ...NO_FACTS, key, size: 0, modified: 0, problem };
      }
      done(++finished);
    }
  };
  await Promise.all(Array.from({ length: Math.min(concurrency, page.length) }, worker));
  return states;
}

function hashOf(bytes: Uint8Array): number {
  return Number(Bun.hash.xxHash64(bytes) >> 11n);
}

/** What is to be changed in the store. */
class Changes {
  readonly images: ImageUpdate[] = [];
  readonly boxes: AnnotationUpdate[] = [];
  readonly deleted: number[] = [];

  /** Makes the changes, all or none; how many. */
  apply(store: AnnotationStore, by: Attribution | undefined): number {
    const count = this.images.length + this.boxes.length + this.deleted.length;
    if (count === 0) return 0;
    store.transaction(() => {
      store.updateImages(this.images, by);
      store.updateAnnotations(this.boxes, by);
      store.deleteAnnotations(this.deleted, by);
    });
    return count;
  }
}

/** Collects what is wrong with an image. */
class Findings {
  /** Why the image cannot be used; the first reason counts. */
  problem: string | null = null;

  constructor(
    readonly image: ImageRecord,
    readonly onFinding: ((finding: Finding) => void) | undefined,
    readonly problems: ProblemList,
  ) {}

  add(noun: "image" | "box", reason: string, detail: string, fix: Finding["fix"], annotationId: number | null = null) {
    const { id, split, key } = this.image;
    const action =
      fix === "clip box"
        ? "clipped"
        : fix === "use image again" || fix === "set size" || fix === "turn boxes"
          ? "kept"
          : "skipped";
    const name = annotationId === null ? key : `${key}, box ${annotationId}`;
    this.problems.add(noun, action, reason, detail === "" ? name : `${name}: ${detail}`);
    this.onFinding?.({ split, imageId: id, key, annotationId, reason, detail, fix });
    if (fix === "leave out image") this.problem ??= reason;
  }

  /** Notes what becomes of the image's own problem. */
  settle(changes: Changes): void {
    const { id, problem } = this.image;
    if (this.problem === problem) return;
    if (this.problem === null) {
      this.add("image", "marked as unusable, but can be used", String(problem), "use image again");
    }
    changes.images.push({ id, problem: this.problem });
  }
}

/**
 * An image whose annotations have the size of the picture as it lies in the file, which EXIF data turns on its side: the size
 * becomes that of the upright picture, and so do the boxes, unless one of them shows that they were drawn on that already.
 */
function turnUpright(
  image: ImageRecord,
  rows: readonly AnnotationRecord[],
  facts: FileFacts | null,
  findings: Findings,
  changes: Changes,
): { image: ImageRecord; rows: readonly AnnotationRecord[] } {
  if (facts === null || facts.problem !== null || facts.orientation < 5) return { image, rows };
  const { width, height, orientation } = facts;
  if (width === height || image.width !== height || image.height !== width) return { image, rows };
  const upright = { ...image, width, height };
  const drawnUpright = rows.some(({ bbox }) => {
    return placeBox(bbox, width, height) === "inside" && placeBox(bbox, height, width) !== "inside";
  });
  const why = `annotated as ${height}x${width}, the file is ${width}x${height}, swapped: the file has EXIF orientation`;
  changes.images.push({ id: image.id, width, height });
  if (drawnUpright || rows.length === 0) {
    findings.add("image", SIZE_DIFFERS, `${why} ${orientation}`, "set size");
    return { image: upright, rows };
  }
  findings.add("image", SIZE_DIFFERS, `${why} ${orientation}`, "turn boxes");
  const turned = rows.map((row) => ({ ...row, bbox: turnedBox(row.bbox, orientation, width, height) }));
  for (const { id, bbox, area } of turned) changes.boxes.push({ id, bbox, area });
  return { image: upright, rows: turned };
}

/** A box of a stored picture in the upright one of width x height, for an EXIF orientation of 5 to 8. */
function turnedBox([x, y, w, h]: CocoBox, orientation: number, width: number, height: number): CocoBox {
  const [left, top] = [
    orientation === 6 || orientation === 7 ? width - y - h : y,
    orientation >= 7 ? height - x - w : x,
  ];
  return [left, top, h, w];
}

function checkFile(
  image: ImageRecord,
  facts: FileFacts | null,
  source: DataSource,
  codec: ImageCodec,
  maxPixels: number,
  findings: Findings,
  changes: Changes,
): void {
  const fault = imageFault(image, facts, source, codec, maxPixels);
  if (fault) {
    const detail = fault.example.startsWith(`${image.fileName}: `)
      ? fault.example.slice(image.fileName.length + 2)
      : fault.example;
    findings.add("image", fault.reason, detail === image.fileName ? "" : detail, "leave out image");
  } else if (facts && image.width === null) {
    const { width, height } = facts;
    findings.add("image", "its size is not known", `the file is ${width}x${height}`, "set size");
    changes.images.push({ id: image.id, width, height });
  }
}

async function checkDuplicate(
  image: ImageRecord,
  { hash }: FileState,
  source: DataSource,
  firstOf: Map<number, string>,
  findings: Findings,
): Promise<void> {
  if (hash === null || findings.problem !== null) return;
  const first = firstOf.get(hash);
  if (first === undefined) {
    firstOf.set(hash, image.key);
    return;
  }
  if (first === image.key) return; // the same file in two splits is meant
  const [a, b] = await Promise.all([source.read(first), source.read(image.key)]);
  if (Buffer.compare(a, b) !== 0) return;
  findings.add("image", "the same picture as another image", first, "leave out image");
}

function checkBoxes(
  image: ImageRecord,
  boxes: readonly AnnotationRecord[],
  facts: FileFacts | null,
  categories: ReadonlySet<number>,
  findings: Findings,
  changes: Changes,
): void {
  const readable = facts !== null && facts.problem === null;
  const width = image.width ?? (readable ? facts.width : null);
  const height = image.height ?? (readable ? facts.height : null);
  for (const { id, bbox, categoryId } of boxes) {
    const detail = `[${bbox.join(", ")}]`;
    if (!categories.has(categoryId)) {
      findings.add("box", "unknown category", String(categoryId), "delete box", id);
      changes.deleted.push(id);
      continue;
    }
    const placement = placeBox(bbox, width, height);
    if (placement === "inside") continue;
    if (placement === "partly") {
      findings.add("box", BOX_REASONS.partly, `${detail} in ${width}x${height}`, "clip box", id);
      changes.boxes.push({ id, bbox: clipped(bbox, width as number, height as number) });
    } else {
      findings.add("box", BOX_REASONS[placement], `${detail} in ${width ?? "?"}x${height ?? "?"}`, "delete box", id);
      changes.deleted.push(id);
    }
  }
}

function clipped([x, y, width, height]: CocoBox, imageWidth: number, imageHeight: number): CocoBox {
  const [left, top] = [Math.max(x, 0), Math.max(y, 0)];
  return [left, top, Math.min(x + width, imageWidth) - left, Math.min(y + height, imageHeight) - top];
}
