import { DlfsError, ErrorCode } from "../native/error";
import type { AnnotationStore, FileFacts, ImageRecord, ImageUpdate } from "./annotation-store";
import type { ImageCodec, ImageFormat, ImageInfo } from "./codec";
import type { DataSource, ObjectInfo } from "./data-source";
import { endsWell, FORMAT_NAMES, hasEnd, looksLike, TAIL_BYTES } from "./image-file";
import { BOX_REASONS, placeBox } from "./import-content";
import { ProblemList } from "./problems";
import { type ProgressListener, showProgress } from "./progress";

export interface CheckImagesOptions {
  split: string;
  codec: ImageCodec;
  /** Images of more pixels are left out; 2^28 is the most that dlfs_image_decode_sync takes. */
  maxPixels?: number;
  /** Files read at a time. */
  concurrency?: number;
  /** Whether to list the source's objects rather than to ask for each, as far as the source can list. Default: false. */
  listing?: boolean;
  progress?: ProgressListener;
  signal?: AbortSignal;
}

export interface CheckReport {
  /** Images of the split. */
  images: number;
  /** Those that can be used. */
  usable: number;
  /** Those whose file had not changed since an earlier check. */
  cached: number;
  problems: ProblemList;
}

/** Most headers end within this many bytes; the whole file is read where one does not. */
const HEAD = 16 << 10;

/** Results are written to the store in groups of this size, so that an interrupted check goes on where it was. */
const GROUP = 1000;

/**
 * Looks at the file of every image of a split before anything is trained: is it there, complete, an image that can be
 * decoded, of the size that the annotations were made for? The store keeps the answer with each image
 * (ImageRecord.problem), sizes that the data set left open, and what was found out about each file, so that only new and
 * changed files are read the next time. Reads the header and the last bytes of a file, more only when these leave a
 * doubt.
 */
export async function checkImages(
  store: AnnotationStore,
  source: DataSource,
  options: CheckImagesOptions,
): Promise<CheckReport> {
  const { split, codec, maxPixels = 2 ** 28, concurrency = 32, progress = showProgress(), signal } = options;
  const images = store.images(split);
  const label = `checking images of ${split}`;
  const found: (FileFacts | null)[] = images.map(() => null);
  const fresh: FileFacts[] = [];
  let cached = 0;
  let done = 0;
  let next = 0;
  const listed = options.listing ? await listObjects(source, images, `listing images of ${split}`, options) : null;
  progress(label, 0, images.length);

  const check = async (i: number): Promise<void> => {
    const { key } = images[i] as ImageRecord;
    const file = listed ? (listed.get(key) ?? null) : await source.stat(key, { signal });
    if (!file) return;
    const known = store.fileFacts(key);
    if (known && known.size === file.size && known.modified === file.modified) {
      found[i] = known;
      cached++;
      return;
    }
    try {
      const facts = await inspectFile(source, file, codec, signal);
      found[i] = facts;
      fresh.push(facts);
    } catch (error) {
      // The source's trouble, not the file's: it may be over at the next check, so it is not remembered.
      if (!(error instanceof DlfsError)) throw error;
      found[i] = { ...NO_FACTS, ...file, problem: `cannot be read: ${error.message}` };
    }
  };
  const worker = async (): Promise<void> => {
    for (let i = next++; i < images.length; i = next++) {
      try {
        signal?.throwIfAborted();
        await check(i);
      } catch (error) {
        next = images.length;
        throw error;
      }
      if (fresh.length >= GROUP) store.saveFileFacts(fresh.splice(0));
      progress(label, ++done, images.length);
    }
  };
  const workers = await Promise.allSettled(Array.from({ length: Math.min(concurrency, images.length) }, worker));
  store.saveFileFacts(fresh);
  const failed = workers.find((result) => result.status === "rejected");
  if (failed) throw failed.reason;

  const problems = new ProblemList();
  const boxProblems = new ProblemList();
  const updates: ImageUpdate[] = [];
  const outside: number[] = [];
  let usable = 0;
  for (const [i, image] of images.entries()) {
    const facts = found[i] as FileFacts | null;
    const fault = imageFault(image, facts, source, codec, maxPixels);
    const update: ImageUpdate = { id: image.id };
    if (fault) {
      problems.add("image", "skipped", fault.reason, fault.example);
    } else {
      usable++;
      if (facts && turnsWithin(image, facts)) {
        problems.add("image", "kept", TURNED, `${image.fileName}: EXIF orientation ${facts.orientation}`);
      }
      if (facts && image.width === null) {
        update.width = facts.width;
        update.height = facts.height;
        outside.push(...boxesOutside(store, image, facts, boxProblems));
      }
    }
    const problem = fault?.reason ?? null;
    if (problem !== image.problem) update.problem = problem;
    if (Object.keys(update).length > 1) updates.push(update);
  }
  store.transaction(() => {
    store.updateImages(updates);
    store.deleteAnnotations(outside);
    // Deleted boxes are not found again by the next check, so what was wrong with them is kept as part of the import.
    if (boxProblems.count() > 0) {
      const record = { split, source: "sizes of the image files", size: null, modified: null, importedAt: Date.now() };
      store.recordImport({ ...record, problems: boxProblems.entries() });
    }
  });
  problems.merge(boxProblems);
  return { images: images.length, usable, cached, problems };
}

