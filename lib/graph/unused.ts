import type { Node } from "./node";
import type { Value } from "./value";

/** Nodes that results or effects depend on, in order. */
export function withoutUnused(nodes: readonly Node[], results: readonly Value[]): Node[] {
  const used = new Set<Node>();
  const visit = (value: Value) => {
    const pending = value.node ? [value.node] : [];
    for (let node = pending.pop(); node; node = pending.pop()) {
      if (used.has(node)) continue;
      used.add(node);
      for (const input of node.inputs) if (input.node) pending.push(input.node);
    }
  };
  results.forEach(visit);
  for (const node of nodes) if (node.op.effect) node.outputs.forEach(visit);
  return nodes.filter((node) => used.has(node));
}
