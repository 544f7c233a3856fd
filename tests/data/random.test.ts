import { describe, expect, test } from "bun:test";
import { CounterRandom, philox4x32, shuffledOrder } from "../../lib/data/random";

describe("philox4x32", () => {
  // Known answers of Random123 (kat_vectors, philox4x32 with 10 rounds).
  test.each([
    [
      [0, 0, 0, 0],
      [0, 0],
      [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
    ],
    [
      [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
      [0xffffffff, 0xffffffff],
      [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
    ],
    [
      [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      [0xa4093822, 0x299f31d0],
      [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    ],
  ])("agrees with Random123 for counter %p, key %p", (counter, key, expected) => {
    const out = new Uint32Array(4);
    const [c0, c1, c2, c3] = counter as [number, number, number, number];
    philox4x32(out, c0, c1, c2, c3, key[0] as number, key[1] as number);
    expect([...out]).toEqual(expected);
  });
});

describe("CounterRandom", () => {
  const key = { seed: 7, epoch: 3, image: 12, operation: 2 };
  const draw = (changes: Partial<typeof key>): number[] => {
    const random = new CounterRandom({ ...key, ...changes });
    return Array.from({ length: 9 }, () => random.bits());
  };

  test("gives the same numbers for the same key", () => {
    expect(draw({})).toEqual(draw({}));
  });

  test("gives other numbers for every other key", () => {
    const changes = [
      { seed: 8 },
      { seed: 7 + 2 ** 32 },
      { epoch: 4 },
      { image: 13 },
      { image: 12 + 2 ** 32 },
      { operation: 3 },
    ];
    const draws = [{}, ...changes].map(draw);
    expect(new Set(draws.flat()).size).toBe(draws.length * 9);
  });

  test("is uniform, and normal, as far as 4000 draws can show", () => {
    const random = new CounterRandom(key);
    const n = 4000;
    let [sum, normal, squares] = [0, 0, 0];
    for (let i = 0; i < n; i++) {
      const u = random.next();
      expect(u >= 0 && u < 1).toBe(true);
      sum += u;
      const z = random.normal();
      normal += z;
      squares += z * z;
    }
    expect(Math.abs(sum / n - 0.5)).toBeLessThan(0.02);
    expect(Math.abs(normal / n)).toBeLessThan(0.06);
    expect(Math.abs(squares / n - 1)).toBeLessThan(0.1);
  });

  test("refuses what is no counter", () => {
    expect(() => new CounterRandom({ ...key, image: -1 })).toThrow("image must be an integer >= 0, got -1");
    expect(() => new CounterRandom({ ...key, seed: 0.5 })).toThrow("seed must be an integer >= 0, got 0.5");
    expect(() => new CounterRandom({ ...key, operation: 65536 })).toThrow("operation 65536 is too large");
  });
});

describe("shuffledOrder", () => {
  test("is a permutation that depends on seed and epoch", () => {
    const order = shuffledOrder(1000, 5, 2);
    expect([...order].sort((a, b) => a - b)).toEqual(Array.from({ length: 1000 }, (_, i) => i));
    expect(shuffledOrder(1000, 5, 2)).toEqual(order);
    expect(shuffledOrder(1000, 5, 3)).not.toEqual(order);
    expect(shuffledOrder(1000, 6, 2)).not.toEqual(order);
  });

  test("moves a first element to every place about equally often", () => {
    const counts = new Uint32Array(5);
    for (let epoch = 0; epoch < 2000; epoch++) {
      const place = shuffledOrder(5, 1, epoch).indexOf(0);
      counts[place] = (counts[place] as number) + 1;
    }
    for (const count of counts) expect(Math.abs(count - 400)).toBeLessThan(80);
  });

  test("handles more elements than one stream has numbers", () => {
    const n = 2 ** 18 + 10;
    const seen = new Uint8Array(n);
    for (const value of shuffledOrder(n, 1, 0)) seen[value] = 1;
    expect(seen.every((value) => value === 1)).toBe(true);
  });
});
