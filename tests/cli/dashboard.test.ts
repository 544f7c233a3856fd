/** dlfs dashboard: serves folders to who has the token, and ends when it is asked to. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { writeRun } from "../dashboard/run-fixture";
import { runDlfs } from "../support/run-dlfs";

const folder = mkdtempSync(join(tmpdir(), "dlfs-cli-dashboard-"));
afterAll(() => rmSync(folder, { recursive: true }));

function freePort(): number {
  using server = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response() });
  return server.port as number;
}

test("serves runs, keeps a token that is given to itself, and ends with 0", async () => {
  (await writeRun(folder, "cells", 5)).close();
  const port = freePort();
  let answer: [number, string[]] | undefined;
  const talk = async () => {
    const got = await fetch(`http://127.0.0.1:${port}/api/runs`, { headers: { Authorization: "Bearer mine" } });
    const { runs } = (await got.json()) as { runs: { name: string }[] };
    answer = [got.status, runs.map(({ name }) => name)];
  };
  const run = await runDlfs(["dashboard", folder, "--port", `${port}`, "--token", "mine"], {
    after: "dashboard: ",
    act: (pid) => void talk().finally(() => process.kill(pid, "SIGINT")),
  });
  expect([run.exitCode, run.stdout]).toEqual([0, `dashboard: http://127.0.0.1:${port}/\n`]);
  expect(answer).toEqual([200, ["cells-1"]]);
}, 60_000);

test("prints a token that it made up", async () => {
  const run = await runDlfs(["dashboard", folder, "--port", "0"], {
    ...{ env: { DLFS_LIVE_TOKEN: "" }, after: "dashboard: ", act: (pid) => void process.kill(pid, "SIGTERM") },
  });
  expect(run.stdout).toMatch(/^dashboard: http:\/\/127\.0\.0\.1:\d+\/#token=[0-9a-f]{32}\n$/);
}, 60_000);

test("called wrongly says how", async () => {
  for (const [args, status, message] of [
    [[join(folder, "none")], 1, "none: it is no folder of runs"],
    [[folder, "--port", "x"], 2, "--port: expected an integer from 0 to 65535"],
    [[folder, "--port", "70000"], 2, "--port: expected an integer from 0 to 65535"],
    [[folder, "--token", ""], 2, "--token: it is empty"],
  ] as const) {
    const run = await runDlfs(["dashboard", ...args]);
    expect([run.exitCode, run.stderr.includes(message)]).toEqual([status, true]);
  }
}, 60_000);
