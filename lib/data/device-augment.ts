import { check, ErrorCode } from "../native";
import { dtypeCode, type Stream, type Tensor } from "../tensor";
import { type Composition, packCompositions, type SourcePixels } from "./composition";
import { antialiasOf, normalizationOf, type PreprocessOp } from "./transforms";

export interface DrawOptions {
  /** What they say of mean, standard deviation, fill colour and antialiasing is applied. */
  preprocessing: readonly PreprocessOp[];
  /** Default: the device's. */
  stream?: Stream;
}

/**
 * Draws compositions into a batch (n, height, width, channels) of f32, bf16, f16 or (not normalised) u8, in one native call; it
 * returns at once. `pixels` says where the decoded image of an id lies; null for one that could not be
 * decoded, in whose place the fill colour stays. The images must stay in memory until the stream has passed the call.
 */
export function drawCompositions(
  batch: Tensor,
  compositions: readonly Composition[],
  pixels: (id: number) => SourcePixels | null,
  { preprocessing, stream = batch.device.stream }: DrawOptions,
): void {
  const [n, height, width, channels] = batch.shape as unknown as [number, number, number, number];
  check(
    batch.shape.length === 4 && compositions.length >= 1 && compositions.length <= n,
    "drawCompositions",
    () => `expected 1 to ${n} compositions for a batch of (${batch.shape.join(", ")}), got ${compositions.length}`,
    ErrorCode.shape,
  );
  for (const [i, { outputWidth, outputHeight }] of compositions.entries()) {
    check(
      outputWidth === width && outputHeight === height,
      "drawCompositions",
      () => `composition ${i} is for ${outputHeight}x${outputWidth} (height x width), the batch is ${height}x${width}`,
      ErrorCode.shape,
    );
  }
  const { sources, layers, count } = packCompositions(compositions, pixels, antialiasOf(preprocessing));
  batch.device.native.augment(
    stream.handle,
    batch.address,
    sources,
    layers,
    normalizationOf(preprocessing),
    compositions.length,
    count,
    height,
    width,
    channels,
    dtypeCode(batch.dtype),
    0,
  );
}
