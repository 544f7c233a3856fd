/** Small JPEGs of images, which go along with what was found on them. */
import type { DataSource, DeviceImageCodec } from "../data";
import { looksLike } from "../data/image-file";
import { resize } from "../monitor";
import { DlfsError } from "../native";

/** Pixels of the longer side at most. */
const MAX_SIDE = 640;
/** A JPEG of so many bytes goes along as it is. */
const SMALL_BYTES = 64 * 1024;
const QUALITY = 85;
/** Those that are kept: the same images are asked for at each evaluation. */
const MAX_KEPT = 64;

/** Makes thumbnails of a source's images, each once. */
export class Thumbnails {
  readonly #kept = new Map<string, Uint8Array | null>();

  constructor(
    private readonly source: DataSource,
    private readonly codec: Pick<DeviceImageCodec, "decode" | "encode">,
  ) {}

  /** null where the image cannot be read or decoded; another try may find it readable. */
  async of(key: string): Promise<Uint8Array | null> {
    const known = this.#kept.get(key);
    if (known !== undefined) return known;
    const bytes = await this.source.read(key).catch(() => null);
    if (bytes === null) return null;
    const thumbnail = this.#make(bytes);
    this.#kept.set(key, thumbnail);
    if (this.#kept.size > MAX_KEPT) this.#kept.delete(this.#kept.keys().next().value as string);
    return thumbnail;
  }

  #make(bytes: Uint8Array): Uint8Array | null {
    if (bytes.length <= SMALL_BYTES && looksLike(bytes) === "JPEG") return bytes;
    try {
      const image = this.codec.decode(bytes);
      const scale = Math.min(1, MAX_SIDE / Math.max(image.width, image.height));
      const [width, height] = [image.width, image.height].map((side) => Math.max(1, Math.round(side * scale)));
      return this.codec.encode(resize(image, width as number, height as number), QUALITY);
    } catch (error) {
      if (error instanceof DlfsError) return null; // the loader has told of it
      throw error;
    }
  }
}
