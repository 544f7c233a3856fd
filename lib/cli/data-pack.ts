/** `dlfs data pack`: its options; the work is packRecords'. */
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import {
  DeviceImageCodec,
  dataSource,
  demoFolder,
  describeDataset,
  generateDemo,
  isRemoteLocation,
  loadDataset,
  Normalize,
  type PackReport,
  packRecords,
  Resize,
  SQLiteAnnStore,
  showProgress,
} from "../data";
import { Device } from "../tensor";
import { oneOf, positiveInteger, sizeOf, UsageError } from "./arguments";

/** For the help of `dlfs data`. */
export const packHelp = `pack: writes a split as record files, decoded and resized once, that RecordLoader memory-maps; called again, it does what is left
       dlfs data pack --data DIR --split NAME --out DIR [options]
  --data DIR          a data set in COCO's layout, an address such as gs://BUCKET/PREFIX, or "demo"; or --store FILE with
                      --images DIR where the store does not know that folder
  --split NAME        what is packed; default train2017 of --data
  --out DIR           where the record files go; one pack a folder
  --size N or HxW     network input in pixels; default 640
  --resize HOW        letterbox (default), letterbox-corner (images lie in the top left corner) or stretch
  --antialias         filter over the footprint when shrinking, as Pillow's bilinear
  --dtype T           u8 (default): pixels, which a loader can augment; bf16, f16 or f32: values, normalised by ImageNet's mean and
                      standard deviation, to which nothing is done any more
  --padding HOW       of u8: drawn (default): what surrounds a letterboxed image is not stored; stored: all records are equally large
  --shard-size N      MiB, about; default 1024
  --on-bad-image HOW  skip (default): leave it out and count it; stop: end the packing
  --threads N         decoding threads; default: half of the cores
  --backend NAME      cuda or cpu, for decoding; default: DLFS_BACKEND, else cuda where it finds a device`;

const options = {
  data: { type: "string" },
  store: { type: "string" },
  images: { type: "string" },
  split: { type: "string" },
  out: { type: "string" },
  size: { type: "string" },
  resize: { type: "string" },
  antialias: { type: "boolean" },
  dtype: { type: "string" },
  padding: { type: "string" },
  "shard-size": { type: "string" },
  "on-bad-image": { type: "string" },
  threads: { type: "string" },
  backend: { type: "string" },
} as const;

/** Runs `dlfs data pack` with the arguments that follow it; the result is the exit status. */
export async function runPack(argv: string[]): Promise<number> {
  const args = parseArgs({ args: argv, options, strict: true, allowPositionals: false }).values;
  if ((args.data === undefined) === (args.store === undefined))
    throw new UsageError("expected one of --data and --store");
  if (args.images !== undefined && args.store === undefined) throw new UsageError("--images is for --store");
  if (args.out === undefined) throw new UsageError("expected --out, the folder for the record files");
  const resize = oneOf("resize", args.resize ?? "letterbox", ["letterbox", "letterbox-corner", "stretch"]);
  const dtype = oneOf("dtype", args.dtype ?? "u8", ["u8", "bf16", "f16", "f32"]);
  const settings = {
    folder: args.out,
    size: args.size === undefined ? ([640, 640] as const) : sizeOf("size", args.size),
    preprocessing: [
      new Resize({
        mode: resize === "stretch" ? "stretch" : "letterbox",
        align: resize === "letterbox-corner" ? "corner" : "center",
        antialias: args.antialias,
      }),
      new Normalize(),
    ],
    dtype,
    padding: args.padding === undefined ? undefined : oneOf("padding", args.padding, ["drawn", "stored"]),
    shardBytes: 2 ** 20 * (args["shard-size"] === undefined ? 1024 : positiveInteger("shard-size", args["shard-size"])),
    failures: oneOf("on-bad-image", args["on-bad-image"] ?? "skip", ["skip", "stop"]),
    threads: args.threads === undefined ? undefined : positiveInteger("threads", args.threads),
    progress: showProgress(),
  };
  if (settings.padding === "drawn" && dtype !== "u8") throw new UsageError(`--padding drawn is for --dtype u8`);

  using device = new Device({ backend: args.backend }, console.log);
  using data = await openData(device, args);
  const stop = new AbortController();
  const interrupt = (): void => {
    stop.abort();
    console.error("\nstopping; the same command goes on where this one stopped");
  };
  process.once("SIGINT", interrupt);
  try {
    const report = await packRecords({ ...settings, ...data, device, signal: stop.signal });
    for (const line of describePack(report)) console.log(line);
    return 0;
  } catch (error) {
    if (stop.signal.aborted) return 130;
    throw error;
  } finally {
    process.off("SIGINT", interrupt);
  }
}

async function openData(device: Device, args: { data?: string; store?: string; images?: string; split?: string }) {
  if (args.store !== undefined) {
    if (args.split === undefined) throw new UsageError("--store needs --split");
    if (!(await Bun.file(args.store).exists())) throw new UsageError(`--store: no such file, "${args.store}"`);
    const store = new SQLiteAnnStore(args.store);
    const images = args.images ?? store.getMetadata("images");
    if (images === null) {
      store.close();
      throw new UsageError("expected --images, the folder of the images: the store does not know it");
    }
    const source = dataSource(isRemoteLocation(images) ? images : resolve(images));
    return { store, source, split: args.split, [Symbol.dispose]: () => store.close() };
  }
  const location = args.data as string;
  const codec = new DeviceImageCodec(device);
  const progress = showProgress();
  const isDemo = location === "demo";
  if (isDemo) {
    await generateDemo(demoFolder(), {
      encode: (data, width, height, quality) => codec.encode({ data, width, height }, quality),
      progress,
    });
  }
  const folder = isDemo ? demoFolder() : isRemoteLocation(location) ? location : resolve(location);
  const split = args.split ?? "train2017";
  const dataset = await loadDataset(folder, { codec, trainSplit: split, valSplit: null, progress });
  for (const line of describeDataset(dataset)) console.log(line);
  return { store: dataset.store, source: dataset.source, split, [Symbol.dispose]: () => dataset[Symbol.dispose]() };
}

/** Lines that say what a packing has done. */
export function describePack(report: PackReport): string[] {
  const { folder, shards, written, rewritten, records, leftOut, bytes, images, seconds } = report;
  const skipped = leftOut > 0 ? `, ${leftOut} images left out` : "";
  const again = rewritten > 0 ? `, ${rewritten} of them again since they were damaged` : "";
  const lines = [`${folder}: ${records} records in ${shards} shards${skipped}`];
  lines.push(
    written === 0
      ? "all shards were there already"
      : `${written} shards written${again}: ${(bytes / 2 ** 20).toFixed(1)} MiB of ${images} images in ` +
          `${seconds.toFixed(1)} s, ${(images / seconds).toFixed(0)} images/s`,
  );
  return lines;
}
