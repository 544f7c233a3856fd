import { align, dtypeSize, elementCount } from "../tensor";
import type { Node } from "./node";
import type { Spec, Value } from "./value";

/** Memory of one value (and of all its views) in the arena, needed from node `first` to node `last`. */
interface Block {
  bytes: number;
  first: number;
  last: number;
  offset: number;
}

export interface MemoryPlan {
  /** Bytes of the arena. */
  readonly bytes: number;
  /** Bytes that all blocks would take without sharing. */
  readonly unshared: number;
  /** Offset of a value in the arena; null for leaves and for values bound elsewhere. */
  offsetOf(value: Value): number | null;
  /** Offset of a node's workspace; null where it has none. */
  workspaceOf(node: Node): number | null;
}

export interface MemoryRequest {
  /** Nodes in the order of their run. */
  nodes: readonly Node[];
  /** Computed once, before the first run (hoisted), and inputs of the program: never shared. */
  permanent: readonly Value[];
  /** Read after the run. */
  results: readonly Value[];
  /** Values that live at an address of their own. */
  bound: ReadonlySet<Value>;
  workspaces: ReadonlyMap<Node, number>;
  /** Gives every value memory of its own, so that all can be read after a run. */
  keepAll: boolean;
}

/** The value whose memory this one is a view of. */
export function storageOf(value: Value): Value {
  let root = value;
  while (root.node?.op.alias) root = root.node.inputs[0] as Value;
  return root;
}

export function byteSize(spec: Spec): number {
  return elementCount(spec.shape) * dtypeSize(spec.dtype);
}

/**
 * Gives every value an offset such that values needed at the same time do not overlap: lifetimes from first write to last
 * read, in-place operations where their input is not read again, then the largest blocks first, each at the lowest offset
 * that is free during its lifetime.
 */
export function planMemory(request: MemoryRequest): MemoryPlan {
  const { nodes, bound, workspaces, keepAll } = request;
  const lastRead = new Map<Value, number>();
  for (const [index, node] of nodes.entries()) for (const input of node.inputs) lastRead.set(storageOf(input), index);
  for (const value of request.results) lastRead.set(storageOf(value), Number.POSITIVE_INFINITY);

  const blocks: Block[] = [];
  const blockOf = new Map<Value, Block>();
  const workspaceBlocks = new Map<Node, Block>();
  const reserve = (bytes: number, first: number, last: number): Block => {
    const block = { bytes: align(Math.max(1, bytes)), first, last, offset: 0 };
    blocks.push(block);
    return block;
  };

  for (const value of request.permanent) {
    const root = storageOf(value);
    if (!blockOf.has(root) && !isElsewhere(root, bound))
      blockOf.set(root, reserve(byteSize(root), -1, Number.POSITIVE_INFINITY));
  }
  for (const [index, node] of nodes.entries()) {
    if (node.op.alias) continue;
    const workspace = workspaces.get(node) ?? 0;
    if (workspace > 0) workspaceBlocks.set(node, reserve(workspace, index, index));
    for (const [slot, output] of node.outputs.entries()) {
      if (bound.has(output)) continue;
      const read = lastRead.get(output);
      if (read === undefined && node.op.optionalOutputs?.includes(slot)) continue;
      const last = keepAll ? Number.POSITIVE_INFINITY : (read ?? index);
      const taken = slot === 0 && !keepAll ? reusableInput(node, index, output, blockOf) : null;
      if (taken) {
        taken.last = last;
        blockOf.set(output, taken);
      } else {
        blockOf.set(output, reserve(byteSize(output), index, last));
      }
    }
  }

  const bytes = placeBlocks(blocks);
  return {
    bytes,
    unshared: blocks.reduce((sum, block) => sum + block.bytes, 0),
    offsetOf: (value) => blockOf.get(storageOf(value))?.offset ?? null,
    workspaceOf: (node) => workspaceBlocks.get(node)?.offset ?? null,
  };
}

function isElsewhere(root: Value, bound: ReadonlySet<Value>): boolean {
  return bound.has(root) || (root.leaf !== null && root.leaf.leaf !== "input");
}

/** The block of an input that dies at this node and that the operation may overwrite with its first output. */
function reusableInput(node: Node, index: number, output: Value, blockOf: Map<Value, Block>): Block | null {
  for (const slot of node.op.inplace ?? []) {
    const input = node.inputs[slot];
    const block = input && blockOf.get(storageOf(input));
    if (block && block.last === index && block.first >= 0 && block.bytes === align(byteSize(output))) return block;
  }
  return null;
}

/** Sets the offsets; returns the arena's size. */
function placeBlocks(blocks: readonly Block[]): number {
  const placed: Block[] = [];
  let size = 0;
  for (const block of [...blocks].sort((a, b) => b.bytes - a.bytes || a.first - b.first)) {
    const neighbours = placed
      .filter((other) => other.first <= block.last && block.first <= other.last)
      .sort((a, b) => a.offset - b.offset);
    let offset = 0;
    for (const other of neighbours) {
      if (offset + block.bytes <= other.offset) break;
      offset = Math.max(offset, other.offset + other.bytes);
    }
    block.offset = offset;
    placed.push(block);
    size = Math.max(size, offset + block.bytes);
  }
  return size;
}
