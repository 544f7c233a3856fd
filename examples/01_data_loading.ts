/**
 * From annotations and JPEGs to batches in device memory: reads a data set, says what it holds, loads one pass over it with
 * augmentation, and draws some of what a network would be given. Then the same from record files: the images of a split decoded
 * and resized once, and loaded with no decoding.
 *
 *   bun run examples/01_data_loading.ts                             the demo data set, which is made where it is missing
 *   bun run examples/01_data_loading.ts DIR [TRAIN_SPLIT VAL_SPLIT] a data set in COCO's layout
 */
import {
  CocoDataLoader,
  createImage,
  type DetectionBatch,
  Device,
  DeviceBatchDecoder,
  DeviceImageCodec,
  DeviceRecordReader,
  demoFolder,
  describeDataset,
  drawBoxes,
  generateDemo,
  HorizontalFlip,
  loadDataset,
  Normalize,
  normalizationOf,
  packRecords,
  paste,
  RandomCrop,
  RecordLoader,
  RecordSet,
  Resize,
  type RgbImage,
  ScaleJitter,
  showProgress,
} from "dlfs";

const [dir, trainSplit = "train2017", valSplit = "val2017"] = process.argv.slice(2);
const size: readonly [height: number, width: number] = [256, 256];
const batchSize = 8;

using device = new Device({}, console.log);
const codec = new DeviceImageCodec(device);
const folder = dir ?? demoFolder();
if (dir === undefined) {
  await generateDemo(folder, {
    encode: (data, width, height, quality) => codec.encode({ data, width, height }, quality),
  });
}

// The annotations go to an SQLite store, every image file is looked at: what cannot be used is left out and listed.
using dataset = await loadDataset(folder, { codec, trainSplit, valSplit });
for (const line of describeDataset(dataset)) console.log(line);
const largest = dataset.store
  .classCounts(trainSplit)
  .map((count, i) => ({ name: dataset.classes.nameOf(i), count }))
  .sort((a, b) => b.count - a.count)
  .slice(0, 5);
console.log(`most frequent: ${largest.map(({ name, count }) => `${name} ${count}`).join(", ")}`);

// Operations say where pixels and boxes go; one native kernel draws the result. The order matters: what changes the size of
// the canvas comes before Resize.
const preprocessing = [
  new RandomCrop(),
  new Resize(),
  new ScaleJitter(0.7, 1.4),
  new HorizontalFlip(),
  new Normalize(),
];

using decoder = new DeviceBatchDecoder(device, { batchSize, height: size[0], width: size[1], preprocessing });
await using loader = new CocoDataLoader({
  store: dataset.store,
  source: dataset.source,
  split: trainSplit,
  batchSize,
  size,
  preprocessing,
  decoder,
  seed: 1,
});
console.log(`${loader.length} batches of ${batchSize} images, up to ${loader.maxBoxes} boxes each`);

const started = performance.now();
let images = 0;
let boxes = 0;
for await (const batch of loader) {
  if (batch.index === 0) await savePicture(batch, "runs/01_data_loading/batch.jpg");
  images += batch.n;
  for (const count of batch.counts) boxes += count;
  // The slot in device memory may be filled again from here on.
  batch.release();
}
const seconds = (performance.now() - started) / 1000;
console.log(
  `${images} images with ${boxes} boxes in ${seconds.toFixed(2)} s: ${(images / seconds).toFixed(0)} images/s`,
);

// Serialized: `dlfs data pack` does this from the command line. Called again, packRecords does what is left, here nothing.
const packed = await packRecords({
  store: dataset.store,
  source: dataset.source,
  split: valSplit,
  folder: `runs/01_data_loading/records-${dir === undefined ? "demo" : Bun.hash(folder).toString(36)}`,
  device,
  size,
  preprocessing: [new Resize(), new Normalize()],
  progress: showProgress(),
});
console.log(`${packed.records} records of ${valSplit} in ${packed.folder}, ${packed.written} shards written now`);

// What is random stays the loader's; it draws from the records as it would from the images.
await using reader = new DeviceRecordReader(device, await RecordSet.open(packed.folder), { batchSize });
await using records = new RecordLoader({
  reader,
  batchSize,
  augmentation: [new ScaleJitter(0.7, 1.4), new HorizontalFlip()],
  seed: 1,
});
for (const pass of ["first", "second"]) {
  const start = performance.now();
  let count = 0;
  for await (const batch of records) {
    count += batch.n;
    batch.release();
  }
  const rate = (1000 * count) / (performance.now() - start);
  console.log(`${count} images from records, ${pass} pass: ${rate.toFixed(0)} images/s`);
}

/** Draws the images of a batch side by side, with their boxes. */
async function savePicture(batch: DetectionBatch, path: string): Promise<void> {
  const [height, width] = size;
  const pixels = toPixels(decoder.images(batch.slot).read());
  const sheet = createImage(width * 4, height * Math.ceil(batch.n / 4));
  for (let i = 0; i < batch.n; i++) {
    const area = 3 * width * height;
    const image: RgbImage = { width, height, data: pixels.subarray(i * area, (i + 1) * area) };
    const shown = Array.from({ length: batch.counts[i] as number }, (_, k) => {
      const at = i * loader.maxBoxes + k;
      return { box: batch.boxes.subarray(4 * at, 4 * at + 4), classIndex: batch.labels[at] as number };
    });
    drawBoxes(image, shown, dataset.classes.names);
    paste(sheet, image, (i % 4) * width, Math.floor(i / 4) * height);
  }
  await Bun.write(path, codec.encode(sheet, 90));
  console.log(`the first batch: ${path}`);
}

/** Normalised values back to 0 to 255. */
function toPixels(values: ArrayLike<number>): Uint8Array {
  const normalisation = normalizationOf(preprocessing);
  const pixels = new Uint8ClampedArray(values.length);
  for (let i = 0; i < values.length; i++) {
    const channel = i % 3;
    const [mean, std] = [normalisation[channel] as number, normalisation[3 + channel] as number];
    pixels[i] = 255 * ((values[i] as number) * std + mean);
  }
  return new Uint8Array(pixels.buffer);
}
