/** What is shown while convolutions are tuned, and what decides whether they are. */
import { expect, test } from "bun:test";
import { convolutionTuning } from "../../lib/graph";
import { Device } from "../../lib/tensor";
import { autotune, showTuning } from "../../lib/train";
import { backend } from "../support/device";
import { errorOf } from "../support/errors";

/** The lines shown for steps of so many milliseconds each. */
function shown(step: number, total: number, isTTY: boolean): string[] {
  const lines: string[] = [];
  let now = 0;
  const show = showTuning({ isTTY, columns: 60, write: (text: string) => lines.push(text) }, () => now);
  for (let done = 0; done <= total; ++done, now += step) {
    show({ done, total, convolution: done < total ? "3x3 64 -> 64 of 8x40x40, forward" : "" });
  }
  return lines;
}

test("tuning of up to two seconds is silent", () => {
  expect(shown(199, 10, false)).toEqual([]);
});

test("longer tuning shows the count, the convolution and the time left", () => {
  const lines = shown(1000, 12, false);
  expect(lines[0]).toBe("tuning convolutions 3/12, ETA 0:10: 3x3 64 -> 64 of 8x40x40, forward\n");
  expect(lines.at(-1)).toBe("tuned 12 convolutions in 0:12\n");
  expect(lines).toHaveLength(3);
});

test("on a terminal one line is rewritten within its width", () => {
  const lines = shown(1000, 12, true);
  expect(lines).toHaveLength(11);
  for (const line of lines) expect(Bun.stringWidth(line.replace("\r", ""))).toBeLessThan(60);
  expect(lines.filter((line) => line.endsWith("\n"))).toHaveLength(1);
});

test("DLFS_TUNE_MS is the default, an option goes before it, and a device keeps what it was told", () => {
  const before = process.env.DLFS_TUNE_MS;
  using device = new Device({ backend });
  try {
    process.env.DLFS_TUNE_MS = "soon";
    expect(errorOf(() => autotune(device)).message).toContain('DLFS_TUNE_MS: expected milliseconds from 0, got "soon"');
    process.env.DLFS_TUNE_MS = "7";
    autotune(device, { folder: null });
    expect(convolutionTuning(device)?.ms).toBe(7);
    process.env.DLFS_TUNE_MS = "8";
    autotune(device);
    expect(convolutionTuning(device)?.ms).toBe(7);
    autotune(device, { ms: 0 });
    expect(convolutionTuning(device)).toMatchObject({ ms: 0, cache: null });
    expect(errorOf(() => autotune(device, { ms: -1 })).message).toContain("got -1");
  } finally {
    process.env.DLFS_TUNE_MS = before;
  }
});
