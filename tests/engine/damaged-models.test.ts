/**
 * Model files that are cut or changed, at any place, also where checksums are right over what is not: an error that names the file,
 * and no crash. In a process of its own, as native code takes part.
 */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { backend } from "../support/device";

const COUNT = 24;

test("a damaged model file is an error that names it, wherever the damage is", async () => {
  const script = join(import.meta.dir, "damaged-models.ts");
  const model = join(import.meta.dir, "../golden/formats/model-v1.dlfs");
  const child = Bun.spawn([process.execPath, "run", script, model, "damage", String(COUNT)], {
    env: { ...process.env, DLFS_BACKEND: backend },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  expect({ exitCode: await child.exited, signal: child.signalCode, stderr }).toEqual({
    exitCode: 0,
    signal: null,
    stderr: "",
  });
  const lines = stdout.trim().split("\n");
  expect(lines.filter((line) => line.includes("UNNAMED"))).toEqual([]);
  const counts = (where: string, outcome: string) => lines.filter((line) => line === `${where}: ${outcome}`).length;
  // A changed byte may be padding, or be what it was.
  for (const where of ["cut", "longer"]) expect(counts(where, "refused")).toBe(COUNT);
  for (const where of ["header", "index", "tensors"]) {
    expect(counts(where, "refused") + counts(where, "loaded") + counts(where, "the same")).toBe(COUNT);
    expect(counts(where, "refused")).toBeGreaterThan(COUNT / 2);
  }
  // What is signed may say something else that makes sense: another name of a class.
  for (const where of ["signed header", "signed index"]) expect(counts(where, "refused")).toBeGreaterThan(COUNT / 4);
}, 60_000);
