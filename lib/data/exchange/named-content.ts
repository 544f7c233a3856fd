import type { AnnotationStore, CocoBox } from "../annotation-store";
import { ANNOTATION_FIELDS } from "../coco-reader";
import { IdSet } from "../compact-tables";
import { type BoxExtras, checkNewSplit, ImportContent, type ImportOptions, type ImportReport } from "../import-content";
import { type ProgressListener, showProgress } from "../progress";

export interface NamedImportOptions extends ImportOptions {
  /** Categories by ascending id, for formats that only name them as they come. Default: the store's, then new ones by name. */
  categories?: readonly string[];
}

/** A box as formats give it that name categories and know no ids. */
export interface NamedBox extends BoxExtras {
  /** The id that it had before; default: the next one. */
  sourceId?: number;
  category: string;
  bbox: CocoBox;
  area?: number;
  isCrowd?: boolean;
}

/** Numbers from 1 on, each above all that were there before. */
class Ids {
  readonly #taken = new IdSet();
  #highest = 0;

  /** The wanted one where it is free, else the next. */
  next(wanted?: number): number {
    const isFree = wanted !== undefined && Number.isSafeInteger(wanted) && wanted >= 0 && this.#taken.add(wanted);
    const id = isFree ? wanted : this.#highest + 1;
    if (!isFree) this.#taken.add(id);
    this.#highest = Math.max(this.#highest, id);
    return id;
  }
}

/**
 * Takes images and boxes of formats without ids: images are numbered as they come, boxes too, unless they say which id they had,
 * and a category has the id that the store, or this import, has for its name.
 */
export class NamedContent implements Disposable {
  readonly content: ImportContent;
  readonly progress: ProgressListener;
  readonly #categoryIds: Map<string, number>;
  /** Categories of this import that the store does not have. */
  readonly #fresh: string[] = [];
  readonly #values = new Float64Array(ANNOTATION_FIELDS);
  #nextCategory: number;
  readonly #imageIds = new Ids();
  readonly #boxIds = new Ids();
  #images = 0;
  #boxes = 0;

  /** @param name what messages call the data */
  constructor(
    op: string,
    readonly store: AnnotationStore,
    readonly name: string,
    readonly options: NamedImportOptions,
  ) {
    checkNewSplit(op, store, options.split, name);
    this.progress = options.progress ?? showProgress();
    this.content = new ImportContent(name, options.folder ?? "", store.scratchFolder, true);
    this.content.imagesDone();
    const known = store.categories();
    this.#categoryIds = new Map(known.map((category) => [category.name, category.id]));
    this.#nextCategory = (known.at(-1)?.id ?? 0) + 1;
    for (const category of options.categories ?? []) this.categoryId(category);
  }

  categoryId(name: string): number {
    let id = this.#categoryIds.get(name);
    if (id === undefined) {
      id = this.#nextCategory++;
      this.#categoryIds.set(name, id);
      this.#fresh.push(name);
    }
    return id;
  }

  /** Adds an image; its id: the wanted one unless another image has it. */
  image(fileName: string, width: number | null, height: number | null, wanted?: number): number {
    const sourceId = this.#imageIds.next(wanted);
    this.content.image({ sourceId, fileName, key: fileName, width, height }, this.#images++);
    return sourceId;
  }

  box(image: number, { sourceId, category, bbox, area, isCrowd, ...extras }: NamedBox): void {
    const values = this.#values;
    values[0] = this.#boxIds.next(sourceId);
    values[1] = image;
    values[2] = this.categoryId(category);
    for (let i = 0; i < 4; i++) values[3 + i] = bbox[i] as number;
    values[7] = area ?? Number.NaN;
    values[8] = isCrowd ? 1 : 0;
    this.content.annotation(values, this.#boxes++, extras);
  }

  /** Puts everything into the store, completely or not at all. */
  finish(from: { size: number | null; modified: number | null } = { size: null, modified: null }): ImportReport {
    const named = [...this.#categoryIds].map(([name, id]) => ({ id, name, supercategory: null }));
    const fresh = new Set(this.#fresh);
    // Those that are there already are not added again, but the check of what boxes name knows them all.
    for (const [i, category] of named.entries()) this.content.category(category, i);
    this.content.finish();
    const { by = { source: "imported", author: this.name } } = this.options;
    const report = this.content.store(this.store, from, { ...this.options, by, progress: this.progress });
    return { ...report, categories: fresh.size };
  }

  [Symbol.dispose](): void {
    this.content[Symbol.dispose]();
  }
}
