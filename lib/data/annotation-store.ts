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
}

export interface AnnotationRecord extends NewAnnotation {
  /** The annotation's id in this store. */
  id: number;
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
  width: number;
  height: number;
  /** Colour components: 1 gray, 3 RGB or YCbCr, 4 CMYK or YCCK. */
  components: number;
  /** Bits per sample. */
  bits: number;
  /** As dlfs_jpeg_info_sync: 0 sequential, 1 progressive, 2 lossless, 3 arithmetic-coded. */
  process: number;
  /** Why it cannot be read as an image, or null; the numbers above are 0 then. */
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

  /** Adds images to a split and gives their ids, in the order of `images`. */
  abstract addImages(split: string, images: Iterable<NewImage>): number[];

  abstract updateImages(updates: Iterable<ImageUpdate>): void;

  /** Deletes images and their annotations. */
  abstract deleteImages(ids: Iterable<number>): void;

  /** The annotations of an image, by ascending id. */
  abstract annotationsOf(imageId: number): AnnotationRecord[];

  /** All annotations of a split's images, image by image as in images(), by ascending id. Nothing may be changed meanwhile. */
  abstract annotations(split: string): Iterable<AnnotationRecord>;

  /** Adds annotations of images that are in the store; how many. */
  abstract addAnnotations(annotations: Iterable<NewAnnotation>): number;

  abstract deleteAnnotations(ids: Iterable<number>): void;

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

  abstract close(): void;

  [Symbol.dispose](): void {
    this.close();
  }

  /** The classes that a detector trained on this store tells apart. */
  classes(): ClassMap {
    return new ClassMap(this.categories());
  }
}
