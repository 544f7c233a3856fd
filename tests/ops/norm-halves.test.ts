/**
 * What ranks share of batch normalization: moments of a part of the rows, which together give the statistics of all; the two halves of
 * the backward pass. And the checksums by which ranks compare their weights.
 */
import { describe, expect, test } from "bun:test";
import { CompactDetector } from "../../lib/models";
import { constants } from "../../lib/native";
import { dtypeCode, outHandle, Tensor } from "../../lib/tensor";
import { SGD } from "../../lib/train";
import { constantRate } from "../../lib/train/schedule";
import { expectClose, expectSameBytes, roundoff } from "../support/compare";
import { missing, testDevice } from "../support/device";
import { Random } from "../support/random";

const device = testDevice();
const { native, stream } = device;
const s = stream.handle;

function scratch(rows: number, c: number, dtype: number): Tensor {
  const out = outHandle();
  native.batchNormWorkspace(device.handle, out.view, rows, c, dtype);
  return Tensor.empty(device, [Math.max(1, out.value)], "u8");
}

describe.each(["f32", "bf16", "f16"] as const)("batch normalization in %s", (dtype) => {
  const reason = missing(device, dtype);
  const code = dtypeCode(dtype);
  if (reason) {
    test.skip(`in parts and halves (skipped: ${reason})`, () => {});
    return;
  }
  const rounding = { rtol: 4 * roundoff[dtype], atol: 4 * roundoff[dtype] + 1e-5 };

  test.each([
    [96, 8],
    [250, 27],
    [4096, 64],
  ])("of two parts of %i rows with %i channels has the statistics of both", (rows, c) => {
    const values = new Random(`${rows} ${c}`).normal(2 * rows * c).map((value, i) => 3 * value + (i % c));
    using both = Tensor.from(device, values, [2 * rows, c], dtype);
    const parts = [0, 1].map((i) => values.slice(i * rows * c, (i + 1) * rows * c));
    using weight = Tensor.full(device, [c], 1.5);
    using bias = Tensor.full(device, [c], -0.25);
    const outcome = (x: Tensor, n: number, moments: number | null, count: number) => {
      using y = Tensor.empty(device, x.shape, dtype);
      using mean = Tensor.empty(device, [c]);
      using invstd = Tensor.empty(device, [c]);
      using runningMean = Tensor.full(device, [c], 2);
      using runningVar = Tensor.full(device, [c], 3);
      using memory = scratch(n, c, code);
      native.batchNormTrain(
        ...([s, y.address, null, mean.address, invstd.address, runningMean.address, runningVar.address] as const),
        ...([x.address, null, weight.address, bias.address, moments, memory.address, n, c, count, code] as const),
        ...([1e-5, 0.1, constants.ACT_NONE] as const),
      );
      return [y, mean, invstd, runningMean, runningVar].map((tensor) => [...(tensor.read() as Float32Array)]);
    };
    const whole = outcome(both, 2 * rows, null, 0);
    // Means of both parts, sums of both, rows of both: as ranks gather them.
    const gathered = new Float32Array(2 * (2 * c + 1));
    for (const [i, part] of parts.entries()) {
      using x = Tensor.from(device, part, [rows, c], dtype);
      using own = Tensor.empty(device, [2 * c + 1]);
      using memory = scratch(rows, c, code);
      native.batchNormMoments(s, own.address, x.address, null, memory.address, rows, c, 0, code);
      const found = own.read() as Float32Array;
      expect(found[2 * c]).toBe(rows);
      gathered.set(found.subarray(0, c), i * c);
      gathered.set(found.subarray(c, 2 * c), (2 + i) * c);
      gathered[4 * c + i] = rows;
    }
    using moments = Tensor.from(device, gathered, [gathered.length]);
    for (const [i, part] of parts.entries()) {
      using x = Tensor.from(device, part, [rows, c], dtype);
      const [y, ...statistics] = outcome(x, rows, moments.address, 2);
      for (const [k, values] of statistics.entries())
        expectClose(values, whole[k + 1]!, { rtol: 1e-5, atol: 1e-5 }, `statistic ${k}`);
      expectClose(y!, whole[0]!.slice(i * rows * c, (i + 1) * rows * c), rounding, "y");
    }
    // Moments of parts that are given join to those of all rows.
    using joined = Tensor.empty(device, [2 * c + 1]);
    using memory = scratch(2 * rows, c, code);
    native.batchNormMoments(s, joined.address, both.address, moments.address, memory.address, 2 * rows, c, 2, code);
    using direct = Tensor.empty(device, [2 * c + 1]);
    native.batchNormMoments(s, direct.address, both.address, null, memory.address, 2 * rows, c, 0, code);
    expectClose(joined.read() as Float32Array, direct.read() as Float32Array, { rtol: 1e-4, atol: 1e-4 }, "moments");
  });

  test.each(["none", "relu", "relu and a mask"] as const)("runs backward in two halves with %s", (how) => {
    const [rows, c] = [200, 24];
    const random = new Random(how);
    using x = Tensor.from(device, random.normal(rows * c), [rows, c], dtype);
    using dy = Tensor.from(device, random.normal(rows * c), [rows, c], dtype);
    using weight = Tensor.from(device, random.normal(c), [c]);
    using bias = Tensor.from(device, random.normal(c), [c]);
    using mean = Tensor.from(device, random.normal(c), [c]);
    using invstd = Tensor.full(device, [c], 0.75);
    using bits = Tensor.from(
      device,
      Uint8Array.from({ length: rows * 3 }, (_, i) => (i * 37) % 256),
      [rows, 3],
      "u8",
    );
    using memory = scratch(rows, c, code);
    const mask = how === "relu and a mask" ? bits.address : null;
    const activation = how === "none" ? constants.ACT_NONE : constants.ACT_RELU;
    const at = [weight.address, bias.address, mean.address, invstd.address] as const;
    const made = () => ({
      dx: Tensor.zeros(device, [rows, c], dtype),
      dresidual: mask === null ? null : Tensor.zeros(device, [rows, c], dtype),
      dweight: Tensor.zeros(device, [c]),
      dbias: Tensor.zeros(device, [c]),
    });
    const [one, two] = [made(), made()];
    const size = [rows, c, code, activation] as const;
    native.batchNormBackward(
      ...([s, one.dx.address, one.dresidual?.address ?? null, one.dweight.address, one.dbias.address] as const),
      ...([dy.address, x.address, mask, ...at, memory.address, ...size] as const),
    );
    const sums = [two.dweight.address, two.dbias.address] as const;
    const masked = two.dresidual?.address ?? null;
    native.batchNormBackwardSums(s, masked, ...sums, dy.address, x.address, mask, ...at, memory.address, ...size);
    const [from, kind] = masked === null ? [dy.address, activation] : [masked, constants.ACT_NONE];
    native.batchNormBackwardInput(s, two.dx.address, from, x.address, null, ...at, ...sums, rows, c, code, kind);
    for (const name of ["dweight", "dbias", "dresidual"] as const)
      if (one[name]) expectSameBytes(two[name]!.readBytes(), one[name].readBytes(), name);
    const [expected, actual] = [one.dx.read() as Float32Array, two.dx.read() as Float32Array];
    expectClose(actual, expected, { rtol: 2 * roundoff[dtype], atol: 1e-5 }, "dx");
    for (const tensor of [...Object.values(one), ...Object.values(two)]) tensor?.dispose();
  });
});

