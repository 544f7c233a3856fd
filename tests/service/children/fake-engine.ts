/**
 * Stands for an engine's process, without a model and without the native library. The "model file" says what it does (FakeModel);
 * the first byte of an image says what becomes of its batch (see fake.ts). An image's result has its first byte as width and the
 * size of the batch as height.
 */
import { appendFileSync, readFileSync } from "node:fs";
import {
  type FromEngine,
  SHARED_FILE,
  type SharedImage,
  type ToEngine,
  writeResults,
} from "../../../lib/service/engine-messages";
import { mapShared } from "../../../lib/service/shared-memory";
import { Deed, type FakeModel } from "../fake";

const memory = mapShared(SHARED_FILE);
const send = (message: FromEngine) => void process.send?.(message);
let model: FakeModel = {};
const MAX_DETECTIONS = 4;

for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => {});
process.on("disconnect", () => process.exit(0));
process.on("message", (message: ToEngine) => {
  if (message.kind === "load") void load(message.spec.path);
  else if (message.kind === "batch") void answer(message.id, message.images, message.resultsAt);
  else process.exit(0);
});
send({ kind: "started" });

async function load(path: string): Promise<void> {
  appendFileSync(`${path}.starts`, `${process.pid}\n`);
  const starts = readFileSync(`${path}.starts`, "utf8").trim().split("\n").length;
  model = JSON.parse(readFileSync(path, "utf8"));
  const { crashes = 0, loadMs = 0, fails, maxBatch = 4 } = model;
  if (starts <= crashes) {
    console.error("the fake engine is about to crash");
    process.kill(process.pid, "SIGKILL");
  }
  await Bun.sleep(loadMs);
  const memoryUse = { allocated: 1000, free: 2000, total: 3000, resident: 4000 };
  if (fails !== undefined) send({ kind: "failed", code: fails, message: `${path}: it cannot be loaded` });
  else {
    const engine = {
      ...{ classes: ["a"], size: [8, 8] as const, precision: "f32", backend: "cpu", device: "fake", maxBatch },
      ...{ maxDetections: MAX_DETECTIONS, iteration: 0, metrics: {} },
    };
    send({ kind: "ready", engine, memory: memoryUse });
  }
}

async function answer(id: number, images: readonly SharedImage[], resultsAt: number): Promise<void> {
  const first = images.map(([at]) => memory[at] as number);
  if (first.includes(Deed.crash)) process.kill(process.pid, "SIGKILL");
  if (first.includes(Deed.hang)) return;
  if (first.includes(Deed.deviceError)) return send({ kind: "error", id, code: -6, message: "the device is lost" });
  if (first.includes(Deed.noMemory))
    return send({ kind: "error", id, code: model.memoryCode ?? 0, message: "no room" });
  await Bun.sleep(first.includes(Deed.slow) ? 200 : (model.answerMs ?? 1));
  const results = first.map((width) => ({ width, height: images.length, detections: [], error: null }));
  writeResults(memory, resultsAt, MAX_DETECTIONS, results);
  send({ kind: "done", id, times: { decode: 0.1, infer: 0.2, postprocess: 0.1 } });
}
