/** What a training makes of single images, with the weights that it has between two steps. */
import {
  DeviceBatchDecoder,
  type DeviceImageCodec,
  mappingOf,
  type PreprocessOp,
  planInput,
  TRANSFORM_FLOATS,
  writeTransform,
} from "../../data";
import type { DetectionModel } from "../../models";
import { DlfsError, ErrorCode } from "../../native";
import { type Detection, DetectStep, detectionsOnImage } from "../detect-step";

export interface LivePredictorOptions {
  model: DetectionModel;
  codec: DeviceImageCodec;
  /** Height and width of the network's input. */
  size: readonly [number, number];
  /** From a decoded image to the network's input, as evaluations do it. */
  preprocessing: readonly PreprocessOp[];
}

/** Its memory, of a batch of one image, is taken with the first of them. */
export class LivePredictor implements Disposable {
  #made: { step: DetectStep; decoder: DeviceBatchDecoder } | null = null;

  constructor(private readonly options: LivePredictorOptions) {}

  /**
   * Detects with the model's present weights, in eval mode; the model's own mode is as before. Not while a step is enqueued.
   *
   * @returns boxes in pixels of the image, upright, best first
   * @throws DlfsError of code `image` where it is damaged, or none; of code `memory` where the device has no room
   */
  async predict(bytes: Uint8Array): Promise<Detection[]> {
    const { codec, preprocessing, size } = this.options;
    const { width, height } = codec.info(bytes);
    const plan = planInput({ width, height }, preprocessing, size);
    const transform = new Float32Array(TRANSFORM_FLOATS);
    writeTransform(transform, 0, plan);
    const { step, decoder } = this.#make();
    const { failures } = await decoder.decode(0, [bytes], transform);
    for (const { message, code } of failures) throw new DlfsError(code ?? ErrorCode.image, "image", message);
    step.refresh();
    const [found] = await step.run(decoder.images(0), 1);
    return detectionsOnImage(found as Detection[], mappingOf(plan), width, height);
  }

  #make() {
    if (this.#made) return this.#made;
    const { model, codec, preprocessing, size } = this.options;
    const [height, width] = size;
    using owned = new DisposableStack();
    const shape = { batchSize: 1, height, width, slots: 1, dtype: model.precision, preprocessing };
    const decoder = owned.use(new DeviceBatchDecoder(codec.device, shape));
    const step = owned.use(new DetectStep(model, { batchSize: 1, height, width }));
    owned.move();
    this.#made = { step, decoder };
    return this.#made;
  }

  [Symbol.dispose](): void {
    this.#made?.step.dispose();
    this.#made?.decoder.dispose();
    this.#made = null;
  }
}
