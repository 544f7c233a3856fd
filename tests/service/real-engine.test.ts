/** A model served from a process of its own: the engine's own answers, whole, and errors that a client may see. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Engine } from "../../lib/engine";
import { checksumOf } from "../../lib/formats/aligned-file";
import { type GivenModelConfig, ModelRepository, type ServiceError } from "../../lib/service";
import { backend, testDevice } from "../support/device";
import { saveTinyModel, tinyJpeg } from "../support/tiny-model";

const folder = mkdtempSync(join(tmpdir(), "dlfs-service-"));
afterAll(() => rmSync(folder, { recursive: true }));
const path = await saveTinyModel(folder);
const config: GivenModelConfig = {
  backend: backend as "cpu",
  batchSizes: [1, 8],
  precision: "fp32",
  sharedMemory: 4,
  tuneMs: 0,
} as const;
const files = [1, 2, 3, 4, 5].map((seed) => tinyJpeg(40 + 9 * seed, 90 - 7 * seed, seed));
const pixels = { width: 31, height: 57, data: Uint8Array.from({ length: 3 * 31 * 57 }, (_, i) => (i * 7) & 255) };

function errorOf(promise: Promise<unknown>): Promise<ServiceError> {
  return promise.then(
    () => Promise.reject(new Error("it was expected to fail")),
    (error: ServiceError) => error,
  );
}

describe("a model in a process of its own", () => {
  test("answers what the engine answers, bit by bit, with times, sizes and errors of single images", async () => {
    await using repository = await ModelRepository.open({ models: [`m=${path}`], config });
    expect(repository.describe("m")).toMatchObject({ state: "unloaded", version: "1", reason: "it is not loaded" });
    expect((await errorOf(repository.infer("m", undefined, { images: [files[0]!] }))).message).toBe(
      'model "m" is not ready: it is not loaded',
    );
    expect(await repository.loadAll()).toEqual(new Map());
    expect(repository.describe("m")).toMatchObject({
      ...{ state: "ready", reason: "", classes: ["red", "green"], size: [64, 96], precision: "f32", maxBatch: 8 },
      ...{ backend, priorityLevels: 1 },
    });
    await using engine = await Engine.load(path, { ...config, device: testDevice() });
    const broken = files[0]!.slice(0, 150);
    const images = [files[0]!, pixels, broken, files[1]!, new Uint8Array(0), files[2]!];
    const expected = await engine.detect(images);
    const { results, times, batchSize } = await repository.infer("m", "1", { images });
    expect(batchSize).toBe(6);
    for (const [i, { detections, width, height, error }] of results.entries()) {
      const other = expected[i]!;
      expect({ detections, width, height }).toEqual({
        ...{ detections: other.detections, width: other.width, height: other.height },
      });
      expect(detections.length > 0).toBe(other.error === null);
      expect(error === null).toBe(other.error === null);
    }
    expect(results[4]!.error).toBe("the file is empty");
    for (const text of [results[2]!.error!, results[4]!.error!]) expect(text).not.toContain("dlfs");
    const { transfer, decode, infer, postprocess } = times.stages;
    for (const time of [transfer, decode, infer, postprocess, times.queue]) expect(time).toBeGreaterThanOrEqual(0);
    expect(transfer + decode + infer + postprocess).toBeCloseTo(times.compute, 6);
    const score = expected[0]!.detections[3]!.score;
    const above = await repository.infer("m", "1", { images: [files[0]!], scoreThreshold: score });
    for (const { score: found } of above.results[0]!.detections) expect(found).toBeGreaterThanOrEqual(score);
    expect(above.results[0]!.detections.length).toBeLessThan(expected[0]!.detections.length);
  });

  test("is unavailable while its process is gone, then ready again; what was under way gets 503", async () => {
    const backoff = { firstMs: 10, mostMs: 10, stableMs: 1000 };
    await using repository = await ModelRepository.open({ models: [`m=${path}`], config, backoff });
    await repository.load("m");
    const { pid } = repository.statistics()[0]!.engines[0]!;
    const images = [files[0]!];
    const waiting = Array.from({ length: 20 }, () => errorOf(repository.infer("m", undefined, { images })));
    process.kill(pid, "SIGKILL");
    for (const { status, message, retryAfter } of await Promise.all(waiting)) {
      expect({ status, message }).toEqual({
        ...{ status: 503, message: 'model "m" version "1": its engine was lost: its process was ended by SIGKILL' },
      });
      expect(retryAfter).toBeGreaterThanOrEqual(1);
    }
    expect(repository.describe("m")).toMatchObject({
      state: "unavailable",
      reason: "its process was ended by SIGKILL",
    });
    while (repository.describe("m").state !== "ready") await Bun.sleep(5);
    expect((await repository.infer("m", undefined, { images })).results[0]!.error).toBeNull();
    expect(repository.statistics()[0]).toMatchObject({
      failures: { BACKEND: 20 },
      success: 1,
      engines: [{ restarts: 1 }],
    });
  });

  test("damaged, short and newer files are named, by the log with their paths, to clients without", async () => {
    const bytes = await Bun.file(path).bytes();
    const newer = bytes.with(8, 2);
    new DataView(newer.buffer).setBigUint64(56, checksumOf(newer.subarray(0, 56)), true);
    const versions = join(folder, "bad");
    const cases = [
      [1, bytes.with(bytes.length >> 1, bytes[bytes.length >> 1]! ^ 255), /checksum|damaged/],
      [2, bytes.subarray(0, bytes.length - 100), /bytes/],
      [3, newer, /a newer dlfs wrote version 2 of the model file format/],
      [4, new Uint8Array(4096).fill(65), /it is no checkpoint|checkpoint/],
    ] as const;
    for (const [version, content] of cases) {
      mkdirSync(join(versions, `${version}`), { recursive: true });
      await Bun.write(join(versions, `${version}`, "model.dlfs"), content);
    }
    const logged: string[] = [];
    const ignore = () => {};
    const log = { info: ignore, warn: ignore, error: (message: string) => logged.push(message) };
    for (const [version, , reason] of cases) {
      const only = { ...config, versionPolicy: { specific: [version] } };
      await using repository = await ModelRepository.open({ models: [`bad=${versions}`], config: only, log });
      const { status, message } = await errorOf(repository.load("bad"));
      expect(status).toBe(400);
      expect(message).toStartWith('model "bad" cannot be loaded: model.dlfs: ');
      expect(message).toMatch(reason);
      expect(message).not.toContain(folder);
      expect(logged.pop()).toContain(join(versions, `${version}`, "model.dlfs"));
      expect(repository.describe("bad", `${version}`).state).toBe("unavailable");
      expect(repository.describe("bad", `${version}`).reason).not.toContain(folder);
    }
  });
});
