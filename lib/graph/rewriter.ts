import type { Node, Op } from "./node";
import type { Graph } from "./trace";
import type { Value } from "./value";

/** `first`, and the node at hand, become `merged`, in the place of the latter. */
export interface Rewrite {
  first: Node;
  /** A further node that becomes part of it. */
  second?: Node;
  merged: Node;
}

const tombstone: Node = {
  id: -1,
  op: { kind: "none", infer: () => [], emit() {} },
  inputs: [],
  outputs: [],
  attrs: {},
  path: "",
};

/** A walk over nodes, in order, in which a node may be merged with one that computes an input that nothing else reads. */
export class Rewriter {
  readonly #readers = new Map<Value, number>();
  readonly #replaced = new Map<Value, Value>();
  readonly #at = new Map<Value, number>();
  readonly #nodes: Node[] = [];

  /** @param results values that are read after the nodes have run: they are never merged away */
  constructor(
    readonly graph: Graph,
    readonly before: readonly Node[],
    readonly results: readonly Value[],
  ) {
    const read = (value: Value) => this.#readers.set(value, (this.#readers.get(value) ?? 0) + 1);
    for (const node of before) node.inputs.forEach(read);
    results.forEach(read);
  }

  /** Offers each node, its inputs brought up to date, to `rewrite`; returns the nodes that are left. */
  run(rewrite: (node: Node) => Rewrite | null): Node[] {
    for (const original of this.before) {
      const node: Node = { ...original, inputs: original.inputs.map((input) => this.current(input)) };
      const rewritten = rewrite(node);
      if (rewritten) this.#merge(rewritten, original);
      else {
        Object.assign(original, { inputs: node.inputs });
        this.emit(original);
      }
    }
    return this.#nodes.filter((node) => node !== tombstone);
  }

  /** What stands for a value now. */
  current(value: Value): Value {
    return this.#replaced.get(value) ?? value;
  }

  /** The node computing `value`, if `value` is read once only, so that it can be merged into its reader. */
  sole(value: Value | undefined): Node | null {
    return value?.node && this.#readers.get(value) === 1 && this.#at.has(value)
      ? (this.#nodes[this.#at.get(value)!] as Node)
      : null;
  }

  /** Where in the order of nodes a value is computed; -1 for leaves. */
  positionOf(value: Value): number {
    return this.#at.get(value) ?? -1;
  }

  /** Puts a node at the end of those walked over so far. */
  emit(node: Node): void {
    for (const output of node.outputs) this.#at.set(output, this.#nodes.length);
    this.#nodes.push(node);
  }

  /** Makes a node outside the list. */
  make<A>(op: Op<A>, inputs: Value[], attrs: A, path: string): Node {
    this.graph.append(op, inputs, attrs, path);
    return this.graph.nodes.pop() as Node;
  }

  #merge({ first, second, merged }: Rewrite, last: Node): void {
    for (const gone of second ? [first, second] : [first]) this.#nodes[this.#at.get(gone.outputs[0]!)!] = tombstone;
    for (const [slot, output] of last.outputs.entries()) this.#replaced.set(output, merged.outputs[slot]!);
    this.#readers.set(merged.outputs[0]!, this.#readers.get(last.outputs[0]!) ?? 0);
    this.emit(merged);
  }
}
