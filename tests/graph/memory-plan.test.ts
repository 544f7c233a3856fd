/** Properties of memory plans: nothing that is still needed is overwritten, and memory is shared. */
import { describe, expect, test } from "bun:test";
import { Graph, type Node, type Op, type Value } from "../../lib/graph";
import { dependencies, type LanePlan, oneLane, synchronize } from "../../lib/graph/lanes";
import { byteSize, planMemory, storageOf } from "../../lib/graph/memory-plan";
import { ALIGNMENT } from "../../lib/tensor";
import { Random } from "../support/random";

interface Attrs {
  shapes: number[][];
}

function op(kind: string, options: Partial<Op<Attrs>> = {}): Op<Attrs> {
  return {
    kind,
    infer: (_, { shapes }) => shapes.map((shape) => ({ shape, dtype: "f32" as const })),
    emit() {},
    ...options,
  };
}

const plain = op("plain");
const view = op("view", { alias: true });
const overwriting = op("overwriting", { inplace: [0, 1] });
/** Its second output may take the place of its first input. */
const overwritingLater = op("overwriting later", { inplace: (output) => (output === 1 ? [0] : []) });
const twoOutputs = op("two outputs", { optionalOutputs: [1] });

interface Case {
  graph: Graph;
  results: Value[];
  workspaces: Map<Node, number>;
}

/** A random graph of plain, in-place, viewing and two-output operations on tensors of a few sizes. */
function randomGraph(seed: string, length: number): Case {
  const random = new Random(seed);
  const graph = new Graph();
  const sizes = [1, 60, 64, 65, 200, 1000];
  const pick = <T>(items: readonly T[]): T => items[random.integer(0, items.length)]!;
  const values: Value[] = [
    graph.input("a", { shape: [pick(sizes)], dtype: "f32" }),
    graph.input("b", { shape: [pick(sizes)], dtype: "f32" }),
  ];
  const workspaces = new Map<Node, number>();
  for (let i = 0; i < length; ++i) {
    const recent = () => values[Math.max(0, values.length - 1 - random.integer(0, 8))]!;
    const first = recent();
    const kind = random.integer(0, 10);
    const [chosen, inputs, shapes] =
      kind < 2
        ? [view, [first], [[1, ...first.shape]]]
        : kind < 6
          ? kind < 5
            ? [overwriting, [first, recent()], [[...first.shape]]]
            : [overwritingLater, [first, recent()], [[pick(sizes)], [...first.shape]]]
          : kind < 8
            ? [twoOutputs, [first], [[pick(sizes)], [pick(sizes)]]]
            : [plain, [first, recent(), recent()], [[pick(sizes)]]];
    const outputs = graph.append(chosen, inputs, { shapes }, "");
    if (random.next() < 0.3) workspaces.set(graph.nodes.at(-1)!, pick([16, 300, 5000]));
    values.push(outputs[0]!);
    if (outputs[1] && random.next() < 0.5) values.push(outputs[1]);
  }
  return { graph, results: [values.at(-1)!, pick(values), pick(values)], workspaces };
}

function plan({ graph, results, workspaces }: Case, keepAll = false, lanes?: LanePlan) {
  return planMemory({
    nodes: graph.nodes,
    lanes,
    permanent: [...graph.inputs.values()],
    results,
    bound: new Set(),
    workspaces,
    keepAll,
  });
}

/**
 * The starts and ends of nodes in an order that lanes may take: a node starts when the one before it in its lane and those that
 * it waits for have ended. `pick` chooses among what may happen next, so that nodes of different lanes run at the same time.
 */
function* happenings(lanes: LanePlan, pick: (count: number) => number): Generator<[index: number, start: boolean]> {
  const queues = Array.from({ length: lanes.lanes }, (_, lane) =>
    [...lanes.laneOf.keys()].filter((index) => lanes.laneOf[index] === lane),
  );
  const ended = new Set<number>();
  const running = new Set<number>();
  for (;;) {
    const ready = queues.flatMap(([index]) => {
      if (index === undefined) return [];
      return running.has(index) || lanes.waits[index]!.every((earlier) => ended.has(earlier)) ? [index] : [];
    });
    if (ready.length === 0) return;
    const index = ready[pick(ready.length)]!;
    const start = !running.has(index);
    if (start) running.add(index);
    else {
      ended.add(index);
      queues[lanes.laneOf[index]!]!.shift();
    }
    yield [index, start];
  }
}

/**
 * Runs a plan on a pretended memory in which every 64 bytes carry the name of who wrote them last: a read that finds another
 * name than that of the value it wants is a fault of the plan.
 */
