import { estimateMicroseconds, estimatePasses } from "./cost";
import { byteSize, storageOf } from "./memory-plan";
import type { Node } from "./node";
import type { Graph } from "./trace";
import type { Value } from "./value";

/** False, true for all that is cheap, or the bytes that the arena may take. */
export type RecomputeOption = boolean | number;

/** A cheap operation takes at most as long as moving its result so many times: normalisations and 1x1 convolutions do. */
const CHEAP_PASSES = 3.1;

/** What a Recomputation works on. */
export interface RecomputeRequest {
  graph: Graph;
  /** Forward nodes, then backward ones. */
  nodes: readonly Node[];
  isForward(node: Node): boolean;
  /** Read after the run: to be kept. */
  results: readonly Value[];
  /** Bytes that such a list of nodes needs at once. */
  measure(nodes: readonly Node[]): number;
  /** Told of each node that computes what `node` does again. */
  onRepeat(node: Node, repeat: Node): void;
}

/**
 * Trades time for memory (Chen et al. 2016): a forward result that only the backward pass still reads is not kept, but computed
 * again by a copy of its node right before it is read. The copy's inputs are kept, or computed again themselves. A node is
 * repeated only if less memory is needed then.
 */
export class Recomputation {
  /** The nodes with the copies, in the order of their run. */
  nodes: readonly Node[];
  #bytes: number;
  readonly #candidates: Node[];
  readonly #repeats = new Map<Value, Node>();

  constructor(readonly request: RecomputeRequest) {
    this.nodes = request.nodes;
    this.#bytes = request.measure(request.nodes);
    const kept = new Set(request.results.map(storageOf));
    for (const node of request.nodes) if (node.op.alias) kept.add(storageOf(node.outputs[0]!));
    const cost = (node: Node) => estimateMicroseconds(node) / byteSize(node.outputs[0]!);
    this.#candidates = request.nodes
      .filter((node) => request.isForward(node) && repeatable(node) && !kept.has(node.outputs[0]!))
      .map((node) => ({ node, cost: cost(node) }))
      .sort((a, b) => a.cost - b.cost)
      .map(({ node }) => node);
  }

  /** Repeats all nodes that are cheap. */
  repeatCheap(): void {
    for (const node of this.#candidates.splice(0)) if (estimatePasses(node) <= CHEAP_PASSES) this.#try(node);
  }

  /** Repeats nodes, the least costly for their size first, until `bytes` are enough. */
  reduceTo(bytes: number): void {
    while (this.#bytes > bytes && !this.exhausted) this.#try(this.#candidates.shift() as Node);
  }

  /** Whether there is nothing left to repeat. */
  get exhausted(): boolean {
    return this.#candidates.length === 0;
  }

  #try(node: Node): void {
    const { graph, isForward, measure, onRepeat } = this.request;
    const value = node.outputs[0]!;
    const readers = this.nodes.filter((reader) => !isForward(reader) && reader.inputs.includes(value));
    if (readers.length === 0) return;
    const inputs = node.inputs.map((input) => this.#repeats.get(storageOf(input))?.outputs[0] ?? input);
    const { op, attrs, path } = node;
    graph.append(op.withoutEffect ?? op, inputs, attrs, path);
    const repeat = graph.nodes.pop() as Node;
    onRepeat(node, repeat);
    const replace = (from: Value, to: Value) => {
      for (const reader of readers)
        for (const [slot, input] of reader.inputs.entries()) if (input === from) reader.inputs[slot] = to;
    };
    replace(value, repeat.outputs[0]!);
    const tried = this.#insert(repeat, readers[0]!);
    const needed = measure(tried);
    if (needed >= this.#bytes) {
      replace(repeat.outputs[0]!, value);
      return;
    }
    this.nodes = tried;
    this.#bytes = needed;
    this.#repeats.set(value, repeat);
  }

  /** The nodes with `repeat` before its first reader, and before it the copies that it reads itself. */
  #insert(repeat: Node, reader: Node): Node[] {
    const copies = new Set(this.#repeats.values());
    const nodes = [...this.nodes];
    const place = (node: Node, before: Node) => {
      const known = nodes.indexOf(node);
      const at = nodes.indexOf(before);
      if (known >= 0 && known < at) return;
      if (known >= 0) nodes.splice(known, 1);
      nodes.splice(at, 0, node);
      for (const { node: from } of node.inputs) if (from && copies.has(from)) place(from, node);
    };
    place(repeat, reader);
    return nodes;
  }
}

/** Whether a node may run again with the same result. */
function repeatable(node: Node): boolean {
  const { op } = node;
  return !op.alias && !op.hoist && !op.isCollective?.(node) && (!op.effect || op.withoutEffect !== undefined);
}
