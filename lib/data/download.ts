import { mkdir, open, readFile, rm, stat, statfs, truncate, unlink, writeFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import { crc32 } from "node:zlib";
import { check, DlfsError, ErrorCode } from "../native/error";
import { keyProblem, SourceError } from "./data-source";
import { type Attempt, connectionProblem, refusal, send } from "./http-transfer";
import { fileError, isMissing } from "./local-data-source";
import { type ProgressListener, showProgress } from "./progress";
import { RetriesExhausted, type RetryOptions, retrying, sleep, TransientError } from "./retry";
import { ZipArchive, type ZipEntry } from "./zip-archive";

/** A ZIP archive of a published data set. */
export interface DatasetArchive {
  name: string;
  url: string;
  /** Bytes of the archive, and of what it unpacks to. */
  size: number;
  unpacked: number;
  /** SHA-256 of the archive, hexadecimal. */
  sha256: string;
  /** Only entries whose names begin with this are unpacked. Default: all. */
  only?: string;
}

export interface DatasetArchives {
  name: string;
  archives: readonly DatasetArchive[];
}

/** Data sets that downloadDataset knows by name. */
export const publishedDatasets: readonly DatasetArchives[] = [
  {
    name: "coco2017",
    archives: [
      {
        name: "annotations_trainval2017.zip",
        url: "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
        size: 252_907_541,
        unpacked: 500_000_000,
        sha256: "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        only: "annotations/instances_",
      },
      {
        name: "val2017.zip",
        url: "http://images.cocodataset.org/zips/val2017.zip",
        size: 815_585_330,
        unpacked: 830_000_000,
        sha256: "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
      },
      {
        name: "train2017.zip",
        url: "http://images.cocodataset.org/zips/train2017.zip",
        size: 19_336_861_798,
        unpacked: 19_800_000_000,
        sha256: "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
      },
    ],
  },
];

export interface DownloadOptions {
  /** Where the data set is to lie. Default: ~/datasets/coco for coco2017, which is where train_coco.ts looks. */
  folder?: string;
  /** Names of archives, where not all are wanted: "val2017.zip". */
  only?: readonly string[];
  /** Whether the archives stay in FOLDER/.download when they are unpacked. Default: false. */
  keepArchives?: boolean;
  /** Files unpacked at a time. */
  concurrency?: number;
  retry?: RetryOptions;
  /** Milliseconds without a byte after which a connection is given up. Default 30,000. */
  timeout?: number;
  progress?: ProgressListener;
  signal?: AbortSignal;
}

export interface DownloadReport {
  folder: string;
  /** Bytes that came over the network. */
  bytes: number;
  /** Files unpacked, and those that were there already. */
  files: number;
  present: number;
}

/**
 * Fetches a published data set (a name of publishedDatasets, or archives of one's own), verifies the archives' checksums and unpacks them.
 * Whatever ends it, calling it again goes on: an archive at the byte where the transfer stopped (by range requests, where the
 * server has them), unpacking at the first file that is not there or differs from its checksum; what is complete is left
 * as it is. One process at a time can work on a folder.
 */
export async function downloadDataset(
  dataset: string | DatasetArchives,
  options: DownloadOptions = {},
): Promise<DownloadReport> {
  const found = typeof dataset === "string" ? publishedDatasets.find(({ name }) => name === dataset) : dataset;
  const names = publishedDatasets.map(({ name }) => name).join(", ");
  check(found !== undefined, OP, () => `there is no data set "${dataset}", expected one of ${names}`);
  const { only } = options;
  for (const name of only ?? []) {
    const known = found.archives.map((archive) => archive.name);
    check(known.includes(name), OP, () => `${found.name} has no archive "${name}", expected ${known.join(", ")}`);
  }
  const archives = found.archives.filter(({ name }) => only?.includes(name) ?? true);
  const place = found.name === "coco2017" ? "coco" : found.name;
  const folder = resolve(options.folder ?? join(homedir(), "datasets", place));
  const report: DownloadReport = { folder, bytes: 0, files: 0, present: 0 };
  const work = join(folder, ".download");
  try {
    await mkdir(work, { recursive: true });
  } catch (error) {
    throw fileError(OP, work, error);
  }
  await using _ = await lock(join(work, "lock"));
  const done = await readDone(work);
  const open = archives.filter(({ name, sha256 }) => done[name] !== sha256);
  await checkRoom(work, open);
  for (const archive of open) {
    const path = join(work, archive.name);
    report.bytes += await fetchArchive(archive, path, options);
    await verify(archive, path, options);
    await unpack(archive, path, folder, report, options);
    done[archive.name] = archive.sha256;
    await writeFile(join(work, "done.json"), `${JSON.stringify(done, null, 2)}\n`);
    if (!options.keepArchives) await rm(path, { force: true });
  }
  return report;
}

/** Reads a description of archives from a JSON file: {"name", "archives": [{"name", "url", "size", ...}]}. */
export async function readDatasetArchives(path: string): Promise<DatasetArchives> {
  const fail = (what: string): never => {
    throw new DlfsError(ErrorCode.io, OP, `${path}: ${what}`);
  };
  const text = await readFile(path, "utf8").catch((error: unknown) => {
    throw fileError(OP, path, error);
  });
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    fail(`expected JSON: ${(error as Error).message}`);
  }
  const { name, archives } = (typeof json === "object" && json !== null ? json : {}) as Record<string, unknown>;
  if (typeof name !== "string" || name === "") fail("name: expected a text");
  if (!Array.isArray(archives) || archives.length === 0) fail("archives: expected a list of archives");
  for (const [i, entry] of (archives as Record<string, unknown>[]).entries()) {
    const field = (key: string, expected: string, good: (value: unknown) => boolean): void => {
      if (!good(entry?.[key])) fail(`archives[${i}].${key}: expected ${expected}, got ${JSON.stringify(entry?.[key])}`);
    };
    const isSize = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) >= 0;
    field(
      "name",
      "a file name",
      (value) => typeof value === "string" && /^[^/\\]+$/.test(value) && keyProblem(value) === null,
    );
    field("url", "an http(s) address", (value) => typeof value === "string" && /^https?:\/\//.test(value));
    field("size", "a number of bytes", isSize);
    field("unpacked", "a number of bytes", isSize);
    field("sha256", "64 hexadecimal digits", (value) => typeof value === "string" && /^[0-9a-f]{64}$/.test(value));
    field("only", "a text", (value) => value === undefined || typeof value === "string");
  }
  return json as DatasetArchives;
}

