/** dlfs bench: that every bench runs and its files hold what was measured; errors for what was typed wrongly. */
import { afterAll, describe, expect, test } from "bun:test";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type DataRow, DECODE_WORKS, type DecodeRow, readBenchResult } from "../../lib/bench";
import { backend, missing, testDevice } from "../support/device";

const program = fileURLToPath(new URL("../../lib/cli/main.ts", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "dlfs-cli-bench-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

type Ended = { status: number; stdout: string; stderr: string };

const dlfsBench = (...args: string[]): Promise<Ended> => dlfsBenchWith({}, ...args);

async function dlfsBenchWith(variables: Record<string, string>, ...args: string[]): Promise<Ended> {
  const env = { ...process.env, DLFS_BACKEND: backend, ...variables };
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

  test("times loading and what training loses to it, in turns with a peer", async () => {
    // Speaks the peer's protocol; what it measures is what it was told.
    const peer = join(folder, "peer.sh");
    const answers = ['{"name":"pool","ms":2000,"cpuMs":3000,"images":2}', '{"failed":"none: not there"}'];
    const script = [
      "#!/bin/sh",
      `echo '{"versions":{"PyTorch":"0.0"},"pipelines":["pool","none"]}'`,
      `while read name; do [ "$name" = pool ] && echo '${answers[0]}' || echo '${answers[1]}'; done`,
    ];
    writeFileSync(peer, `${script.join("\n")}\n`, { mode: 0o755 });
    const out = join(folder, "data.json");
    const settings = ["--batch", "2", "--size", "64", "--classes", "3", "--repetitions", "2", "--precision", "f32"];
    const options = ["data", ...settings, "--files", "6", "--threads", "1", "--peers", peer, "--out", out];
    const { status, stdout, stderr } = await dlfsBenchWith({ DLFS_CACHE: folder }, ...options);
    expect(stderr.replaceAll(/(training, )?round \d of 2\n/g, "")).toBe("");
    expect(status).toBe(0);
    const { rows, peers } = readBenchResult(out);
    expect(rows.map(({ name }) => name)).toEqual([
      "loader, JPEGs, preset retinanet, 2x64x64 f32, 1 threads",
      "records as they are, u8 to 2x64x64 f32",
      "records, preset retinanet, u8 to 2x64x64 f32",
      ...["a synthetic batch", "JPEGs, preset retinanet", "records, preset retinanet"].map(
        (on) => expect.stringMatching(new RegExp(` 2x64x64 f32.*, on ${on}$`)) as unknown as string,
      ),
    ]);
    for (const row of rows as DataRow[]) {
      expect(row.ms).toBeGreaterThan(0);
      expect(row.waitShare).toBeGreaterThanOrEqual(0);
      expect(row.waitShare).toBeLessThanOrEqual(1);
    }
    expect((rows[0] as DataRow).peakHostBytes).toBeGreaterThan(1e6);
    expect((rows[1] as DataRow).pinnedBytes).toBeGreaterThan(0);
    const shares = rows.map((row) => (row as DataRow).ofSynthetic);
    expect(shares.slice(0, 4)).toEqual([undefined, undefined, undefined, undefined]);
    for (const [i, share] of shares.entries()) {
      if (share === undefined) continue;
      // A median of ratios, and the rows have quartiles of both parts.
      expect(share).toBeGreaterThan((0.99 * rows[3]!.low) / rows[i]!.high);
      expect(share).toBeLessThan((1.01 * rows[3]!.high) / rows[i]!.low);
    }
    expect(peers).toEqual([
      {
        versions: { PyTorch: "0.0" },
        rows: [expect.objectContaining({ name: "pool, 2x64x64 f32", ms: 2000, cpuMs: 3000, repetitions: 2 })],
        failed: ["none: not there"],
      },
    ]);
    expect(stdout).toContain("not measured: none: not there");
    expect(stdout).toMatch(/^6 JPEGs of \d+ KB on average in .*, page cache warm$/m);
  }, 60_000);

  test("times decoding from memory and files, for several numbers of threads, beside a peer", async () => {
    const images = join(folder, "jpegs");
    mkdirSync(images);
    for (const name of ["baseline.jpg", "progressive.jpg", "gray.jpg"]) {
      copyFileSync(fileURLToPath(new URL(`../data/jpegs/${name}`, import.meta.url)), join(images, name));
    }
    const peer = join(folder, "decode-peer");
    writeFileSync(
      peer,
      `#!/usr/bin/env bash
[ "$(tr -d " \\n" | grep -c '"batch":2,"size":\\[32,48\\].*"threads":1,"repetitions":2')" = 1 ] || exit 3
echo '{"versions": {"torchvision": "0.0"}}'
echo '{"name": "decode", "ms": 3000, "low": 3000, "high": 3000, "repetitions": 2, "images": 3}'
echo '{"failed": "read and decode: not there"}'
`,
      { mode: 0o755 },
    );
    const out = join(folder, "decode.json");
    const options = ["--images", images, "--batch", "2", "--size", "32x48", "--threads", "1", "--repetitions", "2"];
    const { status, stdout, stderr } = await dlfsBench("decode", ...options, "--sweep", "--peers", peer, "--out", out);
    expect(stderr.replaceAll(/^(decode|peer): .*\n/gm, "")).toBe("");
    expect(status).toBe(0);
    const { rows, peers } = readBenchResult(out);
    const one = (rows as DecodeRow[]).filter(({ threads, hardware }) => threads === 1 && hardware === 0);
    expect(one.map(({ work }) => work)).toEqual([...DECODE_WORKS]);
    for (const row of rows) expect([row.images, row.repetitions, row.ms > 0]).toEqual([3, 2, true]);
    expect(peers).toEqual([expect.objectContaining({ failed: ["read and decode: not there"] })]);
    expect(stdout).toMatch(/^3 JPEGs .* KiB and [\d.]+ bits a pixel on average$/m);
    const [first] = one as [DecodeRow];
    const ratio = ((3000 / first.ms) as number).toFixed(2);
    expect(stdout).toMatch(new RegExp(`decode, batches of 2, 1 thread.* +1 +${ratio}$`, "m"));
    const none = await dlfsBench("decode", "--images", folder);
    expect([none.status, none.stderr]).toEqual([1, expect.stringContaining(`${folder} has no .jpg files`)]);
  }, 60_000);

  test("refuses what it does not know, before anything is measured", async () => {
    const cases: [string[], string][] = [
      [["inference"], 'expected train, infer, layers, postprocess, nms, sizes, data, decode or all, got "inference"'],
      [["nms", "--profile"], "--profile is for train and infer"],
      [["postprocess", "--peers", "python3"], "--peers is for train, infer, layers, nms, data and decode"],
      [["train", "--quantize", "f8"], "--quantize is for infer"],
      [["infer", "--quantize", "f4"], '--quantize: expected one of f8, i8, got "f4"'],
      [["train", "--norm", "group"], '--norm: expected one of batch, frozen, got "group"'],
      [["train", "--model", "compact", "--norm", "batch"], "--norm: compact has no such choice"],
      [["train", "--trainable-layers", "6"], '--trainable-layers: expected an integer from 0 to 5, got "6"'],
      [
        ["train", "--recompute", "some"],
        '--recompute: expected all, none or a size such as 10GiB or 800MiB, got "some"',
      ],
      [["train", "--files", "6"], "--files is for data and decode"],
      [["data", "--sweep"], "--sweep is for decode"],
      [["decode", "--hardware", "101"], '--hardware: expected a share from 0 to 100 (per cent), got "101"'],
      [["data", "--hardware", "101"], '--hardware: expected a share from 0 to 100 (per cent), got "101"'],
      [["data", "--peers", "python3", "--size", "64x96"], "--size: the peer of data takes square inputs, not 64x96"],
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
