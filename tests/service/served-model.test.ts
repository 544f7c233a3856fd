/** Requests of a served model: each gets its own answer, or an error that says why, whatever becomes of the engine. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ErrorCode } from "../../lib/native";
import type { GivenModelConfig, InferenceRequest, ModelRepository } from "../../lib/service";
import { Deed, errorOf, eventually, type FakeModel, image, openFakes, turn, writeFake } from "./fake";

const folder = mkdtempSync(join(tmpdir(), "dlfs-served-"));
afterAll(() => rmSync(folder, { recursive: true }));
let count = 0;

type Batching = NonNullable<GivenModelConfig["batching"]>;

/** A repository with one model "m", which is loaded. */
async function serve(
  model: FakeModel,
  batching: Batching = {},
  config: GivenModelConfig = {},
): Promise<ModelRepository> {
  const path = writeFake(join(folder, `${count++}.fake`), model);
  const repository = await openFakes({ models: [`m=${path}`], config: { ...config, batching } });
  await repository.load("m");
  return repository;
}

const ask = (repository: ModelRepository, first: number, more: Partial<InferenceRequest> = {}) =>
  repository.infer("m", undefined, { images: [image(first)], ...more });

/** One batch at a time, so that what follows waits. */
const single = { inFlight: 1 };

describe("batches", () => {
  test("requests that come together go together, each gets its own images' results, none is split", async () => {
    await using repository = await serve({ maxBatch: 4, answerMs: 5 });
    const sizes = [1, 2, 3, 1, 1, 4, 2];
    let next = 1;
    const requests = sizes.map((size) => Array.from({ length: size }, () => next++));
    const replies = await Promise.all(
      requests.map((request) => repository.infer("m", undefined, { images: request.map((first) => image(first)) })),
    );
    for (const [i, { results, model, version, batchSize }] of replies.entries()) {
      expect({ model, version }).toEqual({ model: "m", version: "1" });
      expect(results.map(({ width }) => width)).toEqual(requests[i]!);
      expect(results.map(({ height }) => height)).toEqual(requests[i]!.map(() => batchSize));
    }
    expect(replies.map(({ batchSize }) => batchSize)).toEqual([3, 3, 4, 4, 1, 4, 2]);
    expect(repository.statistics()[0]).toMatchObject({
      ...{
        name: "m",
        version: "1",
        success: 7,
        inferences: 14,
        executions: 5,
        queued: [0],
        queuedBytes: 0,
        running: 0,
      },
      failures: { REJECTED: 0, CANCELED: 0, BACKEND: 0, OTHER: 0 },
      engines: [{ ready: true, memory: { allocated: 1000, free: 2000, total: 3000 }, processMemory: 4000 }],
    });
  });

  test("are counted as in the examples of Triton's documentation", async () => {
    await using repository = await serve({ maxBatch: 9 });
    const counts = () => {
      const { success, inferences, executions } = repository.statistics()[0]!;
      return [success, inferences, executions];
    };
    /** Requests of so many images, at the same time or one after the other. */
    const run = async (sizes: number[], together: boolean) => {
      const before = counts();
      const images = (size: number) => Array.from({ length: size }, () => image(1));
      const asked: Promise<unknown>[] = [];
      for (const size of sizes) {
        asked.push(repository.infer("m", undefined, { images: images(size) }));
        if (!together) await asked.at(-1);
      }
      await Promise.all(asked);
      return counts().map((count, i) => count - before[i]!);
    };
    expect(await run([1], true)).toEqual([1, 1, 1]);
    expect(await run([8], true)).toEqual([1, 8, 1]);
    expect(await run([1, 8], false)).toEqual([2, 9, 2]);
    expect(await run([1, 1], true)).toEqual([2, 2, 1]);
    expect(await run([1, 8], true)).toEqual([2, 9, 1]);
  });

  test("no more batches than it may have are with an engine; images that fill the shared memory wait for their turn", async () => {
    await using repository = await serve({ answerMs: 20 }, {}, { inFlight: 3 });
    // Three of them do not fit into 1 MiB at a time.
    const large = await Promise.all(
      [1, 2, 3, 4].map((first) => repository.infer("m", undefined, { images: [image(first, 600_000)] })),
    );
    expect(large.map(({ results, batchSize }) => [results[0]!.width, batchSize])).toEqual(
      [1, 2, 3, 4].map((w) => [w, 1]),
    );
    const small = Promise.all(Array.from({ length: 40 }, (_, i) => ask(repository, i)));
    await turn();
    expect(repository.statistics()[0]!.engines[0]!.running).toBe(3);
    expect(repository.statistics()[0]).toMatchObject({ running: 12, queued: [28] });
    expect((await small).map(({ results }) => results[0]!.width)).toEqual(Array.from({ length: 40 }, (_, i) => i));
    expect(repository.statistics()[0]!.engines[0]!.shared).toEqual({ used: 0, total: 2 ** 20 });
  });

  test("several engines share one queue", async () => {
    await using repository = await serve({ maxBatch: 1, answerMs: 30 }, {}, { instances: 2, inFlight: 1 });
    const replies = Promise.all([1, 2, 3, 4].map((first) => ask(repository, first)));
    await turn();
    expect(repository.statistics()[0]!.engines.map(({ running }) => running)).toEqual([1, 1]);
    expect((await replies).map(({ results }) => results[0]!.width)).toEqual([1, 2, 3, 4]);
  });

  test("answers come in the order of the requests where that is asked for", async () => {
    const order = async (preserveOrdering: boolean) => {
      await using repository = await serve({ maxBatch: 1 }, { preserveOrdering }, { inFlight: 2 });
      const came: number[] = [];
      const note = (first: number) =>
        ask(repository, first).then(
          () => came.push(first),
          () => came.push(first),
        );
      const refuse = () => repository.infer("m", undefined, { images: [] }).catch(() => came.push(0));
      await Promise.all([note(Deed.slow), note(1), note(2), refuse()]);
      return came;
    };
    expect(await order(true)).toEqual([Deed.slow, 1, 2, 0]);
    expect((await order(false)).at(-1)).toBe(Deed.slow);
  });

  test("levels of priority are served in their order", async () => {
    await using repository = await serve({ maxBatch: 1, answerMs: 5 }, { priorityLevels: 3 }, single);
    const came: number[] = [];
    const note = (first: number, priority?: number) =>
      ask(repository, first, { priority }).then(() => came.push(first));
    await Promise.all([note(1, 3), note(2), note(3, 1), note(4, 1), note(5, 2)]);
    expect(came).toEqual([3, 4, 2, 5, 1]);
  });
});

