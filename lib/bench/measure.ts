/** Timing of device work, the device's ceilings, and the lines that tests/bench prints. */
import { constants, cString } from "../native";
import {
  type ActivationDType,
  type Device,
  type DType,
  dtypeCode,
  dtypeSize,
  Event,
  outHandle,
  type Stream,
  Tensor,
} from "../tensor";

/** Milliseconds of one run: the median of `repetitions`, each the mean of `runs` runs in a row. */
export interface Timing {
  ms: number;
  /** The quartiles of the repetitions: half of them lie between. */
  low: number;
  high: number;
  repetitions: number;
  runs: number;
}

/** A dtype that activations may have. */
export type Precision = ActivationDType;

/** What one run does at least: arithmetic operations, and bytes with every operand moved once. */
export interface Work {
  flops: number;
  bytes: number;
}

/**
 * Times work that `enqueue` puts on a stream, by events on the device. Two runs warm up; a repetition takes as many runs
 * as fill 5 ms, so that the cost of enqueuing and the events' resolution disappear; repetitions stop after `budgetMs`, or 25.
 */
export function time(device: Device, stream: Stream, enqueue: () => void, budgetMs = 300): Timing {
  using start = new Event(device);
  using end = new Event(device);
  const once = (runs: number): number => {
    start.record(stream);
    for (let i = 0; i < runs; ++i) enqueue();
    end.record(stream);
    end.synchronize();
    return end.since(start) / runs;
  };
  once(1);
  const estimate = once(1);
  const runs = Math.max(1, Math.min(200, Math.ceil(5 / Math.max(estimate, 0.005))));
  const samples: number[] = [];
  for (let spent = 0; samples.length < 3 || (spent < budgetMs && samples.length < 25); ) {
    samples.push(once(runs));
    spent += samples.at(-1)! * runs;
  }
  return timingOf(samples, runs);
}

/** The median and the quartiles of milliseconds measured. */
export function timingOf(samples: readonly number[], runs = 1): Timing {
  const sorted = [...samples].sort((a, b) => a - b);
  const at = (share: number) => sorted[Math.round(share * (sorted.length - 1))]!;
  return { ms: sorted[sorted.length >> 1]!, low: at(0.25), high: at(0.75), repetitions: sorted.length, runs };
}

/** Times work by events on the device, one run in each repetition, after `warmUp` runs. */
export function timeEach(
  device: Device,
  stream: Stream,
  enqueue: () => void,
  { repetitions, warmUp }: { repetitions: number; warmUp: number },
): Timing {
  using start = new Event(device);
  using end = new Event(device);
  for (let i = 0; i < warmUp; ++i) enqueue();
  stream.synchronize();
  const samples = Array.from({ length: repetitions }, () => {
    start.record(stream);
    enqueue();
    end.record(stream);
    end.synchronize();
    return end.since(start);
  });
  return timingOf(samples);
}

/** Times work that ends on the host, by the host's clock, after `warmUp` runs. */
export async function timeOnHost(
  run: () => Promise<unknown>,
  { repetitions, warmUp }: { repetitions: number; warmUp: number },
): Promise<Timing> {
  for (let i = 0; i < warmUp; ++i) await run();
  const samples: number[] = [];
  while (samples.length < repetitions) {
    const start = performance.now();
    await run();
    samples.push(performance.now() - start);
  }
  return timingOf(samples);
}

/** The work as one captured graph, as programs run it, where the device can; and how to release that. */
export function captured(
  device: Device,
  stream: Stream,
  enqueue: () => void,
): { launch: () => void; release: () => void } {
  enqueue(); // libraries load their kernels outside of capture
  if (!device.supports("graph")) return { launch: enqueue, release: () => {} };
  const out = outHandle();
  device.native.graphBegin(stream.handle);
  enqueue();
  device.native.graphEnd(stream.handle, out.view);
  const graph = out.value;
  return {
    launch: () => void device.native.graphLaunch(stream.handle, graph),
    release: () => void device.native.graphDestroy(graph),
  };
}

/** The most that this device does: arithmetic of large convolutions, and a large copy. */
export interface Ceilings {
  gflops: number;
  gbytes: number;
  how: string;
}

const known = new Map<string, Ceilings>();

/** GFLOP/s of one convolution with equal channels in and out and an odd kernel, on a square image. */
function convolutionSpeed(device: Device, dtype: Precision, size: number, channels: number, kernel: number): number {
  const { native, stream } = device;
  using x = Tensor.full(device, [1, size, size, channels], 0.01, dtype);
  using w = Tensor.full(device, [channels, kernel, kernel, channels], 0.01, dtype);
  using y = Tensor.empty(device, [1, size, size, channels], dtype);
  const [plan, bytes, pad] = [outHandle(), outHandle(), kernel >> 1];
  const geometry = [1, size, size, channels, channels, kernel, kernel, 1, 1, pad, pad, 1, 1, 1] as const;
  native.convCreate(
    device.handle,
    plan.view,
    cString(""),
    constants.CONV_FORWARD,
    dtypeCode(dtype),
    ...geometry,
    0,
    constants.ACT_NONE,
  );
  if (device.backend === "cuda") native.convTuneSync(stream.handle, plan.value, 500);
  native.convWorkspace(plan.value, bytes.view);
  using workspace = Tensor.empty(device, [Math.max(1, bytes.value)], "u8");
  const scratch = bytes.value > 0 ? workspace.address : null;
  const { ms } = time(
    device,
    stream,
    () => void native.convForward(stream.handle, plan.value, y.address, x.address, w.address, null, null, scratch),
    600,
  );
  native.convDestroy(plan.value);
  return (2 * size * size * channels * channels * kernel * kernel) / ms / 1e6;
}

