/** The backbone of a model as a program: batches of images to a row of numbers each. */
import { Program } from "../graph";
import { type DetectionModel, pooledFeatures } from "../models";
import { check } from "../native";
import { Tensor } from "../tensor";

export interface FeatureStepOptions {
  /** Most images of a call. */
  batchSize: number;
  /** Of the network's input, in pixels. */
  height: number;
  width: number;
}

/** Pooled features of batches: what is computed of the network ends at its backbone. */
export class FeatureStep implements Disposable {
  readonly #program: Program;
  /** Calls run one after the other: they share the program's memory. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(
    readonly model: DetectionModel,
    readonly options: FeatureStepOptions,
  ) {
    const { batchSize, height, width } = options;
    const wasTraining = model.training;
    model.eval();
    try {
      this.#program = new Program(
        model.device,
        { images: { shape: [batchSize, height, width, 3], dtype: model.precision } },
        ({ images }) => ({ features: pooledFeatures(model, images!) }),
      );
    } finally {
      model.train(wasTraining);
    }
    const { address, byteLength } = this.#program.inputs.images!;
    model.device.native.memset(this.#program.stream.handle, address, byteLength, 0);
  }

  /** How many numbers an image has. */
  get length(): number {
    return this.#program.results.features!.shape[1] as number;
  }

  /**
   * Features of the first `count` images of a batch (N, H, W, 3), normalised, of the model's precision, on its device. They may be
   * overwritten once the answer is there.
   */
  run(images: Tensor, count: number): Promise<Float32Array[]> {
    const work = this.#last.then(() => this.#run(images, count));
    this.#last = work.catch(() => {});
    return work;
  }

  async #run(images: Tensor, count: number): Promise<Float32Array[]> {
    const most = Math.min(this.options.batchSize, images.shape[0] as number);
    check(
      Number.isInteger(count) && count >= 1 && count <= most,
      "FeatureStep",
      () => `expected 1 to ${most} images, got ${count}`,
    );
    const { device } = this.model;
    const { inputs, results, stream } = this.#program;
    const input = inputs.images!;
    const shape = [count, ...input.shape.slice(1)];
    Tensor.at(device, input.address, shape, input.dtype).copyFrom(
      Tensor.at(device, images.address, shape, images.dtype),
      stream,
    );
    this.#program.run();
    const { buffer } = await results.features!.readBytesAsync(stream);
    return Array.from({ length: count }, (_, i) => new Float32Array(buffer, 4 * i * this.length, this.length).slice());
  }

  dispose(): void {
    this.#program.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
