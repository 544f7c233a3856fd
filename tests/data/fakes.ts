/** What the tests of lib/data use in place of native code: tiny JPEG-like files, a reader of their headers, a decoder. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { BatchDecoder, DecodeFailure, ImageCodec, ImageInfo } from "../../lib/data/codec";
import { DlfsError, ErrorCode } from "../../lib/native/error";

export interface JpegOptions {
  components?: number;
  bits?: number;
  /** Frame marker: 0xc0 baseline, 0xc2 progressive, 0xc3 lossless, 0xc9 arithmetic-coded. */
  frame?: number;
  /** Bytes of a segment before the frame, as of EXIF data; it holds a thumbnail's end-of-image marker. */
  metadata?: number;
  /** Bytes of coded data. */
  data?: number;
}

/** A file with the structure of a JPEG whose coded data means nothing. */
export function fakeJpeg(width: number, height: number, options: JpegOptions = {}): Uint8Array {
  const { components = 3, bits = 8, frame = 0xc0, metadata = 0, data = 40 } = options;
  const segment = (marker: number, body: number[]): number[] => {
    const length = body.length + 2;
    return [0xff, marker, length >> 8, length & 255, ...body];
  };
  const application = Array.from({ length: metadata }, () => 0x20);
  if (metadata >= 4) application.splice(metadata - 4, 4, 0xff, 0xd9, 0x00, 0x00);
  const sizes = [height >> 8, height & 255, width >> 8, width & 255];
  const parts = Array.from({ length: components }, (_, i) => [i + 1, 0x11, 0]).flat();
  return Uint8Array.from([
    ...[0xff, 0xd8],
    ...(metadata > 0 ? segment(0xe1, application) : []),
    ...segment(frame, [bits, ...sizes, components, ...parts]),
    ...segment(0xda, [components, ...parts.filter((_, i) => i % 3 !== 1), 0, 63, 0]),
    ...Array.from({ length: data }, (_, i) => (i * 37) & 0x7f),
    // A stuffed 0xff and a restart marker: neither ends the image.
    ...[0xff, 0x00, 0xff, 0xd0, 0x11],
    ...[0xff, 0xd9],
  ]);
}

/** Reads the headers of JPEGs as dlfs_image_info_sync does, EXIF data aside, and counts its calls. */
export class FakeCodec implements ImageCodec {
  calls = 0;
  readonly formats = ["jpeg"] as const;

  /** `orientation`: of every file; `width` and `height` of a file are those of the upright picture. */
  constructor(readonly orientation = 1) {}

  info(bytes: Uint8Array): ImageInfo {
    this.calls++;
    const fail = (message: string): never => {
      throw new DlfsError(ErrorCode.image, "jpeg", message);
    };
    if (bytes[0] !== 0xff || bytes[1] !== 0xd8) fail("not a JPEG");
    const byte = (at: number): number => bytes[at] ?? fail("no frame before the end");
    for (let at = 2; ; at += 2 + (byte(at + 2) << 8) + byte(at + 3)) {
      const marker = byte(at + 1);
      if (![0xc0, 0xc1, 0xc2, 0xc3, 0xc9].includes(marker)) continue;
      const process = marker === 0xc3 ? 2 : marker === 0xc9 ? 3 : marker === 0xc2 ? 1 : 0;
      const height = (byte(at + 5) << 8) + byte(at + 6);
      const width = (byte(at + 7) << 8) + byte(at + 8);
      if (width === 0 || height === 0) fail(`size ${width}x${height}`);
      const facts = { components: byte(at + 9), bits: byte(at + 4), process, orientation: this.orientation };
      return { width, height, format: "jpeg", ...facts };
    }
  }
}

/** One call of FakeDecoder.decode. */
export interface DecodeCall {
  slot: number;
  images: Uint8Array[];
  transforms: Float32Array;
}

/** Pretends to decode, after a delay; keeps what it was asked, and fails where two batches would share a slot. */
export class FakeDecoder implements BatchDecoder {
  readonly calls: DecodeCall[] = [];
  readonly busy = new Set<number>();
  mostBusy = 0;

  constructor(
    readonly batchSize: number,
    readonly height: number,
    readonly width: number,
    readonly slots = 3,
    /** How long a call takes, and which images of it fail. */
    readonly behaviour: (call: DecodeCall, number: number) => Promise<DecodeFailure[]> = async ({ images }) =>
      images.flatMap((bytes, index) => (bytes.length === 0 ? [{ index, message: "no bytes" }] : [])),
  ) {}

  async decode(slot: number, images: Uint8Array[], transforms: Float32Array): Promise<{ failures: DecodeFailure[] }> {
    if (this.busy.has(slot)) throw new Error(`slot ${slot} is in use`);
    this.busy.add(slot);
    this.mostBusy = Math.max(this.mostBusy, this.busy.size);
    const call = { slot, images, transforms: transforms.slice() };
    this.calls.push(call);
    try {
      return { failures: await this.behaviour(call, this.calls.length - 1) };
    } finally {
      this.busy.delete(slot);
    }
  }
}

/** Runs `work` with a folder that is removed afterwards. */
export async function inFolder<T>(work: (folder: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), "dlfs-data-"));
  try {
    return await work(folder);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** The DlfsError that `work` fails with. */
export async function failure(work: () => unknown): Promise<DlfsError> {
  try {
    await work();
  } catch (error) {
    if (error instanceof DlfsError) return error;
    throw error;
  }
  throw new Error("expected a DlfsError, but nothing failed");
}

/** A progress listener for work that is to be quiet. */
export const quiet = (): void => {};
