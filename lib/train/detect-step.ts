import { Program } from "../graph";
import type { DetectionModel } from "../models";
import { type Device, Event, PinnedBuffer, type Tensor } from "../tensor";
import { autotune } from "./convolution-tuning";

export interface DetectStepOptions {
  batchSize: number;
  height: number;
  width: number;
  /** Every intermediate value stays readable after a run (debugging). */
  keepAll?: boolean;
  /** Streams that the captured graph is spread over; see ProgramOptions. */
  lanes?: number;
}

/** One detected object in pixels of the network's input. */
export interface Detection {
  box: [x1: number, y1: number, x2: number, y2: number];
  score: number;
  /** Class index from 0. */
  label: number;
}

/**
 * Inference of a batch as one program, from images to final boxes: batch normalization folded, suppression on the device, one
 * small copy to the host.
 */
export class DetectStep implements Disposable {
  readonly program: Program;
  readonly #device: Device;
  readonly #sizes: PinnedBuffer;
  readonly #detections: PinnedBuffer;
  readonly #counts: PinnedBuffer;
  readonly #event: Event;
  readonly #maxDetections: number;

  constructor(
    readonly model: DetectionModel,
    readonly options: DetectStepOptions,
  ) {
    const { batchSize: n, height, width } = options;
    const { device } = model;
    this.#device = device;
    autotune(device);
    const wasTraining = model.training;
    model.eval();
    this.program = new Program(
      device,
      {
        images: { shape: [n, height, width, 3], dtype: model.precision },
        imageSizes: { shape: [n, 2], dtype: "f32" },
      },
      ({ images, imageSizes }) => model.detect(images!, imageSizes!),
      { keepAll: options.keepAll, lanes: options.lanes },
    );
    model.train(wasTraining);
    this.#maxDetections = this.program.results.detections!.shape[1] as number;
    this.#sizes = new PinnedBuffer(device, n * 8);
    this.#detections = new PinnedBuffer(device, n * this.#maxDetections * 24);
    this.#counts = new PinnedBuffer(device, n * 4);
    this.#event = new Event(device);
  }

  /** The weights have changed since the last batch. */
  refresh(): void {
    this.program.refresh();
  }

  /**
   * Detects objects in the first `count` images of a batch (N, H, W, 3) on the device; one batch at a time.
   *
   * @param sizes height and width that the boxes of each image are clipped to; default the whole input
   */
  async run(images: Tensor, count: number, sizes?: readonly (readonly [number, number])[]): Promise<Detection[][]> {
    const { native } = this.#device;
    const { batchSize, height, width } = this.options;
    const { inputs, results, stream } = this.program;
    const hostSizes = this.#sizes.float32();
    for (let i = 0; i < batchSize; ++i) hostSizes.set(sizes?.[i] ?? [height, width], 2 * i);
    native.copyToDevice(stream.handle, inputs.imageSizes!.address, this.#sizes.address, this.#sizes.byteLength);
    inputs.images!.copyFrom(images, stream);
    this.program.run();
    native.copyToHost(
      stream.handle,
      this.#detections.address,
      results.detections!.address,
      this.#detections.byteLength,
    );
    native.copyToHost(stream.handle, this.#counts.address, results.counts!.address, this.#counts.byteLength);
    this.#event.record(stream);
    await this.#event.done();
    stream.query(); // reports an error of the work itself
    const counts = this.#counts.int32();
    const rows = this.#detections.float32();
    return Array.from({ length: count }, (_, image) =>
      Array.from({ length: counts[image] as number }, (_, k) => {
        const row = rows.subarray((image * this.#maxDetections + k) * 6) as unknown as number[];
        const [x1, y1, x2, y2, score, label] = row as [number, number, number, number, number, number];
        return { box: [x1, y1, x2, y2], score, label } satisfies Detection;
      }),
    );
  }

  dispose(): void {
    try {
      this.program.stream.synchronize();
    } catch {
      // Disposing happens while an error of the work is on its way up, too; it must not take its place.
    }
    this.program.dispose();
    for (const owned of [this.#sizes, this.#detections, this.#counts, this.#event]) owned.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
