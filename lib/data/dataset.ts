import { createHash } from "node:crypto";
import { mkdir, readdir, realpath, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { check, DlfsError, ErrorCode } from "../native/error";
import type { AnnotationStore, ClassMap, StoreCounts } from "./annotation-store";
import { cacheFolder } from "./cache";
import { CachedDataSource, CopyError } from "./cached-data-source";
import { checkImages } from "./check-images";
import { importCoco } from "./coco-import";
import type { ImageCodec } from "./codec";
import type { DataSource } from "./data-source";
import { fileError, isMissing, LocalDataSource } from "./local-data-source";
import { type DataSourceOptions, dataSource, isRemoteLocation } from "./open-data-source";
import { counted, ProblemList } from "./problems";
import { type ProgressListener, showProgress } from "./progress";
import { SQLiteAnnStore } from "./sqlite-ann-store";

export interface LoadDatasetOptions {
  codec: ImageCodec;
  trainSplit?: string;
  /** null: there is none. */
  valSplit?: string | null;
  /** Folder of the images, relative to the data set's. Default: the first of SPLIT, images/SPLIT and images that exists. */
  imageFolder?: string;
  /** Whether the first split must have boxes. Default true. */
  requireBoxes?: boolean;
  /** Where annotations are kept between runs: a store, a file, or ":memory:". Default: a file under the cache folder. */
  store?: AnnotationStore | string;
  progress?: ProgressListener;
  /** Told of what is worth knowing but stops nothing. Default: a line on standard error. */
  warn?: (message: string) => void;
  /** How a source behind a network is opened, where the data set is given by its address. */
  source?: DataSourceOptions;
  signal?: AbortSignal;
}

/** A data set, read and checked. */
export interface Dataset extends Disposable {
  /** Where it lies: the absolute path of a folder, or an address such as gs://bucket/coco. */
  folder: string;
  source: DataSource;
  store: AnnotationStore;
  trainSplit: string;
  valSplit: string | null;
  classes: ClassMap;
  train: StoreCounts;
  val: StoreCounts | null;
  /** All that is left out or corrected, of both splits. */
  problems: ProblemList;
  /** Closes the store, unless it was given. */
  [Symbol.dispose](): void;
}

/** Raised when importCoco starts to read the same file differently, so that kept stores are made anew. */
const IMPORT_VERSION = 1;

/**
 * Reads a data set in COCO's own layout: `annotations/instances_SPLIT.json`, and the images in `SPLIT/`, `images/SPLIT/` or
 * `images/`. It lies in a folder, at an address that dataSource knows (gs://, s3://, https://), or in a source of one's own;
 * from servers that cannot list, the images are expected in `SPLIT/` unless `imageFolder` says otherwise. Annotations are imported again only where their file has changed, image files are looked at again only where
 * they have changed. Nothing is written to the folder. What makes training impossible is a DlfsError that names what was
 * looked for and where; what can be left out is in `problems`.
 */
export async function loadDataset(location: string | DataSource, options: LoadDatasetOptions): Promise<Dataset> {
  const { codec, trainSplit = "train2017", valSplit = "val2017", progress, signal } = options;
  const splits = [...new Set(valSplit === null ? [trainSplit] : [trainSplit, valSplit])];
  const source =
    typeof location === "string" ? dataSource(location, { warn: options.warn, ...options.source }) : location;
  const local = source instanceof LocalDataSource ? source.root : null;
  const folder = local ?? (typeof location === "string" ? location.replace(/\/+$/, "") : rootOf(source));
  const parts: SplitFiles[] = [];
  for (const split of splits) {
    const part =
      local === null ? findRemoteSplit(source, split, options) : findSplit(local, split, options.imageFolder);
    parts.push(await part);
  }

  const given = typeof options.store === "object" ? options.store : null;
  const store = given ?? (await openStore(folder, local !== null, options));
  try {
    await importSplits(store, parts, given === null, source, options);
    const problems = new ProblemList();
    for (const record of store.imports()) {
      if (splits.includes(record.split)) problems.merge(record.problems);
    }
    // Asking a service for each object takes a request each, listing them one for a thousand.
    const listing = local === null;
    for (const split of splits)
      problems.merge((await checkImages(store, source, { split, codec, listing, progress, signal })).problems);

    const train = store.counts(trainSplit);
    const val = valSplit === null ? null : store.counts(valSplit);
    for (const { split, annotations, imageFolder } of parts) {
      const counts = split === trainSplit ? train : (val as StoreCounts);
      const place = local === null ? source.locate(imageFolder) : join(local, imageFolder);
      const why = () => [`${counts.images} images in ${place}`, ...problems.lines()].join("\n  ");
      check(counts.usable > 0, annotations, () => `none of its images can be used: ${why()}`, ErrorCode.io);
    }
    check(
      !(options.requireBoxes ?? true) || train.annotations > train.crowds,
      parts[0]?.annotations ?? folder,
      () => ["no boxes to learn from", ...problems.lines()].join("\n  "),
      ErrorCode.io,
    );
    const dispose = (): void => {
      if (!given) store.close();
    };
    const common = { folder, source, store, trainSplit, valSplit, train, val, problems };
    return { ...common, classes: store.classes(), [Symbol.dispose]: dispose };
  } catch (error) {
    if (!given) store.close();
    throw error;
  }
}

/** Lines that say what a data set holds and what is left out of it. */
export function describeDataset({ classes, train, val, trainSplit, valSplit, problems }: Dataset): string[] {
  const line = (split: string, c: StoreCounts): string => {
    const crowds = c.crowds > 0 ? ` and ${counted(c.crowds, "crowd")}` : "";
    const empty = c.withoutBoxes > 0 ? `, ${c.withoutBoxes} without boxes` : "";
    const boxes = `${counted(c.annotations - c.crowds, "box")}${crowds}`;
    return `${split}: ${counted(c.usable, "image")}${empty}, ${boxes}, ${counted(classes.length, "class")}`;
  };
  const lines = [line(trainSplit, train)];
  if (val && valSplit !== null) lines.push(line(valSplit, val));
  return [...lines, ...problems.lines()];
}

/** What a source puts before its keys. */
function rootOf(source: DataSource): string {
  const key = "annotations";
  return source
    .locate(key)
    .slice(0, -key.length)
    .replace(/[/\s]+$/, "");
}

interface SplitFiles {
  split: string;
  /** Path of the annotation file, or what its source calls it. */
  annotations: string;
  size: number;
  modified: number;
  /** Relative to the data set's folder. */
  imageFolder: string;
}

async function findSplit(folder: string, split: string, imageFolder: string | undefined): Promise<SplitFiles> {
  const op = "loadDataset";
  const file = `instances_${split}.json`;
  const layout = `expected COCO's layout there: annotations/${file} and the images in ${split}/ or images/`;
  check((await kindOf(folder)) === "folder", op, () => `${folder}: no such folder; ${layout}`, ErrorCode.io);
  const annotations = join(folder, "annotations", file);
  if ((await kindOf(annotations)) !== "file") {
    const names = await readdir(join(folder, "annotations")).catch(() => []);
    const found = names.flatMap((name) => /^instances_(.+)\.json$/.exec(name)?.[1] ?? []).sort();
    const hint = found.length > 0 ? `the splits there are: ${found.join(", ")}` : layout;
    throw new DlfsError(ErrorCode.io, op, `${annotations}: no such file; ${hint}`);
  }
  const candidates = imageFolder === undefined ? [split, `images/${split}`, "images"] : [imageFolder];
  const kinds = await Promise.all(candidates.map((candidate) => kindOf(join(folder, candidate))));
  const place = kinds.indexOf("folder");
  check(
    place >= 0,
    op,
    () =>
      `no folder with the images of ${annotations}; looked for ${candidates.map((c) => join(folder, c)).join(", ")}`,
    ErrorCode.io,
  );
  const info = await stat(annotations);
  return {
    split,
    annotations,
    size: info.size,
    modified: Math.floor(info.mtimeMs),
    imageFolder: candidates[place] as string,
  };
}

const annotationKey = (split: string): string => `annotations/instances_${split}.json`;

async function findRemoteSplit(source: DataSource, split: string, options: LoadDatasetOptions): Promise<SplitFiles> {
  const op = "loadDataset";
  const { signal, imageFolder } = options;
  const key = annotationKey(split);
  const annotations = source.locate(key);
  const info = await source.stat(key, { signal });
  if (!info) {
    const found: string[] = [];
    for await (const name of keysOf(source, "annotations/", signal)) {
      found.push(...(/^annotations\/instances_(.+)\.json$/.exec(name)?.slice(1) ?? []));
    }
    const layout = `expected COCO's layout there: ${key} and the images in ${split}/ or images/`;
    const hint = found.length > 0 ? `the splits there are: ${found.join(", ")}` : layout;
    throw new DlfsError(ErrorCode.io, op, `${annotations}: no such object; ${hint}`);
  }
  const { size, modified } = info;
  const part = { split, annotations, size, modified };
  if (imageFolder !== undefined) return { ...part, imageFolder };
  const candidates = [split, `images/${split}`, "images"];
  for (const candidate of candidates) {
    const first = await firstOf(source, `${candidate}/`, signal);
    if (first !== "none") return { ...part, imageFolder: candidate };
  }
  const places = candidates.map((candidate) => source.locate(candidate)).join(", ");
  throw new DlfsError(ErrorCode.io, op, `no images of ${annotations}; looked for ${places}`);
}

/** Whether there are objects under a prefix; null where the source cannot list. */
async function firstOf(source: DataSource, prefix: string, signal?: AbortSignal): Promise<"some" | "none" | null> {
  try {
    for await (const _ of source.list(prefix, { signal })) return "some";
    return "none";
  } catch (error) {
    if (error instanceof DlfsError && error.code === ErrorCode.unsupported) return null;
    throw error;
  }
}

/** The keys under a prefix, as far as the source can list them. */
async function* keysOf(source: DataSource, prefix: string, signal?: AbortSignal): AsyncIterable<string> {
  try {
    for await (const { key } of source.list(prefix, { signal })) yield key;
  } catch (error) {
    signal?.throwIfAborted();
    if (!(error instanceof DlfsError)) throw error; // else the caller has a failure to report already
  }
}

async function kindOf(path: string): Promise<"file" | "folder" | null> {
  try {
    const info = await stat(path);
    return info.isFile() ? "file" : info.isDirectory() ? "folder" : null;
  } catch (error) {
    if (isMissing(error)) return null;
    throw fileError("loadDataset", path, error);
  }
}

/** The file that keeps a data set's annotations between runs, unless loadDataset is told of another. */
async function keptStorePath(folder: string, local: boolean): Promise<string> {
  const place = local ? await realpath(folder) : folder;
  const hash = createHash("sha256").update(place).digest("hex").slice(0, 12);
  return join(cacheFolder(), "datasets", `${basename(folder)}-${hash}.sqlite`);
}

async function openStore(folder: string, local: boolean, options: LoadDatasetOptions): Promise<AnnotationStore> {
  if (typeof options.store === "string") return new SQLiteAnnStore(options.store);
  const path = await keptStorePath(folder, local);
  try {
    await mkdir(dirname(path), { recursive: true });
    return new SQLiteAnnStore(path);
  } catch (error) {
    const { warn = warning } = options;
    warn(`annotations are not kept between runs: ${(error as Error).message}`);
    return new SQLiteAnnStore();
  }
}

/**
 * The store of a data set's annotations as the last loadDataset has left it, without a look at the data set itself. To be closed.
 *
 * @param location as loadDataset takes it
 * @throws DlfsError where this machine keeps none
 */
export async function openKeptStore(location: string): Promise<AnnotationStore> {
  const source = isRemoteLocation(location) ? null : dataSource(location);
  const local = source instanceof LocalDataSource ? source.root : null;
  const folder = local ?? location.replace(/\/+$/, "");
  const path = await keptStorePath(folder, local !== null).catch((error) => {
    throw fileError("openKeptStore", folder, error);
  });
  const kept = (await kindOf(path)) === "file";
  check(kept, folder, () => `no annotations are kept of it here (${path}): nothing was trained on it`, ErrorCode.io);
  return new SQLiteAnnStore(path);
}

/** Imports the splits that the store does not have, or has of an older file. */
async function importSplits(
  store: AnnotationStore,
  parts: readonly SplitFiles[],
  ownStore: boolean,
  source: DataSource,
  { progress, signal, warn = warning }: LoadDatasetOptions,
): Promise<void> {
  const keptUnder = (split: string): string => `dataset ${split}`;
  const signature = (part: SplitFiles): string => JSON.stringify({ ...part, version: IMPORT_VERSION });
  const present = store.splits();
  const wanted = parts.filter(
    (part) => !present.includes(part.split) || store.getMetadata(keptUnder(part.split)) !== signature(part),
  );
  const stale = wanted.filter((part) => present.includes(part.split));
  if (stale.length > 0 && store instanceof SQLiteAnnStore) keepWorkOfPeople(store, stale, warn);
  // Splits of a data set that has changed may not agree on its categories any more: all are read again.
  if (stale.length > 0 && ownStore) {
    store.clear();
    wanted.splice(0, wanted.length, ...parts);
  } else {
    for (const { split } of stale) store.deleteSplit(split);
  }
  for (const part of wanted) {
    const { split, annotations, imageFolder } = part;
    const metadata = { [keptUnder(split)]: signature(part) };
    const input =
      source instanceof LocalDataSource ? annotations : await fetchAnnotations(source, split, progress, signal);
    try {
      await importCoco(store, input, { split, folder: imageFolder, name: annotations, metadata, progress });
    } catch (error) {
      // Another process may have imported the same file into this store in the meantime.
      const done = store.splits().includes(split) && store.getMetadata(keptUnder(split)) === signature(part);
      if (!done) throw error;
    }
  }
}

const warning = (message: string) => console.warn(`warning: ${message}`);

/** The last change that a copy was made of. */
const COPIED = "changes copied";

/** Copies a store that is about to be filled anew where people have changed annotations in it since the last copy. */
function keepWorkOfPeople(store: SQLiteAnnStore, stale: readonly SplitFiles[], warn: (message: string) => void): void {
  const changes = store.changesOfPeople(Number(store.getMetadata(COPIED) ?? 0));
  if (changes === 0 || store.path === ":memory:") return;
  const copy = store.path.replace(/(\.sqlite)?$/, `-${new Date().toISOString().replaceAll(":", "")}.sqlite`);
  store.copyTo(copy);
  store.setMetadata(COPIED, String(store.lastChange()));
  const files = stale.map(({ annotations }) => annotations).join(", ");
  const [first] = stale as [SplitFiles, ...SplitFiles[]];
  const command = `dlfs label export --store ${copy} --split ${first.split} --format coco --out FILE`;
  warn(
    `${files} has changed and is read again; what was there with ${counted(changes, "change")} of people since the last ` +
      `time is kept in ${copy}: ${command} writes it`,
  );
}

/** The annotation file as a file on disk, or its bytes where the source has none and no cache makes one. */
async function fetchAnnotations(
  source: DataSource,
  split: string,
  progress: ProgressListener | undefined,
  signal: AbortSignal | undefined,
): Promise<string | Uint8Array> {
  const key = annotationKey(split);
  if (source instanceof CachedDataSource) {
    try {
      return await source.download(key, { progress: progress ?? showProgress(), signal });
    } catch (error) {
      if (!(error instanceof CopyError)) throw error; // else the disk is full, and it may work without
    }
  }
  return source.pathOf(key) ?? (await source.read(key, { signal }));
}
