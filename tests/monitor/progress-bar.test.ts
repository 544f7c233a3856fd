import { describe, expect, test } from "bun:test";
import type { ProgressBarOptions } from "../../lib/monitor/index";
import { formatDuration, ProgressBar } from "../../lib/monitor/index";

/** A bar with a clock that the test turns, and what it wrote. */
function setUp(options: Partial<ProgressBarOptions> & { columns?: number; isTTY?: boolean }) {
  const written: string[] = [];
  let seconds = 0;
  const { columns, isTTY, ...rest } = options;
  const bar = new ProgressBar({
    total: 1000,
    stream: { write: (text: string) => written.push(text), columns, isTTY },
    clock: () => seconds * 1000,
    ...rest,
  });
  /** `count` steps of equal length, in `duration` seconds altogether. */
  const run = (count: number, duration: number, images: number, waitShare = 0) => {
    for (let i = 0; i < count; i++) {
      seconds += duration / count;
      bar.step(images, (waitShare * duration) / count);
    }
  };
  return { bar, written, run, pass: (by: number) => (seconds += by) };
}

describe("in a terminal", () => {
  test("one line is rewritten, at most every tenth of a second", () => {
    const { bar, written, run } = setUp({ isTTY: true, terminal: true, columns: 200 });
    bar.set({ losses: { cls: 0.41234, box: 0.233 }, learningRate: 0.01 });
    run(420, 42, 10, 0.25);
    expect(written.length).toBeGreaterThan(300);
    expect(written.length).toBeLessThanOrEqual(420);
    expect(written.every((text) => text.startsWith("\r") && text.endsWith("\x1b[K") && !text.includes("\n"))).toBe(
      true,
    );
    expect(written.at(-1)).toContain(
      " 420/1000   42%  ━━━━━━━━━━──────────────  100 img/s  wait 25%  ETA 0:58  cls 0.4123  box 0.233  lr 0.01",
    );
    const before = written.length;
    run(10, 0.05, 10);
    expect(written.length).toBe(before);
    bar.finish();
    expect(written.at(-1)).toBe("\n");
    expect(written.at(-2)).toContain("430/1000");
    run(10, 10, 10);
    bar.finish();
    expect(written.at(-2)).toContain("430/1000");
  });

  test("the line fits every width, and the most important part goes last", () => {
    const { bar, run } = setUp({ terminal: true });
    bar.set({ losses: { классификация: 1.5, 箱: 0.25 }, learningRate: 0.001 });
    run(500, 60, 32, 0.5);
    for (let width = 1; width < 160; width++) {
      const line = bar.line(width);
      expect(Bun.stringWidth(line)).toBeLessThanOrEqual(width);
      expect(line.startsWith(" 500/1000".slice(0, width))).toBe(true);
    }
    expect(bar.line(9)).toBe(" 500/1000");
    expect(bar.line(15)).toBe(" 500/1000   50%");
    expect(bar.line(30)).toBe(" 500/1000   50%  wait 50%");
    expect(bar.line(40)).toBe(" 500/1000   50%  wait 50%  ETA 1:00");
    expect(bar.line(65)).toBe(" 500/1000   50%  267 img/s  wait 50%  ETA 1:00  классификация 1.5");
    expect(bar.line(74)).toBe(" 500/1000   50%  267 img/s  wait 50%  ETA 1:00  классификация 1.5  箱 0.25");
    expect(bar.line()).toContain("━━━━━━━━━━━━────────────");
  });

  test("a terminal that does not know its width has 80 columns", () => {
    const { bar, written, run } = setUp({ terminal: true, columns: 0 });
    run(1, 1, 4);
    expect(Bun.stripANSI(written.at(-1)!).trim()).toStartWith("1/1000");
    bar.finish();
  });

  test("a stream that is closed is written to no more, and ends nothing", () => {
    let calls = 0;
    const write = () => {
      calls++;
      throw new Error("EPIPE: broken pipe, write");
    };
    const bar = new ProgressBar({ total: 2, terminal: true, refreshSeconds: 0, stream: { write } });
    bar.step(1, 0);
    bar.print("a line");
    bar.finish();
    expect(calls).toBe(1);
    const told: (() => void)[] = [];
    const on = (_: "error", listener: () => void) => told.push(listener);
    const stream = { write: () => calls++, on };
    const other = new ProgressBar({ total: 2, stream });
    other.print("before");
    new ProgressBar({ total: 2, stream });
    expect(told.length).toBe(1); // a process may train many times
    for (const tell of told) tell();
    other.print("after");
    expect(calls).toBe(2);
  });

  test("a printed line appears above", () => {
    const { bar, written, run } = setUp({ terminal: true, columns: 60 });
    bar.print("before");
    expect(written).toEqual(["before\n"]);
    run(1, 1, 4);
    const line = written.at(-1)!;
    bar.print("saved a checkpoint");
    expect(written.slice(-2)).toEqual(["\r\x1b[Ksaved a checkpoint\n", line]);
    expect(Bun.stringWidth(Bun.stripANSI(line).trim())).toBeLessThanOrEqual(59);
    bar.finish();
    bar.print("after");
    expect(written.slice(-2)).toEqual(["\n", "after\n"]);
  });
});

