/** Engines' processes end with their server, however it ends, and not before it. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { backend } from "../support/device";
import { saveTinyModel } from "../support/tiny-model";
import { eventually, writeFake } from "./fake";

const folder = mkdtempSync(join(tmpdir(), "dlfs-group-"));
afterAll(() => rmSync(folder, { recursive: true }));

async function start(...args: string[]) {
  const server = Bun.spawn([process.execPath, join(import.meta.dir, "children/server.ts"), ...args], {
    stdio: ["ignore", "pipe", "inherit"],
    env: { ...process.env, DLFS_BACKEND: backend, DLFS_TUNE_MS: "0" },
  });
  const reader = server.stdout.getReader();
  const line = async () => new TextDecoder().decode((await reader.read()).value).trim();
  return { server, line, engine: Number(await line()) };
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

test.each([
  ["SIGKILL", true],
  ["SIGKILL", false],
  ["SIGTERM", true],
] as const)("a server that is ended by %s leaves no engine behind (a real one: %p)", async (signal, real) => {
  const path = real ? await saveTinyModel(folder) : writeFake(join(folder, "m.fake"));
  const { server, engine } = await start(path, ...(real ? [] : [join(import.meta.dir, "children/fake-engine.ts")]));
  expect(isAlive(engine)).toBe(true);
  server.kill(signal);
  await server.exited;
  await eventually(() => !isAlive(engine));
});

test("a terminal's Ctrl-C, which reaches both, is the server's to answer: its engine goes on until it is told to end", async () => {
  const { server, line, engine } = await start(await saveTinyModel(folder));
  process.kill(engine, "SIGINT");
  process.kill(engine, "SIGTERM");
  process.kill(server.pid, "SIGINT");
  expect(await line()).toBe("answered 1");
  expect(await server.exited).toBe(0);
  expect(isAlive(engine)).toBe(false);
});
