/** Ranks as real processes: what they exchange, and that all of them end, with the reason, when one does not do its part. */
import { describe, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { missing, mostRanks, testDevice } from "../support/device";

const root = fileURLToPath(new URL("../../", import.meta.url));
const absent = missing(testDevice(), "f32", ["collectives"]);
const reason = absent ?? (mostRanks < 2 ? "one GPU has one rank" : null);

interface Run {
  exitCode: number;
  stdout: string;
  stderr: string;
  seconds: number;
  /** What the ranks printed, by rank. */
  found: Record<string, unknown>[];
}

function statusOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/status`, "utf8");
  } catch {
    return "State: Z"; // it has just gone
  }
}

async function run(ranks: number, what: string[], options: string[] = []): Promise<Run> {
  const started = performance.now();
  const command = ["lib/cli/main.ts", "launch", "--gpus", String(ranks), ...options, "--"];
  const child = Bun.spawn([process.execPath, "run", ...command, "tests/distributed/group-rank.ts", ...what], {
    cwd: root,
    env: { ...process.env, DLFS_BACKEND: process.env.DLFS_BACKEND ?? "cpu" },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  const exitCode = await child.exited;
  const lines = [...stdout.matchAll(/^(?:\[\d+\] )?(\{.*\})$/gm)].map(([, json]) => JSON.parse(json!));
  const found = lines.sort((a, b) => a.rank - b.rank);
  return { exitCode, stdout, stderr, seconds: (performance.now() - started) / 1000, found };
}

describe.skipIf(reason !== null)(`ranks${reason ? ` (${reason})` : ""}`, () => {
  test.each([1, 2, 4].filter((world) => world <= mostRanks))(
    "%i exchange bytes of any length, and train",
    async (world) => {
      const { exitCode, stderr, found } = await run(world, ["exchange"]);
      expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "" });
      const every = Array.from({ length: world }, (_, r) => r);
      expect(found).toEqual(
        every.map((rank) => ({
          rank,
          lengths: every.map((r) => 100_000 * r),
          again: every.map((r) => r * r),
          root: every.map((r) => (rank === 0 ? [r, r] : [])),
          steps: 5,
        })),
      );
    },
  );

  test("that disagree on their configuration do not start, and are not started again", async () => {
    const { exitCode, stderr } = await run(2, ["disagree"], ["--max-restarts", "3"]);
    expect(exitCode).toBe(2);
    expect(stderr).toMatch(
      /the ranks disagree. rank 1 \(process \d+ on .*\) and rank 0 differ: config.lr: rank 0 has 0.1, it 0.2, data: rank 0 has "a", it "b"/,
    );
    expect(stderr).not.toContain("restart");
  });

  /** What all others must say within 30 seconds; here patience is shorter. */
  const faults: [what: string, message: RegExp][] = [
    ["die", /rank 0: error: .*rank 1 \(process \d+ on .*\) ended in step [4-7], in or after collective "bucket [01]"/],
    [
      "die-first",
      /rank 1: error: .*rank 0 ended, or its machine .* is gone.*this is rank 1, in step 7, in or after collective "bucket [01]"/,
    ],
    ["throw", /rank 0: error: .*rank 1 .* failed in step [0-3], .*: the loss is not finite/],
    [
      "freeze",
      /rank 0: error: .*rank 1 .* has given no sign of life for [12] s in step [1-4], in or after collective "bucket [01]"/,
    ],
    [
      "hang",
      /rank 0: error: .*rank 1 .* hangs in step [45], in or after collective "bucket [01]": for [1-3] s it has not come to what rank 0 waits in, step 5, collective "bucket 1"/,
    ],
    ["spin", /rank 0: error: .*rank 1 .* hangs in step [45], .* what rank 0 waits in, step 5, collective "bucket 1"/],
    ["diverge", /rank 0: error: .*rank 1 .* diverged: after step 6 weights differ from those of rank 0 in fc/],
  ];
  test.each(faults)(
    "of which one does this end all: %s",
    async (what, message) => {
      const { exitCode, stderr, seconds } = await run(2, [what]);
      expect(stderr).toMatch(message);
      expect(exitCode).not.toBe(0);
      expect(seconds).toBeLessThan(30);
    },
    60_000,
  );

  test("end with a launcher that is killed", async () => {
    const launch = ["lib/cli/main.ts", "launch", "--gpus", "2", "--", "tests/distributed/group-rank.ts", "forever"];
    const env = { ...process.env, DLFS_BACKEND: process.env.DLFS_BACKEND ?? "cpu" };
    const launcher = Bun.spawn([process.execPath, "run", ...launch], {
      cwd: root,
      env,
      stdout: "pipe",
      stderr: "ignore",
    });
    const pids = new Set<number>();
    let text = "";
    const decoder = new TextDecoder();
    for await (const part of launcher.stdout) {
      text += decoder.decode(part, { stream: true });
      for (const [, pid] of text.matchAll(/"pid":(\d+)/g)) pids.add(Number(pid));
      if (pids.size === 2) break;
    }
    launcher.kill("SIGKILL");
    await launcher.exited;
    // Without a parent they are the system's to reap, which may take its time.
    const alive = (pid: number) => existsSync(`/proc/${pid}`) && !/^State:\s+Z/m.test(statusOf(pid));
    while ([...pids].some(alive)) await Bun.sleep(20);
    expect(pids.size).toBe(2);
  });

  test("may take their time in a phase that is no step", async () => {
    const { exitCode, stderr, found } = await run(2, ["busy"]);
    expect({ exitCode, stderr, found: found.length }).toEqual({ exitCode: 0, stderr: "", found: 2 });
  });

  test("stop at the same step when one is asked to", async () => {
    const { exitCode, found } = await run(Math.min(3, mostRanks), ["stop"]);
    expect(exitCode).toBe(0);
    const steps = found.map((rank) => rank.steps as number);
    expect(steps).toEqual(steps.map(() => steps[0]!));
    expect(steps[0]).toBeGreaterThanOrEqual(9);
    expect(steps[0]).toBeLessThan(1000);
  });

  test("meet before the same steps, as often as one asks, also when they are to end", async () => {
    const { exitCode, found } = await run(Math.min(3, mostRanks), ["meet"]);
    expect(exitCode).toBe(0);
    for (const { steps, met } of found) expect([steps, met]).toEqual([found[0]!.steps, found[0]!.met]);
    const meetings = (found[0]!.met as string[]).map((each) => each.split(" ").map(Number));
    for (const each of meetings) expect(each).toEqual(each.map(() => each[0]!));
    const steps = meetings.map(([step]) => step!);
    expect(steps.length).toBeGreaterThanOrEqual(6);
    expect(steps).toEqual([...new Set(steps)].sort((a, b) => a - b));
    expect(steps[0]).toBeGreaterThanOrEqual(20);
  });

  test("are started again after a failure, without the devices that failed where that is wanted", async () => {
    const again = await run(2, ["restart", "1"], ["--max-restarts", "1"]);
    expect(again.exitCode).toBe(0);
    expect(again.found).toEqual([0, 1].map((rank) => ({ rank, attempt: 1, world: 2, visible: null })));
    expect(again.stderr).toContain("rank 1 ended with 9");
    expect(again.stderr).toContain("restart 1 of 1, 2 ranks");
    const [all, left] = mostRanks > 2 ? [3, "0,1"] : [2, "0"];
    const fewer = await run(all, ["restart", "1"], ["--max-restarts", "2", "--min-gpus", "1"]);
    expect(fewer.exitCode).toBe(0);
    const ranks = left.split(",").map(Number);
    expect(fewer.found).toEqual(ranks.map((rank) => ({ rank, attempt: 1, world: ranks.length, visible: left })));
    expect(fewer.stderr).toContain(`going on without device ${all - 1}`);
    const never = await run(2, ["restart", "9"], ["--max-restarts", "1"]);
    expect(never.exitCode).toBe(9);
    expect(never.stderr).toContain("1 restarts did not help");
  }, 60_000);
});
