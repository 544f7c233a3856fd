import { estimateMicroseconds } from "./cost";
import { storageOf } from "./memory-plan";
import type { Node } from "./node";
import type { Parameter } from "./parameter";

/**
 * Which nodes of a program may run at the same time. Nodes are named by their index in program order. Each belongs to a lane,
 * a stream of its own; within a lane they run in program order, and between lanes a node waits for the nodes that it names.
 */
export interface LanePlan {
  /** How many lanes there are; lane 0 is the program's own stream. */
  readonly lanes: number;
  readonly laneOf: readonly number[];
  /** Nodes of other lanes that must have finished before a node starts, as few as will do. */
  readonly waits: readonly (readonly number[])[];
  /**
   * Vector clocks: clocks[i][lane] is the last node of that lane that is sure to have finished when node i starts, -1 where
   * none is. Node j happens before node i where clocks[i][laneOf[j]] >= j.
   */
  readonly clocks: readonly Int32Array[];
}

/**
 * For each node the earlier ones that must have run: those that compute its inputs, and, as operations with an effect change
 * the buffers among their inputs (running statistics, counters), the other users of these.
 */
export function dependencies(nodes: readonly Node[]): number[][] {
  const indexOf = new Map(nodes.map((node, index) => [node, index]));
  const buffers = new Map<Parameter, { write: number | null; reads: number[] }>();
  const lastOfKind = new Map<Node["op"], number>();
  return nodes.map((node, index) => {
    const before = new Set<number>();
    if (node.op.alias) return []; // runs nothing: its readers depend on the node whose memory it views
    let changesBuffer = false;
    for (const input of node.inputs) {
      const root = storageOf(input);
      const from = root.node && indexOf.get(root.node);
      if (typeof from === "number") before.add(from);
      const leaf = root.leaf;
      if (!leaf || leaf.leaf === "input" || !leaf.parameter.isBuffer) continue;
      const uses = buffers.get(leaf.parameter) ?? { write: null, reads: [] };
      buffers.set(leaf.parameter, uses);
      if (uses.write !== null && uses.write !== index) before.add(uses.write);
      if (node.op.effect) {
        for (const read of uses.reads) if (read !== index) before.add(read);
        Object.assign(uses, { write: index, reads: [] });
        changesBuffer = true;
      } else uses.reads.push(index);
    }
    if (node.op.effect && !changesBuffer) {
      // What it changes is unknown: its kind's own matter, in program order.
      const previous = lastOfKind.get(node.op);
      if (previous !== undefined) before.add(previous);
      lastOfKind.set(node.op, index);
    }
    return [...before];
  });
}

/** All nodes in one lane. */
export function oneLane(nodes: readonly Node[]): LanePlan {
  return synchronize(
    nodes.map(() => 0),
    nodes.map(() => []),
    1,
  );
}

/** A call that takes longer has work for the whole device. */
const LARGE_US = 400;
/** A call of lane 0 that takes longer may wait for others, to use their memory. */
const NOTABLE_US = 50;
/** By how much estimates may be wrong about when such others are done. */
const LONG_AGO_US = 2000;
/** What a dependency between lanes costs more than one within a lane. */
const HANDOVER_US = 3;

/**
 * Spreads nodes over lanes. Large nodes, which keep a GPU busy on their own, stay in lane 0, where memory is reused soonest, and
 * so do small ones that need the result of the node before them there. Another small node goes to the lane beside it where it can
 * start first by estimated times. So the small levels of a detector's head run beside the large one, and sums and additions of
 * small gradients beside convolutions.
 *
 * @param lanes at least 1
 * @param late nodes that are to run no sooner than needed, though their inputs are ready long before, to save memory: they stay
 *   in lane 0, which then also waits for what by the estimates has finished long ago, so that its memory is used again
 */
export function assignLanes(nodes: readonly Node[], lanes: number, late: ReadonlySet<Node> = new Set()): LanePlan {
  const before = dependencies(nodes);
  const laneOf = new Array<number>(nodes.length).fill(0);
  const finish = new Float64Array(nodes.length);
  const free = new Float64Array(lanes);
  const unawaited: number[][] = Array.from({ length: lanes }, () => []);
  let lastInLane0: number | null = null;
  for (const [index, node] of nodes.entries()) {
    if (node.op.alias) continue;
    const cost = estimateMicroseconds(node);
    const startIn = (lane: number) =>
      before[index]!.reduce(
        (start, earlier) => Math.max(start, finish[earlier]! + (laneOf[earlier] === lane ? 0 : HANDOVER_US)),
        free[lane]!,
      );
    let lane = 0;
    const goesOn = lastInLane0 === null || before[index]!.includes(lastInLane0);
    if (cost <= LARGE_US && !goesOn && !late.has(node) && lanes > 1) {
      lane = 1;
      for (let other = 2; other < lanes; ++other) if (startIn(other) < startIn(lane)) lane = other;
    }
    if (lane > 0) unawaited[lane]!.push(index);
    else if (late.size > 0 && cost > NOTABLE_US) {
      const start = startIn(0);
      for (const queue of unawaited) {
        const running = queue.findIndex((other) => finish[other]! > start - LONG_AGO_US);
        const done = queue.splice(0, running < 0 ? queue.length : running);
        if (done.length > 0) before[index]!.push(done.at(-1)!);
      }
    }
    laneOf[index] = lane;
    finish[index] = startIn(lane) + cost;
    free[lane] = finish[index]!;
    if (lane === 0) lastInLane0 = index;
  }
  return synchronize(laneOf, before, lanes);
}

/** Finds the waits between lanes that the dependencies need, leaving out those that follow from others. */
export function synchronize(
  laneOf: readonly number[],
  before: readonly (readonly number[])[],
  lanes: number,
): LanePlan {
  const clocks: Int32Array[] = [];
  const waits: number[][] = [];
  const last = new Int32Array(lanes).fill(-1);
  for (const [index, lane] of laneOf.entries()) {
    const previous = last[lane]!;
    const clock = previous < 0 ? new Int32Array(lanes).fill(-1) : clocks[previous]!.slice();
    clock[lane] = previous;
    const waited: number[] = [];
    // The latest first: what it waited for itself need not be waited for again.
    for (const d of [...before[index]!].sort((a, b) => b - a)) {
      const other = laneOf[d]!;
      if (clock[other]! >= d) continue;
      waited.push(d);
      for (const [l, known] of clocks[d]!.entries()) clock[l] = Math.max(clock[l]!, known);
      clock[other] = d;
    }
    clocks.push(clock);
    waits.push(waited);
    last[lane] = index;
  }
  return { lanes, laneOf, waits, clocks };
}
