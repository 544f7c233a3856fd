/**
 * Benches take minutes and assert nothing about time, so `bun test` alone leaves them out and `bun test tests/bench`
 * runs them. Bun has no such switch (a pattern ignored in bunfig.toml stays ignored when it is named), hence this file:
 * bench files register their cases by `describeBench`, which does nothing unless the benches were asked for.
 */

import { describe } from "bun:test";
import { readFileSync } from "node:fs";

/** The arguments of a process, empty where /proc does not say. */
function argumentsOf(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0").slice(1);
  } catch {
    return [];
  }
}

/** Under `bun test --parallel`, test files run in workers, and the parent process has the arguments. */
function commandLine(): string[] {
  const own = argumentsOf(process.pid);
  return own.includes("--test-worker") ? argumentsOf(process.ppid) : own;
}

/**
 * Whether the benches were asked for: an argument of `bun test` names their folder or a file in it, or DLFS_BENCH=1
 * (for systems without /proc).
 */
export const benchRequested: boolean =
  process.env.DLFS_BENCH === "1" || commandLine().some((argument) => /^(?!-)(.*\/)?bench\b/.test(argument));

/** `describe` where the benches were asked for; elsewhere nothing is registered. */
export function describeBench(name: string, body: () => void): void {
  if (benchRequested) describe(name, body);
}
