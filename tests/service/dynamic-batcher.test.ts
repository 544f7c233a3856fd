/** The queue of a model: which requests make a batch, when, and what becomes of the others. Times are numbers, no clock is used. */
import { describe, expect, test } from "bun:test";
import { type BatcherOptions, DynamicBatcher, type QueuedRequest } from "../../lib/service/dynamic-batcher";

const defaults: BatcherOptions = {
  ...{ maxBatch: 8, preferredSizes: [], maxDelayMs: 0, priorityLevels: 1, maxQueue: 100 },
  ...{
    maxQueueBytes: 1e6,
    maxBatchBytes: 1e6,
    timeoutAction: "reject",
    defaultTimeoutMs: 0,
    allowTimeoutOverride: true,
  },
};

type Add = { images?: number; bytes?: number; priority?: number; timeoutMs?: number };

function batcherOf(options: Partial<BatcherOptions> = {}) {
  const batcher = new DynamicBatcher<string>({ ...defaults, ...options });
  const add = (item: string, now = 0, { images = 1, bytes = 1, priority = 1, timeoutMs }: Add = {}) => {
    const added = batcher.add({ item, images, bytes, priority, timeoutMs }, now);
    if (typeof added === "string") throw new Error(added);
    return added;
  };
  return { batcher, add };
}

const items = (requests: readonly QueuedRequest<string>[]) => requests.map(({ item }) => item).join(" ");

describe("batches", () => {
  test("are as large as possible, in the order of arrival, at once where no delay is allowed", () => {
    const { batcher, add } = batcherOf({ maxBatch: 3 });
    for (const item of "abcd") add(item);
    expect(batcher.images).toBe(4);
    expect(items(batcher.take(0))).toBe("a b c");
    expect(items(batcher.take(0))).toBe("d");
    expect(batcher.take(0)).toEqual([]);
    expect({ images: batcher.images, bytes: batcher.bytes, empty: batcher.empty }).toEqual({
      ...{ images: 0, bytes: 0, empty: true },
    });
  });

  test("never split a request, and do not pass one by that is too large for the rest", () => {
    const { batcher, add } = batcherOf({ maxBatch: 4 });
    add("a", 0, { images: 3 });
    add("b", 0, { images: 2 });
    add("c", 0, { images: 1 });
    expect(items(batcher.take(0))).toBe("a");
    expect(items(batcher.take(0))).toBe("b c");
  });

  test("of a preferred size go before larger ones that are none; what cannot be one is as large as possible", () => {
    const { batcher, add } = batcherOf({ preferredSizes: [2, 4] });
    for (const item of "abcdefg") add(item);
    expect(items(batcher.take(0))).toBe("a b c d");
    expect(items(batcher.take(0))).toBe("e f");
    expect(items(batcher.take(0))).toBe("g");
  });

  test("are sent without a preferred size where the next request would be beyond all of them", () => {
    const { batcher, add } = batcherOf({ preferredSizes: [4], maxDelayMs: 100 });
    add("a", 0, { images: 3 });
    expect(batcher.take(0)).toEqual([]);
    add("b", 1, { images: 3 });
    expect(items(batcher.take(1))).toBe("a");
    expect(batcher.take(1)).toEqual([]);
  });

  test("take no more bytes than they may; a request with more goes alone", () => {
    const { batcher, add } = batcherOf({ maxBatchBytes: 10 });
    add("a", 0, { bytes: 6 });
    add("b", 0, { bytes: 4 });
    add("c", 0, { bytes: 30 });
    add("d", 0, { bytes: 1 });
    expect(items(batcher.take(0))).toBe("a b");
    expect(items(batcher.take(0))).toBe("c");
    expect(items(batcher.take(0))).toBe("d");
  });
});

