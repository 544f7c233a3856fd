/** Draws images that are decoded already into network inputs. */
import { normalizationOf, type Pixels, type PreprocessOp } from "../data";
import { antialiasOf } from "../data/transforms";
import { constants } from "../native";
import { align, type Device, dtypeCode, Event, PinnedBuffer, Tensor } from "../tensor";

/** Memory for the pixels of one call at a time, as large as the largest call so far needed. */
interface Staging {
  readonly pinned: PinnedBuffer;
  readonly raw: Tensor;
}

/** One call at a time; see PixelDrawer.draw. */
export class PixelDrawer implements Disposable {
  readonly #device: Device;
  readonly #normalization: Float32Array;
  readonly #flags: number;
  readonly #event: Event;
  #staging: Staging | null = null;

  constructor(device: Device, preprocessing: readonly PreprocessOp[]) {
    this.#device = device;
    this.#normalization = normalizationOf(preprocessing);
    this.#flags = antialiasOf(preprocessing) ? constants.PREPROCESS_ANTIALIAS : 0;
    this.#event = new Event(device);
  }

  /**
   * Draws images, pixels on the host or (height, width, 3) u8 tensors, into a batch (n, height, width, 3); `transforms` is
   * (n, 12) as for dlfs_preprocess. Resolves when they are there.
   */
  async draw(batch: Tensor, images: readonly (Pixels | Tensor)[], transforms: Float32Array): Promise<void> {
    const { native, stream } = this.#device;
    const onHost = images.filter((image): image is Pixels => !(image instanceof Tensor));
    const bytes = onHost.reduce((sum, { data }) => sum + align(data.byteLength), 0);
    const offsets = new Map<Pixels, number>();
    if (bytes > 0) {
      const { pinned, raw } = this.#room(bytes);
      let at = 0;
      for (const image of onHost) {
        pinned.bytes.set(image.data, at);
        offsets.set(image, at);
        at += align(image.data.byteLength);
      }
      native.copyToDevice(stream.handle, raw.address, pinned.address, bytes);
    }
    const base = this.#staging?.raw.address ?? 0;
    const addresses = images.map((image) =>
      image instanceof Tensor ? image.address : base + (offsets.get(image) as number),
    );
    const sizes = images.flatMap((image) =>
      image instanceof Tensor ? image.shape.slice(0, 2) : [image.height, image.width],
    );
    const [, height, width, channels] = batch.shape as [number, number, number, number];
    native.preprocess(
      stream.handle,
      batch.address,
      BigInt64Array.from(addresses, BigInt),
      Int32Array.from(sizes),
      transforms,
      this.#normalization,
      images.length,
      height,
      width,
      channels,
      dtypeCode(batch.dtype),
      this.#flags,
    );
    this.#event.record(stream);
    await this.#event.done();
    stream.query(); // reports an error of the work
  }

  #room(bytes: number): Staging {
    if (this.#staging && this.#staging.raw.byteLength >= bytes) return this.#staging;
    this.#release();
    using made = new DisposableStack();
    const raw = made.use(Tensor.empty(this.#device, [bytes], "u8"));
    const pinned = made.use(new PinnedBuffer(this.#device, bytes));
    made.move();
    this.#staging = { pinned, raw };
    return this.#staging;
  }

  #release(): void {
    this.#staging?.pinned.dispose();
    this.#staging?.raw.dispose();
    this.#staging = null;
  }

  [Symbol.dispose](): void {
    this.#release();
    this.#event.dispose();
  }
}
