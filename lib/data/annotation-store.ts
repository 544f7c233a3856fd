import { tmpdir } from "node:os";
import { check } from "../native/error";
import type { Problem } from "./problems";

/** A class of objects, under the id that the data set gives it. */
export interface Category {
  id: number;
  name: string;
  supercategory: string | null;
}

/** What describes an image before it has a place in a store. */
export interface NewImage {
  /** The image's id in the data set it comes from; unique in its split. */
  sourceId: number;
  /** The name that the data set gives it. */
  fileName: string;
  /** Where a DataSource finds its bytes; unique in its split. */
  key: string;
  /** Size in pixels; null where the data set does not say. */
  width: number | null;
  height: number | null;
}

export interface ImageRecord extends NewImage {
  /** The image's id in this store. */
  id: number;
  split: string;
  /** Why the image cannot be used (see checkImages), or null. */
  problem: string | null;
}

/** x and y of the top left corner, width and height, in pixels of the image: COCO's order. */
export type CocoBox = readonly [x: number, y: number, width: number, height: number];

export interface NewAnnotation {
  /** The id in the data set it comes from. */
  sourceId: number;
  /** ImageRecord.id of the image. */
  imageId: number;
  categoryId: number;
  /** As annotated: it may reach outside the image. */
  bbox: CocoBox;
  /** Of the object's outline where the data set has one, in square pixels, else of the box. */
  area: number;
  /** A box around a group; evaluated as COCO does, never a training target. */
  isCrowd: boolean;
  /** How sure the model that found it was, 0 to 1; null or left out for boxes that no model found. */
  score?: number | null;
  /** Whose work it is; default: as the call that adds it says. */
  by?: Attribution;
}

/** Where a box comes from: drawn or corrected by a person, out of a file, or found by a model. */
export type AnnotationSource = "human" | "imported" | "model";

/** Whose work a change is. */
export interface Attribution {
  source: AnnotationSource;
  /** A person's name, a file, a model's name; default: empty. */
  author?: string;
  /** Milliseconds since 1970; default: now. */
  time?: number;
}

export interface AnnotationRecord extends Omit<NewAnnotation, "by"> {
  /** The annotation's id in this store; never given to another one. */
  id: number;
  score: number | null;
  /** Who made or last changed it, and when (milliseconds since 1970; 0: not known). */
  source: AnnotationSource;
  author: string;
  modified: number;
}

/** How an annotation can be changed: fields that are left out keep their value. */
export interface AnnotationUpdate {
  id: number;
  categoryId?: number;
  bbox?: CocoBox;
  /** Default where bbox is given: the box's. */
  area?: number;
  isCrowd?: boolean;
  score?: number | null;
}

/** Which images; all that is given must hold. */
export interface ImageQuery {
  split?: string;
  /** Images with this tag. */
  tag?: string;
  /** Images with a box of this category, crowds included. */
  categoryId?: number;
  /** Ids in this store, both ends included. */
  ids?: readonly [first: number, last: number];
  /** Only with, or only without, a problem. */
  usable?: boolean;
  /**
   * A condition in SQL on the columns of images: id, split, source_id, file_name, key, width, height, problem, under the name
   * `i`; "i.width > ?". It is part of the statement, so it must not come from strangers; `parameters` may.
   */
  where?: string;
  parameters?: readonly (string | number | null)[];
}

export interface PageOptions {
  /** Only images after this id: the last one of the page before. */
  after?: number;
  limit?: number;
}

/** Parts of a data set by name, and how large they are to be, relative to each other: { train: 0.8, val: 0.2 }. */
export type SplitShares = Readonly<Record<string, number>>;

export interface AssignSplitsOptions {
  shares: SplitShares;
  seed: number;
  /** The split whose images are distributed; default: all images. */
  from?: string;
  /** Images of which this gives the same text stay together, a video's for example; default: each key alone. */
  groupOf?: (image: ImageRecord) => string;
  by?: Attribution;
}

