/** The data path: images and records into batches on the device, and what training on them loses to waiting. */
import { readFileSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import {
  augmentationPreset,
  type BatchImages,
  CocoDataLoader,
  cacheFolder,
  type DetectionBatch,
  type DetectionLoader,
  DeviceBatchDecoder,
  DeviceImageCodec,
  DeviceRecordReader,
  LocalDataSource,
  Normalize,
  packRecords,
  RecordLoader,
  RecordSet,
  Resize,
  SQLiteAnnStore,
} from "../data";
import { check, ErrorCode } from "../native";
import { type Device, PinnedBuffer } from "../tensor";
import { autotune, constantRate, SGD, TrainStep } from "../train";
import { benchImages, type ImageBenchSettings } from "./bench-images";
import type { DataPeer } from "./data-peer";
import { timingOf } from "./measure";
import { BOXES, makeModel, type NetworkSettings, syntheticImages, syntheticTargets, trainingName } from "./network";
import type { PeerRow } from "./peers";
import type { BenchRow } from "./results";
import { milliseconds, table } from "./table";

export interface DataSettings extends ImageBenchSettings {
  /** Batches that a repetition takes. */
  batches: number;
  /** Of the training whose rate is compared, on batches of `training.batch` images of `training.size`. */
  training: NetworkSettings;
}

/** A row of the data path: milliseconds for a batch, and what that took besides. */
export interface DataRow extends BenchRow {
  /** CPU time of the process for a batch. */
  cpuMs: number;
  /** The share of the time that the caller waited; of a loader alone that is all of it. */
  waitShare: number;
  /** Of loading from JPEGs: the most memory that the process has had while nothing else was loaded, in bytes. */
  peakHostBytes?: number;
  /** Of loading: pinned memory of the loader, in bytes; decoding threads have a file each of their own besides. */
  pinnedBytes?: number;
  /** Of training: the share of the rate on a synthetic batch, the median of the rounds. */
  ofSynthetic?: number;
}

const SPLIT = "bench";

/** Files and boxes of a bench, to be disposed of. */
export interface BenchData extends Disposable {
  folder: string;
  files: number;
  /** Mean bytes of a file. */
  bytes: number;
  store: SQLiteAnnStore;
  source: LocalDataSource;
}

/** The images of a folder, or drawn ones, with 8 boxes each. All files are read once: the page cache is warm. */
export async function openBenchData(device: Device, { images, files }: DataSettings): Promise<BenchData> {
  const codec = new DeviceImageCodec(device);
  const folder = images ?? benchImages(codec, files);
  const names = (await readdir(folder))
    .filter((name) => /\.jpe?g$/i.test(name))
    .sort()
    .slice(0, files);
  check(names.length > 0, "bench data", () => `${folder} has no .jpg files`, ErrorCode.io);
  const store = new SQLiteAnnStore();
  try {
    let total = 0;
    const sized = names.map((fileName, i) => {
      const bytes = readFileSync(join(folder, fileName));
      total += bytes.byteLength;
      const { width, height } = codec.info(bytes);
      return { sourceId: i + 1, fileName, key: fileName, width, height };
    });
    store.addCategories([{ id: 1, name: "object", supercategory: null }]);
    const ids = store.addImages(SPLIT, sized);
    store.addAnnotations(
      ids.flatMap((imageId, i) => {
        const { width, height } = sized[i]!;
        return Array.from({ length: BOXES / 2 }, (_, k) => {
          const [w, h] = [width / 4, height / 4];
          const bbox = [(k % 4) * w * 0.9, (k >> 2) * h * 2, w, h] as const;
          return { sourceId: i * BOXES + k + 1, imageId, categoryId: 1, bbox, area: w * h, isCrowd: false };
        });
      }),
    );
    const source = new LocalDataSource(folder);
    const dispose = (): void => store.close();
    return { folder, files: names.length, bytes: total / names.length, store, source, [Symbol.dispose]: dispose };
  } catch (error) {
    store.close();
    throw error;
  }
}

/** A loader with what it loads into. */
interface Loading extends AsyncDisposable {
  loader: DetectionLoader;
  images: BatchImages;
}

const shapeText = ({ batch, size, precision }: Pick<DataSettings, "batch" | "size" | "precision">): string =>
  `${batch}x${size.join("x")} ${precision}`;

async function jpegLoading(device: Device, data: BenchData, settings: DataSettings): Promise<Loading> {
  const { batch: batchSize, size, precision: dtype, threads, hardware } = settings;
  const preprocessing = augmentationPreset("retinanet");
  const decoder = new DeviceBatchDecoder(device, {
    ...{ batchSize, preprocessing, dtype, threads, hardware },
    ...{ height: size[0], width: size[1] },
  });
  const { store, source } = data;
  const loader = new CocoDataLoader({
    ...{ store, source, split: SPLIT, decoder, batchSize, size, preprocessing },
    maxBoxes: BOXES,
  });
  const dispose = async (): Promise<void> => {
    await loader.dispose();
    decoder.dispose();
  };
  return { loader, images: decoder, [Symbol.asyncDispose]: dispose };
}

/** Packs the images, unless that was done, and opens a loader of them: as they are stored, or mirrored and scaled too. */
async function recordLoading(
  device: Device,
  data: BenchData,
  settings: DataSettings,
  augmented: boolean,
): Promise<Loading> {
  const { batch: batchSize, size, precision: dtype } = settings;
  const { folder } = await packRecords({
    ...{ store: data.store, source: data.source, split: SPLIT, device, size },
    folder: join(cacheFolder(), `bench-records-${Bun.hash(`${data.folder} ${data.files} ${size}`).toString(36)}`),
    preprocessing: [new Resize(), new Normalize()],
    padding: "stored",
  });
  const reader = new DeviceRecordReader(device, await RecordSet.open(folder), { batchSize, dtype });
  const augmentation = augmentationPreset("retinanet").filter((op) => op.random);
  const loader = new RecordLoader({
    ...{ reader, batchSize, maxBoxes: BOXES },
    ...(augmented && { augmentation }),
  });
  const dispose = async (): Promise<void> => {
    await loader.dispose();
    await reader.dispose();
  };
  return { loader, images: reader, [Symbol.asyncDispose]: dispose };
}

/** The most memory that this process has had. */
function peakHostBytes(): number {
  try {
    return 1024 * Number(/VmHWM:\s*(\d+)/.exec(readFileSync("/proc/self/status", "utf8"))?.[1]);
  } catch {
    return process.memoryUsage.rss();
  }
}

/** Samples of one kind of work: wall and CPU time of a batch, and the share that was waiting. */
class Samples {
  /** Milliseconds of a batch, for each round. */
  get ms(): readonly number[] {
    return this.#ms;
  }

  readonly #ms: number[] = [];
  readonly #cpuMs: number[] = [];
  readonly #wait: number[] = [];

  /** Runs `work`, which takes `batches` batches and says how many seconds it waited. */
  async measure(batches: number, work: () => Promise<number>): Promise<void> {
    const [start, cpu] = [performance.now(), process.cpuUsage()];
    const waited = await work();
    const ms = performance.now() - start;
    const { user, system } = process.cpuUsage(cpu);
    this.#ms.push(ms / batches);
    this.#cpuMs.push((user + system) / 1000 / batches);
    this.#wait.push((1000 * waited) / ms);
  }

  row(name: string, images: number, warmUp: number): DataRow {
    return {
      ...{ bench: "data", name, images, warmUp },
      ...timingOf(this.#ms),
      cpuMs: timingOf(this.#cpuMs).ms,
      waitShare: timingOf(this.#wait).ms,
    };
  }
}

/** Batches that are ready when a repetition starts, at most, and are taken before its clock does. */
const AHEAD = 4;

/** Takes batches and gives them back; the seconds that this waited. */
async function take(loader: DetectionLoader, batches: number): Promise<number> {
  const before = loader.waitSeconds;
  for (let i = 0; i < batches; i++) (await loader.getBatch()).release();
  return loader.waitSeconds - before;
}

/** Waits until the batches ahead are made, so that they take no time of what is measured next. */
async function settle(): Promise<void> {
  for (let i = 0; i < 200; i++) {
    const before = process.cpuUsage();
    await Bun.sleep(100);
    const { user, system } = process.cpuUsage(before);
    if (user + system < 20_000) return;
  }
}

/**
 * Times loading alone: JPEGs, and records with and without augmentation. A repetition measures each of them once, and each
 * pipeline of the peer, in turns, so that what else the machine does meets all of them.
 */
export async function benchLoaders(
  device: Device,
  data: BenchData,
  settings: DataSettings,
  peer: DataPeer | null,
  log: (line: string) => void = () => {},
): Promise<{ rows: DataRow[]; peerRows: PeerRow[] }> {
  const { batch, batches, repetitions, threads, hardware } = settings;
  const shape = shapeText(settings);
  const decoding =
    (threads > 0 ? `, ${threads} threads` : "") + (device.supports("jpeg.hardware") ? `, engines ${hardware} %` : "");
  await using opened = new AsyncDisposableStack();
  const start = async (name: string, open: () => Promise<Loading>) => {
    const before = PinnedBuffer.allocatedBytes;
    const loading = opened.use(await open());
    // Each record's checksum is compared the first time that it is read, and pages come into the cache.
    await take(loading.loader, Math.max(loading.loader.length, AHEAD + batches));
    return { name, loading, samples: new Samples(), pinnedBytes: PinnedBuffer.allocatedBytes - before };
  };
  const jpegs = await start(`loader, JPEGs, preset retinanet, ${shape}${decoding}`, () =>
    jpegLoading(device, data, settings),
  );
  const hostBytes = peakHostBytes();
  const works = [
    jpegs,
    await start(`records as they are, u8 to ${shape}`, () => recordLoading(device, data, settings, false)),
    await start(`records, preset retinanet, u8 to ${shape}`, () => recordLoading(device, data, settings, true)),
  ];
  const theirs = new Map(peer?.pipelines.map((name) => [name, [] as { ms: number; cpuMs: number }[]]));
  for (let round = 0; round < repetitions; round++) {
    for (const { loading, samples } of works) {
      await take(loading.loader, AHEAD);
      await samples.measure(batches, () => take(loading.loader, batches));
      await settle();
    }
    for (const [name, samples] of theirs) {
      const sample = await peer?.measure(name);
      if (sample) samples.push(sample);
      else theirs.delete(name);
    }
    log(`round ${round + 1} of ${repetitions}`);
  }
  const rows = works.map(({ name, samples, pinnedBytes }) => ({ ...samples.row(name, batch, AHEAD), pinnedBytes }));
  (rows[0] as DataRow).peakHostBytes = hostBytes;
  const peerRows = [...theirs].map(([name, samples]) => ({
    name: `${name}, ${shape}`,
    ...timingOf(samples.map(({ ms }) => ms)),
    cpuMs: timingOf(samples.map(({ cpuMs }) => cpuMs)).ms,
    images: batch,
  }));
  return { rows, peerRows };
}

/**
 * Times training steps of one program on a synthetic batch that lies on the device, on JPEGs and on records, in turns: the share
 * of the first's rate that the others reach is what loading costs.
 */
export async function benchTrainingData(
  device: Device,
  data: BenchData,
  settings: DataSettings,
  log: (line: string) => void = () => {},
): Promise<DataRow[]> {
  const { training, repetitions, batches } = settings;
  const { batch, size, precision } = training;
  autotune(device);
  using model = makeModel(training, device);
  using optimizer = new SGD(model, { schedule: constantRate(1e-4), iterations: 1_000_000 });
  const shape = { batchSize: batch, height: size[0], width: size[1], maxBoxes: BOXES };
  using step = new TrainStep(model, optimizer, { ...shape, lanes: training.lanes, recompute: training.recompute });
  using synthetic = syntheticImages(device, training);
  const targets = syntheticTargets(training);
  const used = { ...settings, batch, size, precision };
  await using jpegs = await jpegLoading(device, data, used);
  await using records = await recordLoading(device, data, used, true);

  const onSynthetic = async (steps: number): Promise<number> => {
    for (let i = 0; i < steps; i++) await step.submit(synthetic, targets);
    await step.drain();
    return 0;
  };
  const onLoader =
    ({ loader, images }: Loading) =>
    async (steps: number): Promise<number> => {
      const before = loader.waitSeconds;
      for (let i = 0; i < steps; i++) {
        const loaded: DetectionBatch = await loader.getBatch();
        const { copied } = await step.submit(images.images(loaded.slot), loaded);
        copied.then(loaded.release);
      }
      await step.drain();
      return loader.waitSeconds - before;
    };
  const works = [
    { name: "on a synthetic batch", run: onSynthetic },
    { name: "on JPEGs, preset retinanet", run: onLoader(jpegs) },
    { name: "on records, preset retinanet", run: onLoader(records) },
  ].map((work) => ({ ...work, samples: new Samples() }));
  const warmUp = AHEAD + 2;
  for (let round = 0; round < repetitions; round++) {
    for (const { run, samples } of works) {
      await run(warmUp);
      await samples.measure(batches, () => run(batches));
      await settle();
    }
    log(`training, round ${round + 1} of ${repetitions}`);
  }
  const rows = works.map(({ name, samples }) => samples.row(`${trainingName(training)}, ${name}`, batch, warmUp));
  // What else the machine does meets the works of a round alike.
  const [{ samples: first }] = works as [(typeof works)[0]];
  return rows.map((row, i) => {
    const shares = (works[i]?.samples.ms ?? []).map((ms, round) => (first.ms[round] as number) / ms);
    return i === 0 ? row : { ...row, ofSynthetic: timingOf(shares).ms };
  });
}

/** What was loaded from where. */
export function dataTitle({ folder, files, bytes }: BenchData): string {
  return `${files} JPEGs of ${(bytes / 1000).toFixed(0)} KB on average in ${folder}, page cache warm`;
}

export function dataTable(rows: readonly DataRow[]): string[] {
  const cells = rows.map((row) => {
    const {
      name,
      ms,
      low,
      high,
      images = 1,
      cpuMs,
      waitShare,
      peakHostBytes: peak,
      pinnedBytes: pinned,
      repetitions,
    } = row;
    return [
      name,
      milliseconds(ms),
      `${milliseconds(low)} to ${milliseconds(high)}`,
      ((1000 * images) / ms).toFixed(1),
      (cpuMs / images).toFixed(2),
      `${(100 * waitShare).toFixed(1)} %`,
      peak === undefined ? "" : (peak / 2 ** 20).toFixed(0),
      pinned === undefined ? "" : (pinned / 2 ** 20).toFixed(1),
      row.ofSynthetic === undefined ? "" : `${(100 * row.ofSynthetic).toFixed(1)} %`,
      String(repetitions),
    ];
  });
  const header = ["", "ms", "quartiles", "img/s", "CPU ms/img", "waited", "peak MiB", "pinned MiB", "of synthetic"];
  return table([...header, "median of"], cells);
}

/** The whole path beside each pipeline of the peer. */
export function dataPeerTable(rows: readonly DataRow[], peers: readonly PeerRow[]): string[] {
  const [ours] = rows;
  if (!ours) return [];
  const cells = peers.map(({ name, ms, low, high, images = 1, cpuMs = Number.NaN, repetitions }) => [
    name,
    milliseconds(ms),
    `${milliseconds(low)} to ${milliseconds(high)}`,
    ((1000 * images) / ms).toFixed(1),
    (cpuMs / images).toFixed(2),
    (ms / ours.ms).toFixed(2),
    (cpuMs / ours.cpuMs).toFixed(2),
    String(repetitions),
  ]);
  const header = ["", "ms", "quartiles", "img/s", "CPU ms/img", "times ours", "CPU, times ours", "median of"];
  return table(header, cells);
}
