/**
 * The process of an engine: loads a model, answers batches that lie in the memory which it shares with the server, and ends when
 * the server tells it to, or ends. See engine-process.ts.
 */
import { setPriority } from "node:os";
import { Engine, type EngineImage, type EngineTimes } from "../engine";
import { chooseBackend, DlfsError, ErrorCode, endWithParent } from "../native";
import { Device, precisionPolicy } from "../tensor";
import type { EngineMemory, EngineSpec, FromEngine, SharedImage, ToEngine } from "./engine-messages";
import { SHARED_FILE, writeResults } from "./engine-messages";
import { mapShared } from "./shared-memory";
import type { ServiceResult } from "./types";

/** How often the server is told what memory is in use, in milliseconds. */
const MEMORY_MS = 1000;
const CPU_NICENESS = 5;

const send = (message: FromEngine): void => void process.send?.(message);
const memory = mapShared(SHARED_FILE);
let engine: Engine | null = null;

/** A terminal's Ctrl-C reaches all its processes: the server decides when this one ends. */
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => {});
process.on("disconnect", () => process.exit(0));

process.on("message", (message: ToEngine) => {
  if (message.kind === "load") void load(message.parent, message.spec);
  else if (message.kind === "batch") void answer(message);
  else void quit();
});
send({ kind: "started" });

const codeOf = (error: unknown) => (error instanceof DlfsError ? error.code : ErrorCode.internal);
const textOf = (error: unknown) =>
  error instanceof DlfsError ? error.message : ((error as Error)?.stack ?? String(error));

/** An error's text for the client whose image it is about, who does not know our functions' names. */
const withoutOperation = ({ message, op }: DlfsError) =>
  message.startsWith(`${op}: `) ? message.slice(op.length + 2) : message;

async function load(parent: number, spec: EngineSpec): Promise<void> {
  endWithParent(parent);
  try {
    const { device, engine: loaded } = await open(spec);
    engine = loaded;
    const { classes, size, precision, maxBatch, maxDetections, iteration, metrics } = loaded;
    send({
      kind: "ready",
      engine: {
        ...{ classes, size, precision, maxBatch, maxDetections, iteration, metrics },
        ...{ backend: device.backend, device: device.info.name },
      },
      memory: memoryOf(device),
    });
    setInterval(() => send({ kind: "memory", memory: memoryOf(device) }), MEMORY_MS);
  } catch (error) {
    send({ kind: "failed", code: codeOf(error), message: textOf(error) });
    await Bun.sleep(100); // what was sent is on its way
    process.exit(1);
  }
}

async function open(spec: EngineSpec): Promise<{ device: Device; engine: Engine }> {
  for (const path of spec.modules) await import(path);
  const { path, backend, batchSizes, size, precision, quantize, tuneMs, inFlight, decodeThreads } = spec;
  const tf32 = precision !== undefined && precisionPolicy(precision).tf32;
  // Threads step back with the one that starts them, so this comes before there are any.
  stepBack(spec.niceness ?? (chooseBackend(backend).name === "cpu" ? CPU_NICENESS : 0));
  const device = new Device({
    ...{ backend, index: spec.device, tf32 },
    ...(spec.computeThreads > 0 && { threads: spec.computeThreads }),
    ...(spec.memoryLimit !== null && { memoryLimit: spec.memoryLimit }),
  });
  const options = { batchSizes, size, precision, quantize, tuneMs, slots: inFlight, threads: decodeThreads };
  return { device, engine: await Engine.load(path, { ...options, device }) };
}

/** On the CPU the network would take all cores: a server that answers others meanwhile goes first. */
function stepBack(niceness: number): void {
  try {
    if (niceness > 0) setPriority(0, niceness);
  } catch {
    // Not allowed: everything works all the same.
  }
}

function memoryOf(device: Device): EngineMemory {
  const { allocated, free, total } = device.memory();
  return { allocated, free, total, resident: process.memoryUsage.rss() };
}

function imageAt([at, bytes, width, height]: SharedImage): EngineImage {
  const data = memory.subarray(at, at + bytes);
  return width > 0 ? { width, height, data } : data;
}

async function answer({ id, images, resultsAt }: Extract<ToEngine, { kind: "batch" }>): Promise<void> {
  const loaded = engine as Engine;
  try {
    let times: EngineTimes = { wait: 0, decode: 0, infer: 0, postprocess: 0 };
    const found = await loaded.detect(images.map(imageAt), {
      onTimes: (measured) => {
        times = measured;
      },
    });
    const results = found.map(({ width, height, detections, error }, i): ServiceResult => {
      const [, , , , threshold] = images[i] as SharedImage;
      const kept = threshold > 0 ? detections.filter(({ score }) => score >= threshold) : detections;
      return { width, height, detections: kept, error: error && withoutOperation(error) };
    });
    writeResults(memory, resultsAt, loaded.maxDetections, results);
    const { decode, infer, postprocess } = times;
    send({ kind: "done", id, times: { decode, infer, postprocess } });
  } catch (error) {
    send({ kind: "error", id, code: codeOf(error), message: textOf(error) });
  }
}

async function quit(): Promise<void> {
  try {
    await engine?.dispose();
  } finally {
    process.exit(0);
  }
}
