/** Collectives between processes: values on every rank, inside captured graphs, and when a rank is missing or dies. */
import { describe, expect, test } from "bun:test";
import { Communicator, Stream } from "../../lib/tensor";
import { missing, mostRanks, testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { runRanks } from "../support/ranks";

const device = testDevice();
const absent = missing(device, "f32", ["collectives"]);
const script = "tests/tensor/communicator-rank.ts";

async function found(world: number, what: string, more = ""): Promise<Record<string, unknown>[]> {
  const ranks = await runRanks(script, world, [what, more]);
  for (const { exitCode, stderr } of ranks) expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "" });
  return ranks.map(({ stdout }) => JSON.parse(stdout.split("\n").at(-1)!)); // NCCL may have printed before
}

describe.skipIf(absent !== null)(`collectives${absent ? ` (${absent})` : ""}`, () => {
  test.each([1, 2, 4].filter((world) => world <= mostRanks))("give every one of %i ranks the same", async (world) => {
    const ranks = await found(world, "results");
    const sum = (of: (rank: number) => number) =>
      Array.from({ length: world }, (_, r) => of(r)).reduce((a, b) => a + b);
    for (const dtype of ["f32", "bf16", "f16"] as const) {
      if (missing(device, dtype)) continue;
      const x = (size: number) => Array.from({ length: size }, (_, i) => sum((r) => ((i + r) % 5) - 2));
      const y = [0, 1, 2].map((i) => sum((r) => 4 * r + i));
      for (const [name, size] of [
        ["odd", 1],
        ["small", 7],
        ["large", 100_003],
      ] as const)
        for (const rank of ranks)
          expect(rank[`sum ${dtype} ${name}`], name).toEqual([...x(size).slice(0, 7), x(size).at(-1)!, ...y]);
      for (const rank of ranks) expect(rank[`average ${dtype}`]).toEqual(Array(5).fill(world - 1));
    }
    for (const rank of ranks) {
      expect(rank.broadcast).toEqual([world, world, world, 1 - world === 0 ? 0 : 1 - world]);
      expect(rank.gather).toEqual(Array.from({ length: world }, (_, r) => [r, 10 * r]).flat());
    }
  });

  test("are part of captured graphs, and are counted as the device comes to them", async () => {
    const world = Math.min(2, mostRanks);
    const ranks = await found(world, "graph");
    // x: the sum over ranks, halved, four times; y: doubled four times.
    const sum = (world * (world + 1)) / 2;
    const x = (sum / 2) * (world / 2) ** 3;
    for (const rank of ranks)
      expect(rank).toEqual({
        x,
        y: 16,
        before: { begun: 2, collective: "second" },
        captured: { begun: 2, collective: "second" },
        after: { begun: 8, collective: "second" },
      });
  });

  const waits = [
    ["once", ""],
    ["in a captured graph", "3"],
  ] as const;
  test.skipIf(mostRanks < 2).each([...waits])(
    "that wait for a missing rank end by abort(), and there are no more: %s",
    async (_, launches) => {
      const ranks = await found(2, "abort", launches);
      const aborted = expect.stringContaining("the communicator was aborted");
      // On a GPU the work behind a reduction that was given up goes on, with what that left.
      const first = device.backend === "cuda" ? "none" : aborted;
      expect(ranks[0]).toEqual({ collective: "bucket 3", messages: [first, aborted, aborted], prompt: true });
    },
  );

  // NCCL's operations wait for ever: who watches the ranks aborts them (tests/distributed).
  test.skipIf(mostRanks < 2 || device.backend === "cuda")("fail when a rank dies", async () => {
    const ranks = await runRanks(script, 2, ["death"]);
    expect(ranks[1]!.signal).toBe("SIGKILL");
    expect(ranks[0]!.exitCode).toBe(0);
    expect(JSON.parse(ranks[0]!.stdout).message).toMatch(/rank 0 of 2: Gloo: .*(closed|reset)/);
  });

  test("need a connection, members and buffers that make sense", () => {
    expect(errorOf(() => new Communicator(device, { rank: 2, world: 2 })).message).toContain(
      "a rank from 0 to 1, got 2",
    );
    using comm = new Communicator(device, { rank: 0, world: 1 });
    using stream = new Stream(device);
    expect(errorOf(() => comm.barrier(stream, "early")).message).toContain("not connected");
    expect(errorOf(() => comm.allReduce(stream, [], "none")).message).toContain(
      "expected tensors of one dtype, got none",
    );
    const { native } = device;
    const zeros = new BigInt64Array(1);
    const call = () => native.commAllReduce(stream.handle, comm.handle, zeros, zeros, 1, 0, 0, 0);
    expect(errorOf(call).message).toMatch(/not connected|buffer 0 is NULL/);
    expect(errorOf(() => native.commProgress(stream.handle, new BigInt64Array(2))).message).toContain(
      "expected a communicator handle, got stream",
    );
  });
});
