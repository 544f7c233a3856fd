import { type InputMapping, mapBoxesToImage } from "../data";
import { normalizePixels } from "../detection";
import { Program } from "../graph";
import type { DetectionModel } from "../models";
import { check } from "../native";
import { align, type Device, Event, PinnedBuffer, type Stream, Tensor } from "../tensor";
import { type Quantization, rewriteOf } from "./calibration";
import { autotune } from "./convolution-tuning";

export interface DetectStepOptions {
  /** Most images of a call. */
  batchSize: number;
  height: number;
  width: number;
  /**
   * What run() is given: images normalised already, of the model's precision (default), or RGB "pixels", u8, which the
   * program normalises as the model says.
   */
  images?: "normalised" | "pixels";
  /**
   * Batch sizes that have programs of their own; a call runs the smallest that holds its images. A program is made when it is
   * first needed, or by prepare(), and has folded weights and activations of its own. The largest must be batchSize.
   * Default: batchSize alone.
   */
  buckets?: readonly number[];
  /** Every intermediate value stays readable after a run (debugging). */
  keepAll?: boolean;
  /** Streams that the captured graph is spread over; see ProgramOptions. */
  lanes?: number;
  /** What it runs on. Default: the device's own stream. */
  stream?: Stream;
  /** Convolutions of 8 bits: the dtype and the ranges of a calibration (`calibrate`). Default: the model's precision. */
  quantization?: Quantization;
}

/** One detected object in pixels of the network's input. */
export interface Detection {
  box: [x1: number, y1: number, x2: number, y2: number];
  score: number;
  /** Class index from 0. */
  label: number;
}

/** One box at a time. */
const mapped = new Float64Array(4);

/** Detections on a network's input in the pixels of the image that was drawn there, clipped to it. */
export function detectionsOnImage(
  detections: readonly Detection[],
  toInput: InputMapping,
  width: number,
  height: number,
): Detection[] {
  return detections.map(({ box: [x1, y1, x2, y2], score, label }) => {
    mapped[0] = x1;
    mapped[1] = y1;
    mapped[2] = x2;
    mapped[3] = y2;
    mapBoxesToImage(mapped, toInput, width, height);
    const box: Detection["box"] = [mapped[0] as number, mapped[1] as number, mapped[2] as number, mapped[3] as number];
    return { box, score, label };
  });
}

/** 1, 2, 4, ... up to `most`, and `most` itself. */
export function powersOfTwo(most: number): number[] {
  const sizes: number[] = [];
  for (let size = 1; size < most; size *= 2) sizes.push(size);
  return [...sizes, most];
}

/** A program for one batch size. */
interface Bucket {
  readonly size: number;
  readonly program: Program;
  runs: number;
  /** How long a run takes, about; 0 where that is not known. */
  milliseconds: number;
}

/** The runs that load kernels and capture the graph take longer than those that follow. */
const FIRST_RUNS = 2;

/** Takes a run's time into account: the shortest counts, as others have waited for one before them. */
function learn(bucket: Bucket, milliseconds: number): void {
  if (++bucket.runs <= FIRST_RUNS) return;
  const known = bucket.milliseconds || milliseconds;
  bucket.milliseconds = milliseconds < known ? milliseconds : 0.9 * known + 0.1 * milliseconds;
}

/** Host memory of one call in flight: sizes of the images, detections, then their counts. */
interface Place {
  readonly sizes: PinnedBuffer;
  readonly found: PinnedBuffer;
  readonly event: Event;
  busy: Promise<unknown> | null;
}

/** Calls enqueued before the first has been read: while the host reads one, the device works on the next. */
const IN_FLIGHT = 2;

/**
 * Inference of a batch as one program, from images to final boxes: batch normalization folded, suppression on the device, one
 * small copy to the host.
 */
export class DetectStep implements Disposable {
  readonly #device: Device;
  readonly #sizes: readonly number[];
  readonly #buckets = new Map<number, Bucket>();
  readonly #places: Place[] = [];
  /** The most detections of an image. */
  readonly maxDetections: number;
  #calls = 0;

