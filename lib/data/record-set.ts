import { readdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { fileError } from "../formats/atomic-file";
import { type RecordInfo, RecordShard } from "../formats/record-shard";
import { check, DlfsError, ErrorCode } from "../native/error";
import { ClassMap } from "./annotation-store";
import { type ProgressListener, showProgress } from "./progress";
import { Normalize, type PreprocessJson, type PreprocessOp, parsePreprocessing } from "./transforms";

/** What a record's values are: pixels, or values as a network takes them. */
export type RecordDType = "u8" | "bf16" | "f16" | "f32";

export const RECORD_DTYPE_BYTES: Readonly<Record<RecordDType, number>> = { u8: 1, bf16: 2, f16: 2, f32: 4 };

/** What a folder of record files was made with; the same for all its shards, each of which holds it. */
export interface PackDescription {
  /** The split that was packed, and the classes of its labels: names and category ids, by class index. */
  split: string;
  classes: readonly string[];
  categoryIds: readonly number[];
  /** Height and width of the network input. */
  size: readonly [height: number, width: number];
  dtype: RecordDType;
  /** Whether what surrounds a letterboxed image is in the record, or drawn when it is loaded. */
  padding: "stored" | "drawn";
  /** Boxes narrower or lower than this, in network input pixels, were dropped. */
  minBoxSize: number;
  preprocessing: readonly PreprocessJson[];
  /** Images of the split, and how many a shard has; those that could not be decoded are among them. */
  images: number;
  recordsPerShard: number;
  /** A hash of the images and boxes that went in. */
  data: string;
}

/** The name of the file that holds a folder's description; it is written before the first shard. */
export const DESCRIPTION_FILE = "records.json";
const WHAT = "dlfs records";
const VERSION = 1;

export function shardCount({ images, recordsPerShard }: PackDescription): number {
  return Math.ceil(images / recordsPerShard);
}

export function shardName(shard: number, shards: number): string {
  const digits = (value: number) => String(value).padStart(5, "0");
  return `shard-${digits(shard)}-of-${digits(shards)}.dlrec`;
}

/** The text of the description's file. */
export function formatDescription(description: PackDescription): string {
  return `${JSON.stringify({ what: WHAT, version: VERSION, ...description }, null, 2)}\n`;
}

/** The description of a folder, or null where it has none. */
export async function readDescription(folder: string): Promise<PackDescription | null> {
  const path = join(folder, DESCRIPTION_FILE);
  let text: string;
  try {
    text = await Bun.file(path).text();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw fileError(path, "read the description of record files", error);
  }
  let json: Record<string, unknown>;
  try {
    json = JSON.parse(text) as Record<string, unknown>;
  } catch (error) {
    throw new DlfsError(ErrorCode.io, path, `damaged: it is no JSON: ${(error as Error).message}`);
  }
  const { what, version, ...description } = json ?? {};
  check(what === WHAT, path, () => `what: expected "${WHAT}", got ${JSON.stringify(what)}`, ErrorCode.io);
  check(
    version === VERSION,
    path,
    () => `version: this dlfs reads version ${VERSION} of record files, got ${JSON.stringify(version)}`,
    ErrorCode.unsupported,
  );
  return checkedDescription(path, description);
}

function checkedDescription(path: string, json: Record<string, unknown>): PackDescription {
  const text = (value: unknown) => typeof value === "string";
  const count = (value: unknown) => Number.isSafeInteger(value) && (value as number) > 0;
  const list = (good: (value: unknown) => boolean) => (value: unknown) => Array.isArray(value) && value.every(good);
  const rules: Record<keyof PackDescription, [expected: string, good: (value: unknown) => boolean]> = {
    split: ["text", text],
    classes: ["a list of names", list(text)],
    categoryIds: ["a list of integers", list(Number.isSafeInteger)],
    size: ["height and width", (value) => list(count)(value) && (value as number[]).length === 2],
    dtype: ["u8, bf16, f16 or f32", (value) => text(value) && Object.hasOwn(RECORD_DTYPE_BYTES, value as string)],
    padding: ['"stored" or "drawn"', (value) => value === "stored" || value === "drawn"],
    minBoxSize: ["a number", Number.isFinite],
    preprocessing: ["a list of operations", list((value) => typeof value === "object" && value !== null)],
    images: ["an integer above 0", count],
    recordsPerShard: ["an integer above 0", count],
    data: ["text", text],
  };
  for (const [name, [expected, good]] of Object.entries(rules)) {
    const got = () => JSON.stringify(json[name])?.slice(0, 100);
    check(good(json[name]), path, () => `damaged: ${name}: expected ${expected}, got ${got()}`, ErrorCode.io);
  }
  return json as unknown as PackDescription;
}

/** The first difference between two descriptions, field by field, or null; long values are shortened. */
export function differenceOf(
  found: PackDescription,
  wanted: PackDescription,
): { field: keyof PackDescription; found: string; wanted: string } | null {
  const shown = (value: unknown): string => {
    const text = JSON.stringify(value);
    return text.length > 100 ? `${text.slice(0, 100)}...` : text;
  };
  for (const field of Object.keys(wanted) as (keyof PackDescription)[]) {
    if (JSON.stringify(found[field]) === JSON.stringify(wanted[field])) continue;
    return { field, found: shown(found[field]), wanted: shown(wanted[field]) };
  }
  return null;
}

/** Opens a shard of a folder and makes sure that it belongs there. */
export async function openShard(
  folder: string,
  description: PackDescription,
  options: string,
  shard: number,
): Promise<RecordShard> {
  const shards = shardCount(description);
  const opened = await RecordShard.open(join(folder, shardName(shard, shards)));
  const { path, identity } = opened;
  if (identity.options !== options) {
    const other = checkedDescription(path, JSON.parse(identity.options) as Record<string, unknown>);
    const difference = differenceOf(other, description);
    const what = difference ? `${difference.field}: expected ${difference.wanted}, got ${difference.found}` : "options";
    throw new DlfsError(ErrorCode.io, path, `it is of another pack than ${DESCRIPTION_FILE} beside it: ${what}`);
  }
  for (const [field, found, expected] of [
    ["shard", identity.shard, shard],
    ["shards", identity.shards, shards],
  ] as const) {
    check(found === expected, path, () => `damaged: index, ${field}: expected ${expected}, got ${found}`, ErrorCode.io);
  }
  checkRecords(opened, description);
  return opened;
}

/** What the index says must fit the size and kind of the folder's records. */
function checkRecords(shard: RecordShard, { size, dtype, classes }: PackDescription): void {
  const [height, width] = size;
  for (let i = 0; i < shard.length; i++) {
    const { x, y, storedWidth, storedHeight, labels } = shard.info(i);
    const fail = (field: string, expected: string, got: string) => {
      throw new DlfsError(
        ErrorCode.io,
        shard.path,
        `damaged: index, records[${i}].${field}: expected ${expected}, got ${got}`,
      );
    };
    if (x + storedWidth > width) fail("stored_width", `its end at ${width} at most`, `${x} + ${storedWidth}`);
    if (y + storedHeight > height) fail("stored_height", `its end at ${height} at most`, `${y} + ${storedHeight}`);
    const bytes = storedHeight * storedWidth * 3 * RECORD_DTYPE_BYTES[dtype];
    if (shard.lengths[i] !== bytes) fail("length", `${bytes} bytes`, `${shard.lengths[i]}`);
    const label = labels.find((value) => value < 0 || value >= classes.length);
    if (label !== undefined) fail("labels", `class indices below ${classes.length}`, `${label}`);
  }
}

/** The record files of a folder, opened: their indexes are in memory, their records on disk. */
export class RecordSet {
  /** Number of the first record of each shard, and behind the last, the number of records. */
  readonly starts: Uint32Array;
  /** Records in all shards. */
  readonly length: number;
  /** The most boxes of one record. */
  readonly maxBoxes: number;
  readonly classes: ClassMap;
  /** What was done to the images: the operations that made the records, Normalize among them where it was named. */
  readonly preprocessing: readonly PreprocessOp[];

  private constructor(
    readonly folder: string,
    readonly description: PackDescription,
    readonly shards: readonly RecordShard[],
  ) {
    this.starts = new Uint32Array(shards.length + 1);
    for (const [i, shard] of shards.entries()) this.starts[i + 1] = (this.starts[i] as number) + shard.length;
    this.length = this.starts[shards.length] as number;
    this.maxBoxes = Math.max(1, ...shards.map((shard) => shard.maxBoxes));
    this.classes = new ClassMap(
      description.classes.map((name, i) => ({ id: description.categoryIds[i] as number, name, supercategory: null })),
    );
    this.preprocessing = parsePreprocessing(description.preprocessing);
  }

  /**
   * Opens a folder that packRecords or `dlfs data pack` has written, and checks description, headers and indexes.
   *
   * @throws DlfsError of code `io` for a folder that is none, is not complete, or has a damaged shard, and `unsupported` for
   *   one of another version or byte order; each names file, field, what was expected and what came
   */
  static async open(folder: string, progress: ProgressListener = showProgress()): Promise<RecordSet> {
    const path = resolve(folder);
    const description = await readDescription(path);
    if (!description) {
      throw new DlfsError(ErrorCode.io, path, `it has no ${DESCRIPTION_FILE}: expected a folder of dlfs data pack`);
    }
    const shards = shardCount(description);
    const present = new Set(await readdir(path));
    const names = Array.from({ length: shards }, (_, i) => shardName(i, shards));
    const missing = names.filter((name) => !present.has(name));
    check(
      missing.length === 0,
      path,
      () =>
        `${missing.length} of ${shards} shards are missing, the first is ${missing[0]}; run dlfs data pack again: ` +
        "it does what is left",
      ErrorCode.io,
    );
    const options = JSON.stringify(description);
    const opened: RecordShard[] = new Array(shards);
    let next = 0;
    let done = 0;
    progress("opening record shards", 0, shards);
    const open = async (): Promise<void> => {
      while (next < shards) {
        const shard = next++;
        opened[shard] = await openShard(path, description, options, shard);
        progress("opening record shards", ++done, shards);
      }
    };
    await Promise.all(Array.from({ length: 8 }, open));
    const records = new RecordSet(path, description, opened);
    check(records.length > 0, path, () => "none of its images could be decoded: there are no records", ErrorCode.io);
    return records;
  }

  /** Where record i is, 0 <= i < length. */
  locate(i: number): { shard: number; index: number } {
    let low = 0;
    let high = this.shards.length;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if ((this.starts[middle] as number) <= i) low = middle;
      else high = middle;
    }
    return { shard: low, index: i - (this.starts[low] as number) };
  }

  /** What is known of record i. */
  info(i: number): RecordInfo {
    const { shard, index } = this.locate(i);
    return (this.shards[shard] as RecordShard).info(index);
  }

  /** The normalisation that the records were packed for; without one, pixels become 0 to 1. */
  get normalize(): Normalize {
    const found = this.preprocessing.find((op) => op instanceof Normalize);
    return found ?? new Normalize({ mean: [0, 0, 0], std: [1, 1, 1] });
  }
}
