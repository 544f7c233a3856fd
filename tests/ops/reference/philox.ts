/** Philox4x32-10 (Salmon et al. 2011) and what initialisation and dropout make of its words. */

/** The four words of the block with a 64-bit key and a counter of two 64-bit halves. */
export function philox(key: bigint, low: bigint, high: bigint): [number, number, number, number] {
  const mask = 0xffffffffn;
  let [c0, c1, c2, c3] = [low & mask, (low >> 32n) & mask, high & mask, (high >> 32n) & mask];
  let [k0, k1] = [key & mask, (key >> 32n) & mask];
  for (let round = 0; round < 10; ++round) {
    const [a, b] = [0xd2511f53n * c0, 0xcd9e8d57n * c2];
    [c0, c1, c2, c3] = [(b >> 32n) ^ c1 ^ k0, b & mask, (a >> 32n) ^ c3 ^ k1, a & mask];
    k0 = (k0 + 0x9e3779b9n) & mask;
    k1 = (k1 + 0xbb67ae85n) & mask;
  }
  return [c0, c1, c2, c3].map(Number) as [number, number, number, number];
}

function words(n: number, seed: number, offset: number): number[] {
  const key = BigInt.asUintN(64, BigInt(seed));
  const out: number[] = [];
  for (let block = 0; block * 4 < n; ++block)
    out.push(...philox(key, BigInt(block), BigInt.asUintN(64, BigInt(offset))));
  return out.slice(0, Math.ceil(n / 4) * 4);
}

/**
 * Element i: the upper 24 bits of its word as a fraction of 1, scaled to [low, high) with one rounding (fused multiply-add).
 * Bounds are fp32. The product of 24-bit numbers has 48 bits, so float64 holds it exactly; the sum is rounded to float64
 * first, which could only matter for bounds far apart in magnitude.
 */
export function uniform(n: number, seed: number, offset: number, low: number, high: number): Float32Array {
  const [lo, hi] = [Math.fround(low), Math.fround(high)];
  const range = Math.fround(hi - lo);
  return Float32Array.from(words(n, seed, offset).slice(0, n), (word) => {
    const value = Math.fround((word >>> 8) * 2 ** -24 * range + lo);
    return value < hi ? value : before(hi);
  });
}

/** Which of n elements dropout keeps: those whose word is at least p 2^32. */
export function kept(n: number, seed: number, counter: number, p: number): boolean[] {
  const threshold = Math.floor(p * 2 ** 32);
  return words(n, seed, counter)
    .slice(0, n)
    .map((word) => word >= threshold);
}

/** The next smaller fp32 number of a positive one. */
function before(value: number): number {
  const bits = new Uint32Array(new Float32Array([value]).buffer);
  bits[0]! -= 1;
  return new Float32Array(bits.buffer)[0]!;
}

/** Box-Muller on pairs of words: mean + std * sqrt(-2 log u) (cos, sin)(2 pi v), u and v at the middle of their 2^-32 steps. */
export function normal(n: number, seed: number, offset: number, mean: number, std: number): Float64Array {
  const all = words(n, seed, offset);
  const out = new Float64Array(all.length);
  for (let i = 0; i < all.length; i += 2) {
    const radius = Math.sqrt(-2 * Math.log((all[i]! + 0.5) * 2 ** -32));
    const angle = (all[i + 1]! + 0.5) * 2 ** -32 * 2 * Math.PI;
    out[i] = mean + std * radius * Math.cos(angle);
    out[i + 1] = mean + std * radius * Math.sin(angle);
  }
  return out.subarray(0, n);
}
