/**
 * Compares what a device decodes JPEGs to with libjpeg-turbo on the CPU, image by image.
 *
 *   bun run scripts/compare-decoders.ts [--images FOLDER] [--files 256] [--hardware 0,100] [--backend cuda]
 *
 * Without --images those of `dlfs bench decode` are compared, 640x480. For each share of a GPU's JPEG engines it prints how many
 * levels of 255 the pixels are apart: the mean over all images, the largest mean of one image, and the largest difference.
 * Exits with 1 where one image's mean is 2 levels or more, or where only one of the two refuses an image.
 */
import { parseArgs } from "node:util";
import { openDecodeSet } from "../lib/bench";
import { DeviceImageCodec } from "../lib/data";
import { finishJob, ImageStaging } from "../lib/data/encoded-images";
import { DlfsError } from "../lib/native";
import { Device, outHandle, Tensor } from "../lib/tensor";

const LIMIT = 2;
const BATCH = 32;

const { values: args } = parseArgs({
  options: {
    images: { type: "string" },
    files: { type: "string", default: "256" },
    hardware: { type: "string", default: "0,100" },
    backend: { type: "string" },
  },
});

using device = new Device({ backend: args.backend }, console.log);
using cpu = new Device({ backend: "cpu" });
const rest = { size: [8, 8], precision: "f32", threads: 1, hardware: 0, repetitions: 1, batch: BATCH } as const;
const set = await openDecodeSet(device, { ...rest, images: args.images, files: Number(args.files), sweep: false });
const reference = new DeviceImageCodec(cpu);

/** The pixels of images of the set; null for those that are refused. */
async function decode(first: number, hardware: number): Promise<(Uint8Array | null)[]> {
  const end = Math.min(first + BATCH, set.paths.length);
  const sizes = set.sizes.slice(first, end);
  using resources = new DisposableStack();
  const out = outHandle();
  device.native.decoderCreate(device.handle, out.view, 0, hardware);
  resources.defer(() => void device.native.decoderDestroy(out.value));
  const { sources, lengths, paths, pathBytes } = resources
    .use(new ImageStaging(device))
    .stage(set.paths.slice(first, end));
  const pixels = sizes.map(({ height, width }) => resources.use(Tensor.empty(device, [height, width, 3], "u8")));
  const targets = BigInt64Array.from(pixels, ({ address }) => BigInt(address));
  const flat = Int32Array.from(sizes.flatMap(({ height, width }) => [height, width]));
  const job = outHandle();
  device.native.decoderSubmitPixels(
    ...([out.value, job.view, targets, sources, lengths, paths, flat, pathBytes, sizes.length] as const),
  );
  const failed = new Set((await finishJob(device, job.value, sizes.length)).map(({ index }) => index));
  return pixels.map((tensor, i) => (failed.has(i) ? null : tensor.readBytes()));
}

function referenceOf(i: number): Uint8Array | null {
  try {
    return reference.decode(set.bytes[i] as Uint8Array).data;
  } catch (error) {
    if (!(error instanceof DlfsError)) throw error;
    return null;
  }
}

let bad = 0;
for (const hardware of args.hardware.split(",").map(Number)) {
  let [sum, count, worst, largest, worstName] = [0, 0, 0, 0, ""];
  for (let first = 0; first < set.paths.length; first += BATCH) {
    for (const [i, found] of (await decode(first, hardware)).entries()) {
      const expected = referenceOf(first + i);
      const name = set.paths[first + i] as string;
      if (!found || !expected) {
        if (found || expected) console.log(`${name}: ${found ? "the CPU" : device.backend} alone refuses it`);
        if (found || expected) bad++;
        continue;
      }
      let off = 0;
      for (let k = 0; k < found.length; k++) {
        const difference = Math.abs((found[k] as number) - (expected[k] as number));
        off += difference;
        if (difference > largest) largest = difference;
      }
      sum += off;
      count += found.length;
      if (off / found.length >= LIMIT) bad++;
      if (off / found.length >= worst) [worst, worstName] = [off / found.length, name];
    }
  }
  console.log(
    `${hardware} % by JPEG engines: ${(sum / Math.max(1, count)).toFixed(3)} levels apart on average, ` +
      `${worst.toFixed(3)} at most of one image (${worstName}), ${largest} at most of one value`,
  );
}
if (bad > 0) console.log(`${bad} images differ by ${LIMIT} levels or more, or are refused by one alone`);
process.exitCode = bad > 0 ? 1 : 0;
