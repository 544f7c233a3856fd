/**
 * Calibration of a model for convolutions of 8 bits: which magnitudes its values have on real images, and the range that each
 * is scaled to.
 */
import { readFile } from "node:fs/promises";
import { writeFileAtomic } from "../formats";
import { observeMagnitudes, Program, type ProgramOptions, type QuantizeOptions, quantizeGraph } from "../graph";
import type { DetectionModel } from "../models";
import { check, constants, DlfsError, ErrorCode } from "../native";
import { type QuantizedDType, Tensor } from "../tensor";

/**
 * How a range follows from magnitudes. "mse": the one with the least expected squared error of the 8-bit values, clipping and
 * rounding together. "max": the largest magnitude seen. "percentile": the one that a share of the non-zero magnitudes is below.
 */
export type CalibrationMethod = "mse" | "max" | "percentile";

/** Plain data, to be kept beside the weights that it was measured with. */
export interface CalibrationTable {
  readonly version: 1;
  readonly method: CalibrationMethod;
  /** Images that were looked at. */
  readonly images: number;
  /** For each dtype, the range of each value by the path of the layer that computes it. */
  readonly ranges: Readonly<Record<QuantizedDType, Readonly<Record<string, number>>>>;
}

export interface CalibrationOptions {
  /** Default "mse". */
  method?: CalibrationMethod;
  /** Of "percentile", in per cent. Default 99.99. */
  percentile?: number;
}

/** Which convolutions a program computes in 8 bits. */
export interface Quantization extends Pick<QuantizeOptions, "dtype" | "exclude"> {
  readonly table: CalibrationTable;
}

/** What makes a program compute so: its option `rewrite`. */
export function rewriteOf({ dtype, table, exclude }: Quantization): NonNullable<ProgramOptions["rewrite"]> {
  return (graph, results) => quantizeGraph(graph, results, { dtype, ranges: table.ranges[dtype], exclude });
}

/** A batch of images on the device, (N, H, W, 3), of which the first `count` are looked at. */
export interface CalibrationBatch {
  readonly images: Tensor;
  readonly count: number;
}

/**
 * Measures a model on batches of images like those that it will see, a hundred or more.
 *
 * @throws DlfsError where there is no image, or a value is not finite
 */
export async function calibrate(
  model: DetectionModel,
  batches: AsyncIterable<CalibrationBatch> | Iterable<CalibrationBatch>,
  options: CalibrationOptions = {},
): Promise<CalibrationTable> {
  let observer: Observer | null = null;
  let images = 0;
  try {
    for await (const { images: batch, count } of batches) {
      observer ??= new Observer(model, batch.shape);
      // Values of a batch are counted together: a part of one goes image by image.
      if (count === batch.shape[0]) observer.run(batch);
      else observer.runEach(batch, count);
      images += count;
    }
    if (!observer) throw new DlfsError(ErrorCode.argument, "calibrate", "expected at least one image");
    return tableOf(observer.counts(), images, options);
  } finally {
    observer?.dispose();
  }
}

/** Runs a model and counts the magnitudes of its values. */
class Observer implements Disposable {
  readonly #model: DetectionModel;
  readonly #program: Program;
  #one: Observer | null = null;
  #keys: string[] = [];
  #counts: Tensor | null = null;