test("checksums are the sums of the header's formula, and each bit counts", () => {
  using model = new CompactDetector({ classes: 2, width: 8, headConvs: 1 });
  model.to(device, { seed: 3 });
  using optimizer = new SGD(model, { schedule: constantRate(0.1), iterations: 1 });
  const names = optimizer.trainedNames;
  using sums = Tensor.zeros(device, [8 * names.length], "u8");
  const read = (): bigint[] => {
    optimizer.checksums(stream, sums.address);
    return [...new BigUint64Array(sums.readBytes().slice().buffer)];
  };
  const parameters = model.namedParameters();
  const before = read();
  for (const [i, name] of names.entries()) {
    const bits = new Uint32Array((parameters.get(name)!.tensor.read() as Float32Array).slice().buffer);
    let sum = 0n;
    for (const [j, value] of bits.entries()) sum += (BigInt(value) + 2n ** 63n) * (2n * BigInt(j) + 1n);
    expect(before[i], name).toBe(BigInt.asUintN(64, sum));
  }
  const { tensor } = parameters.get(names.at(-1)!)!;
  const values = tensor.read() as Float32Array;
  new Uint32Array(values.buffer, values.byteOffset)[values.length - 1]! ^= 1;
  tensor.write(values);
  const after = read();
  expect(after.slice(0, -1)).toEqual(before.slice(0, -1));
  expect(after.at(-1)).not.toBe(before.at(-1));
});
