/** The pretrained example: its network's names and shapes, and its comparisons on a folder made here with random weights. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { decode, priors, RFB320 } from "../../examples/03_pretrained";
import { DeviceImageCodec } from "../../lib/data";
import { Program, trace, type Value } from "../../lib/graph";
import { torchWeights } from "../../lib/models";
import { resize } from "../../lib/monitor";
import { bytesOf, le, zip } from "../formats/weights-sample";
import { backend, testDevice } from "../support/device";

const root = fileURLToPath(new URL("../../", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "dlfs-pretrained-"));
afterAll(() => rmSync(folder, { recursive: true }));

const bytesOfFloats = (values: Float32Array) => new Uint8Array(values.buffer, values.byteOffset, values.byteLength);

function npy(shape: readonly number[], values: Float32Array): Uint8Array {
  const sizes = shape.map((size) => `${size}, `).join("");
  const header = `{'descr': '<f4', 'fortran_order': False, 'shape': (${sizes}), }\n`;
  return bytesOf(0x93, "NUMPY", 1, 0, le(header.length, 2), header, bytesOfFloats(values));
}

/** A folder as the example takes it: weights by the original's names, a reference run and a photo, both with boxes. */
async function writeExample(): Promise<void> {
  const device = testDevice();
  using model = new RFB320().to(device, { seed: 5 });
  model.eval();
  const bias = model.namedState().get("classification_headers.3.bias")!.tensor;
  bias.write([0, 3, 0, -3, 0, -3]); // one prior of each cell of the coarsest level is a face
  const parts = [...torchWeights(model)].map(([name, { shape, data }]) => ({
    name: `${name.replace(".conv_linear.", ".ConvLinear.")}.npy`,
    data: npy(shape, data),
  }));
  writeFileSync(join(folder, "weights.npz"), zip(parts));

  const codec = new DeviceImageCodec(device);
  const photo = { width: 64, height: 48, data: Uint8Array.from({ length: 64 * 48 * 3 }, (_, i) => (i * 7) % 256) };
  mkdirSync(join(folder, "images"));
  mkdirSync(join(folder, "reference"));
  const jpeg = codec.encode(photo, 95);
  writeFileSync(join(folder, "images", "a.jpg"), jpeg);
  const pixels = Float32Array.from(resize(codec.decode(jpeg), 320, 240).data, (value) => (value - 127) / 128);

  using program = new Program(
    device,
    { images: { shape: [1, 240, 320, 3], dtype: "f32" }, imageSizes: { shape: [1, 2], dtype: "f32" } },
    ({ images, imageSizes }) => model.detect(images!, imageSizes!),
    { fuse: false },
  );
  program.inputs.images!.write(pixels);
  program.inputs.imageSizes!.write([240, 320]);
  program.run();
  const read = (name: string) => [...program.results[name]!.read()];
  const planes = Float32Array.from(pixels, (_, i) => pixels[3 * (i % (240 * 320)) + Math.floor(i / (240 * 320))]!);
  const store = (name: string, values: Float32Array) =>
    writeFileSync(join(folder, "reference", `a.${name}.f32`), bytesOfFloats(values));
  store("input", planes);
  store("scores", Float32Array.from(read("scores")));
  store("boxes", Float32Array.from(decode(read("deltas"))));
  const rows = read("detections");
  const detections = Array.from({ length: read("counts")[0]! }, (_, i) => {
    const [x1, y1, x2, y2, score] = rows.slice(6 * i) as [number, number, number, number, number];
    return { box_xyxy_norm: [x1 / 320, y1 / 240, x2 / 320, y2 / 240], score };
  });
  expect(detections.length).toBeGreaterThan(2);
  writeFileSync(join(folder, "expected_detections.json"), JSON.stringify([{ file: "a.jpg", detections }]));
}