describe("limits", () => {
  test("requests that the model cannot take are refused, with what was expected", async () => {
    await using repository = await serve({ maxBatch: 2 }, { priorityLevels: 2 });
    const of = (images: Uint8Array[], more = {}) => errorOf(repository.infer("m", undefined, { images, ...more }));
    const one = [image(1)];
    const cases = [
      [await of([]), 400, "expected at least one image"],
      [await of([image(1), image(1), image(1)]), 400, "expected at most 2 images in a request, got 3 (maxBatch)"],
      [await of(one, { priority: 3 }), 400, "expected a priority from 1 to 2, got 3"],
      [await of(one, { priority: 1.5 }), 400, "expected a priority from 1 to 2, got 1.5"],
      [await of(one, { timeoutMs: -1 }), 400, "expected a timeout from 0, got -1"],
      [await of(one, { scoreThreshold: Number.NaN }), 400, "expected a score threshold from 0, got NaN"],
      [await of([image(1, 2 ** 20)]), 413, "its images have 1048576 bytes, a request may have"],
    ] as const;
    for (const [error, status, message] of cases) {
      expect({ name: error.name, status: error.status }).toEqual({ name: "ServiceError", status });
      expect(error.message).toContain(`model "m" version "1": ${message}`);
    }
    expect((await errorOf(repository.infer("n", undefined, { images: one }))).status).toBe(404);
    expect((await errorOf(repository.infer("m", "2", { images: one }))).status).toBe(404);
    expect(repository.statistics()[0]!.failures).toEqual({ REJECTED: 0, CANCELED: 0, BACKEND: 0, OTHER: 7 });
  });

  test("a full queue refuses with 503 and says when to come again", async () => {
    await using repository = await serve({ maxBatch: 1, answerMs: 10 }, { maxQueue: 3 }, single);
    await ask(repository, 1);
    const first = ask(repository, 1);
    await turn(); // it is with the engine
    const waiting = [2, 3, 4].map((value) => ask(repository, value));
    const refused = await errorOf(ask(repository, 5));
    expect(refused).toMatchObject({
      status: 503,
      message: 'model "m" version "1": the queue is full: 3 requests wait (maxQueue)',
    });
    expect(refused.retryAfter).toBeGreaterThanOrEqual(1);
    expect((await Promise.all([first, ...waiting])).length).toBe(4);
    expect(repository.statistics()[0]!.failures.REJECTED).toBe(1);
  });

  test("timeouts end the waiting, while the engine is busy, too", async () => {
    await using repository = await serve({ maxBatch: 1 }, { defaultTimeoutMs: 1000 }, single);
    const busy = ask(repository, Deed.slow);
    await turn();
    const late = ask(repository, 1, { timeoutMs: 20 });
    const patient = ask(repository, 2);
    expect(await errorOf(late)).toMatchObject({
      status: 503,
      message: expect.stringContaining("which is its timeout"),
    });
    expect(repository.statistics()[0]!.engines[0]!.running).toBe(1);
    await Promise.all([busy, patient]);
    expect(repository.statistics()[0]!.failures.REJECTED).toBe(1);
  });

  test("a request whose client has gone leaves the queue, and is answered no more where it is with the engine", async () => {
    await using repository = await serve({ maxBatch: 1 }, {}, single);
    const gone = AbortSignal.abort();
    expect((await errorOf(ask(repository, 1, { signal: gone }))).status).toBe(499);
    const [with_, waiting] = [new AbortController(), new AbortController()];
    const running = errorOf(ask(repository, Deed.slow, { signal: with_.signal }));
    await turn();
    const queued = errorOf(ask(repository, Deed.crash, { signal: waiting.signal }));
    const after = ask(repository, 3);
    expect(repository.statistics()[0]!.queued).toEqual([2]);
    waiting.abort();
    expect(await queued).toMatchObject({ status: 499, message: "the request was cancelled" });
    expect(repository.statistics()[0]!.queued).toEqual([1]);
    with_.abort();
    expect((await running).status).toBe(499);
    // What was cancelled is not run, or its engine would have crashed.
    expect((await after).results[0]!.width).toBe(3);
    expect(repository.statistics()[0]).toMatchObject({ success: 1, failures: { CANCELED: 3, BACKEND: 0 }, running: 0 });
  });
});

