import type { Composition } from "./composition";

/** Formats of image files that can be decoded. */
export type ImageFormat = "jpeg" | "png" | "webp";

/** What an image file's header says: the values of dlfs_image_info_sync. */
export interface ImageInfo {
  /** Of the picture as it is to be seen: with an orientation of 5 to 8, the stored picture's height. */
  width: number;
  height: number;
  format: ImageFormat;
  /** 1 gray, 2 gray with alpha, 3 colours, 4 colours with alpha, or CMYK and YCCK of a JPEG. */
  components: number;
  /** Bits per sample, or of a palette's index. */
  bits: number;
  /** Of a JPEG: 0 baseline or extended sequential, 1 progressive, 2 lossless, 3 arithmetic-coded. Else 0 lossy, 2 lossless. */
  process: number;
  /** EXIF's, 1 (upright) to 8. */
  orientation: number;
}

/** Reads image headers. */
export interface ImageCodec {
  /** Formats whose pixels can be decoded here; headers of all of them can be read. */
  readonly formats: readonly ImageFormat[];

  /** The header of an image file; `bytes` may end after it. Throws a DlfsError that says what is wrong. */
  info(bytes: Uint8Array): ImageInfo;
}

/** Height and width of network inputs, in pixels. */
export type InputSize = readonly [height: number, width: number];

/** The bytes of an image file, or the path of the file. */
export type EncodedImage = Uint8Array | string;

/** An image of a batch that could not be decoded. */
export interface DecodeFailure {
  /** Its place in the batch. */
  index: number;
  message: string;
  /** ErrorCode.io where a file could not be read, else ErrorCode.image or another. */
  code?: number;
}

/**
 * Decodes and preprocesses batches of image files into a ring of slots, each of which holds `batchSize` network inputs of
 * `height` x `width` in device memory.
 */
export interface BatchDecoder {
  readonly slots: number;
  readonly batchSize: number;
  readonly height: number;
  readonly width: number;
  /** Whether it takes paths of files, too, and reads them itself. */
  readonly readsFiles?: boolean;

  /**
   * Starts decoding n <= batchSize images into slot `slot`; resolves when all are written. `transforms` is (n, 12) as for
   * dlfs_preprocess (see writeTransform). Image i of which reading or decoding fails, one of 0 bytes among them, is the fill
   * colour and is named in `failures`. The arrays are not used after the call has returned its promise. Several slots may be
   * decoded at a time, but each by one call. Places n and up of the slot keep what they held. `size`, of no more pixels than the
   * slots', is that of the inputs, default: the slots'.
   */
  decode(
    slot: number,
    images: EncodedImage[],
    transforms: Float32Array,
    size?: InputSize,
  ): Promise<{ failures: DecodeFailure[] }>;
}

/** An image that could not be decoded, by SourceImage.id. */
export interface CompositionFailure {
  id: number;
  message: string;
  /** ErrorCode.io where a file could not be read. */
  code?: number;
}

export interface CompositionResult {
  failures: CompositionFailure[];
  /** Places of the compositions that draw on an image that failed: they are the fill colour alone, and have no boxes. */
  blank: number[];
}

/** Decodes images and draws compositions of them into a ring of slots, as BatchDecoder's are. */
export interface CompositionDecoder {
  readonly slots: number;
  readonly batchSize: number;
  readonly height: number;
  readonly width: number;
  /** Whether it takes paths of files, too, and reads them itself. */
  readonly readsFiles?: boolean;

  /**
   * Draws n <= batchSize compositions into a slot; resolves when they are written. `encoded` has each image that they draw on,
   * by SourceImage.id. Several slots may be drawn at a time; places n and up of the slot keep what they held. All are for inputs
   * of one size, of no more pixels than the slots'.
   */
  compose(
    slot: number,
    compositions: readonly Composition[],
    encoded: ReadonlyMap<number, EncodedImage>,
  ): Promise<CompositionResult>;
}
