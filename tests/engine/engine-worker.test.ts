/** Engines in Workers: what they detect is what engines detect, errors are DlfsErrors, and nothing is left of them. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Engine, type EngineTimes, EngineWorker } from "../../lib/engine";
import { DlfsError, ErrorCode } from "../../lib/native";
import { backend, testDevice } from "../support/device";
import { saveTinyModel, tinyJpeg } from "../support/tiny-model";

const folder = mkdtempSync(join(tmpdir(), "dlfs-worker-"));
afterAll(() => rmSync(folder, { recursive: true }));
const path = await saveTinyModel(folder);
const options = { backend: backend as "cpu", precision: "fp32", batchSizes: [1, 4], warmUp: false, tuneMs: 0 } as const;
const files = [1, 2, 3].map((seed) => tinyJpeg(40 + 9 * seed, 90 - 7 * seed, seed));
const pixels = { width: 31, height: 57, data: Uint8Array.from({ length: 3 * 31 * 57 }, (_, i) => (i * 7) & 255) };

/** What a promise is rejected with; the event loop runs meanwhile, as a Worker's messages need it to. */
function errorOf(promise: Promise<unknown>): Promise<DlfsError> {
  return promise.then(
    () => Promise.reject(new Error("it was expected to fail")),
    (error: DlfsError) => error,
  );
}

test("detects what an engine detects, bit by bit, for several callers at a time", async () => {
  await using engine = await Engine.load(path, { ...options, device: testDevice() });
  await using worker = await EngineWorker.load(path, options);
  const { classes, size, maxBatch, maxDetections, precision, iteration, metrics, batchSizes } = engine;
  expect(worker).toMatchObject({
    classes,
    size,
    maxBatch,
    maxDetections,
    precision,
    iteration,
    metrics,
    batchSizes,
    path,
  });
  expect({ backend: worker.backend, deviceName: worker.deviceName }).toEqual({
    ...{ backend: engine.device.backend, deviceName: engine.device.info.name },
  });
  const images = [files[0]!, pixels, files[0]!.slice(0, 150), files[1]!];
  const times: EngineTimes[] = [];
  const [expected, found, one] = await Promise.all([
    engine.detect(images),
    worker.detect(images, { onTimes: (measured) => times.push(measured) }),
    worker.detect(files[2]!, { scoreThreshold: 0.99 }),
  ]);
  expect(found.map(({ detections }) => detections)).toEqual(expected.map(({ detections }) => detections));
  expect(found[0]!.detections.length).toBeGreaterThan(0);
  const [error, other] = [found[2]!.error, expected[2]!.error];
  expect(error).toBeInstanceOf(DlfsError);
  expect({ code: error!.code, op: error!.op, text: error!.message }).toEqual({
    ...{ code: other!.code, op: other!.op, text: other!.message },
  });
  expect(one.detections).toEqual([]);
  expect(times.map((measured) => Object.keys(measured).sort())).toEqual([["decode", "infer", "postprocess", "wait"]]);
});

test("a bad image alone, a bad file and a bad option are errors as an engine's", async () => {
  await using worker = await EngineWorker.load(path, options);
  const broken = await errorOf(worker.detect(new Uint8Array(0)));
  expect(broken).toBeInstanceOf(DlfsError);
  expect(broken).toMatchObject({ code: ErrorCode.image, op: "image", message: "image: the file is empty" });
  const none = await errorOf(EngineWorker.load(join(folder, "none.dlfs"), options));
  expect(none).toMatchObject({ code: ErrorCode.io, message: expect.stringContaining("none.dlfs: it does not exist") });
  const wrong = await errorOf(EngineWorker.load(path, { ...options, batchSizes: [] }));
  expect(wrong).toMatchObject({ code: ErrorCode.argument, op: "Engine" });
});

test("finishes what is under way when it is disposed of, and takes nothing more; the next one is as good", async () => {
  for (let i = 0; i < 3; i++) {
    const worker = await EngineWorker.load(path, options);
    const calls = Promise.all(files.map((file) => worker.detect(file)));
    const ended = worker.dispose();
    for (const { error, width } of await calls) {
      expect(error).toBeNull();
      expect(width).toBeGreaterThan(0);
    }
    await ended;
    expect((await errorOf(worker.detect(files[0]!))).message).toBe("EngineWorker: used after dispose()");
    await worker.dispose();
  }
});
