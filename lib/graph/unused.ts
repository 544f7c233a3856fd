import type { Node } from "./node";
import type { Value } from "./value";

/** Nodes that results or effects depend on, in order. */
export function withoutUnused(nodes: readonly Node[], results: readonly Value[]): Node[] {
  const used = new Set<Node>();
  const visit = (first: Node) => {
    const pending = [first];
    for (let node = pending.pop(); node; node = pending.pop()) {
      if (used.has(node)) continue;
      used.add(node);
      for (const input of node.inputs) if (input.node) pending.push(input.node);
    }
  };
  for (const { node } of results) if (node) visit(node);
  for (const node of nodes) if (node.op.effect) visit(node);
  return nodes.filter((node) => used.has(node));
}
