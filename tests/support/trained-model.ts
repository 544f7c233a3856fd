/** Checkpoints as training writes them, of models with initial weights. */
import { writeCheckpoint } from "../../lib/formats";
import { type ModelConfig, modelFromConfig } from "../../lib/models";
import { testDevice } from "./device";

/**
 * Writes a checkpoint of a model with this seed; `config` is what it keeps of its run. Returns the values of all parameters and
 * buffers.
 */
export async function saveTrained(
  path: string,
  model: ModelConfig,
  seed: number,
  config: unknown,
  iteration = 7,
): Promise<Map<string, number[]>> {
  using made = modelFromConfig(model).to(testDevice(), { seed });
  const tensors = [...made.stateDict()].map(([name, tensor]) => {
    const data = new Uint8Array((tensor.read() as Float32Array).slice().buffer);
    return { name: `model.${name}`, dtype: "f32" as const, shape: tensor.shape, data };
  });
  const values = new Map([...made.stateDict()].map(([name, tensor]) => [name, [...tensor.read()]]));
  const versions = { dlfs: "0", bun: "0", backend: "cpu", libraries: {} };
  const metadata = { iteration, epoch: 0, created: 0, config, versions, random: [], history: [] };
  await writeCheckpoint(path, { ...metadata, convPicks: [], state: {} }, tensors);
  return values;
}
