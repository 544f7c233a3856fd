/** Decoding of JPEGs alone: from memory and from files to their own pixels, and from files to batches of network inputs. */
import { readdir } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import {
  DeviceBatchDecoder,
  type DeviceBatchDecoderOptions,
  DeviceImageCodec,
  Normalize,
  Resize,
  startPlan,
  TRANSFORM_FLOATS,
  writeTransform,
} from "../data";
import { finishJob, ImageStaging } from "../data/encoded-images";
import { check, ErrorCode } from "../native";
import { type Device, outHandle, Tensor } from "../tensor";
import { benchImages, type ImageBenchSettings } from "./bench-images";
import { timeOnHost } from "./measure";
import type { PeerResult } from "./peers";
import type { BenchRow } from "./results";
import { table } from "./table";

export interface DecodeSettings extends ImageBenchSettings {
  /** Whether other shares and numbers of threads are measured, too. */
  sweep: boolean;
}

/** What is measured: decoding from memory, reading and decoding, and what makes a batch. */
export const DECODE_WORKS = ["decode", "read and decode", "read, decode and resize"] as const;
export type DecodeWork = (typeof DECODE_WORKS)[number];

/** Milliseconds of a pass over all images. */
export interface DecodeRow extends BenchRow {
  work: DecodeWork;
  threads: number;
  hardware: number;
  images: number;
}

export interface DecodeSet {
  paths: string[];
  bytes: Uint8Array[];
  sizes: { height: number; width: number }[];
}

/** Jobs under way at a time, as a loader has. */
const IN_FLIGHT = 4;
const WARM_UP = 2;
const SHARES = [0, 25, 50, 65, 75, 90, 100];

/** The images, all of which have been read: the page cache is warm. */
export async function openDecodeSet(device: Device, { images, files }: DecodeSettings): Promise<DecodeSet> {
  const codec = new DeviceImageCodec(device);
  const folder = images ?? benchImages(codec, files);
  const names = (await readdir(folder)).filter((name) => /\.jpe?g$/i.test(name)).sort();
  check(names.length > 0, "bench decode", () => `${folder} has no .jpg files`, ErrorCode.io);
  const paths = names.slice(0, files).map((name) => join(folder, name));
  const bytes = await Promise.all(paths.map((path) => Bun.file(path).bytes()));
  return { paths, bytes, sizes: bytes.map((file) => codec.info(file)) };
}

/** What the images are, in a line. */
export function decodeTitle({ bytes, sizes }: DecodeSet): string {
  const pixels = sizes.reduce((sum, { height, width }) => sum + height * width, 0);
  const total = bytes.reduce((sum, file) => sum + file.byteLength, 0);
  const [first, ...others] = sizes as [{ height: number; width: number }];
  const alike = others.every(({ height, width }) => height === first.height && width === first.width);
  const size = alike ? `${first.width}x${first.height}` : `of ${(pixels / sizes.length / 1e6).toFixed(2)} megapixels`;
  const perImage = `${Math.round(total / bytes.length / 1024)} KiB`;
  return `${bytes.length} JPEGs ${size}, ${perImage} and ${((8 * total) / pixels).toFixed(2)} bits a pixel on average`;
}

/** Shares and numbers of threads: those of the settings, and with `sweep` others. */
function variants(device: Device, { threads, hardware, sweep }: DecodeSettings): [threads: number, hardware: number][] {
  if (!sweep) return [[threads, hardware]];
  const cores = availableParallelism();
  const few = device.backend === "cpu" ? [1, 2] : [];
  const counts = new Set([...few, cores >> 2, cores >> 1, (3 * cores) >> 2, cores, threads].filter((n) => n >= 1));
  const shares = device.supports("jpeg.hardware") ? SHARES : [hardware];
  return [...counts].sort((a, b) => a - b).flatMap((n) => shares.map((share): [number, number] => [n, share]));
}

/** Measures all works, variant by variant. */
export async function* benchDecode(
  device: Device,
  set: DecodeSet,
  settings: DecodeSettings,
): AsyncGenerator<DecodeRow> {
  for (const [threads, hardware] of variants(device, settings)) {
    const engines = device.supports("jpeg.hardware") ? `, engines ${hardware} %` : "";
    for (const work of DECODE_WORKS) {
      using decoding = open(device, set, { ...settings, threads, hardware }, work);
      const timing = await timeOnHost(decoding.pass, { repetitions: settings.repetitions, warmUp: WARM_UP });
      const name = `${work}, batches of ${settings.batch}, ${threads} ${threads === 1 ? "thread" : "threads"}${engines}`;
      const row = { bench: "decode", name, work, threads, hardware, warmUp: WARM_UP, images: set.paths.length };
      yield { ...row, ...timing };
    }
  }
}

interface Decoding extends Disposable {
  /** Goes once over all images. */
  pass(): Promise<void>;
}

function open(device: Device, set: DecodeSet, settings: DecodeSettings, work: DecodeWork): Decoding {
  const starts = Array.from({ length: Math.ceil(set.paths.length / settings.batch) }, (_, i) => i * settings.batch);
  const batches = starts.map((start) => ({ start, end: Math.min(start + settings.batch, set.paths.length) }));
  return work === "read, decode and resize"
    ? intoBatches(device, set, settings, batches)
    : intoPixels(device, set, settings, batches, work === "decode");
}