async function run(...args: string[]) {
  const child = Bun.spawn([process.execPath, "run", "examples/03_pretrained.ts", ...args], {
    cwd: root,
    env: { ...process.env, DLFS_BACKEND: backend },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { exitCode: await child.exited, stdout, stderr };
}

describe("the network", () => {
  test("has the original's parameters", () => {
    const model = new RFB320();
    const shapes = new Map([...model.namedState()].map(([name, { shape }]) => [name, [...shape]]));
    expect(shapes.size).toBe(209);
    expect(model.parameters().reduce((sum, { size }) => sum + size, 0)).toBe(276_292);
    for (const [name, shape] of [
      ["base_net.0.0.weight", [16, 3, 3, 3]],
      ["base_net.1.0.weight", [16, 3, 3, 1]],
      ["base_net.1.3.weight", [32, 1, 1, 16]],
      ["base_net.7.branch2.1.conv.weight", [12, 3, 3, 8]],
      ["base_net.7.conv_linear.bn.running_var", [64]],
      ["base_net.12.4.bias", [256]],
      ["extras.0.2.2.weight", [256, 1, 1, 64]],
      ["classification_headers.0.2.weight", [6, 1, 1, 64]],
      ["regression_headers.3.weight", [12, 3, 3, 256]],
    ] as const) {
      expect([name, shapes.get(name)]).toEqual([name, [...shape]]);
    }
  });

  test("gives two logits and four corrections for each prior of its input size", () => {
    const shapesOf = (images: Value) => Object.values(new RFB320().eval().forward(images)).map(({ shape }) => shape);
    let shapes: (readonly number[])[] = [];
    trace({ images: { shape: [2, 240, 320, 3], dtype: "f32" } }, ({ images }) => {
      shapes = shapesOf(images!);
      return {};
    });
    expect(shapes).toEqual([
      [2, 4420, 2],
      [2, 4420, 4],
    ]);
    expect(() => new RFB320().summary([[2, 320, 240, 3]])).toThrow("expected (N, 240, 320, 3), got (2, 320, 240, 3)");
  });

  test("priors divide the image evenly, and boxes are decoded with SSD's variances", () => {
    const all = priors();
    expect(all.length).toBe(4420);
    expect(all[0]).toEqual([0.5 / 40, 0.5 / 30, 10 / 320, 10 / 240]);
    expect(all[3]).toEqual([1.5 / 40, 0.5 / 30, 10 / 320, 10 / 240]);
    // The last row of the coarsest level lies within the image, and no prior is larger than it.
    expect(all.at(-1)).toEqual([4.5 / 5, 3.5 / 4, 256 / 320, 1]);
    const deltas = new Float32Array(4420 * 4);
    deltas.set([1, -2, 5 * Math.log(2), 5 * Math.log(3)]);
    const [x1, y1, x2, y2] = decode(deltas) as unknown as [number, number, number, number];
    expect((x1 + x2) / 2).toBeCloseTo(0.5 / 40 + 0.1 * (10 / 320), 7);
    expect((y1 + y2) / 2).toBeCloseTo(0.5 / 30 - 0.2 * (10 / 240), 7);
    expect(x2 - x1).toBeCloseTo(2 * (10 / 320), 6);
    expect(y2 - y1).toBeCloseTo(3 * (10 / 240), 6);
  });
});

describe("the example", () => {
  beforeAll(writeExample);

  test("compares reference runs and photos, draws the faces, and ends with 0", async () => {
    const { exitCode, stdout, stderr } = await run(folder, "--out", join(folder, "runs"));
    expect(stderr).toBe("");
    expect(stdout).toContain("weights.npz: 209 tensors loaded");
    expect(stdout).not.toContain("FAIL");
    expect(exitCode).toBe(0);
    expect(readdirSync(join(folder, "runs", "rfb320-1", "pictures"))).toEqual(["a.jpg"]);
    const summary = await Bun.file(join(folder, "runs", "rfb320-1", "summary.json")).json();
    expect(summary.references[0].scores).toBeLessThanOrEqual(1e-4);
    expect(summary.photos[0]).toMatchObject({ file: "a.jpg", unpaired: 0, good: true });
  });

  test("ends with 1 where an output differs or a face is missing", async () => {
    const changed = join(folder, "changed");
    for (const part of ["images", "reference"]) {
      mkdirSync(join(changed, part), { recursive: true });
      for (const file of readdirSync(join(folder, part)))
        copyFileSync(join(folder, part, file), join(changed, part, file));
    }
    copyFileSync(join(folder, "weights.npz"), join(changed, "weights.npz"));
    const expected = await Bun.file(join(folder, "expected_detections.json")).json();
    expected[0].detections.push({ box_xyxy_norm: [0, 0, 0.01, 0.01], score: 0.9 });
    writeFileSync(join(changed, "expected_detections.json"), JSON.stringify(expected));
    const scores = new Float32Array(await Bun.file(join(folder, "reference", "a.scores.f32")).arrayBuffer());
    scores[100]! += 0.001;
    writeFileSync(join(changed, "reference", "a.scores.f32"), bytesOfFloats(scores));
    const { exitCode, stdout } = await run(changed, "--out", join(folder, "runs"));
    expect(exitCode).toBe(1);
    expect(stdout).toMatch(/^a +1\.0e-3 .*FAIL$/m);
    expect(stdout).toMatch(/^a\.jpg .*FAIL$/m);
  });

  test("a wrong command line is answered with the usage", async () => {
    for (const [args, exitCode, said] of [
      [[], 2, "expected one folder, DIR"],
      [[folder, "--bogus"], 2, "Unknown option '--bogus'"],
      [["--help"], 0, ""],
    ] as const) {
      const ended = await run(...args);
      expect(ended.exitCode).toBe(exitCode);
      expect(`${ended.stdout}${ended.stderr}`).toStartWith(said);
      expect(`${ended.stdout}${ended.stderr}`).toContain("usage: bun run examples/03_pretrained.ts DIR");
    }
  });

  test("weights of another network are an error that names them", async () => {
    const path = join(folder, "other.npz");
    writeFileSync(path, zip([{ name: "conv1.weight.npy", data: npy([2], Float32Array.of(1, 2)) }]));
    const { exitCode, stderr } = await run(folder, "--weights", path, "--out", join(folder, "runs"));
    expect(exitCode).toBe(1);
    expect(stderr).toContain("209 missing: base_net.0.0.weight");
    expect(stderr).toContain("1 unexpected: conv1.weight");
  });
});
