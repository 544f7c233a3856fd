/** dlfs bench: that every bench runs and its files hold what was measured; errors for what was typed wrongly. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { readBenchResult } from "../../lib/bench";
import { backend, missing, testDevice } from "../support/device";

const program = fileURLToPath(new URL("../../lib/cli/main.ts", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "dlfs-cli-bench-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function dlfsBench(...args: string[]): Promise<{ status: number; stdout: string; stderr: string }> {
  const env = { ...process.env, DLFS_BACKEND: backend };
  const child = Bun.spawn([process.execPath, program, "bench", ...args], { env, stdout: "pipe", stderr: "pipe" });
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { status: await child.exited, stdout, stderr };
}

const small = ["--model", "compact", "--size", "64x96", "--classes", "3", "--batch", "2", "--repetitions", "2"];

describe("dlfs bench", () => {
  test("measures networks and writes results, a trace and a comparison", async () => {
    const [out, again, trace] = ["a.json", "b.json", "trace.json"].map((name) => join(folder, name)) as [
      string,
      string,
      string,
    ];
    const benches = ["train", "infer", "postprocess", "sizes", "--precision", "f32", ...small];
    const first = await dlfsBench(...benches, "--out", out, "--trace", trace, "--profile");
    expect(first.stderr).toBe("");
    expect(first.status).toBe(0);
    const result = readBenchResult(out);
    expect(result.rows.map(({ bench, name }) => `${bench}: ${name}`)).toEqual([
      "train: step, compact 2x64x96 f32",
      "infer: network only, to its maps, compact 2x64x96 f32",
      "infer: whole call, compact 2x64x96 f32",
      "postprocess: compact 2x64x96 f32",
      "sizes: step, compact 2x64x96 f32",
      "sizes: network only, to its maps, compact 2x64x96 f32",
    ]);
    for (const row of result.rows) {
      expect(row.ms).toBeGreaterThan(0);
      expect(row.repetitions).toBe(2);
    }
    const [train, network, , , trainAgain, networkAgain] = result.rows;
    expect([trainAgain!.flops, networkAgain!.flops]).toEqual([train!.flops, network!.flops]);
    expect([trainAgain!.floorMs, networkAgain!.floorMs]).toEqual([train!.floorMs, network!.floorMs]);
    expect(train!.memoryBytes).toBeGreaterThan(network!.memoryBytes!);
    // Three products for one, less the first layer's data gradient.
    expect(train!.flops! / network!.flops!).toBeGreaterThan(2.8);
    expect(train!.flops! / network!.flops!).toBeLessThan(3);
    expect(result.ceilings.f32!.gflops).toBeGreaterThan(0);
    const events = JSON.parse(readFileSync(trace, "utf8")).traceEvents as { ph: string; cat: string }[];
    const kinds = new Set(events.filter(({ ph }) => ph === "X").map(({ cat }) => cat));
    for (const kind of ["conv2d", "conv2d_backward_weight", "focal_loss", "sgd"]) expect(kinds).toContain(kind);
    expect(first.stdout).toContain("conv2d_backward_data");

    const second = await dlfsBench("infer", "--precision", "f32", ...small, "--out", again, "--compare", out);
    expect(second.stdout).toMatch(
      /infer {2}network only, to its maps, compact 2x64x96 f32 +[\d.]+ +[\d.]+ +[+-]?[\d.]+ %/,
    );
    expect(second.stdout).toContain("only before: train: step");
    expect(second.status).toBe(0);

    const less = ["train", "--precision", "f32", ...small, "--lanes", "2", "--recompute", "all", "--deterministic"];
    const third = await dlfsBench(...less, "--out", again);
    expect(third.stderr).toBe("");
    const [step] = readBenchResult(again).rows;
    expect(step!.name).toBe("step, compact 2x64x96 f32, 2 lanes, deterministic, recompute all");
    expect(step!.memoryBytes).toBeLessThan(train!.memoryBytes!);
  }, 60_000);

  test("times inference in 8 bits, calibrated on its batch", async () => {
    if (missing(testDevice(), "f32", ["conv.i8"])) return;
    const { status, stdout } = await dlfsBench(
      "infer",
      "--precision",
      "f32",
      "--quantize",
      "i8",
      ...small,
      "--profile",
    );
    expect(status).toBe(0);
    expect(stdout).toContain("whole call, compact 2x64x96 f32, convolutions i8");
    expect(stdout).toMatch(/conv2d_scaled +class_head\.convs\.0 +i8/);
  }, 60_000);

  test("refuses what it does not know, before anything is measured", async () => {
    const cases: [string[], string][] = [
      [["inference"], 'expected train, infer, layers, postprocess, nms, sizes or all, got "inference"'],
      [["nms", "--profile"], "--profile is for train and infer"],
      [["postprocess", "--peers", "python3"], "--peers is for train, infer, layers and nms"],
      [["train", "--quantize", "f8"], "--quantize is for infer"],
      [["infer", "--quantize", "f4"], '--quantize: expected one of f8, i8, got "f4"'],
      [["train", "--norm", "group"], '--norm: expected one of batch, frozen, got "group"'],
      [["train", "--model", "compact", "--norm", "batch"], "--norm: compact has no such choice"],
      [["train", "--trainable-layers", "6"], '--trainable-layers: expected an integer from 0 to 5, got "6"'],
      [
        ["train", "--recompute", "some"],
        '--recompute: expected all, none or a size such as 10GiB or 800MiB, got "some"',
      ],
      [["train", "--tune-ms=-1"], '--tune-ms: expected milliseconds from 0, got "-1"'],
    ];
    const runs = await Promise.all(cases.map(([args]) => dlfsBench(...args)));
    for (const [i, { status, stderr }] of runs.entries()) {
      expect(stderr.trim()).toBe(`dlfs bench: ${cases[i]![1]}`);
      expect(status).toBe(2);
    }
    const { status, stderr } = await dlfsBench("nms", "--compare", join(folder, "none.json"));
    expect(stderr).toContain("none.json: cannot be read");
    expect(status).toBe(1);
  });
});