type Range = { start: number; end: number };

/** Runs jobs, so many at a time, each in a slot of its own. */
async function inSlots(jobs: readonly ((slot: number) => Promise<void>)[]): Promise<void> {
  let next = 0;
  const run = async (slot: number): Promise<void> => {
    for (let i = next++; i < jobs.length; i = next++) await (jobs[i] as (slot: number) => Promise<void>)(slot);
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, (_, slot) => run(slot)));
}

function failOn(failures: readonly { message: string }[]): void {
  check(failures.length === 0, "bench decode", () => failures[0]?.message ?? "", ErrorCode.image);
}

/** To the images' own sizes, by one job for each batch. */
function intoPixels(
  device: Device,
  { paths, bytes, sizes }: DecodeSet,
  { threads, hardware }: DecodeSettings,
  batches: readonly Range[],
  fromMemory: boolean,
): Decoding {
  const { native } = device;
  using made = new DisposableStack();
  const out = outHandle();
  native.decoderCreate(device.handle, out.view, threads, hardware);
  made.defer(() => void native.decoderDestroy(out.value));
  const jobs = batches.map(({ start, end }) => {
    const images = (fromMemory ? bytes : paths).slice(start, end);
    const staged = made.use(new ImageStaging(device)).stage(images);
    const flat = Int32Array.from(sizes.slice(start, end).flatMap(({ height, width }) => [height, width]));
    let total = 0;
    const offsets = sizes.slice(start, end).map(({ height, width }) => {
      total += Math.ceil((3 * height * width) / 256) * 256;
      return total - Math.ceil((3 * height * width) / 256) * 256;
    });
    return { staged, flat, offsets, total };
  });
  const most = Math.max(...jobs.map(({ total }) => total));
  const slots = Array.from({ length: IN_FLIGHT }, () => made.use(Tensor.empty(device, [most], "u8")));
  const runs = jobs.map(({ staged, flat, offsets }) => async (slot: number): Promise<void> => {
    const job = outHandle();
    const base = (slots[slot] as Tensor).address;
    const targets = BigInt64Array.from(offsets, (offset) => BigInt(base + offset));
    const { sources, lengths, paths: names, pathBytes } = staged;
    native.decoderSubmitPixels(
      ...([out.value, job.view, targets, sources, lengths, names, flat, pathBytes, offsets.length] as const),
    );
    failOn(await finishJob(device, job.value, offsets.length));
  });
  const held = made.move();
  return { pass: () => inSlots(runs), [Symbol.dispose]: () => held.dispose() };
}

/** Letterboxed to network inputs, as training does. */
function intoBatches(
  device: Device,
  { paths, sizes }: DecodeSet,
  { batch, size, precision, threads, hardware }: DecodeSettings,
  batches: readonly Range[],
): Decoding {
  const [height, width] = size;
  const options: DeviceBatchDecoderOptions = {
    ...{ batchSize: batch, height, width, slots: IN_FLIGHT, dtype: precision, threads, hardware },
    preprocessing: [new Resize(), new Normalize()],
  };
  const decoder = new DeviceBatchDecoder(device, options);
  const runs = batches.map(({ start, end }) => {
    const transforms = new Float32Array(TRANSFORM_FLOATS * (end - start));
    for (const [i, image] of sizes.slice(start, end).entries()) {
      const none = [new Float64Array(0), new Int32Array(0)] as const;
      const plan = startPlan(image.width, image.height, width, height, ...none);
      const scale = Math.min(width / image.width, height / image.height);
      const target = { x: 0, y: 0, width: image.width * scale, height: image.height * scale };
      writeTransform(transforms, i, { ...plan, target });
    }
    return async (slot: number): Promise<void> => {
      failOn((await decoder.decode(slot, paths.slice(start, end), transforms)).failures);
    };
  });
  return { pass: () => inSlots(runs), [Symbol.dispose]: () => decoder.dispose() };
}

/** Images a second. */
export function decodeTable(rows: readonly DecodeRow[]): string[] {
  const rate = (images: number, ms: number): string => ((1000 * images) / ms).toFixed(0);
  const cells = rows.map(({ name, images, ms, low, high, threads, repetitions }) => [
    name,
    rate(images, ms),
    `${rate(images, high)} to ${rate(images, low)}`,
    rate(images, ms * threads),
    String(repetitions),
  ]);
  return table(["", "img/s", "quartiles", "per thread", "median of"], cells);
}

/** Our rows beside the peer's of the same work, and how many times as fast ours are. */
export function decodePeerTable(rows: readonly DecodeRow[], { versions, ...peers }: PeerResult): string[] {
  const theirs = new Map(peers.rows.map((row) => [row.name, row]));
  const cells = rows.flatMap(({ name, work, images, ms }) => {
    const peer = theirs.get(work);
    if (!peer) return [];
    const [ours, other] = [(1000 * images) / ms, (1000 * (peer.images ?? images)) / peer.ms];
    return [[name, ours.toFixed(0), other.toFixed(0), (ours / other).toFixed(2)]];
  });
  const names = Object.entries(versions).map(([name, version]) => `${name} ${version}`);
  return [
    names.join(", "),
    ...table(["", "img/s", "torchvision", "times as fast"], cells),
    ...peers.failed.map((text) => `not measured: ${text}`),
  ];
}