/** One entry of the log of changes. */
export interface Change {
  /** Ascending in the order in which changes became visible; never given twice. */
  number: number;
  time: number;
  source: AnnotationSource;
  author: string;
  /** A deleted image takes its annotations and tags with it, a deleted split its images. */
  entity: "category" | "image" | "annotation" | "split";
  action: "add" | "change" | "delete";
  /** Ids in this store, first and last of an unbroken range; 0 for splits. */
  first: number;
  last: number;
  /** What was there before a change or deletion, the name of a split, and the like. */
  detail: unknown;
}

/** How an image can be changed: fields that are left out keep their value. */
export interface ImageUpdate {
  id: number;
  width?: number;
  height?: number;
  problem?: string | null;
}

export interface StoreCounts {
  images: number;
  /** Images without a problem; the numbers below concern these only. */
  usable: number;
  /** Boxes, crowds included. */
  annotations: number;
  crowds: number;
  /** Images without any box that is not a crowd. */
  withoutBoxes: number;
  /** The largest number of boxes, crowds not included, of one image. */
  maxBoxes: number;
}

/** What was imported, when, and what was found wrong with it. */
export interface ImportRecord {
  split: string;
  /** The file or service that it came from. */
  source: string;
  /** Size in bytes and time of change (milliseconds since 1970) of a file, or null. */
  size: number | null;
  modified: number | null;
  /** Milliseconds since 1970. */
  importedAt: number;
  problems: Problem[];
}

/** What was found out about an image file, valid as long as its size and time of change stay the same. */
export interface FileFacts {
  key: string;
  size: number;
  modified: number;
  /** Of the picture as it is to be seen. */
  width: number;
  height: number;
  /** As ImageInfo has them. */
  format: string;
  components: number;
  bits: number;
  process: number;
  orientation: number;
  /** Why it cannot be read as an image, or null; the numbers above are 0 then, and the format is empty. */
  problem: string | null;
}

/** The classes of a data set: the categories by ascending id, numbered from 0 without the gaps that ids may have. */
export class ClassMap {
  readonly names: readonly string[];
  readonly categoryIds: readonly number[];
  readonly #indices: Map<number, number>;

  constructor(categories: readonly Category[]) {
    const sorted = [...categories].sort((a, b) => a.id - b.id);
    this.names = sorted.map((c) => c.name);
    this.categoryIds = sorted.map((c) => c.id);
    this.#indices = new Map(this.categoryIds.map((id, i) => [id, i]));
  }

  get length(): number {
    return this.names.length;
  }

  /** The class index, in [0, length), of a category id. */
  indexOf(categoryId: number): number {
    const index = this.#indices.get(categoryId);
    check(index !== undefined, "ClassMap", () => `no category has id ${categoryId}`);
    return index;
  }

  /** The category id of a class index. */
  categoryIdOf(index: number): number {
    const id = this.categoryIds[index];
    check(id !== undefined, "ClassMap", () => `class index ${index} is not in 0 to ${this.length - 1}`);
    return id;
  }

  nameOf(index: number): string {
    const name = this.names[index];
    check(name !== undefined, "ClassMap", () => `class index ${index} is not in 0 to ${this.length - 1}`);
    return name;
  }
}

/**
 * Which images there are, in which splits, and what is annotated in them. A store lives on this machine and answers at
 * once; methods that change something do so completely or not at all.
 */
export abstract class AnnotationStore implements Disposable {
  /** All categories, by ascending id. */
  abstract categories(): Category[];

  /** Adds categories. One that is already there must have the same name. */
  abstract addCategories(categories: readonly Category[]): void;

  /** Names of the splits that have images, sorted. */
  abstract splits(): string[];

  /** The images of a split, by ascending sourceId; with `usable` only those without a problem. */
  abstract images(split: string, options?: { usable?: boolean }): ImageRecord[];

  abstract image(id: number): ImageRecord | null;

  /** The images that a query asks for, by ascending id; `limit` and `after` give them page by page. */
  abstract findImages(query: ImageQuery, page?: PageOptions): ImageRecord[];

  abstract countImages(query: ImageQuery): number;

