import { createHash } from "node:crypto";
import { check } from "../native/error";
import type { SplitShares } from "./annotation-store";

/**
 * The place of `text` in [0, 1) under a seed: the first 48 bits of SHA-256 of "SEED:TEXT", so that it is the same on every
 * machine and in every version.
 */
export function seededFraction(seed: number, text: string): number {
  const digest = createHash("sha256").update(`${seed}:${text}`).digest();
  return digest.readUIntBE(0, 6) / 2 ** 48;
}

/**
 * A function that says to which split a text belongs. The shares lie behind one another on [0, 1) in the order given, and
 * seededFraction decides: what changes a share moves only the texts next to its ends.
 */
export function splitOf(shares: SplitShares, seed: number): (text: string) => string {
  const entries = Object.entries(shares);
  check(entries.length > 0, "splitOf", () => "expected at least one split");
  check(Number.isSafeInteger(seed), "splitOf", () => `expected an integer as seed, got ${seed}`);
  for (const [name, share] of entries) {
    check(name !== "", "splitOf", () => "the name of a split is empty");
    check(
      Number.isFinite(share) && share >= 0,
      "splitOf",
      () => `split "${name}": expected a share >= 0, got ${share}`,
    );
  }
  const total = entries.reduce((sum, [, share]) => sum + share, 0);
  check(total > 0, "splitOf", () => "expected shares of more than 0 in all");
  let sum = 0;
  const ends = entries.map(([name, share]) => {
    sum += share / total;
    return { name, end: sum };
  });
  const last = entries.findLast(([, share]) => share > 0) as [string, number];
  return (text) => {
    const place = seededFraction(seed, text);
    return ends.find(({ end }) => place < end)?.name ?? last[0];
  };
}