describe("faults", () => {
  test.each([
    ["a crash", Deed.crash, "its process was ended by SIGKILL"],
    ["an error of the device", Deed.deviceError, "the device is lost"],
    ["no answer", Deed.hang, "it did not answer within 0.1 s (answerTimeoutMs)"],
  ])("%s: all that waits gets 503, the model is not ready, and soon is again", async (_, deed, reason) => {
    await using repository = await serve({ maxBatch: 1 }, {}, { answerTimeoutMs: 100, inFlight: 1 });
    const { pid } = repository.statistics()[0]!.engines[0]!;
    const [failed, queued] = await Promise.all([errorOf(ask(repository, deed)), errorOf(ask(repository, 1))]);
    for (const error of [failed, queued]) {
      expect(error).toMatchObject({ status: 503, message: `model "m" version "1": its engine was lost: ${reason}` });
      expect(error.retryAfter).toBeGreaterThanOrEqual(1);
    }
    expect(repository.describe("m")).toMatchObject({ state: "unavailable", reason });
    const refused = await errorOf(ask(repository, 1));
    expect(refused).toMatchObject({ status: 503, message: `model "m" version "1" is not ready: ${reason}` });
    expect(refused.retryAfter).toBeGreaterThanOrEqual(1);
    await eventually(() => repository.describe("m").state === "ready");
    expect((await ask(repository, 9)).results[0]!.width).toBe(9);
    const [statistics] = repository.statistics();
    expect(statistics).toMatchObject({
      failures: { BACKEND: 2, OTHER: 1 },
      success: 1,
      engines: [{ restarts: 1, ready: true }],
    });
    expect(statistics!.engines[0]!.pid).not.toBe(pid);
    expect(statistics!.engines[0]!.shared.used).toBe(0);
  });

  test("memory that is short for a batch fails that batch alone", async () => {
    await using repository = await serve({ maxBatch: 1, memoryCode: ErrorCode.memory });
    expect(await errorOf(ask(repository, Deed.noMemory))).toMatchObject({
      ...{ status: 503, message: 'model "m" version "1": the engine failed: engine: no room' },
    });
    expect(repository.describe("m").state).toBe("ready");
    expect((await ask(repository, 2)).results[0]!.width).toBe(2);
    expect(repository.statistics()[0]!.engines[0]).toMatchObject({ restarts: 0, shared: { used: 0 } });
  });

  test("where one of several engines is lost the others go on, and what waits is theirs", async () => {
    await using repository = await serve({ maxBatch: 1, answerMs: 10 }, {}, { instances: 2, inFlight: 1 });
    const crash = errorOf(ask(repository, Deed.crash));
    const replies = [1, 2, 3, 4].map((first) => ask(repository, first));
    expect((await crash).status).toBe(503);
    expect(repository.describe("m").state).toBe("ready");
    expect((await Promise.all(replies)).map(({ results }) => results[0]!.width)).toEqual([1, 2, 3, 4]);
    await eventually(() => repository.statistics()[0]!.engines.every(({ ready }) => ready));
  });

  test("an engine that crashes again and again is said to", async () => {
    await using repository = await serve({ maxBatch: 1 });
    for (let i = 0; i < 3; i++) {
      await eventually(() => repository.describe("m").state === "ready");
      await errorOf(ask(repository, Deed.crash));
    }
    await eventually(() => repository.describe("m").reason.startsWith("crash loop"));
    expect(repository.describe("m").reason).toBe("crash loop, 3 times in a row: its process was ended by SIGKILL");
    await eventually(() => repository.describe("m").state === "ready");
  });
});

