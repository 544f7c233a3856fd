/** Programs spread over several lanes: waits follow from dependencies, and results do not depend on how lanes interleave. */
import { describe, expect, test } from "bun:test";
import {
  add,
  applyOp,
  batchNorm,
  concat,
  conv2d,
  Graph,
  type Op,
  Parameter,
  type PlacedCall,
  Program,
  relu,
  reshape,
  useParameter,
  type Value,
} from "../../lib/graph";
import { assignLanes, dependencies, synchronize } from "../../lib/graph/lanes";
import type { Device, Tensor } from "../../lib/tensor";
import { expectSameBytes } from "../support/compare";
import { missing, testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { Random } from "../support/random";
import { numbers, parameter, program } from "./support";

const exact = testDevice({ deterministic: true });

const step: Op<object> = { kind: "step", infer: ([x]) => [x!], emit() {} };
const counting: Op<object> = { ...step, kind: "counting", effect: true };
const view: Op<object> = { ...step, kind: "view", alias: true };

describe("waits", () => {
  test("name the nodes of other lanes that inputs come from, but none that an earlier wait implies", () => {
    // 0 -> 1 -> 2 in lane 0; 3 reads 1 and 0; 4 reads 3 and 2; 5 reads 3, which lane 0 knows of by 4.
    const before = [[], [0], [1], [1, 0], [3, 2], [3]];
    const { waits, clocks } = synchronize([0, 0, 0, 1, 0, 0], before, 2);
    expect(waits).toEqual([[], [], [], [1], [3], []]);
    expect(clocks.map((clock) => [...clock])).toEqual([
      [-1, -1],
      [0, -1],
      [1, -1],
      [1, -1],
      [2, 3],
      [4, 3],
    ]);
  });

  test("follow views to the node that computes their memory", () => {
    const graph = new Graph();
    const x = graph.input("x", { shape: [4], dtype: "f32" });
    const [a] = graph.append(step, [x], {}, "");
    const [v] = graph.append(view, [a!], {}, "");
    graph.append(step, [v!], {}, "");
    expect(dependencies(graph.nodes)).toEqual([[], [], [0]]);
  });

  test("keep the order of those who change a buffer and those who read it", () => {
    const graph = new Graph();
    const x = graph.input("x", { shape: [4], dtype: "f32" });
    const buffer = graph.parameter(new Parameter([4], { kind: "constant", value: 0 }, { buffer: true }));
    const weight = graph.parameter(new Parameter([4], { kind: "constant", value: 0 }));
    graph.append(step, [x, buffer], {}, "");
    graph.append(step, [x, buffer, weight], {}, "");
    graph.append(counting, [x, buffer, weight], {}, "");
    graph.append(step, [x, buffer], {}, "");
    graph.append(counting, [x, buffer], {}, "");
    graph.append(step, [x, weight], {}, "");
    expect(dependencies(graph.nodes)).toEqual([[], [], [0, 1], [2], [2, 3], []]);
  });

  test("keep the order of operations whose effect is their own matter", () => {
    const graph = new Graph();
    const x = graph.input("x", { shape: [4], dtype: "f32" });
    for (const op of [counting, step, counting]) graph.append(op, [x], {}, "");
    expect(dependencies(graph.nodes)).toEqual([[], [], [0]]);
  });
});

/** Levels of four sizes through one head with running statistics, as a detector's, joined at the end. */
function pyramid(on: Device) {
  const shapes: Record<string, number[]> = {
    w: [8, 3, 3, 8],
    b: [8],
    gain: [8],
    shift: [8],
    mean: [8],
    variance: [8],
    last: [4, 1, 1, 8],
  };
  const made = Object.fromEntries(
    Object.entries(shapes).map(([name, shape]) => [name, parameter(on, { shape }, name)]),
  );
  for (const name of ["mean", "variance"])
    Object.assign(made[name]!, { requiresGrad: false, options: { buffer: true } });
  made.variance!.tensor.write(new Float32Array(8).fill(1));
  const use = (name: string) => useParameter(made[name]!);
  const head = (level: Value): Value => {
    const a = conv2d(level, use("w"), use("b"), { padding: 1 });
    const normal = batchNorm(a, use("gain"), use("shift"), use("mean"), use("variance"), { training: true });
    const y = conv2d(add(relu(normal), level), use("last"), null);
    return reshape(y, [2, y.shape[1]! * y.shape[2]!, 4]);
  };
  return {
    inputs: Object.fromEntries([16, 8, 4, 2].map((size) => [`p${size}`, { shape: [2, size, size, 8] }])),
    forward: (levels: Record<string, Value>) => ({ y: concat(Object.values(levels).map(head), 1) }),
    bytes: (results: Record<string, Tensor>): Map<string, Uint8Array> =>
      new Map([
        ...Object.entries(results).map(([name, tensor]) => [name, tensor.readBytes()] as const),
        ...Object.entries(made).map(([name, { tensor }]) => [name, tensor.readBytes()] as const),
        ...Object.entries(made).map(([name, { grad }]) => [`gradient of ${name}`, grad!.readBytes()] as const),
      ]),
    [Symbol.dispose]: () => Object.values(made).forEach((owned) => void owned[Symbol.dispose]()),
  };
}

/** What two runs leave in results, parameters and gradients; `run` makes the second. */
function outcome(lanes: number, run: (made: Program) => void): Map<string, Uint8Array> {
  using net = pyramid(exact);
  using made = program(exact, net.inputs, net.forward, {
    training: true,
    seeds: "inputs",
    inputGradients: ["p16", "p2"],
    lanes,
  });
  made.runCalls();
  run(made);
  return net.bytes(made.results);
}

function expectSame(found: Map<string, Uint8Array>, expected: Map<string, Uint8Array>, what: string): void {
  expect([...found.keys()]).toEqual([...expected.keys()]);
  for (const [name, bytes] of expected) expectSameBytes(found.get(name)!, bytes, `${what}: ${name}`);
}

/** Runs the calls one by one in an order that the lanes may take; `pick` chooses the lane that goes on. */
function runInterleaved(made: Program, pick: (count: number) => number): void {
  const { calls } = made;
  const done = new Set<PlacedCall>();
  while (done.size < calls.length) {
    const next = [...new Set(calls.map(({ lane }) => lane))]
      .map((lane) => calls.findIndex((call) => call.lane === lane && !done.has(call)))
      .filter((index) => index >= 0 && calls[index]!.after.every((call) => done.has(call)));
    const index = next[pick(next.length)]!;
    made.runCalls(index, index + 1);
    done.add(calls[index]!);
  }
}

describe("a program spread over lanes", () => {
  const expected = outcome(1, (made) => made.runCalls());

  test("uses all of them, and waits between them", () => {
    using net = pyramid(exact);
    using made = program(exact, net.inputs, net.forward, { training: true, seeds: "inputs", lanes: 3 });
    expect(new Set(made.calls.map(({ lane }) => lane))).toEqual(new Set([0, 1, 2]));
    for (const call of made.calls) for (const earlier of call.after) expect(earlier.lane).not.toBe(call.lane);
    expect(made.calls.some(({ after }) => after.length > 0)).toBe(true);
  });

  test.each([2, 3, 4])("gives the same bytes whatever the order that %i lanes run in", (lanes) => {
    const random = new Random(`${lanes} lanes`);
    const picks = [() => 0, (count: number) => count - 1, ...Array(4).fill((n: number) => random.integer(0, n))];
    for (const [i, pick] of picks.entries()) {
      const found = outcome(lanes, (made) => runInterleaved(made, pick));
      expectSame(found, expected, `order ${i}`);
    }
  });

  const reason = missing(exact, "f32", ["graph"]);
  (reason ? test.skip : test).each([2, 4])("gives the same bytes as a graph with %i lanes", (lanes) => {
    const found = outcome(lanes, (made) => {
      made.capture();
      expect(made.captured).toBe(true);
      made.run();
    });
    expectSame(found, expected, `${lanes} lanes`);
  });

  (reason ? test.skip : test)("can be captured after a capture that failed while lanes were apart", () => {
    let broken = true;
    const moody: Op<object> = {
      ...step,
      kind: "moody",
      emit(e, { inputs: [v], outputs: [y] }) {
        const [dst, src] = [e.address(y!), e.address(v!)];
        e.call(() => e.native.add(e.stream, dst, src, src, broken ? -1 : 4, 0, 0));
      },
    };
    const twice = (v: Value) => applyOp(moody, [v], {})[0]!;
    using made = program(
      exact,
      { a: { shape: [4], values: [1, 2, 3, 4] }, b: { shape: [4], values: [5, 6, 7, 8] } },
      ({ a, b }) => ({ a: add(a!, a!), b: twice(add(b!, b!)) }),
      { lanes: 2 },
    );
    expect(made.calls.map(({ lane }) => lane)).toContain(1);
    expect(errorOf(() => made.capture()).message).toContain("dlfs_add");
    broken = false;
    made.capture();
    made.run();
    expect([made.results.a, made.results.b].map(numbers)).toEqual([
      [2, 4, 6, 8],
      [20, 24, 28, 32],
    ]);
  });

  test("needs from 1 to 8 lanes", () => {
    for (const lanes of [0, 1.5, 9]) {
      const make = () => new Program(exact, {}, () => ({}), { lanes });
      expect(errorOf(make).message).toBe(`Program: expected 1 to 8 lanes, got ${lanes}`);
    }
  });

  test("an operation that keeps the stream it was given is told to ask for it in its call", () => {
    const keeping: Op<object> = {
      ...step,
      emit(e) {
        const { stream } = e;
        e.call(() => void stream);
      },
    };
    const make = () => program(exact, { x: { shape: [4] } }, ({ x }) => ({ y: applyOp(keeping, [x!], {})[0]! }));
    expect(errorOf(make).message).toContain("inside call()");
  });
});

describe("lanes are chosen so that", () => {
  /** A graph whose nodes are appended in order, of values of a gibibyte or of a few bytes. */
  const build = () => {
    const graph = new Graph();
    const [large, small] = [[256, 1024, 1024], [64]].map((shape, i) => graph.input(`${i}`, { shape, dtype: "f32" }));
    const chain = (from: Value, length: number): Value =>
      Array.from({ length }).reduce((value: Value) => graph.append(step, [value], {}, "")[0]!, from);
    return { graph, large: large!, small: small!, chain };
  };

  test("small nodes run beside large ones, which stay in lane 0", () => {
    const { graph, large, small, chain } = build();
    for (const from of [large, small, small]) chain(from, 3);
    expect(assignLanes(graph.nodes, 3).laneOf).toEqual([0, 0, 0, 1, 1, 1, 2, 2, 2]);
    expect(assignLanes(graph.nodes, 1).laneOf).toEqual(Array(9).fill(0));
  });

  test("late nodes stay in lane 0, which waits for others once they must have finished long ago", () => {
    const { graph, large, small, chain } = build();
    const begun = chain(large, 1);
    chain(small, 2);
    const next = chain(begun, 4);
    chain(small, 1);
    const spread = assignLanes(graph.nodes, 2);
    expect(spread.laneOf).toEqual([0, 1, 1, 0, 0, 0, 0, 1]);
    expect(spread.waits.flat()).toEqual([]);
    const { laneOf, waits } = assignLanes(graph.nodes, 2, new Set([next.node!, graph.nodes.at(-1)!]));
    expect(laneOf).toEqual([0, 1, 1, 0, 0, 0, 0, 0]);
    expect(waits).toEqual([[], [], [], [], [], [2], [], []]);
  });
});
