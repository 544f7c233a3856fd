/** A model file that loads in no time, for tests of what serves models. */
import { DeviceImageCodec, Normalize, Resize } from "../../lib/data";
import { loadTrainedModel, saveModel } from "../../lib/train";
import { testDevice } from "./device";
import { saveTrained } from "./trained-model";

/** Writes FOLDER/NAME.dlfs: two classes, an input of 64x96, weights at random by the seed. Returns its path. */
export async function saveTinyModel(folder: string, name = "tiny", seed = 3): Promise<string> {
  const model = {
    ...({ name: "compact", classes: 2, width: 4, headConvs: 1 } as const),
    // Weights at random: everything counts, so that there is something to compare.
    postprocess: { scoreThreshold: 0, topK: 50, maxDetections: 20 },
  };
  const preprocessing = [new Resize().toJSON(), new Normalize().toJSON()];
  const checkpoint = `${folder}/${name}.dlck`;
  await saveTrained(checkpoint, model, seed, { model, classes: ["red", "green"], size: [64, 96], preprocessing });
  using trained = await loadTrainedModel(checkpoint, testDevice());
  const path = `${folder}/${name}.dlfs`;
  await saveModel(path, trained);
  return path;
}

/** A JPEG with some structure. */
export function tinyJpeg(width: number, height: number, seed: number): Uint8Array {
  const data = new Uint8Array(3 * width * height);
  for (let i = 0; i < data.length; i++) data[i] = (i * seed * 31 + ((i / 90) | 0) * 17) & 255;
  return new DeviceImageCodec(testDevice()).encode({ width, height, data });
}