/** What a source has of the images' objects, by key; null where it cannot list. */
async function listObjects(
  source: DataSource,
  images: readonly ImageRecord[],
  label: string,
  { progress = showProgress(), signal }: CheckImagesOptions,
): Promise<Map<string, ObjectInfo> | null> {
  const wanted = new Set(images.map(({ key }) => key));
  const found = new Map<string, ObjectInfo>();
  progress(label, 0, wanted.size);
  try {
    for await (const info of source.list(commonFolder(wanted), { signal })) {
      if (!wanted.has(info.key)) continue;
      found.set(info.key, info);
      progress(label, found.size, wanted.size);
    }
  } catch (error) {
    if (error instanceof DlfsError && error.code === ErrorCode.unsupported) return null;
    throw error;
  }
  progress(label, wanted.size, wanted.size);
  return found;
}

/** The longest beginning up to a slash that all keys share. */
function commonFolder(keys: Iterable<string>): string {
  let common: string | null = null;
  for (const key of keys) {
    common ??= key.slice(0, key.lastIndexOf("/") + 1);
    while (!key.startsWith(common)) common = common.slice(0, common.lastIndexOf("/", common.length - 2) + 1);
  }
  return common ?? "";
}

/** Of a file that could not be read as an image. */
export const NO_FACTS = {
  width: 0,
  height: 0,
  format: "",
  components: 0,
  bits: 0,
  process: 0,
  orientation: 0,
  problem: null,
} as const;

const TURNED = "EXIF data turns it without changing its size; its boxes are taken for those of the upright picture";

/** Whether the picture is turned and the annotations' size cannot tell which way up its boxes were drawn. */
function turnsWithin({ width, height }: ImageRecord, { orientation }: FileFacts): boolean {
  return width !== null && orientation > 1 && (orientation < 5 || width === height);
}

