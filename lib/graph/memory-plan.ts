import { align, dtypeSize, elementCount } from "../tensor";
import { type LanePlan, oneLane } from "./lanes";
import type { Node } from "./node";
import type { Spec, Value } from "./value";

/** Memory of one value (and of all its views) in the arena. */
interface Block {
  bytes: number;
  /** What computes it: null for inputs of the program and what is computed ahead of the runs. */
  owner: Node | null;
  /** The node that writes it first; -1: needed from before the run. */
  first: number;
  /** The last node of each lane that uses it, -1 where none does; null: needed after the run. */
  last: Int32Array | null;
  offset: number;
}

/** Memory that values of one kind of a layer's operation take. */
export interface MemoryShare {
  /** The layer's path; empty for the program's inputs and what belongs to no layer. */
  readonly path: string;
  /** Operation kind; "input" for the program's inputs and what is computed ahead of the runs. */
  readonly kind: string;
  readonly bytes: number;
}

export interface MemoryPlan {
  /** Bytes of the arena. */
  readonly bytes: number;
  /** Bytes that all blocks would take without sharing. */
  readonly unshared: number;
  /** Bytes needed at once where most are, with nodes in program order: no plan for one lane can take less. */
  readonly needed: number;
  /** What is needed at once where most is, by layer and operation, the largest first. */
  atPeak(): MemoryShare[];
  /** Offset of a value in the arena; null for leaves and for values bound elsewhere. */
  offsetOf(value: Value): number | null;
  /** Offset of a node's workspace; null where it has none. */
  workspaceOf(node: Node): number | null;
}