  /** Adds images to a split and gives their ids, in the order of `images`: ascending, without gaps. */
  abstract addImages(split: string, images: Iterable<NewImage>, by?: Attribution): number[];

  abstract updateImages(updates: Iterable<ImageUpdate>, by?: Attribution): void;

  /** Deletes images and their annotations. */
  abstract deleteImages(ids: Iterable<number>, by?: Attribution): void;

  /** All tags with their numbers of images, by name. */
  abstract tags(): { tag: string; images: number }[];

  /** An image's tags, sorted. */
  abstract tagsOf(imageId: number): string[];

  /** Gives images a tag; those that have it already keep it. */
  abstract addTag(tag: string, imageIds: Iterable<number>, by?: Attribution): void;

  abstract removeTag(tag: string, imageIds: Iterable<number>, by?: Attribution): void;

  /**
   * Distributes images over splits. Where an image goes depends on the seed and its key (or group) alone, so it stays there
   * when others are added. Gives the number of images in each split of `shares`.
   */
  abstract assignSplits(options: AssignSplitsOptions): Record<string, number>;

  /** The annotations of an image, by ascending id. */
  abstract annotationsOf(imageId: number): AnnotationRecord[];

  /** The annotations of a batch of images, in the order of `imageIds`, each by ascending id. */
  abstract annotationsOfBatch(imageIds: readonly number[]): AnnotationRecord[][];

  /** All annotations of a split's images, image by image as in images(), by ascending id. Nothing may be changed meanwhile. */
  abstract annotations(split: string): Iterable<AnnotationRecord>;

  /**
   * Adds annotations of images that are in the store; how many. Where `expected` says that there are more than the store has
   * by now, indices are built when all are in, which is faster.
   */
  abstract addAnnotations(
    annotations: Iterable<NewAnnotation>,
    options?: { by?: Attribution; expected?: number },
  ): number;

  /** Changes annotations, which become the work of `by`; default: of a person without a name. */
  abstract updateAnnotations(updates: Iterable<AnnotationUpdate>, by?: Attribution): void;

  abstract deleteAnnotations(ids: Iterable<number>, by?: Attribution): void;

  /** The number of the newest change; 0: there was none. */
  abstract lastChange(): number;

  /**
   * The changes after number `since`, oldest first, at most `limit`. Who reads all up to some number, and asks for those after
   * it the next time, misses none and gets none twice, whatever other processes write.
   */
  abstract changesSince(since: number, limit?: number): Change[];

  /** What is wrong with the stored data as such, one line each; none for a sound store. Reads all of it. */
  abstract checkIntegrity(): string[];

  /** Deletes a split: its images, their annotations, its import records. */
  abstract deleteSplit(split: string): void;

  /** Deletes all splits and categories. What is known about files, and the metadata, stays. */
  abstract clear(): void;

  abstract counts(split: string): StoreCounts;

  /** How many annotations of usable images each class has, by class index, crowds not included. */
  abstract classCounts(split: string): number[];

  abstract recordImport(record: ImportRecord): void;

  /** All imports, the oldest first. */
  abstract imports(): ImportRecord[];

  /** What is known about a file, or null. The caller compares size and modified. */
  abstract fileFacts(key: string): FileFacts | null;

  abstract saveFileFacts(facts: Iterable<FileFacts>): void;

  /** A value kept under a name, or null. */
  abstract getMetadata(name: string): string | null;

  abstract setMetadata(name: string, value: string): void;

  /** Runs `work`; where it throws, all that it changed is undone. May be nested. `work` must not be asynchronous. */
  abstract transaction<T>(work: () => T): T;

  /**
   * A transaction for the import of some `expected` boxes, whose images and categories `work` itself sees to. A store may do
   * without checks and, while it is empty, without readers: they wait until the import is through.
   */
  bulk<T>(_expected: number, work: () => T): T {
    return this.transaction(work);
  }

  abstract close(): void;

  /** A folder for large temporary files of imports into this store. */
  get scratchFolder(): string {
    return tmpdir();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** The classes that a detector trained on this store tells apart. */
  classes(): ClassMap {
    return new ClassMap(this.categories());
  }
}