/** Reads as much of a file as it takes to judge it. */
export async function inspectFile(
  source: DataSource,
  file: ObjectInfo,
  codec: ImageCodec,
  signal?: AbortSignal,
): Promise<FileFacts> {
  const { key, size } = file;
  const facts: FileFacts = { ...NO_FACTS, ...file };
  if (size === 0) return { ...facts, problem: "empty file" };
  let bytes = await source.read(key, { range: { start: 0, end: Math.min(size, HEAD) }, signal });
  const kind = looksLike(bytes);
  if (!Object.values(FORMAT_NAMES).includes(kind ?? "")) {
    return { ...facts, problem: `not a JPEG, PNG or WebP file${kind === null ? "" : ` but ${kind}`}` };
  }
  let header = readHeader(codec, bytes);
  if (typeof header === "string" && bytes.length < size) {
    bytes = await source.read(key, { signal });
    header = readHeader(codec, bytes);
  }
  if (typeof header === "string") return { ...facts, problem: `damaged: ${header}` };
  const tail = await source.read(key, { range: { start: Math.max(0, size - TAIL_BYTES), end: size }, signal });
  if (!endsWell(header.format, bytes, tail, size)) {
    // Some writers put bytes after the image; only the whole file tells them from a truncated one.
    if (bytes.length < size) bytes = await source.read(key, { signal });
    if (!hasEnd(header.format, bytes)) return { ...facts, problem: "truncated file" };
  }
  const { width, height, format, components, bits, process, orientation } = header;
  return { ...facts, width, height, format, components, bits, process, orientation };
}

/** The header, or what is wrong with it. */
function readHeader(codec: ImageCodec, bytes: Uint8Array): ImageInfo | string {
  try {
    return codec.info(bytes);
  } catch (error) {
    if (error instanceof DlfsError) return error.message;
    throw error;
  }
}

export const SIZE_DIFFERS = "the file's size differs from the annotations'";

/** The most pixels a side that the native library decodes. */
const MAX_SIDE = 65535;

/** Why an image is left out: the reason, and what names the image in a report; null where it can be used. */
export function imageFault(
  image: ImageRecord,
  facts: FileFacts | null,
  source: DataSource,
  codec: ImageCodec,
  maxPixels: number,
): { reason: string; example: string } | null {
  const example = image.fileName;
  if (facts === null) return { reason: "no such file", example: source.locate(image.key) };
  if (facts.problem !== null) {
    const [reason, detail] = facts.problem.split(/: (.*)/s) as [string, string | undefined];
    return { reason, example: detail ? `${example}: ${detail}` : example };
  }
  const { width, height, format, components, bits, process } = facts;
  const size = `${width}x${height}`;
  if (width * height > maxPixels) return { reason: `more than ${maxPixels} pixels`, example: `${example}: ${size}` };
  if (Math.max(width, height) > MAX_SIDE)
    return { reason: `more than ${MAX_SIDE} pixels a side`, example: `${example}: ${size}` };
  if (!codec.formats.includes(format as ImageFormat)) {
    return { reason: `${FORMAT_NAMES[format as ImageFormat]}, which the native library was built without`, example };
  }
  if (format === "jpeg") {
    if (process === 2) return { reason: "lossless JPEG, which is not supported", example };
    if (bits !== 8) return { reason: "JPEG with samples of other than 8 bits", example: `${example}: ${bits} bits` };
    if (components !== 1 && components !== 3 && components !== 4) {
      return { reason: "JPEG with an odd number of components", example: `${example}: ${components}` };
    }
  }
  if (image.width !== null && (image.width !== width || image.height !== height)) {
    const swapped = image.width === height && image.height === width;
    const why = facts.orientation >= 5 ? `, swapped: the file has EXIF orientation ${facts.orientation}` : ", turned?";
    const detail = `annotated as ${image.width}x${image.height}, the file is ${size}${swapped ? why : ""}`;
    return { reason: SIZE_DIFFERS, example: `${example}: ${detail}` };
  }
  return null;
}

/** Ids of boxes that turn out to lie outside, now that the image's size is known. */
function boxesOutside(store: AnnotationStore, image: ImageRecord, facts: FileFacts, problems: ProblemList): number[] {
  const ids: number[] = [];
  for (const { id, sourceId, bbox } of store.annotationsOf(image.id)) {
    const placement = placeBox(bbox, facts.width, facts.height);
    if (placement === "inside") continue;
    const skipped = placement !== "partly";
    const example = `annotation ${sourceId} of ${image.fileName}: [${bbox.join(", ")}]`;
    problems.add("box", skipped ? "skipped" : "clipped", BOX_REASONS[placement], example);
    if (skipped) ids.push(id);
  }
  return ids;
}