  constructor(model: DetectionModel, shape: readonly number[], counts?: Tensor) {
    const { device } = model;
    const [n, height, width] = shape as [number, number, number];
    this.#model = model;
    const wasTraining = model.training;
    model.eval();
    this.#program = new Program(
      device,
      { images: { shape, dtype: model.precision }, imageSizes: { shape: [n, 2], dtype: "f32" } },
      ({ images, imageSizes }) => model.detect(images!, imageSizes!),
      {
        rewrite: (graph) => {
          this.#keys = observeMagnitudes(graph, (values) => {
            this.#counts = counts ?? Tensor.zeros(device, [values, constants.MAGNITUDE_BINS], "i64");
            return this.#counts.address;
          });
        },
      },
    );
    model.train(wasTraining);
    this.#program.inputs.imageSizes!.write(Array.from({ length: n }, () => [height, width]).flat());
  }

  run(images: Tensor): void {
    const { inputs, stream } = this.#program;
    inputs.images!.copyFrom(images, stream);
    this.#program.run();
  }

  runEach(images: Tensor, count: number): void {
    const [, ...rest] = images.shape;
    this.#one ??= new Observer(this.#model, [1, ...rest], this.#counts!);
    const bytes = images.byteLength / images.shape[0]!;
    for (let i = 0; i < count; ++i)
      this.#one.run(Tensor.at(images.device, images.address + i * bytes, [1, ...rest], images.dtype));
  }

  /** Counts by the value's key. */
  counts(): Map<string, Float64Array> {
    const all = this.#counts!.read(this.#program.stream) as Float64Array;
    const bins = constants.MAGNITUDE_BINS;
    return new Map(this.#keys.map((key, i) => [key, all.subarray(i * bins, (i + 1) * bins)]));
  }

  dispose(): void {
    this.#program.stream.synchronize();
    this.#program.dispose();
    if (this.#one) this.#one.#program.dispose();
    this.#counts?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

function tableOf(
  counts: ReadonlyMap<string, Float64Array>,
  images: number,
  { method = "mse", percentile = 99.99 }: CalibrationOptions,
): CalibrationTable {
  const ranges: Record<QuantizedDType, Record<string, number>> = { f8: {}, i8: {} };
  for (const [key, values] of counts) {
    for (const dtype of ["f8", "i8"] as const) ranges[dtype][key] = rangeOf(values, key, dtype, method, percentile);
  }
  return { version: 1, method, images, ranges };
}

/** The bins' lower edges: dlfs_count_magnitudes says what a bin is. One more than there are bins. */
const edges = (() => {
  const bits = Uint32Array.from({ length: constants.MAGNITUDE_BINS + 1 }, (_, bin) => bin << 18);
  return Float64Array.from(new Float32Array(bits.buffer));
})();
const FIRST_NOT_FINITE = 8160;
/** Where ranges by "mse" are looked for: eight octaves below the largest magnitude. */
const MSE_BINS = 256;

/** A bin that is not empty. */
interface Bin {
  readonly index: number;
  readonly magnitude: number;
  readonly count: number;
}

/** The range that values with these counts of magnitudes are scaled to; 0 where all are 0. */
export function rangeOf(
  counts: ArrayLike<number>,
  key: string,
  dtype: QuantizedDType,
  method: CalibrationMethod,
  percentile = 99.99,
): number {
  const bins: Bin[] = [];
  for (let index = 1; index < counts.length; ++index) {
    const count = counts[index] as number;
    if (count === 0) continue;
    check(index < FIRST_NOT_FINITE, "calibrate", () => `"${key}" has values that are not finite`);
    bins.push({ index, magnitude: (edges[index]! + edges[index + 1]!) / 2, count });
  }
  const last = bins.at(-1);
  if (!last) return 0;
  if (method === "max") return edges[last.index + 1]!;
  if (method === "percentile") {
    const total = bins.reduce((sum, { count }) => sum + count, 0);
    let below = 0;
    for (const { index, count } of bins) {
      below += count;
      if (below >= (total * percentile) / 100) return edges[index + 1]!;
    }
    return edges[last.index + 1]!;
  }
  let [best, least] = [edges[last.index + 1]!, Number.POSITIVE_INFINITY];
  for (let index = last.index; index > Math.max(0, last.index - MSE_BINS); --index) {
    const range = edges[index + 1]!;
    const error = squaredError(bins, range, dtype);
    if (error < least) [best, least] = [range, error];
  }
  return best;
}

/** Expected squared error of values in 8 bits scaled to a range: a rounded value errs by a twelfth of its squared unit. */
function squaredError(bins: readonly Bin[], range: number, dtype: QuantizedDType): number {
  let error = 0;
  for (const { magnitude, count } of bins) {
    const unit = dtype === "i8" ? range / 127 : f8Unit((magnitude / range) * 448) * (range / 448);
    error += count * (magnitude > range ? (magnitude - range) ** 2 : unit ** 2 / 12);
  }
  return error;
}

/** The distance of neighbouring numbers of E4M3 around a magnitude. */
function f8Unit(magnitude: number): number {
  return 2 ** (Math.max(-6, Math.floor(Math.log2(magnitude))) - 3);
}

/** Writes a table as JSON. */
export async function writeCalibration(path: string, table: CalibrationTable): Promise<void> {
  await writeFileAtomic(path, `${JSON.stringify(table, null, 2)}\n`);
}

/** Reads what writeCalibration wrote. @throws DlfsError naming the file and the field of what is wrong */
export async function readCalibration(path: string): Promise<CalibrationTable> {
  let table: Partial<CalibrationTable>;
  try {
    table = JSON.parse(await readFile(path, "utf8")) as Partial<CalibrationTable>;
  } catch (error) {
    throw new DlfsError(ErrorCode.io, path, `no calibration can be read: ${(error as Error).message}`);
  }
  const field = (name: string, good: boolean, expected: string) =>
    check(good, path, () => `${name}: expected ${expected}`, ErrorCode.io);
  field("version", table?.version === 1, "1");
  for (const dtype of ["f8", "i8"] as const) {
    const ranges: unknown = table.ranges?.[dtype];
    const isNumber = (value: unknown) => typeof value === "number" && value >= 0 && Number.isFinite(value);
    const good = typeof ranges === "object" && ranges !== null && Object.values(ranges).every(isNumber);
    field(`ranges.${dtype}`, good, "numbers from 0 by value");
  }
  return table as CalibrationTable;
}
