/** A process of batch inference, with an engine on a device of its own; messages tell it what to do: see PredictProcesses. */
import { PredictionsReader } from "../formats";
import { DlfsError, ErrorCode } from "../native";
import { Device } from "../tensor";
import { aboutEngine, detectLeft, KnownImages } from "./detect-left";
import { Engine } from "./engine";
import { listImages } from "./image-list";
import type { FromProcess, ProcessEngine, ProcessWork, ToProcess } from "./predict-messages";

/** Batches that are sent before the first of them is written. */
const UNWRITTEN = 4;

const stop = new AbortController();
let engine: Engine | null = null;
let device: Device | null = null;
let unwritten = 0;
let written: PromiseWithResolvers<void> | null = null;

const send = (message: FromProcess): void => void process.send?.(message);

async function load({ model, device: place, modules = [], ...options }: ProcessEngine): Promise<void> {
  for (const file of modules) await import(file);
  device = new Device(place);
  engine = await Engine.load(model, { ...options, device });
  const { path, size, precision } = engine;
  send({ kind: "ready", about: aboutEngine(engine), device: device.info.name, path, size, precision });
}

async function work(loaded: Engine, { location, list: choice, share, ...options }: ProcessWork): Promise<void> {
  const list = await listImages(location, { ...choice, signal: stop.signal });
  const known = new KnownImages(options.retryFailed);
  {
    await using reader = await PredictionsReader.open(options.predictions);
    for await (const prediction of reader.predictions()) known.add(prediction);
  }
  const own = list.images.filter((_, i) => i % share.count === share.index);
  const left = own.filter(({ name }) => !known.isDone(name));
  const heard = {
    onLength: (frames: number) => send({ kind: "length", frames }),
    onKnown: (frames: number) => send({ kind: "known", frames }),
  };
  for await (const batch of detectLeft(loaded, list, left, known, { ...options, share, signal: stop.signal }, heard)) {
    send({ kind: "batch", batch });
    if (++unwritten < UNWRITTEN) continue;
    written = Promise.withResolvers();
    await written.promise;
  }
  send({ kind: "done" });
}

async function hear(message: ToProcess): Promise<void> {
  switch (message.kind) {
    case "load":
      await load(message.engine);
      break;
    case "work":
      await work(engine as Engine, message.work);
      break;
    case "written":
      unwritten--;
      written?.resolve();
      break;
    case "stop":
      stop.abort();
      break;
  }
}

process.on("message", (message: ToProcess) => {
  hear(message).catch((error: unknown) => {
    const known = error instanceof DlfsError ? error : null;
    const text = error instanceof Error ? error.message : String(error);
    const [code, op] = [known?.code ?? ErrorCode.internal, known?.op ?? ""];
    send({ kind: "failed", code, op, message: known ? text.slice(op.length + 2) : text });
  });
});
// A terminal's signals go to all processes of it: the one that writes says when to stop, and ends this one.
for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(name, () => {});
process.on("disconnect", async () => {
  stop.abort();
  await engine?.dispose();
  device?.dispose();
  process.exit(0);
});
