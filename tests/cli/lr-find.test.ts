/** `dlfs lr-find` in a process of its own: a suggestion, a plot and the numbers, and nothing else. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { backend, testDevice } from "../support/device";
import { writeTinyDataset } from "../support/tiny-dataset";

const root = fileURLToPath(new URL("../../", import.meta.url));
let folder = "";
beforeAll(async () => {
  folder = await writeTinyDataset(testDevice());
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

async function find(...args: string[]) {
  const child = Bun.spawn([process.execPath, "run", "lib/cli/main.ts", "lr-find", ...args], {
    cwd: root,
    env: { ...process.env, DLFS_BACKEND: backend, XDG_CACHE_HOME: join(folder, "cache"), HOME: folder },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { status: await child.exited, stdout, stderr };
}

test("tells a rate, draws a plot, writes the steps, and leaves no run", async () => {
  const out = join(folder, "runs");
  const shape = ["--data", folder, "--size", "64", "--batch", "2", "--out", out, "weightDecay=0.01"];
  const { status, stdout } = await find(...shape, "--from", "1e-4", "--to=1e4", "--steps", "50");
  expect(status).toBe(0);
  expect(stdout).toMatch(/^\d+ steps up to a rate of [\d.e+]+, where the loss diverged$/m);
  const suggested = /^suggested: {2}--lr ([\d.e-]+), where it falls fastest$/m.exec(stdout)?.[1] as string;
  const report = join(out, "lr-find");
  expect(readdirSync(out)).toEqual(["lr-find"]);
  const { points, suggestion, config, range } = JSON.parse(readFileSync(join(report, "lr-find.json"), "utf8"));
  expect(Number(suggestion.toPrecision(3))).toBe(Number(suggested));
  expect(range).toEqual({ from: 1e-4, to: 1e4, steps: 50 });
  expect(config).toMatchObject({ weightDecay: 0.01, batch: 2 });
  expect(stdout).toContain(`${points.length} steps up to`);
  expect(readFileSync(join(report, "lr-find.svg"), "utf8")).toContain(`suggested: ${suggested}</text>`);
}, 60_000);

test("what is wrong is named before anything is opened", async () => {
  const wrong = async (...args: string[]) => {
    const { status, stdout, stderr } = await find("--data", folder, "--out", join(folder, "none"), ...args);
    expect([status, stdout]).toEqual([2, ""]);
    return stderr.split("\n")[0];
  };
  expect(await wrong("--steps", "many")).toBe('dlfs lr-find: --steps: expected an integer from 1, got "many"');
  expect(await wrong("--from", "")).toBe('dlfs lr-find: --from: expected a number, got ""');
  expect(await wrong("--resume", folder)).toContain("--resume: ");
  expect(await wrong("--iteratons", "4")).toContain("--iteratons: unknown option; did you mean --iterations?");
  const range = await find("--data", folder, "--from", "2", "--to", "1");
  expect([range.status, range.stderr]).toEqual([1, "dlfs lr-find: rateRange: expected 0 < from < to, got 2, 1\n"]);
  expect(existsSync(join(folder, "none"))).toBe(false);
}, 60_000);