describe("the delay", () => {
  test("lets requests wait for others, no longer than it says, and not where a batch is full", () => {
    const { batcher, add } = batcherOf({ maxBatch: 3, maxDelayMs: 10 });
    add("a", 5);
    expect(batcher.take(5)).toEqual([]);
    expect(batcher.wakeAt(5, true)).toBe(15);
    add("b", 12);
    expect(batcher.take(14.9)).toEqual([]);
    expect(items(batcher.take(15))).toBe("a b");
    for (const item of "cde") add(item, 20);
    expect(items(batcher.take(20))).toBe("c d e");
    expect(batcher.wakeAt(20, true)).toBe(Number.POSITIVE_INFINITY);
  });

  test("ends for a preferred size that is reached; when it is over all that fits goes, of any size", () => {
    const { batcher, add } = batcherOf({ preferredSizes: [2, 4], maxDelayMs: 10 });
    add("a", 0);
    add("b", 1);
    add("c", 2);
    // As in Triton, the largest preferred size that can be formed does not wait for a larger one.
    expect(items(batcher.take(2))).toBe("a b");
    expect(batcher.take(3)).toEqual([]);
    expect(batcher.wakeAt(3, true)).toBe(12);
    expect(items(batcher.take(12))).toBe("c");
    for (const item of "defgh") add(item, 20);
    expect(items(batcher.take(30))).toBe("d e f g h");
  });

  test("is no longer than half a request's timeout, so that waiting for others does not end it", () => {
    const { batcher, add } = batcherOf({ maxDelayMs: 10 });
    add("a", 0);
    add("b", 1, { timeoutMs: 6 });
    expect(batcher.wakeAt(1, true)).toBe(4);
    expect(items(batcher.take(4))).toBe("a b");
  });

  test("does not count where no engine is free: only timeouts do", () => {
    const { batcher, add } = batcherOf({ maxDelayMs: 10 });
    add("a", 0);
    expect(batcher.wakeAt(0, false)).toBe(Number.POSITIVE_INFINITY);
    add("b", 0, { timeoutMs: 50 });
    expect(batcher.wakeAt(0, false)).toBe(50);
  });
});

describe("priorities", () => {
  test("the first level goes first, each in the order of arrival", () => {
    const { batcher, add } = batcherOf({ priorityLevels: 3, maxBatch: 2 });
    for (const [item, priority] of [
      ["a", 3],
      ["b", 2],
      ["c", 1],
      ["d", 2],
      ["e", 1],
    ] as const) {
      add(item, 0, { priority });
    }
    expect(batcher.queued).toEqual([2, 2, 1]);
    expect(items(batcher.take(0))).toBe("c e");
    expect(items(batcher.take(0))).toBe("b d");
    expect(items(batcher.take(0))).toBe("a");
  });

  test("each level has room of its own", () => {
    const { batcher, add } = batcherOf({ priorityLevels: 2, maxQueue: 2 });
    add("a", 0, { priority: 2 });
    add("b", 0, { priority: 2 });
    expect(() => add("c", 0, { priority: 2 })).toThrow("the queue is full: 2 requests wait (maxQueue)");
    add("d", 0, { priority: 1 });
    expect(items(batcher.take(0))).toBe("d a b");
  });
});

describe("timeouts", () => {
  test("give requests back that are over theirs", () => {
    const { batcher, add } = batcherOf({ defaultTimeoutMs: 10 });
    add("a", 0);
    add("b", 3);
    expect(batcher.wakeAt(3, false)).toBe(10);
    expect(batcher.expire(9)).toEqual([]);
    expect(items(batcher.expire(10))).toBe("a");
    expect(batcher.wakeAt(10, false)).toBe(13);
    expect(items(batcher.take(10))).toBe("b");
    expect(batcher.expire(20)).toEqual([]);
  });

  test("or let them wait for all others of their level", () => {
    const { batcher, add } = batcherOf({
      defaultTimeoutMs: 10,
      timeoutAction: "delay",
      maxBatch: 1,
      priorityLevels: 2,
    });
    add("a", 0);
    add("b", 5);
    add("low", 0, { priority: 2, timeoutMs: 100 });
    expect(batcher.expire(10)).toEqual([]);
    expect(batcher.queued).toEqual([2, 1]);
    add("c", 10);
    const order = Array.from({ length: 4 }, () => items(batcher.take(11)));
    expect(order).toEqual(["b", "c", "a", "low"]);
  });

  test("of requests are cut to the default, or not taken into account", () => {
    const deadline = (options: Partial<BatcherOptions>, timeoutMs?: number) =>
      batcherOf(options).add("a", 100, { timeoutMs }).deadline;
    expect(deadline({ defaultTimeoutMs: 10 }, 4)).toBe(104);
    expect(deadline({ defaultTimeoutMs: 10 }, 40)).toBe(110);
    expect(deadline({ defaultTimeoutMs: 10 }, 0)).toBe(110);
    expect(deadline({ defaultTimeoutMs: 10, allowTimeoutOverride: false }, 4)).toBe(110);
    expect(deadline({}, 40)).toBe(140);
    expect(deadline({})).toBe(Number.POSITIVE_INFINITY);
    expect(deadline({ allowTimeoutOverride: false }, 40)).toBe(Number.POSITIVE_INFINITY);
  });
});