describe("without a terminal", () => {
  test("plain lines every five seconds, and one at the end", () => {
    const { bar, written, run } = setUp({ total: 200 });
    bar.set({ losses: { loss: 2 } });
    run(100, 12, 8);
    expect(written).toHaveLength(2);
    run(100, 11.9, 8);
    bar.finish();
    expect(written).toHaveLength(5);
    for (const line of written)
      expect(line).toMatch(/^[ \d]{3}\/200 +\d+% {2}67 img\/s {2}wait 0% {2}ETA 0:\d\d {2}loss 2\n$/);
    expect(written.at(-1)).toStartWith("200/200  100%");
    bar.print("text");
    expect(written.at(-1)).toBe("text\n");
  });

  test("the last line is not printed twice", () => {
    const { bar, written, run } = setUp({ total: 2 });
    run(2, 10, 1);
    expect(written).toHaveLength(1 + 1);
    bar.finish();
    expect(written).toHaveLength(2);
  });

  test("a stream decides what it is", () => {
    const { written, run } = setUp({ isTTY: false, columns: 80 });
    run(1, 6, 1);
    expect(written.join("")).not.toContain("\x1b");
  });
});

describe("rates", () => {
  test("nothing is known before the first step", () => {
    const { bar } = setUp({});
    expect(bar.line()).toBe("   0/1000    0%  - img/s  wait -%  ETA -");
  });

  test("follow the last seconds", () => {
    const { bar, run } = setUp({});
    run(100, 100, 1);
    run(400, 40, 1);
    expect(bar.line()).toContain("  10 img/s  wait 0%  ETA 0:50");
  });

  test("leave out pauses", () => {
    const { bar, run, pass } = setUp({});
    run(50, 10, 2);
    bar.pause();
    pass(1000);
    expect(bar.line()).toContain("  10 img/s");
    bar.pause();
    bar.resume();
    bar.resume();
    run(50, 10, 2);
    expect(bar.line()).toContain("  10 img/s  wait 0%  ETA 3:00");
  });

  test("a resumed run counts its own iterations only", () => {
    const { bar, run } = setUp({ start: 900 });
    run(50, 10, 2);
    expect(bar.line()).toBe(" 950/1000   95%  10 img/s  wait 0%  ETA 0:10");
  });

  test("losses that are not finite, small and large", () => {
    const { bar } = setUp({});
    bar.set({ losses: { a: NaN, b: Infinity, c: 0.000123456, d: 1234567, e: 0, f: -3.21059 } });
    expect(bar.line()).toEndWith("a NaN  b Infinity  c 1.23e-4  d 1.23e+6  e 0  f -3.211");
    bar.set({ learningRate: 2.5e-4 });
    expect(bar.line()).toEndWith("f -3.211  lr 2.50e-4");
  });

  test("an empty run", () => {
    expect(new ProgressBar({ total: 0, stream: { write: () => undefined } }).line()).toStartWith("0/0  100%");
  });
});

test.each([
  [0, "0:00"],
  [43.4, "0:43"],
  [59.6, "1:00"],
  [725, "12:05"],
  [3723, "1:02:03"],
  [183_600, "2d 03h"],
])("formatDuration(%p)", (seconds, text) => {
  expect(formatDuration(seconds)).toBe(text);
});