test("in a storm of requests, faults, timeouts and clients that go each request is answered once, by its own images", async () => {
  const config = { instances: 2, inFlight: 2, answerTimeoutMs: 50 };
  await using repository = await serve(
    { maxBatch: 6, memoryCode: ErrorCode.memory },
    { maxQueue: 40, priorityLevels: 2 },
    config,
  );
  let seed = 99;
  const random = (below: number) => {
    seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
    return (seed >> 8) % below;
  };
  const faults = [Deed.crash, Deed.hang, Deed.deviceError, Deed.noMemory];
  const statuses: Record<number, number> = {};
  let settled = 0;
  const one = async () => {
    const firsts = Array.from({ length: 1 + random(6) }, () => random(200));
    if (random(60) === 0) firsts[0] = faults[random(4)]!;
    const gone = new AbortController();
    if (random(8) === 0) setTimeout(() => gone.abort(), random(6));
    const more = { priority: 1 + random(2), signal: gone.signal, ...(random(5) === 0 && { timeoutMs: 1 + random(5) }) };
    const images = firsts.map((first) => image(first, 1 + random(2000)));
    const status = await repository.infer("m", undefined, { images, ...more }).then(
      ({ results, batchSize }) => {
        expect(results.map(({ width }) => width)).toEqual(firsts);
        expect(batchSize).toBeLessThanOrEqual(6);
        return 200;
      },
      ({ status: found }) => found,
    );
    statuses[status] = (statuses[status] ?? 0) + 1;
    settled++;
  };
  const all: Promise<void>[] = [];
  for (let i = 0; i < 1200; i++) {
    all.push(one());
    if (i % 8 === 0) await Bun.sleep(1);
  }
  await Promise.all(all);
  expect(settled).toBe(1200);
  expect(Object.keys(statuses)).toEqual(["200", "499", "503"]);
  for (const status of [200, 499, 503]) expect(statuses[status]).toBeGreaterThan(10);
  await eventually(() => repository.statistics()[0]!.engines.every(({ ready, running }) => ready && running === 0));
  const [statistics] = repository.statistics();
  const { REJECTED, CANCELED, BACKEND, OTHER } = statistics!.failures;
  expect(statistics!.success + REJECTED + CANCELED + BACKEND + OTHER).toBe(1200);
  expect({ success: statistics!.success, CANCELED }).toEqual({ success: statuses[200]!, CANCELED: statuses[499]! });
  expect(statistics).toMatchObject({ queued: [0, 0], queuedBytes: 0, running: 0 });
  for (const { shared } of statistics!.engines) expect(shared.used).toBe(0);
});

