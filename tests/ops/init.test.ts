import { describe, expect, test } from "bun:test";
import { Tensor } from "../../lib/tensor";
import { expectClose } from "../support/compare";
import { testDevice } from "../support/device";
import { initCases } from "./cases/init";
import { describeCases } from "./check";
import { philox } from "./reference/philox";

describeCases("initialisation", initCases);

describe("the reference generator", () => {
  // Random123's known answers for philox4x32-10.
  const answers: [string, bigint, bigint, bigint, number[]][] = [
    ["zeros", 0n, 0n, 0n, [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]],
    ["ones", ~0n, ~0n, ~0n, [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]],
    [
      "digits of pi",
      0x299f31d0a4093822n,
      0x85a308d3243f6a88n,
      0x0370734413198a2en,
      [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    ],
  ];
  test.each(answers)("gives Random123's words for %s", (_name, key, low, high, expected) => {
    const unsigned = (value: bigint) => BigInt.asUintN(64, value);
    expect(philox(unsigned(key), unsigned(low), unsigned(high))).toEqual(expected as [number, number, number, number]);
  });
});

describe("moments", () => {
  const n = 100_000;
  const draw = (fill: (address: number) => void): Float32Array => {
    using x = Tensor.empty(testDevice(), [n]);
    fill(x.address);
    return x.read() as Float32Array;
  };
  /** Mean, variance, skewness and excess kurtosis. */
  const moments = (x: Float32Array): number[] => {
    const mean = x.reduce((sum, v) => sum + v, 0) / n;
    const central = (power: number) => x.reduce((sum, v) => sum + (v - mean) ** power, 0) / n;
    const variance = central(2);
    return [mean, variance, central(3) / variance ** 1.5, central(4) / variance ** 2 - 3];
  };
  // The standard errors of these moments over 100,000 values are below 0.016; 5 of them.
  const margin = { rtol: 0, atol: 0.08 };

  test("uniform numbers", () => {
    const { native, stream } = testDevice();
    const x = draw((address) => native.initUniform(stream.handle, address, n, 3, 1, -1, 1));
    expectClose(moments(x), [0, 1 / 3, 0, -1.2], margin, "moments");
  });

  test("normal numbers", () => {
    const { native, stream } = testDevice();
    const x = draw((address) => native.initNormal(stream.handle, address, n, 3, 1, 2, 1));
    expectClose(moments(x), [2, 1, 0, 0], margin, "moments");
  });

  test("another seed or offset gives unrelated numbers", () => {
    const { native, stream } = testDevice();
    const uniform = (seed: number, offset: number) =>
      draw((address) => native.initUniform(stream.handle, address, n, seed, offset, -1, 1));
    const base = uniform(3, 1);
    for (const other of [uniform(4, 1), uniform(3, 2)]) {
      const correlation = base.reduce((sum, v, i) => sum + v * other[i]!, 0) / n / (1 / 3);
      expect(Math.abs(correlation)).toBeLessThan(0.02);
    }
  });
});
