/**
 * Records curve.json on the CPU backend, and batch.bin from the first images of the demo:
 *   bun tests/golden/loss-curve/record.ts
 */
import {
  CocoDataLoader,
  DeviceBatchDecoder,
  DeviceImageCodec,
  demoFolder,
  generateDemo,
  loadDataset,
  Normalize,
  Resize,
} from "../../../lib/data";
import { Device } from "../../../lib/tensor";
import { goldenPath, lossCurve, MAX_BOXES, SIZE, serializeBatch } from "./curve";

using device = new Device({ backend: "cpu", deterministic: true });
const codec = new DeviceImageCodec(device);
const folder = demoFolder();
await generateDemo(folder, {
  encode: (data, width, height, quality) => codec.encode({ data, width, height }, quality),
});
using dataset = await loadDataset(folder, { codec });
const preprocessing = [new Resize(), new Normalize({ mean: [0, 0, 0], std: [1, 1, 1], fill: [0, 0, 0] })];
const shape = { batchSize: 4, height: SIZE, width: SIZE };
using decoder = new DeviceBatchDecoder(device, { ...shape, preprocessing });
await using loader = new CocoDataLoader({
  store: dataset.store,
  source: dataset.source,
  split: dataset.valSplit as string,
  decoder,
  batchSize: 4,
  size: [SIZE, SIZE],
  preprocessing,
  shuffle: false,
  maxBoxes: MAX_BOXES,
});
const batch = await loader.getBatch();
const pixels = Uint8Array.from(decoder.images(batch.slot).read(), (value) => Math.round(value * 255));
const { n, boxes, labels, counts } = batch;
await Bun.write(goldenPath("batch.bin"), serializeBatch({ n, pixels, boxes, labels, counts }));
batch.release();
const curve = await lossCurve(device);
await Bun.write(goldenPath("curve.json"), `${JSON.stringify(curve, null, 1)}\n`);
console.log(curve);
