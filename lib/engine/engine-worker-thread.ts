/** The Worker of an EngineWorker. */
import { Device } from "../tensor";
import { Engine, type EngineTimes } from "./engine";
import { type EngineWorkerOptions, type FromEngineWorker, sendError, type ToEngineWorker } from "./engine-worker";

declare const self: Worker;

let owned = new AsyncDisposableStack();
let engine: Engine | null = null;

const tell = (message: FromEngineWorker): void => self.postMessage(message);

self.onmessage = ({ data }: MessageEvent<ToEngineWorker>) => {
  if (data.kind === "load") void load(data.path, data.options);
  else if (data.kind === "detect") void detect(data);
  else void dispose();
};

async function load(path: string, { deviceIndex = 0, modules = [], ...options }: EngineWorkerOptions): Promise<void> {
  await using made = new AsyncDisposableStack();
  try {
    for (const file of modules) await import(file);
    const tf32 = options.precision === "tf32";
    const device = made.use(new Device({ backend: options.backend, index: deviceIndex, tf32 }));
    engine = made.use(await Engine.load(path, { ...options, device }));
    const { classes, size, batchSizes, maxBatch, maxDetections, precision, metrics, iteration } = engine;
    const facts = { classes, size, batchSizes, maxBatch, maxDetections, precision, metrics, iteration };
    tell({
      kind: "loaded",
      facts: { ...facts, path: engine.path, backend: device.backend, deviceName: device.info.name },
    });
    owned = made.move();
  } catch (error) {
    tell({ kind: "failed", id: null, error: sendError(error) });
  }
}

async function detect({ id, images, scoreThreshold }: Extract<ToEngineWorker, { kind: "detect" }>): Promise<void> {
  const times: EngineTimes[] = [];
  try {
    const options = { scoreThreshold, onTimes: (measured: EngineTimes) => times.push(measured) };
    const found = await (engine as Engine).detect(images, options);
    const results = found.map(({ error, ...result }) => ({ ...result, error: error && sendError(error) }));
    tell({ kind: "detected", id, results, times });
  } catch (error) {
    tell({ kind: "failed", id, error: sendError(error) });
  }
}

async function dispose(): Promise<void> {
  try {
    await owned.disposeAsync();
  } finally {
    tell({ kind: "disposed" });
    process.exit(0);
  }
}