  constructor(
    readonly model: DetectionModel,
    readonly options: DetectStepOptions,
  ) {
    const { batchSize, buckets = [batchSize] } = options;
    const { device } = model;
    this.#device = device;
    this.#sizes = [...buckets].sort((a, b) => a - b);
    check(
      this.#sizes.at(-1) === batchSize && this.#sizes.every((size) => Number.isInteger(size) && size > 0),
      "DetectStep",
      () => `expected buckets of positive sizes up to batchSize, ${batchSize}, got ${buckets.join(", ")}`,
    );
    autotune(device);
    // What is made is released again where a later part fails.
    using made = new DisposableStack();
    const program = made.use(this.#bucket(batchSize).program);
    this.maxDetections = program.results.detections!.shape[1] as number;
    for (let i = 0; i < IN_FLIGHT; ++i) {
      this.#places.push({
        sizes: made.use(new PinnedBuffer(device, batchSize * 8)),
        found: made.use(new PinnedBuffer(device, this.#countsAt(batchSize) + batchSize * 4)),
        event: made.use(new Event(device)),
        busy: null,
      });
    }
    made.move();
  }

  /** The program of the largest batch. */
  get program(): Program {
    return this.#bucket(this.options.batchSize).program;
  }

  /** Makes the programs of all buckets now. */
  prepare(): void {
    for (const size of this.#sizes) this.#bucket(size);
  }

  /** The weights have changed since the last batch. */
  refresh(): void {
    for (const { program } of this.#buckets.values()) program.refresh();
  }

  /**
   * Detects objects in the first `count` images of a batch (N, H, W, 3) on the device. A call may follow before the last has
   * been answered: two are in flight at most, later ones wait. The images may be overwritten once the answer is there.
   *
   * @param sizes height and width that the boxes of each image are clipped to; default the whole input
   */
  async run(images: Tensor, count: number, sizes?: readonly (readonly [number, number])[]): Promise<Detection[][]> {
    const { batchSize } = this.options;
    check(
      Number.isInteger(count) && count >= 1 && count <= batchSize && images.shape[0]! >= count,
      "DetectStep",
      () => `expected 1 to ${Math.min(batchSize, images.shape[0]!)} images, got ${count}`,
    );
    const place = this.#places[this.#calls++ % IN_FLIGHT] as Place;
    while (place.busy) await place.busy;
    const bucket = this.#bucket(this.#sizes.find((size) => size >= count) as number);
    this.#enqueue(bucket, place, images, count, sizes);
    const started = performance.now();
    place.busy = place.event.done(bucket.milliseconds);
    try {
      await place.busy;
    } finally {
      place.busy = null;
    }
    learn(bucket, performance.now() - started);
    bucket.program.stream.query(); // reports an error of the work itself
    return this.#read(place, bucket, count);
  }

  dispose(): void {
    try {
      for (const { program } of this.#buckets.values()) program.stream.synchronize();
    } catch {
      // Disposing happens while an error of the work is on its way up, too; it must not take its place.
    }
    for (const { program } of this.#buckets.values()) program.dispose();
    for (const { sizes, found, event } of this.#places) for (const owned of [sizes, found, event]) owned.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #bucket(size: number): Bucket {
    const known = this.#buckets.get(size);
    if (known) return known;
    const { model } = this;
    const { height, width, images: given = "normalised", keepAll, lanes, stream, quantization } = this.options;
    const wasTraining = model.training;
    model.eval();
    let program: Program;
    try {
      program = new Program(
        this.#device,
        {
          images: { shape: [size, height, width, 3], dtype: given === "pixels" ? "u8" : model.precision },
          imageSizes: { shape: [size, 2], dtype: "f32" },
        },
        ({ images, imageSizes }) => {
          const input = given === "pixels" ? normalizePixels(images!, model.normalization, model.precision) : images!;
          const { detections, counts } = model.detect(input, imageSizes!);
          return { detections, counts };
        },
        { keepAll, lanes, stream, rewrite: quantization && rewriteOf(quantization) },
      );
    } finally {
      model.train(wasTraining);
    }
    const bucket = { size, program, runs: 0, milliseconds: 0 };
    // Images that a batch does not fill are computed with like the others.
    const { address, byteLength } = program.inputs.images!;
    this.#device.native.memset(program.stream.handle, address, byteLength, 0);
    this.#buckets.set(size, bucket);
    return bucket;
  }

  /** Where the counts of a batch begin in a place's `found`. */
  #countsAt(size: number): number {
    return align(size * this.maxDetections * 24);
  }

  #enqueue(
    { size, program }: Bucket,
    place: Place,
    images: Tensor,
    count: number,
    sizes: readonly (readonly [number, number])[] | undefined,
  ): void {
    const { native } = this.#device;
    const { inputs, results, stream } = program;
    const { height, width } = this.options;
    const hostSizes = place.sizes.float32();
    for (let i = 0; i < size; ++i) hostSizes.set(sizes?.[i] ?? [height, width], 2 * i);
    native.copyToDevice(stream.handle, inputs.imageSizes!.address, place.sizes.address, size * 8);
    // A batch that is not full leaves what was there before in the images that nobody asks about.
    const shape = [count, ...images.shape.slice(1)];
    const input = inputs.images!;
    Tensor.at(this.#device, input.address, [count, ...input.shape.slice(1)], input.dtype).copyFrom(
      Tensor.at(this.#device, images.address, shape, images.dtype),
      stream,
    );
    program.run();
    const { detections, counts } = results as { detections: Tensor; counts: Tensor };
    native.copyToHost(stream.handle, place.found.address, detections.address, detections.byteLength);
    native.copyToHost(stream.handle, place.found.address + this.#countsAt(size), counts.address, counts.byteLength);
    place.event.record(stream);
  }

  #read(place: Place, { size }: Bucket, count: number): Detection[][] {
    const counts = new Int32Array(place.found.bytes.buffer, this.#countsAt(size), size);
    const rows = place.found.float32();
    const number = (at: number) => rows[at] as number;
    const found: Detection[][] = [];
    for (let image = 0; image < count; image++) {
      const detections: Detection[] = [];
      const first = image * this.maxDetections * 6;
      for (let at = first; at < first + 6 * (counts[image] as number); at += 6) {
        const box: Detection["box"] = [number(at), number(at + 1), number(at + 2), number(at + 3)];
        detections.push({ box, score: number(at + 4), label: number(at + 5) });
      }
      found.push(detections);
    }
    return found;
  }
}
