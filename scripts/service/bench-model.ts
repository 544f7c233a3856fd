/** A RetinaNet with ResNet-50 whose weights are random, but which detects: the work of a trained one, without the training. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { Normalize, Resize } from "../../lib/data";
import { writeCheckpoint } from "../../lib/formats";
import { type ModelConfig, modelFromConfig } from "../../lib/models";
import { Device, type Tensor } from "../../lib/tensor";

/** Initial classification weights are small on purpose; so much larger they give some 60 detections an image. */
const SPREAD = 3.8;

/** Writes FOLDER/retinanet.dlck, of `size` x `size` pixels and 91 classes. Returns its path. */
export async function writeBenchModel(folder: string, size: number): Promise<string> {
  mkdirSync(folder, { recursive: true });
  const config: ModelConfig = { name: "retinanet", classes: 91, backbone: "resnet50" };
  using device = new Device({ backend: "cpu" });
  using made = modelFromConfig(config).to(device, { seed: 0 });
  const tensors = [...made.stateDict()].map(([name, tensor]) => {
    const values = (tensor.read() as Float32Array).slice();
    if (/cls_logits\.weight$/.test(name)) for (let i = 0; i < values.length; i++) values[i]! *= SPREAD;
    return {
      name: `model.${name}`,
      dtype: "f32" as const,
      shape: (tensor as Tensor).shape,
      data: new Uint8Array(values.buffer),
    };
  });
  const path = join(folder, "retinanet.dlck");
  const preprocessing = [new Resize().toJSON(), new Normalize().toJSON()];
  const classes = Array.from({ length: 91 }, (_, i) => `class ${i}`);
  const metadata = { iteration: 0, epoch: 0, created: Date.now(), random: [], history: [], convPicks: [], state: {} };
  const versions = { dlfs: "0", bun: Bun.version, backend: "cpu", libraries: {} };
  await writeCheckpoint(
    path,
    { ...metadata, versions, config: { model: config, classes, size: [size, size], preprocessing } },
    tensors,
  );
  return path;
}
