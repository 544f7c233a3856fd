/** Models whose weights are random, but which detect: the work of trained ones, without the training. */
import { mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { Normalize, Resize } from "../../lib/data";
import { writeCheckpoint } from "../../lib/formats";
import { type ModelConfig, modelFromConfig } from "../../lib/models";
import { Device } from "../../lib/tensor";

/** Initial classification weights are small on purpose; so much larger they give some 100 detections on an image of 640x640. */
const SPREAD = 3.1;

/** Writes FOLDER/retinanet.dlck: RetinaNet with ResNet-50, of `size` x `size` pixels and 91 classes. Returns its path. */
export function writeBenchModel(folder: string, size: number): Promise<string> {
  return write(join(folder, "retinanet.dlck"), { name: "retinanet", classes: 91, backbone: "resnet50" }, size, SPREAD);
}

/** Writes FOLDER/tiny.dlck, a model of 64x64 pixels that takes a fraction of a millisecond. Returns its path. */
export function writeTinyModel(folder: string): Promise<string> {
  const postprocess = { scoreThreshold: 0, topK: 50, maxDetections: 10 };
  const config = { name: "compact", classes: 3, width: 4, headConvs: 1, postprocess } as const;
  return write(join(folder, "tiny.dlck"), config, 64, 1);
}

async function write(path: string, config: ModelConfig, size: number, spread: number): Promise<string> {
  mkdirSync(dirname(path), { recursive: true });
  using device = new Device();
  using made = modelFromConfig(config).to(device, { seed: 0 });
  const stored = [...made.stateDict()].map(([name, tensor]) => {
    const values = (tensor.read() as Float32Array).slice();
    if (/cls_logits\.weight$/.test(name)) for (let i = 0; i < values.length; i++) values[i]! *= spread;
    const data = new Uint8Array(values.buffer);
    return { name: `model.${name}`, dtype: "f32" as const, shape: tensor.shape, data };
  });
  const preprocessing = [new Resize().toJSON(), new Normalize().toJSON()];
  const classes = Array.from({ length: config.classes }, (_, i) => `class ${i}`);
  const run = { model: config, classes, size: [size, size], preprocessing };
  const versions = { dlfs: "0", bun: Bun.version, backend: "cpu", libraries: {} };
  const metadata = { iteration: 0, epoch: 0, created: Date.now(), random: [], history: [], convPicks: [], state: {} };
  await writeCheckpoint(path, { ...metadata, versions, config: run }, stored);
  return path;
}