function simulate(
  { graph, results, workspaces }: Case,
  made: ReturnType<typeof planMemory>,
  lanes = oneLane(graph.nodes),
  pick: (count: number) => number = () => 0,
): string[] {
  const unit = 64;
  const memory = new Array<number>(Math.ceil(made.bytes / unit)).fill(-1);
  const faults: string[] = [];
  const write = (offset: number, bytes: number, name: number, what: string) => {
    if (offset % ALIGNMENT !== 0 || offset < 0 || offset + bytes > made.bytes)
      faults.push(`${what} lies at ${offset}, ${bytes} bytes of ${made.bytes}`);
    for (let at = Math.floor(offset / unit); at * unit < offset + bytes; ++at) memory[at] = name;
  };
  const expectName = (offset: number, bytes: number, name: number, what: string) => {
    for (let at = Math.floor(offset / unit); at * unit < offset + bytes; ++at)
      if (memory[at] !== name) {
        faults.push(`${what} was overwritten by ${memory[at]}`);
        break;
      }
  };
  const read = (value: Value, what: string) => {
    const root = storageOf(value);
    const offset = made.offsetOf(value);
    if (offset === null) faults.push(`${what}: value ${value.id} has no memory`);
    else expectName(offset, byteSize(root), root.id, `${what}: value ${value.id}`);
  };
  const scratchName = (index: number) => 1_000_000 + index;
  for (const value of graph.inputs.values()) write(made.offsetOf(value)!, byteSize(value), value.id, "input");
  for (const [index, start] of happenings(lanes, pick)) {
    const node = graph.nodes[index]!;
    const what = `node ${index} (${node.op.kind})`;
    if (node.op.alias) continue; // a view reads nothing: its readers do
    const scratch = workspaces.get(node);
    const { inplace = [] } = node.op;
    const late = node.outputs.filter((output, slot) => {
      const inputs = typeof inplace === "function" ? inplace(slot) : slot === 0 ? inplace : [];
      return inputs.some((input) => made.offsetOf(node.inputs[input]!) === made.offsetOf(output));
    });
    // Workspaces and all but in-place outputs are written before the last input has been read.
    const early = node.outputs.filter((output) => made.offsetOf(output) !== null && !late.includes(output));
    if (start) {
      for (const input of node.inputs) read(input, what);
      if (scratch) write(made.workspaceOf(node)!, scratch, scratchName(index), `${what}: workspace`);
      for (const [slot, output] of node.outputs.entries())
        if (made.offsetOf(output) === null && !node.op.optionalOutputs?.includes(slot))
          faults.push(`${what}: output ${slot} has no memory`);
      for (const output of early) write(made.offsetOf(output)!, byteSize(output), output.id, what);
    } else {
      for (const value of [...node.inputs, ...early]) read(value, `${what}, while it runs`);
      if (scratch) expectName(made.workspaceOf(node)!, scratch, scratchName(index), `${what}: its workspace`);
      for (const output of late) write(made.offsetOf(output)!, byteSize(output), output.id, what);
    }
  }
  for (const value of results) read(value, "result");
  return faults;
}