describe("loading", () => {
  const load = async (model: FakeModel, config: GivenModelConfig = {}) => {
    const path = writeFake(join(folder, `${count++}.fake`), model);
    const logged: string[] = [];
    const note = (message: string, fields = {}) => logged.push(`${message} ${JSON.stringify(fields)}`);
    const repository = await openFakes({ models: [`m=${path}`], config, log: { info: note, warn: note, error: note } });
    const starts = () => readFileSync(`${path}.starts`, "utf8").trim().split("\n").length;
    return { repository, path, logged, starts };
  };

  test("a process that ends while it loads is started again, three times in all", async () => {
    const helped = await load({ crashes: 2 });
    await helped.repository.load("m");
    expect(helped.starts()).toBe(3);
    expect(helped.repository.describe("m").state).toBe("ready");
    expect(helped.logged.join("\n")).toContain("the fake engine is about to crash");
    await helped.repository.close();

    const lost = await load({ crashes: 9 });
    const error = await errorOf(lost.repository.load("m"));
    expect(error).toMatchObject({
      status: 503,
      message: 'model "m" cannot be loaded: its process was ended by SIGKILL',
    });
    expect(error.retryAfter).toBeGreaterThanOrEqual(1);
    expect(lost.starts()).toBe(3);
    expect(lost.repository.describe("m")).toMatchObject({
      state: "unavailable",
      reason: "its process was ended by SIGKILL",
    });
    expect((await errorOf(ask(lost.repository, 1))).status).toBe(503);
    await lost.repository.close();
  });

  test("what a model file lacks is no reason to try again; the log names the file, the client's message does not", async () => {
    const { repository, path, logged, starts } = await load({ fails: ErrorCode.io });
    const error = await errorOf(repository.load("m"));
    expect(error).toMatchObject({ status: 400, retryAfter: undefined });
    expect(error.message).toMatch(/^model "m" cannot be loaded: \d+\.fake: it cannot be loaded$/);
    expect(logged.join("\n")).toContain(`model "m" cannot be loaded: ${path}: it cannot be loaded`);
    expect(starts()).toBe(1);
    // The file is replaced by a good one.
    writeFake(path);
    await repository.load("m");
    expect((await ask(repository, 3)).results[0]!.width).toBe(3);
    await repository.close();
  });

  test("shared memory that cannot hold the results of a batch is an error", async () => {
    const { repository } = await load({ maxBatch: 2000 });
    expect(await errorOf(repository.load("m"))).toMatchObject({
      status: 400,
      message: 'model "m" cannot be loaded: sharedMemory: 1 MiB cannot hold the results of 2000 images (maxBatch)',
    });
    expect(repository.statistics()[0]!.engines[0]!.pid).toBe(0);
    await repository.close();
  });

  test("one that takes too long is ended", async () => {
    const { repository } = await load({ loadMs: 60_000 }, { loadTimeoutMs: 50 });
    const error = await errorOf(repository.load("m"));
    expect(error.message).toContain("loading the model took longer than 0.05 s (loadTimeoutMs)");
    await repository.close();
  });

  test("requests are told to come again meanwhile, and closing does not wait for it", async () => {
    const { repository } = await load({ loadMs: 60_000 });
    const loading = errorOf(repository.load("m"));
    await eventually(() => repository.describe("m").state === "loading");
    expect(await errorOf(ask(repository, 1))).toMatchObject({
      ...{ status: 503, message: 'model "m" version "1" is not ready: it is loading', retryAfter: 1 },
    });
    await repository.close();
    expect((await loading).status).toBe(503);
    expect((await errorOf(repository.load("m"))).message).toBe("the service is being shut down");
  });
});

describe("the end", () => {
  test("unloading answers what is there, takes nothing more, and leaves no process", async () => {
    await using repository = await serve({ maxBatch: 1, answerMs: 10 }, {}, single);
    const { pid } = repository.statistics()[0]!.engines[0]!;
    const replies = [1, 2, 3].map((first) => ask(repository, first));
    const unloaded = repository.unload("m");
    await Bun.sleep(0);
    expect(await errorOf(ask(repository, 4))).toMatchObject({
      ...{ status: 503, message: 'model "m" version "1" is not ready: it was unloaded', retryAfter: undefined },
    });
    expect((await Promise.all(replies)).map(({ results }) => results[0]!.width)).toEqual([1, 2, 3]);
    await unloaded;
    expect(() => process.kill(pid, 0)).toThrow();
    expect(repository.describe("m").state).toBe("unloaded");
    expect(repository.statistics()[0]).toMatchObject({
      success: 3,
      engines: [{ ready: false, pid: 0, shared: { total: 0 } }],
    });
    await repository.load("m");
    expect((await ask(repository, 5)).results[0]!.width).toBe(5);
    expect(repository.statistics()[0]!.success).toBe(4);
  });

  test("an end that may not wait cuts off one that does", async () => {
    const repository = await serve({ maxBatch: 1 }, {}, single);
    const stuck = errorOf(ask(repository, Deed.hang));
    const unloaded = repository.unload("m");
    await turn();
    await repository.close(20);
    expect((await stuck).status).toBe(503);
    await unloaded;
  });

  test("closing drains, but no longer than it may", async () => {
    const repository = await serve({ maxBatch: 1 }, {}, single);
    const fast = ask(repository, 1);
    const [stuck, behind] = [errorOf(ask(repository, Deed.hang)), errorOf(ask(repository, 2))];
    const { pid } = repository.statistics()[0]!.engines[0]!;
    await repository.close(300);
    expect((await fast).results[0]!.width).toBe(1);
    for (const error of [await stuck, await behind]) expect(error.status).toBe(503);
    expect(() => process.kill(pid, 0)).toThrow();
  });
});