/** Measured on first use, for each dtype. */
export function ceilings(device: Device, dtype: Precision): Ceilings {
  const key = `${device.handle} ${dtype}`;
  const found = known.get(key);
  if (found) return found;
  const { native, stream } = device;
  const gpu = device.backend === "cuda";
  const [size, channels, copyBytes] = gpu ? [128, 2048, 1 << 30] : [48, 512, 1 << 28];
  const product = convolutionSpeed(device, dtype, size, channels, 1);
  const convolution = convolutionSpeed(device, dtype, size, channels / 2, 3);

  using from = Tensor.zeros(device, [copyBytes], "u8");
  using to = Tensor.zeros(device, [copyBytes], "u8");
  const copy = time(device, stream, () => void native.copy(stream.handle, to.address, from.address, copyBytes), 1000);

  const made: Ceilings = {
    gflops: Math.max(product, convolution),
    gbytes: (2 * copyBytes) / copy.ms / 1e6,
    how:
      `the better of a 1x1 convolution of ${channels} channels (a matrix product) and a 3x3 one of ${channels / 2}, on ${size}x${size}; ` +
      `a copy of ${copyBytes >> 20} MiB, which operands that stay in a cache can exceed`,
  };
  known.set(key, made);
  return made;
}

export const percent = (part: number, whole: number): string => `${((100 * part) / whole).toFixed(0).padStart(3)} %`;

/** The title of a table: device, dtype, ceilings. */
export function title(device: Device, dtype: Precision): string {
  const { gflops, gbytes, how } = ceilings(device, dtype);
  const units = device.backend === "cuda" ? "multiprocessors" : "threads";
  return (
    `\n${device.info.name} (${device.backend}, ${device.info.units} ${units}), ${dtype}\n` +
    `ceilings measured now: ${gflops.toFixed(0)} GFLOP/s, ${gbytes.toFixed(1)} GB/s (${how})`
  );
}

/** One line: name, time, achieved arithmetic and traffic, each beside its ceiling. */
export function line(device: Device, dtype: Precision, name: string, timing: Timing, { flops, bytes }: Work): string {
  const top = ceilings(device, dtype);
  const [gflops, gbytes] = [flops / timing.ms / 1e6, bytes / timing.ms / 1e6];
  const arithmetic =
    flops > 0 ? `${gflops.toFixed(1).padStart(9)} GFLOP/s ${percent(gflops, top.gflops)}` : " ".repeat(23);
  return (
    `${name.padEnd(66)} ${timing.ms.toFixed(3).padStart(9)} ms ${arithmetic} ` +
    `${gbytes.toFixed(1).padStart(8)} GB/s ${percent(gbytes, top.gbytes)}   median of ${timing.repetitions} x ${timing.runs}`
  );
}

/** Throws where a floating-point tensor holds NaN or infinity. */
export function expectFinite(device: Device, tensors: Iterable<[string, Tensor]>): void {
  using flag = Tensor.zeros(device, [1], "i32");
  for (const [name, tensor] of tensors) {
    if (!["f32", "bf16", "f16"].includes(tensor.dtype)) continue;
    device.native.checkFinite(device.stream.handle, flag.address, tensor.address, tensor.size, dtypeCode(tensor.dtype));
    if (flag.read()[0] !== 0) throw new Error(`${name} (${tensor.shape.join(", ")}) holds NaN or infinity`);
  }
}

/** Fills a tensor with normal numbers without moving any from the host. */
export function fillNormal(device: Device, tensor: Tensor, mean = 0, std = 1): void {
  const { native, stream } = device;
  if (tensor.dtype === "f32") {
    native.initNormal(stream.handle, tensor.address, tensor.size, tensor.size, 0, mean, std);
    return;
  }
  using exact = Tensor.empty(device, [tensor.size]);
  native.initNormal(stream.handle, exact.address, tensor.size, tensor.size, 0, mean, std);
  native.cast(stream.handle, tensor.address, exact.address, tensor.size, dtypeCode(tensor.dtype), dtypeCode("f32"));
}

/** Bytes of a tensor of this shape. */
export function bytesOf(shape: readonly number[], dtype: DType): number {
  return shape.reduce((a, b) => a * b, dtypeSize(dtype));
}
