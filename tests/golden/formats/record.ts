/**
 * Writes the committed files of format version 1, beside this script:
 *
 *   DLFS_BACKEND=cpu bun run tests/golden/formats/record.ts
 *
 * They were written when the version was made, and stay as they are: later versions of dlfs must read them. A new version of a
 * format gets files of its own.
 */
import { rmSync } from "node:fs";
import { join } from "node:path";
import { Engine } from "../../../lib/engine";
import { PredictionsWriter, type StoredDType, writeModelFile } from "../../../lib/formats";
import { modelFromConfig } from "../../../lib/models";
import { Device } from "../../../lib/tensor";
import { architecture, modelMetadata, picture, predictions, predictionsHeader } from "./sample";

const at = (name: string) => join(import.meta.dir, name);
using device = new Device({ backend: "cpu" });
{
  using model = modelFromConfig(architecture).to(device, { seed: 11 });
  const tensors = [...model.stateDict()].map(([name, tensor]) => {
    return { name, dtype: tensor.dtype as StoredDType, shape: [...tensor.shape], data: tensor.readBytes() };
  });
  await writeModelFile(at("model-v1.dlfs"), modelMetadata, tensors);
}
{
  await using engine = await Engine.load(at("model-v1.dlfs"), { device, precision: "fp32", batchSizes: [1] });
  const { detections } = await engine.detect(picture());
  await Bun.write(at("model-v1.json"), `${JSON.stringify(detections, null, 1)}\n`);
}
rmSync(at("predictions-v1.dlpr"), { force: true });
await using writer = await PredictionsWriter.open(at("predictions-v1.dlpr"), predictionsHeader);
await writer.append(predictions);