export interface MemoryRequest {
  /** Nodes in the order of their run. */
  nodes: readonly Node[];
  /** Which of them may run at the same time; default none. */
  lanes?: LanePlan;
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
 * Gives every value an offset such that values needed at the same time do not overlap. Two may share memory where all uses of
 * one are sure to have finished when the first node that writes the other starts; in one lane that is to say that their
 * lifetimes do not meet. An operation may overwrite an input that is not read again; then the largest blocks are placed first,
 * each at the lowest offset that is free of those it may not share with.
 */
export function planMemory(request: MemoryRequest): MemoryPlan {
  const lanes = request.lanes ?? oneLane(request.nodes);
  const { blocks, blockOf, workspaceBlocks } = findBlocks(request, lanes);
  const bytes = placeBlocks(blocks, lanes);
  return {
    bytes,
    unshared: blocks.reduce((sum, block) => sum + block.bytes, 0),
    needed: peakOf(blocks, request.nodes.length).bytes,
    atPeak: () => sharesAt(blocks, peakOf(blocks, request.nodes.length).index),
    offsetOf: (value) => blockOf.get(storageOf(value))?.offset ?? null,
    workspaceOf: (node) => workspaceBlocks.get(node)?.offset ?? null,
  };
}

/** Bytes needed at once where most are: `needed` of the plan, without making it. */
export function neededBytes(request: MemoryRequest): number {
  return peakOf(findBlocks(request, oneLane(request.nodes)).blocks, request.nodes.length).bytes;
}

/** Finds the blocks of memory that values and workspaces need, and for how long. */
function findBlocks({ nodes, bound, workspaces, keepAll, ...request }: MemoryRequest, lanes: LanePlan) {
  const isResult = new Set(request.results.map(storageOf));
  const uses = new Map<Value, Int32Array>();
  const use = (value: Value, index: number) => {
    const root = storageOf(value);
    const last = uses.get(root) ?? new Int32Array(lanes.lanes).fill(-1);
    uses.set(root, last);
    last[lanes.laneOf[index]!] = index;
  };
  const isRead = new Set(isResult);
  for (const [index, node] of nodes.entries()) {
    if (node.op.alias) continue;
    for (const output of node.outputs) use(output, index);
    for (const input of node.inputs) {
      use(input, index);
      isRead.add(storageOf(input));
    }
  }

  const blocks: Block[] = [];
  const blockOf = new Map<Value, Block>();
  const workspaceBlocks = new Map<Node, Block>();
  const reserve = (owner: Node | null, bytes: number, first: number, last: Int32Array | null): Block => {
    const block = { owner, bytes: align(Math.max(1, bytes)), first, last, offset: 0 };
    blocks.push(block);
    return block;
  };

  for (const value of request.permanent) {
    const root = storageOf(value);
    if (!blockOf.has(root) && !isElsewhere(root, bound)) blockOf.set(root, reserve(null, byteSize(root), -1, null));
  }
  for (const [index, node] of nodes.entries()) {
    if (node.op.alias) continue;
    const workspace = workspaces.get(node) ?? 0;
    if (workspace > 0) {
      const during = new Int32Array(lanes.lanes).fill(-1);
      during[lanes.laneOf[index]!] = index;
      workspaceBlocks.set(node, reserve(node, workspace, index, during));
    }
    for (const [slot, output] of node.outputs.entries()) {
      if (bound.has(output)) continue;
      if (!isRead.has(output) && node.op.optionalOutputs?.includes(slot)) continue;
      const last = keepAll || isResult.has(output) ? null : uses.get(output)!;
      const taken = keepAll ? null : reusableInput(node, index, slot, blockOf, lanes);
      if (taken) {
        taken.last = last && (taken.last as Int32Array).map((known, lane) => Math.max(known, last[lane]!));
        blockOf.set(output, taken);
      } else {
        blockOf.set(output, reserve(node, byteSize(output), index, last));
      }
    }
  }

  return { blocks, blockOf, workspaceBlocks };
}

function isElsewhere(root: Value, bound: ReadonlySet<Value>): boolean {
  return bound.has(root) || (root.leaf !== null && root.leaf.leaf !== "input");
}

/** The block of an input that is not used by others during or after this node and that an output may overwrite. */
function reusableInput(
  node: Node,
  index: number,
  output: number,
  blockOf: Map<Value, Block>,
  lanes: LanePlan,
): Block | null {
  const own = lanes.laneOf[index]!;
  const { inplace = [] } = node.op;
  const slots = typeof inplace === "function" ? inplace(output) : output === 0 ? inplace : [];
  for (const slot of slots) {
    const input = node.inputs[slot];
    const block = input && blockOf.get(storageOf(input));
    if (!block?.last || block.first < 0 || block.bytes !== align(byteSize(node.outputs[output]!))) continue;
    if (block.last.every((last, lane) => (lane === own ? last === index : last <= lanes.clocks[index]![lane]!)))
      return block;
  }
  return null;
}

/** Whether everything that uses `block` is sure to have finished when node `index` starts. */
function endsBefore(block: Block, index: number, { clocks }: LanePlan): boolean {
  if (!block.last || index < 0) return false;
  const clock = clocks[index]!;
  for (let lane = 0; lane < clock.length; ++lane) if (block.last[lane]! > clock[lane]!) return false;
  return true;
}

/** Sets the offsets; returns the arena's size. */
function placeBlocks(blocks: readonly Block[], lanes: LanePlan): number {
  const placed: Block[] = [];
  let size = 0;
  for (const block of [...blocks].sort((a, b) => b.bytes - a.bytes || a.first - b.first)) {
    const neighbours = placed
      .filter((other) => !endsBefore(other, block.first, lanes) && !endsBefore(block, other.first, lanes))
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

/** The node at which most bytes are needed at once, with nodes in program order, and how many those are. */
function peakOf(blocks: readonly Block[], nodes: number): { index: number; bytes: number } {
  const change = new Array<number>(nodes + 1).fill(0);
  for (const { first, last, bytes } of blocks) {
    change[Math.max(0, first)]! += bytes;
    if (last) change[Math.max(...last) + 1]! -= bytes;
  }
  const peak = { index: 0, bytes: 0 };
  let live = 0;
  for (const [index, bytes] of change.entries()) {
    live += bytes;
    if (live > peak.bytes) Object.assign(peak, { index, bytes: live });
  }
  return peak;
}

/** The blocks needed while a node runs, by what computes them. */
function sharesAt(blocks: readonly Block[], index: number): MemoryShare[] {
  const shares = new Map<string, MemoryShare>();
  for (const { owner, bytes, first, last } of blocks) {
    if (first > index || (last && Math.max(...last) < index)) continue;
    const { path, kind } = owner ? { path: owner.path, kind: owner.op.kind } : { path: "", kind: "input" };
    const known = shares.get(`${path} ${kind}`)?.bytes ?? 0;
    shares.set(`${path} ${kind}`, { path, kind, bytes: known + bytes });
  }
  return [...shares.values()].sort((a, b) => b.bytes - a.bytes);
}