describe("random graphs", () => {
  const seeds = Array.from({ length: 60 }, (_, i) => `graph ${i}`);

  test("never overwrite what is still read", () => {
    for (const seed of seeds) {
      const made = randomGraph(seed, 10 + (seeds.indexOf(seed) % 6) * 15);
      expect(simulate(made, plan(made)), seed).toEqual([]);
    }
  });

  test("spread over lanes never overwrite what is still read, in whatever order the waits allow", () => {
    let shared = 0;
    for (const seed of seeds.slice(0, 30)) {
      const made = randomGraph(seed, 60);
      const random = new Random(`lanes of ${seed}`);
      const count = random.integer(2, 5);
      const laneOf = made.graph.nodes.map(() => random.integer(0, count));
      const lanes = synchronize(laneOf, dependencies(made.graph.nodes), count);
      const planned = plan(made, false, lanes);
      shared += planned.unshared - planned.bytes;
      for (let order = 0; order < 8; ++order) {
        const pick = [() => 0, (ready: number) => ready - 1][order] ?? ((ready: number) => random.integer(0, ready));
        expect(simulate(made, planned, lanes, pick), `${seed}, order ${order}`).toEqual([]);
      }
    }
    expect(shared).toBeGreaterThan(0);
  });

  test("need no less than is alive at once", () => {
    for (const seed of seeds) {
      const { bytes, needed } = plan(randomGraph(seed, 60));
      expect(needed).toBeLessThanOrEqual(bytes);
    }
    const graph = new Graph();
    const x = graph.input("x", { shape: [64], dtype: "f32" });
    const [a] = graph.append(plain, [x], { shapes: [[128]] }, "");
    const [b] = graph.append(plain, [a!], { shapes: [[64]] }, "");
    const [c] = graph.append(plain, [b!], { shapes: [[64]] }, "");
    // x, a and b while b is computed.
    const made = plan({ graph, results: [c!], workspaces: new Map() });
    expect(made.needed).toBe(4 * ALIGNMENT);
    expect(made.atPeak()).toEqual([
      { path: "", kind: "plain", bytes: 3 * ALIGNMENT },
      { path: "", kind: "input", bytes: ALIGNMENT },
    ]);
  });

  test("take less memory than without sharing, and no more than all blocks together", () => {
    let [arena, unshared] = [0, 0];
    for (const seed of seeds) {
      const { bytes, unshared: all } = plan(randomGraph(seed, 60));
      expect(bytes).toBeLessThanOrEqual(all);
      arena += bytes;
      unshared += all;
    }
    expect(arena).toBeLessThan(unshared / 2);
  });

  test("with keepAll every value keeps memory of its own", () => {
    for (const seed of seeds.slice(0, 20)) {
      const made = randomGraph(seed, 40);
      const kept = plan(made, true);
      const everything = {
        ...made,
        results: made.graph.nodes.flatMap((node) => node.outputs).filter((value) => kept.offsetOf(value) !== null),
      };
      expect(simulate(everything, kept), seed).toEqual([]);
    }
  });

  test("are planned the same each time", () => {
    for (const seed of seeds.slice(0, 10)) {
      const offsets = () => {
        const made = randomGraph(seed, 50);
        const planned = plan(made);
        return made.graph.nodes.flatMap((node) => node.outputs.map((output) => planned.offsetOf(output)));
      };
      expect(offsets()).toEqual(offsets());
    }
  });
});

describe("small graphs", () => {
  const chain = (graph: Graph, chosen: Op<Attrs>, from: Value, length: number): Value => {
    let value = from;
    for (let i = 0; i < length; ++i) value = graph.append(chosen, [value], { shapes: [[64]] }, "")[0]!;
    return value;
  };
  const planOf = (build: (graph: Graph, x: Value) => Value[]) => {
    const graph = new Graph();
    const x = graph.input("x", { shape: [64], dtype: "f32" });
    const results = build(graph, x);
    return plan({ graph, results, workspaces: new Map() });
  };

  test("a long chain needs two blocks besides its input", () => {
    expect(planOf((graph, x) => [chain(graph, plain, x, 20)]).bytes).toBe(3 * ALIGNMENT);
  });

  test("a chain of in-place operations needs one", () => {
    expect(planOf((graph, x) => [chain(graph, overwriting, x, 20)]).bytes).toBe(2 * ALIGNMENT);
  });

  test("an input of the program is never overwritten", () => {
    const made = planOf((graph, x) => [chain(graph, overwriting, x, 1)]);
    expect(made.bytes).toBe(2 * ALIGNMENT);
  });

  test("a value that is read later is not overwritten in place", () => {
    const graph = new Graph();
    const x = graph.input("x", { shape: [64], dtype: "f32" });
    const a = chain(graph, plain, x, 1);
    const b = chain(graph, overwriting, a, 1);
    const c = graph.append(plain, [a, b], { shapes: [[64]] }, "")[0]!;
    const made = plan({ graph, results: [c], workspaces: new Map() });
    expect(made.offsetOf(b)).not.toBe(made.offsetOf(a));
  });

  test("a view lies where its source lies, and keeps it alive", () => {
    const graph = new Graph();
    const x = graph.input("x", { shape: [64], dtype: "f32" });
    const a = chain(graph, plain, x, 1);
    const v = graph.append(view, [a], { shapes: [[8, 8]] }, "")[0]!;
    const b = chain(graph, plain, a, 5);
    const end = graph.append(plain, [v, b], { shapes: [[64]] }, "")[0]!;
    const made = { graph, results: [end], workspaces: new Map<Node, number>() };
    const planned = plan(made);
    expect(planned.offsetOf(v)).toBe(planned.offsetOf(a));
    expect(simulate(made, planned)).toEqual([]);
  });

  test("an output that nobody reads has no memory where that is allowed", () => {
    const graph = new Graph();
    const x = graph.input("x", { shape: [64], dtype: "f32" });
    const [y, extra] = graph.append(twoOutputs, [x], { shapes: [[64], [64]] }, "");
    const planned = plan({ graph, results: [y!], workspaces: new Map() });
    expect(planned.offsetOf(extra!)).toBeNull();
    expect(planned.offsetOf(y!)).not.toBeNull();
  });
});
