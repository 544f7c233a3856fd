import { dirname } from "node:path";
import { makeFolder, writeSafetensors } from "../formats";
import type { Model } from "../layers";
import { torchWeights } from "../models";

export interface SaveWeightsOptions {
  /** The part of the model to take, as for torchWeights. Default: all of it. */
  readonly from?: string;
  /** Texts to keep beside the tensors. */
  readonly metadata?: Readonly<Record<string, string>>;
}

/**
 * Writes a model's parameters and buffers as a PyTorch state dict in a safetensors file, and makes its folder:
 * `safetensors.torch.load_file` reads it, and a RetinaNet's goes into torchvision's by `load_state_dict`.
 *
 * @throws DlfsError of code `io` where writing fails
 */
export async function saveTorchWeights(
  path: string,
  model: Model,
  { from, metadata }: SaveWeightsOptions = {},
): Promise<void> {
  const tensors = [...torchWeights(model, { from })].map(([name, { shape, data }]) => ({
    name,
    dtype: "f32" as const,
    shape,
    data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
  }));
  await makeFolder(dirname(path));
  await writeSafetensors(path, tensors, { format: "pt", ...metadata });
}
