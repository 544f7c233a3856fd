/** The images of a run's data set, as they are in their files. */
import { type DataSource, dataSource, demoFolder } from "../data";
import { looksLike } from "../data/image-file";
import { DlfsError, ErrorCode } from "../native/error";

const TYPES: Readonly<Record<string, string>> = { JPEG: "image/jpeg", PNG: "image/png", WebP: "image/webp" };

export interface RunImage {
  bytes: Uint8Array<ArrayBuffer>;
  /** "image/jpeg" */
  type: string;
}

/** Reads images by the keys that samples name them by. */
export class RunImages {
  #source: DataSource | null = null;
  #location = "";

  /** @param config the run's config.json, which says where the data are */
  constructor(private readonly config: () => Promise<Record<string, unknown> | null>) {}

  /** @throws DlfsError where the data cannot be had, have no such file, or it is no image */
  async read(key: string): Promise<RunImage> {
    const data = (await this.config())?.data;
    if (typeof data !== "string") {
      throw new DlfsError(ErrorCode.argument, "config.json", "data: it does not say where the images are");
    }
    if (data !== this.#location || !this.#source) {
      this.#source = dataSource(data === "demo" ? demoFolder() : data, { warn: () => {} });
      this.#location = data;
    }
    const bytes = await this.#source.read(key);
    const kind = looksLike(bytes);
    const type = kind === null ? undefined : TYPES[kind];
    // Annotations are no images, and not for whoever looks at them.
    if (type === undefined) throw new DlfsError(ErrorCode.argument, key, "it is no JPEG, PNG or WebP");
    return { bytes, type };
  }
}
