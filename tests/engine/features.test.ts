/** Pooled features: the means of the backbone's maps, whatever the model and the batch, and bad images beside good ones. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DeviceImageCodec, type Pixels } from "../../lib/data";
import { Engine } from "../../lib/engine";
import { Program } from "../../lib/graph";
import { type ModelConfig, modelFromConfig, pooledFeatures } from "../../lib/models";
import type { Tensor } from "../../lib/tensor";
import { testDevice } from "../support/device";
import { saveTinyModel, tinyJpeg } from "../support/tiny-model";

const folder = mkdtempSync(join(tmpdir(), "dlfs-features-"));
afterAll(() => rmSync(folder, { recursive: true }));
const device = testDevice();

const models: ModelConfig[] = [
  { name: "compact", classes: 2, width: 4, headConvs: 1 },
  { name: "retinanet", classes: 2, backbone: "mobilenet_v2" },
  { name: "fcos", classes: 2, backbone: "mobilenet_v2" },
  { name: "ssdlite", classes: 2 },
];

test.each(models)("are the means of the feature maps of %j", (config) => {
  using model = modelFromConfig(config).to(device, { seed: 3 }).eval();
  const [n, side] = [2, 64];
  using program = new Program(device, { images: { shape: [n, side, side, 3], dtype: "f32" } }, ({ images }) => ({
    features: pooledFeatures(model, images!),
    ...Object.fromEntries(model.featureMaps(images!).map((map, i) => [`map${i}`, map])),
  }));
  const pixels = Float32Array.from({ length: n * side * side * 3 }, (_, i) => Math.sin(i * 0.37));
  program.inputs.images!.write(pixels);
  program.run();
  const maps = Object.entries(program.results).flatMap(([name, map]) => (name === "features" ? [] : [map]));
  const expected: number[] = [];
  for (let image = 0; image < n; image++) {
    for (const map of maps as Tensor[]) {
      const [, h, w, c] = map.shape as [number, number, number, number];
      const values = map.read();
      for (let k = 0; k < c; k++) {
        let sum = 0;
        for (let cell = 0; cell < h * w; cell++) sum += values[(image * h * w + cell) * c + k]!;
        expected.push(sum / (h * w));
      }
    }
  }
  const found = program.results.features!.read();
  expect(found.length).toBe(expected.length);
  expect(new Set(found).size).toBeGreaterThan(4);
  for (const [i, value] of expected.entries())
    expect(Math.abs(found[i]! - value)).toBeLessThan(1e-4 + 1e-4 * Math.abs(value));
});

test("an engine gives them of any number of images, in their order, and says what is wrong with which", async () => {
  const path = await saveTinyModel(folder);
  await using engine = await Engine.load(path, { device, precision: "fp32", batchSizes: [2], warmUp: false });
  const codec = new DeviceImageCodec(device);
  const files = [tinyJpeg(60, 40, 1), tinyJpeg(90, 50, 2), tinyJpeg(30, 80, 3)];
  const pixels: Pixels = codec.decode(files[0]!);
  const all = await engine.features([files[0]!, Uint8Array.of(1, 2), files[1]!, files[2]!, pixels]);
  expect(all.map(({ error }) => error === null)).toEqual([true, false, true, true, true]);
  expect(all[1]!.features).toBeNull();
  const [alone] = await engine.features([files[1]!]);
  expect([...all[2]!.features!]).toEqual([...alone!.features!]);
  expect(all[0]!.features!.some((value, i) => value !== all[2]!.features![i])).toBe(true);
  // On a GPU a JPEG may be decoded by another unit alone than within a batch.
  for (const [i, value] of all[4]!.features!.entries())
    expect(Math.abs(value - all[0]!.features![i]!)).toBeLessThan(5e-3);
  // Detections are what they were, while features are computed as well.
  const before = await engine.detect(files);
  const [between] = await Promise.all([engine.detect(files), engine.features(files)]);
  expect(between).toEqual(before);
  expect(await engine.features([])).toEqual([]);
});
