import type { Model } from "../layers";

/**
 * Takes a copy of a model's parameters and statistics to the host, and notes which of them train; what it returns puts all back. For
 * steps that are a trial only.
 */
export function keepWeights(model: Model): () => void {
  const kept = [...model.stateDict().values()].map((tensor) => [tensor, tensor.readBytes()] as const);
  const trained = model.parameters().map((parameter) => [parameter, parameter.requiresGrad] as const);
  return () => {
    for (const [tensor, bytes] of kept) tensor.writeBytes(bytes);
    for (const [parameter, requiresGrad] of trained) parameter.requiresGrad = requiresGrad;
    model.refresh();
  };
}
