/** Files that labeling tools write, read into a store of their own. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, extname, join } from "node:path";
import {
  type ImportFormat,
  type ImportReport,
  importDataset,
  ProblemList,
  type ProgressListener,
  SQLiteAnnStore,
} from "../data";
import { ZipArchive } from "../data/zip-archive";
import { check, DlfsError, ErrorCode } from "../native/error";

/** What labeling tools write: Label Studio's JSON, CVAT's COCO, CVAT's XML. */
export const labelFormats = ["label-studio", "coco", "cvat-xml"] as const satisfies ImportFormat[];

export interface LabelFileOptions {
  /** Default: as the file looks. */
  format?: (typeof labelFormats)[number];
  /** What comes before images' names in Label Studio's tasks. */
  imagePrefix?: string;
  /** The field of Label Studio's tasks that has the image's address. Default "image". */
  imageField?: string;
  /** Addresses of Label Studio's users by their ids. */
  users?: ReadonlyMap<number, string>;
  progress?: ProgressListener;
}

/** Labels of some images; to be disposed of. */
export interface LabelFile extends Disposable {
  readonly store: SQLiteAnnStore;
  /** Images, by their ids in the store, that are not all there: why. */
  readonly inexact: ReadonlyMap<number, string>;
  /** Whether an image without boxes has been looked at, and whether the tool keeps boxes' ids and that one is a crowd. */
  readonly isExplicit: boolean;
  /** What was left out, or read as something else. */
  readonly problems: readonly string[];
}

/** Files within an archive of CVAT's that have its labels. */
const IN_ARCHIVE = /(?:^|\/)(?:annotations\/[^/]+\.json|annotations\.xml)$/;

/**
 * Reads a file of Label Studio (JSON) or CVAT (COCO or its own XML, or the archive of one). Of Label Studio's tasks those that
 * somebody has annotated.
 *
 * @throws DlfsError naming the file and the field
 */
export async function importLabels(path: string, options: LabelFileOptions = {}): Promise<LabelFile> {
  const { format, ...how } = options;
  check(
    await Bun.file(path).exists(),
    path,
    () => "expected a file that a labeling tool has written; there is none",
    ErrorCode.io,
  );
  const store = new SQLiteAnnStore();
  const folder = extname(path).toLowerCase() === ".zip" ? await mkdtemp(join(tmpdir(), "dlfs-labels-")) : null;
  try {
    const files = folder === null ? [path] : await unpacked(path, folder);
    const inexact = new Map<number, string>();
    const problems: string[] = [];
    let isExplicit = true;
    for (const [i, file] of files.entries()) {
      const found = format ?? formatOf(file, await firstCharacter(file));
      const split = `${i}`;
      const common = { ...how, format: found, split, predictions: "never", annotatedOnly: true } as const;
      const [report] = (await importDataset(store, file, common)) as [ImportReport];
      const ids = new Map(store.images(split).map(({ id, sourceId }) => [sourceId, id]));
      for (const [sourceId, place] of report.inexact.images) inexact.set(ids.get(sourceId) as number, place);
      // Their images are refused, so nothing becomes of what boxes cannot say.
      const others = report.problems.entries().filter(({ reason }) => !report.inexact.reasons.has(reason));
      const list = new ProblemList();
      list.merge(others);
      problems.push(...list.lines());
      isExplicit &&= found === "label-studio";
    }
    return { store, inexact, isExplicit, problems, [Symbol.dispose]: () => store.close() };
  } catch (error) {
    store.close();
    throw error;
  } finally {
    if (folder !== null) await rm(folder, { recursive: true, force: true });
  }
}

async function unpacked(path: string, folder: string): Promise<string[]> {
  await using archive = await ZipArchive.open(path);
  const entries = archive.entries.filter(({ name }) => IN_ARCHIVE.test(name));
  check(
    entries.length > 0,
    path,
    () => "expected annotations/*.json or annotations.xml in it: CVAT's COCO, or its own format for images",
    ErrorCode.io,
  );
  const files: string[] = [];
  for (const entry of entries) {
    files.push(join(folder, `${files.length}-${basename(entry.name)}`));
    await archive.extract(entry, files.at(-1) as string);
  }
  return files;
}

async function firstCharacter(path: string): Promise<string> {
  const text = await Bun.file(path).slice(0, 4096).text();
  return text.replace(/^\ufeff/, "").trimStart()[0] ?? "";
}

function formatOf(path: string, first: string): (typeof labelFormats)[number] {
  const format = { "[": "label-studio", "{": "coco", "<": "cvat-xml" }[first] as
    | (typeof labelFormats)[number]
    | undefined;
  if (format) return format;
  const found = first === "" ? "nothing" : `a file that begins with ${JSON.stringify(first)}`;
  throw new DlfsError(ErrorCode.io, path, `expected Label Studio's or CVAT's labels, got ${found}`);
}
