/** Where the time of a program goes, call by call; tables of it, and a trace that chrome://tracing and Perfetto show. */
import type { Node, Program } from "../graph";
import { Event } from "../tensor";
import { type Ceilings, timingOf } from "./measure";
import { milliseconds, share, table, teraflops } from "./table";
import { floorOf, type NodeWork, nodeWork, noWork } from "./work";

export type Direction = "forward" | "backward" | "update";

/** One call of a program, timed alone. */
export interface CallTiming {
  index: number;
  direction: Direction;
  /** Operation kind, "conv2d_backward_weight". */
  kind: string;
  /** Path of the layer, "backbone.body.conv1"; empty outside of layers. */
  path: string;
  /** The first result, "bf16 32x320x320x64". */
  result: string;
  ms: number;
  flops: number;
  /** Every operand and result once. */
  bytes: number;
  floorMs: number;
}

/**
 * What each call of a program does at least.
 *
 * @param extra work of calls that no node describes, by kind (the optimizer's)
 */
export function workOfCalls({ calls }: Program, extra: Readonly<Record<string, NodeWork>> = {}): NodeWork[] {
  const callsOf = new Map<Node, number>();
  for (const { outputs } of calls) {
    const node = outputs[0]?.node;
    if (node) callsOf.set(node, (callsOf.get(node) ?? 0) + 1);
  }
  return calls.map(({ kind, outputs }) => {
    const node = outputs[0]?.node;
    if (!node) return extra[kind] ?? noWork;
    // A node of several calls: each has its part of the work.
    const [work, parts] = [nodeWork(node), callsOf.get(node)!];
    const { flops, bytes, floorBytes } = work;
    return { ...work, flops: flops / parts, bytes: bytes / parts, floorBytes: floorBytes / parts };
  });
}

/** Calls that an optimizer adds around a program's own. */
const UPDATES = new Set(["schedule", "check_finite", "grad_norm", "sgd", "copy_gradient", "accumulate_gradient"]);

/**
 * Times each call of a program alone, as the median of 3 repetitions of `runs` runs in a row. Operands of up to the cache's size
 * are found there, and launching is part of the time of calls of a few microseconds, so the sum is not the time of the program,
 * whose calls may also overlap. What the program computes is of no use afterwards: updates are repeated, too.
 *
 * @param extra as for workOfCalls
 */
export function profileCalls(
  program: Program,
  ceilings: Ceilings,
  { runs = 5, extra }: { runs?: number; extra?: Readonly<Record<string, NodeWork>> } = {},
): CallTiming[] {
  const { device, stream, calls } = program;
  using start = new Event(device);
  using end = new Event(device);
  program.run();
  const works = workOfCalls(program, extra);
  return calls.map((call, index) => {
    call.run();
    const samples = Array.from({ length: 3 }, () => {
      start.record(stream);
      for (let i = 0; i < runs; ++i) call.run();
      end.record(stream);
      end.synchronize();
      return end.since(start) / runs;
    });
    const work = works[index]!;
    const [first] = call.outputs;
    return {
      index,
      direction: UPDATES.has(call.kind) ? "update" : index < program.backwardStart ? "forward" : "backward",
      kind: call.kind,
      path: call.path,
      result: first ? `${first.dtype} ${first.shape.join("x")}` : "",
      ms: timingOf(samples).ms,
      flops: work.flops,
      bytes: work.bytes,
      floorMs: floorOf(work, ceilings),
    };
  });
}

/** The part of a network that a layer belongs to: "backbone.body.layer1", "head.classification_head". */
export function layerGroup({ path, direction }: Pick<CallTiming, "path" | "direction">): string {
  if (direction === "update") return "update";
  if (path === "") return "outside of layers";
  const parts = path.split(".");
  return parts.slice(0, /^layer\d+$/.test(parts[2] ?? "") ? 3 : 2).join(".");
}

interface Sums {
  calls: number;
  ms: number;
  flops: number;
  floorMs: number;
}

function sumsBy(timings: readonly CallTiming[], name: (timing: CallTiming) => string): Map<string, Sums> {
  const sums = new Map<string, Sums>();
  for (const timing of timings) {
    const sum = sums.get(name(timing)) ?? { calls: 0, ms: 0, flops: 0, floorMs: 0 };
    sum.calls++;
    for (const field of ["ms", "flops", "floorMs"] as const) sum[field] += timing[field];
    sums.set(name(timing), sum);
  }
  return sums;
}

/** Time by part of the network and direction, in the network's order, and by kind, the longest first. */
export function profileSummary(timings: readonly CallTiming[]): string[] {
  const total = timings.reduce((sum, { ms }) => sum + ms, 0);
  const cells = ({ calls, ms, flops, floorMs }: Sums) => [
    String(calls),
    milliseconds(ms),
    share(ms, total),
    teraflops(flops, ms),
    milliseconds(floorMs),
    share(floorMs, ms),
  ];
  const columns = ["calls", "ms", "of all", "TFLOP/s", "floor ms", "of floor"];
  const groups = sumsBy(timings, (timing) => `${layerGroup(timing)}\t${timing.direction}`);
  const kinds = [...sumsBy(timings, ({ kind }) => kind)].sort((a, b) => b[1].ms - a[1].ms);
  return [
    `calls timed one by one: ${milliseconds(total)} ms in all`,
    "",
    ...table(
      ["part", "direction", ...columns],
      [...groups].map(([name, sums]) => [...name.split("\t"), ...cells(sums)]),
      2,
    ),
    "",
    ...table(
      ["kind", ...columns],
      kinds.map(([name, sums]) => [name, ...cells(sums)]),
    ),
  ];
}

/** All calls, the longest first. */
export function profileTable(timings: readonly CallTiming[]): string[] {
  const rows = [...timings]
    .sort((a, b) => b.ms - a.ms)
    .map(({ direction, kind, path, result, ms, flops, bytes, floorMs }) => [
      direction,
      kind,
      path,
      result,
      milliseconds(ms),
      teraflops(flops, ms),
      (bytes / ms / 1e6).toFixed(0),
      share(floorMs, ms),
    ]);
  return table(["direction", "kind", "layer", "result", "ms", "TFLOP/s", "GB/s", "of floor"], rows, 4);
}

/** Chrome's trace event format: the calls end to end in the program's order, a track for each direction. */
export function chromeTrace(timings: readonly CallTiming[], program: string): object {
  const tracks: readonly Direction[] = ["forward", "backward", "update"];
  let now = 0;
  const events = timings.map(({ index, direction, kind, path, result, ms, flops, bytes, floorMs }) => {
    const event = {
      name: path ? `${kind} ${path}` : kind,
      cat: kind,
      ph: "X",
      pid: 1,
      tid: 1 + tracks.indexOf(direction),
      ts: 1000 * now,
      dur: 1000 * ms,
      args: { index, result, flops, bytes, floorMs },
    };
    now += ms;
    return event;
  });
  const named = (name: string, tid: number, text: string) => ({ name, ph: "M", pid: 1, tid, args: { name: text } });
  return {
    displayTimeUnit: "ms",
    traceEvents: [
      named("process_name", 0, program),
      ...tracks.map((track, i) => named("thread_name", 1 + i, track)),
      ...events,
    ],
  };
}