const OP = "downloadDataset";
const MEGABYTE = 1e6;

/** Archives that have been unpacked, by name, with their checksums. */
async function readDone(work: string): Promise<Record<string, string>> {
  try {
    return JSON.parse(await readFile(join(work, "done.json"), "utf8")) as Record<string, string>;
  } catch (error) {
    // Without it, or where it is damaged, archives are fetched again and files compared: slower, and just as right.
    if (isMissing(error) || error instanceof SyntaxError) return {};
    throw fileError(OP, join(work, "done.json"), error);
  }
}

/** Keeps other processes out of a folder until it is disposed. A lock of a process that has ended does not count. */
async function lock(path: string): Promise<AsyncDisposable> {
  for (let attempt = 0; ; attempt++) {
    try {
      await writeFile(path, String(process.pid), { flag: "wx" });
      return { [Symbol.asyncDispose]: () => unlink(path).catch(() => {}) };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw fileError(OP, path, error);
    }
    const owner = Number(await readFile(path, "utf8").catch(() => ""));
    if (attempt > 0 || (owner > 0 && isRunning(owner))) {
      throw new DlfsError(ErrorCode.io, OP, `${path}: process ${owner} is downloading to this folder`);
    }
    await unlink(path).catch(() => {});
  }
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

/** Refuses to begin what the disk has no room for. */
async function checkRoom(work: string, archives: readonly DatasetArchive[]): Promise<void> {
  let needed = 0;
  for (const { name, size, unpacked } of archives) needed += size - (await sizeOf(join(work, name))) + unpacked;
  const free = await statfs(work).then(
    ({ bavail, bsize }) => bavail * bsize,
    () => Number.POSITIVE_INFINITY, // not every file system says
  );
  const gigabytes = (bytes: number): string => `${(bytes / 1e9).toFixed(1)} GB`;
  check(
    free >= needed,
    OP,
    () => `${work}: ${gigabytes(needed)} are needed, ${gigabytes(free)} are free`,
    ErrorCode.io,
  );
}

async function sizeOf(path: string): Promise<number> {
  try {
    return (await stat(path)).size;
  } catch (error) {
    if (isMissing(error)) return 0;
    throw fileError(OP, path, error);
  }
}

/** Brings an archive to its full size; the result is how many bytes came. */
async function fetchArchive(archive: DatasetArchive, path: string, options: DownloadOptions): Promise<number> {
  const { size, name, url } = archive;
  const { progress = showProgress(), signal } = options;
  const label = `fetching ${name} (MB)`;
  let have = await sizeOf(path);
  if (have > size) {
    await truncate(path, 0);
    have = 0;
  }
  const before = have;
  let received = 0;
  const show = (): void => progress(label, Math.floor(have / MEGABYTE), Math.ceil(size / MEGABYTE));
  progress(label, 0, Math.ceil(size / MEGABYTE));
  let furthest = have;
  const transfer = async (): Promise<void> => {
    try {
      await appendFrom(archive, path, have, options, (length, restarted) => {
        have = restarted ? 0 : have + length;
        received += length;
        show();
      });
    } catch (error) {
      // Where it came further than ever, this is no further failure of the same kind, and the next attempt goes on from here.
      if (!(error instanceof TransientError) || have <= furthest) throw error;
      furthest = have;
      await sleep(Math.min(1000, options.retry?.firstDelay ?? 200), signal);
    }
  };
  while (have < size) {
    try {
      await retrying(transfer, options.retry, signal);
    } catch (error) {
      if (signal?.aborted) throw signal.reason;
      if (!(error instanceof RetriesExhausted)) throw error;
      const kept = `${have} of ${size} bytes are there, the next call goes on`;
      throw new SourceError(OP, url, "unavailable", `${error.message}; ${kept}`, { cause: error });
    }
  }
  if (before < size) show();
  return received;
}

/** Appends what comes from byte `have` on. `arrived` is told of each piece, and of a server that begins again at the start. */
async function appendFrom(
  { url, size }: DatasetArchive,
  path: string,
  have: number,
  { timeout = 30_000, signal }: DownloadOptions,
  arrived: (length: number, restarted: boolean) => void,
): Promise<void> {
  const silence = new AbortController();
  const giveUp = (): void => silence.abort(new TransientError(`nothing came for ${timeout / 1000} s`));
  let timer = setTimeout(giveUp, timeout);
  const attempt: Attempt = {
    signal: signal ? AbortSignal.any([signal, silence.signal]) : silence.signal,
    progress: () => {
      clearTimeout(timer);
      timer = setTimeout(giveUp, timeout);
    },
  };
  try {
    const response = await send({ url, headers: have > 0 ? { range: `bytes=${have}-` } : {} }, attempt);
    if (!response.ok) throw await refusal(OP, url, response, attempt);
    const partial = response.status === 206;
    const total = partial
      ? Number(/\/(\d+)$/.exec(response.headers.get("content-range") ?? "")?.[1] ?? size)
      : Number(response.headers.get("content-length") ?? size);
    if (total !== size) {
      await response.body?.cancel();
      const message = `${url}: the file there has ${total} bytes, expected ${size}: it is another one`;
      throw new DlfsError(ErrorCode.io, OP, message);
    }
    await using file = await open(path, partial ? "a" : "w");
    if (!partial && have > 0) arrived(0, true);
    for await (const chunk of (response.body ?? []) as AsyncIterable<Uint8Array>) {
      attempt.progress();
      await file.writeFile(chunk);
      arrived(chunk.length, false);
    }
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    if (silence.signal.aborted) throw silence.signal.reason;
    const connection = connectionProblem(error);
    if (connection !== null) throw new TransientError(connection, null, { cause: error });
    throw error instanceof TransientError ? error : fileError(OP, path, error);
  } finally {
    clearTimeout(timer);
  }
}

/** Compares an archive with its checksum; one that differs is removed. */
async function verify(
  { name, size, sha256, url }: DatasetArchive,
  path: string,
  { progress = showProgress(), signal }: DownloadOptions,
): Promise<void> {
  const label = `verifying ${name} (MB)`;
  const hasher = new Bun.CryptoHasher("sha256");
  const buffer = new Uint8Array(4 << 20);
  let done = 0;
  progress(label, 0, Math.ceil(size / MEGABYTE));
  {
    await using file = await open(path, "r");
    for (;;) {
      signal?.throwIfAborted();
      const { bytesRead } = await file.read(buffer, 0, buffer.length, done);
      if (bytesRead === 0) break;
      hasher.update(buffer.subarray(0, bytesRead));
      done += bytesRead;
      progress(label, Math.floor(done / MEGABYTE), Math.ceil(size / MEGABYTE));
    }
  }
  const found = hasher.digest("hex");
  if (found === sha256 && done === size) return;
  await rm(path, { force: true });
  const message = `${url}: ${done} bytes with SHA-256 ${found}, expected ${size} with ${sha256}; removed, the next call fetches it again`;
  throw new DlfsError(ErrorCode.io, OP, message);
}

async function unpack(
  { name, only = "" }: DatasetArchive,
  path: string,
  folder: string,
  report: DownloadReport,
  { progress = showProgress(), concurrency = 8, signal }: DownloadOptions,
): Promise<void> {
  await using archive = await ZipArchive.open(path);
  const entries = archive.entries.filter((entry) => entry.name.startsWith(only));
  for (const entry of entries) {
    const problem = keyProblem(entry.name);
    check(problem === null, OP, () => `${path}: entry ${JSON.stringify(entry.name)} ${problem}`, ErrorCode.io);
  }
  const label = `unpacking ${name}`;
  let next = 0;
  let finished = 0;
  progress(label, 0, entries.length);
  const worker = async (): Promise<void> => {
    for (let i = next++; i < entries.length; i = next++) {
      const entry = entries[i] as ZipEntry;
      const target = join(folder, entry.name);
      try {
        signal?.throwIfAborted();
        if (await isUnpacked(entry, target)) {
          report.present++;
        } else {
          await archive.extract(entry, target, signal);
          report.files++;
        }
      } catch (error) {
        next = entries.length;
        throw error;
      }
      progress(label, ++finished, entries.length);
    }
  };
  const workers = await Promise.allSettled(Array.from({ length: concurrency }, worker));
  const failed = workers.find((result) => result.status === "rejected");
  if (failed) throw failed.reason;
}

/** Whether a file is there with an entry's size and checksum. */
async function isUnpacked(entry: ZipEntry, path: string): Promise<boolean> {
  try {
    await using file = await open(path, "r");
    if ((await file.stat()).size !== entry.size) return false;
    const buffer = new Uint8Array(Math.max(1, Math.min(entry.size, 4 << 20)));
    let sum = 0;
    for (let done = 0; done < entry.size; ) {
      const { bytesRead } = await file.read(buffer, 0, buffer.length, done);
      if (bytesRead === 0) return false;
      sum = crc32(buffer.subarray(0, bytesRead), sum);
      done += bytesRead;
    }
    return sum === entry.crc32;
  } catch (error) {
    if (isMissing(error)) return false;
    throw fileError(OP, path, error);
  }
}