describe("limits and cancelling", () => {
  test("bytes of all that waits are limited; one request is taken whatever it has", () => {
    const { batcher, add } = batcherOf({ maxQueueBytes: 10 });
    const large = add("a", 0, { bytes: 50 });
    expect(() => add("b", 0, { bytes: 1 })).toThrow(
      "the queue is full: images of 50 bytes wait, of at most 10 (maxQueueBytes)",
    );
    expect(batcher.remove(large)).toBe(true);
    add("b", 0, { bytes: 4 });
    add("c", 0, { bytes: 6 });
    expect(() => add("d", 0, { bytes: 1 })).toThrow("of at most 10");
  });

  test("a request that is removed is in no batch and counts no more; one that has gone cannot be removed", () => {
    const { batcher, add } = batcherOf({ maxBatch: 2, maxDelayMs: 10 });
    const a = add("a", 0);
    add("b", 4);
    expect(batcher.remove(a)).toBe(true);
    expect(batcher.remove(a)).toBe(false);
    expect(batcher.take(10)).toEqual([]);
    expect(batcher.wakeAt(10, true)).toBe(14);
    const [b] = batcher.take(14);
    expect(batcher.remove(b!)).toBe(false);
    expect(batcher.images).toBe(0);
  });

  test("all can be taken out, in their order", () => {
    const { batcher, add } = batcherOf({ priorityLevels: 2, defaultTimeoutMs: 5 });
    add("a", 0, { priority: 2 });
    add("b", 0);
    expect(items(batcher.clear())).toBe("b a");
    expect(batcher.empty).toBe(true);
    expect(batcher.wakeAt(0, true)).toBe(Number.POSITIVE_INFINITY);
  });
});

test("at random: each request comes out once, in order within its level, in batches within the limits, none later than it must", () => {
  let seed = 12345;
  const random = (below: number) => {
    seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
    return (seed >> 8) % below;
  };
  for (let round = 0; round < 200; round++) {
    const maxBatch = 1 + random(8);
    const [priorityLevels, maxDelayMs] = [1 + random(3), random(2) * random(20)];
    const preferredSizes = random(2) ? [1 + random(maxBatch)] : [];
    const timeoutAction = random(2) ? ("reject" as const) : ("delay" as const);
    const { batcher, add } = batcherOf({ maxBatch, maxDelayMs, preferredSizes, priorityLevels, timeoutAction });
    const waiting = new Map<string, number>();
    const leave = (request: QueuedRequest<string>) => {
      expect(waiting.get(request.item)).toBe(request.priority);
      waiting.delete(request.item);
    };
    for (let now = 0; now < 100; now++) {
      if (random(3) > 0) {
        const priority = 1 + random(priorityLevels);
        const timeoutMs = random(4) === 0 ? 1 + random(30) : undefined;
        add(`${now}`, now, { images: 1 + random(maxBatch), priority, timeoutMs });
        waiting.set(`${now}`, priority);
      }
      for (const request of batcher.expire(now)) {
        expect(request.deadline).toBeLessThanOrEqual(now);
        leave(request);
      }
      if (random(2) === 0) continue; // no engine is free
      for (let batch = batcher.take(now); batch.length > 0; batch = batcher.take(now)) {
        expect(batch.reduce((sum, { images }) => sum + images, 0)).toBeLessThanOrEqual(maxBatch);
        batch.forEach(leave);
        const timely = batch.filter(({ deadline }) => deadline > now);
        for (const [i, { priority, arrived }] of timely.slice(1).entries()) {
          const before = timely[i]!;
          expect(before.priority < priority || (before.priority === priority && before.arrived <= arrived)).toBe(true);
        }
      }
      expect(batcher.wakeAt(now, true)).toBeGreaterThan(now);
    }
    expect(
      batcher
        .clear()
        .map(({ item }) => item)
        .sort(),
    ).toEqual([...waiting.keys()].sort());
  }
});
