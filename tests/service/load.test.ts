/** The load generator: figures of a service that stalls must show it, whoever waited. */
import { expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { latenciesOf, percentile, runLoad } from "../../scripts/service/load";

test("percentiles are values that were measured", () => {
  const values = Float64Array.from({ length: 1000 }, (_, i) => 1000 - i);
  expect(latenciesOf(values)).toEqual({ mean: 500.5, p50: 500, p90: 900, p95: 950, p99: 990, p999: 999, max: 1000 });
  expect(percentile(Float64Array.of(7), 0.99)).toBe(7);
  expect(latenciesOf(new Float64Array(0)).p99).toBeNaN();
});

test("requests that were due while a service stood still are counted from when they were due", async () => {
  const folder = mkdtempSync(join(tmpdir(), "dlfs-load-"));
  const file = join(folder, "a.bin");
  writeFileSync(file, "abc");
  // Answers nothing for 600 ms from the first request behind the warm-up on, and everything at once otherwise.
  let open: Promise<void> | null = null;
  let seen = 0;
  const server = Bun.serve({
    ...{ port: 0, hostname: "127.0.0.1" },
    async fetch() {
      if (++seen === 20) open = Bun.sleep(600);
      await open;
      return seen % 50 === 0 ? new Response("no", { status: 503 }) : new Response("yes");
    },
  });
  try {
    const result = await runLoad({
      ...{ url: server.url.href, files: [file], mode: "open", rate: 100, seconds: 2, processes: 1 },
    });
    const { requests, statuses, latencies } = result;
    // A Poisson process of 200: within five standard deviations.
    expect(requests).toBeGreaterThan(130);
    expect(requests).toBeLessThan(270);
    expect(statuses["200"]! + statuses["503"]!).toBe(requests);
    // A third of the requests fell into the stall, and waited for what was left of it.
    expect(latencies.max).toBeGreaterThan(550);
    expect(latencies.p90).toBeGreaterThan(200);
  } finally {
    await server.stop(true);
    rmSync(folder, { recursive: true });
  }
});
