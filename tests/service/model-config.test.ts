/** A model's configuration: defaults, and errors that name the field. */
import { describe, expect, test } from "bun:test";
import { mergeConfigs, modelConfigSchema, readModelConfig } from "../../lib/service/model-config";

describe("readModelConfig", () => {
  test("of nothing gives the defaults", () => {
    expect(readModelConfig({}, "config")).toEqual({
      ...{ devices: [0], instances: 1, inFlight: 2, decodeThreads: 0, computeThreads: 0, memoryLimit: null },
      ...{ niceness: null, sharedMemory: 64, loadTimeoutMs: 600_000, answerTimeoutMs: 60_000, modules: [] },
      versionPolicy: { latest: 1 },
      batching: {
        ...{ preferredSizes: [], maxDelayMs: 0, priorityLevels: 1, defaultPriority: 1, maxQueue: 1024 },
        ...{ maxQueueBytes: 2 ** 29, timeoutAction: "reject", defaultTimeoutMs: 0, allowTimeoutOverride: true },
        preserveOrdering: false,
      },
    });
  });

  test("takes what is given; the default priority is the middle level", () => {
    const given = {
      precision: "fp16",
      batchSizes: [1, 8],
      maxBatch: 8,
      size: [320, 640],
      batching: { priorityLevels: 5 },
    };
    const read = readModelConfig(given, "config");
    expect(read).toMatchObject({ precision: "fp16", batchSizes: [1, 8], maxBatch: 8, size: [320, 640] });
    expect(read.batching).toMatchObject({ priorityLevels: 5, defaultPriority: 3 });
    const policies = ["all", { latest: 3 }, { specific: [1, 4] }] as const;
    for (const versionPolicy of policies) {
      expect(readModelConfig({ versionPolicy }, "config").versionPolicy).toEqual(versionPolicy as never);
    }
  });

  test.each([
    [[], "config: expected an object with settings, got []"],
    [{ maxbatch: 3 }, "config.maxbatch: unknown setting; did you mean maxBatch"],
    [{ maxBatch: 0 }, "config.maxBatch: expected an integer from 1 to 1024, got 0"],
    [{ precision: "half" }, "config.precision: expected one of "],
    [{ size: [640] }, "config.size: expected height and width in pixels"],
    [{ size: [640, -1] }, "config.size[1]: expected an integer from 1, got -1"],
    [{ devices: [] }, "config.devices: expected a list of at least 1"],
    [{ versionPolicy: { latest: 0 } }, "config.versionPolicy.latest: expected an integer from 1, got 0"],
    [{ versionPolicy: { newest: 1 } }, 'config.versionPolicy: expected "all", {"latest": N}'],
    [{ versionPolicy: { specific: [0] } }, "config.versionPolicy.specific[0]: expected an integer from 1, got 0"],
    [{ batching: { maxDelay: 3 } }, "config.batching.maxDelay: unknown setting; did you mean maxDelayMs"],
    [{ batching: { maxDelayMs: -3 } }, "config.batching.maxDelayMs: expected a number from 0, got -3"],
    [{ batching: { timeoutAction: "drop" } }, "config.batching.timeoutAction: expected one of reject, delay"],
    [
      { batching: { priorityLevels: 2, defaultPriority: 3 } },
      "config.batching.defaultPriority: expected at most priorityLevels, 2, got 3",
    ],
    [
      { batching: { priorityLevels: 2, preserveOrdering: true } },
      "config.batching.preserveOrdering: expected false where there are 2 levels of priority, got true",
    ],
    [
      { maxBatch: 8, batching: { preferredSizes: [4, 16] } },
      "config.batching.preferredSizes: expected sizes up to maxBatch, 8, got [4,16]",
    ],
    [{ maxBatch: 8, batchSizes: [1, 4] }, "config.batchSizes: expected sizes up to maxBatch, 8, got [1,4]"],
  ])("refuses %j", (given, message) => {
    expect(() => readModelConfig(given, "config")).toThrow(message);
  });
});

test("a configuration over another replaces its settings one by one, those of the queue, too", () => {
  const below = { maxBatch: 4, precision: "fp32", batching: { maxQueue: 5, maxDelayMs: 1 } };
  const above = { maxBatch: 8, precision: undefined, batching: { maxDelayMs: 2 } };
  expect(mergeConfigs(below, above)).toEqual({
    ...{ maxBatch: 8, precision: "fp32", batching: { maxQueue: 5, maxDelayMs: 2 } },
  });
  expect(mergeConfigs(below, undefined)).toEqual(below);
  expect(mergeConfigs({}, above)).toEqual({ maxBatch: 8, batching: { maxDelayMs: 2 } });
});

test("the schema knows every setting", () => {
  const { properties } = modelConfigSchema as unknown as { properties: Record<string, { description: string }> };
  expect(Object.keys(properties)).toContain("batching");
  for (const { description } of Object.values(properties)) expect(description.length).toBeGreaterThan(10);
});
