import { formatBytes, formatDuration, formatNumber, formatRate } from "./number-format";

/** Where progress is written: `process.stderr` and `process.stdout` fit. */
export interface ProgressStream {
  write(text: string): unknown;
  /** Of streams that tell later that they are closed. */
  on?(event: "error", listener: () => void): unknown;
  /** Whether lines can be rewritten. */
  isTTY?: boolean;
  /** Width of the terminal in characters. */
  columns?: number;
}

/** Streams that have told that they are closed; one listener for each, whatever number of bars it shows. */
const closedStreams = new WeakMap<ProgressStream, { closed: boolean }>();

function closingOf(stream: ProgressStream): { closed: boolean } {
  let closing = closedStreams.get(stream);
  if (!closing) {
    const made = { closed: false };
    stream.on?.("error", () => {
      made.closed = true;
    });
    closedStreams.set(stream, made);
    closing = made;
  }
  return closing;
}

export interface ProgressBarOptions {
  /** Iterations in all. */
  total: number;
  /** Iterations that were done before, in a run that is resumed. Default 0. */
  start?: number;
  /** Default: `process.stdout`. */
  stream?: ProgressStream;
  /** Rewrite one line in place. Default: where the stream is a terminal. */
  terminal?: boolean;
  /** Milliseconds from any starting point. Default: `performance.now`. */
  clock?: () => number;
  /** Seconds between two updates of the line in a terminal. Default 0.1. */
  refreshSeconds?: number;
  /** Least seconds between two lines where there is no terminal. Default 5. */
  lineSeconds?: number;
}

/** A step's numbers that are not known after each step, since reading them back takes time. */
export interface ProgressValues {
  /** By name, in the order to be shown. */
  losses?: Readonly<Record<string, number>>;
  learningRate?: number;
  /** Of dynamic loss scaling: the scale, and how many steps have overflowed. */
  lossScale?: number;
  overflows?: number;
  /** 2-norm of the gradients. */
  gradNorm?: number;
  /** Bytes of device memory in use. */
  memory?: number;
}

/** How fast a training is: over the last seconds, without pauses. Missing before the first step. */
export interface ProgressRates {
  imagesPerSecond?: number;
  /** Share of the time in which it waited for data. */
  waitShare?: number;
  /** Seconds that the rest will take. */
  secondsLeft?: number;
}

/** Counters at some time, to take differences from. */
interface Sample {
  seconds: number;
  iteration: number;
  images: number;
  wait: number;
}

/** Rates are those of about this many seconds. */
const WINDOW_SECONDS = 20;
const SAMPLE_SECONDS = 0.5;

interface Part {
  text: string;
  /** Parts of the highest number are left out first when the line is too long. */
  rank: number;
}

/**
 * Progress of training: in a terminal one line that is rewritten, elsewhere plain lines every few seconds.
 *
 * ```
 * 420/1000  42% ━━━━━━━━━━────────────── 812 img/s  wait 3%  ETA 0:43  cls 0.412  box 0.233  lr 0.01
 * ```
 *
 * `wait` is the share of time in which training stood still for want of data. Rates and the time left follow the last
 * seconds, without the time between `pause()` and `resume()`.
 */
export class ProgressBar {
  private readonly total: number;
  private readonly stream: ProgressStream;
  private readonly terminal: boolean;
  private readonly clock: () => number;
  private readonly interval: number;
  private iteration: number;
  private images = 0;
  private wait = 0;
  private values: ProgressValues = {};
  private readonly samples: Sample[] = [];
  private pausedAt: number | undefined;
  private pausedSeconds = 0;
  private lastDrawn = -Infinity;
  private drawnIteration = -1;
  /** Whether the cursor stands behind a line that is to be rewritten. */
  private open = false;
  private finished = false;
  private readonly closing: { closed: boolean };

  constructor(options: ProgressBarOptions) {
    this.total = options.total;
    this.iteration = options.start ?? 0;
    this.stream = options.stream ?? process.stdout;
    this.terminal = options.terminal ?? (this.stream.isTTY === true && process.env.TERM !== "dumb");
    this.clock = options.clock ?? (() => performance.now());
    this.interval = this.terminal ? (options.refreshSeconds ?? 0.1) : (options.lineSeconds ?? 5);
    this.closing = closingOf(this.stream);
    this.sample();
    this.lastDrawn = this.now();
  }

  /**
   * Counts one iteration.
   *
   * @param images trained on in it
   * @param waitSeconds for which it waited for data
   */
  step(images: number, waitSeconds: number): void {
    this.iteration++;
    this.images += images;
    this.wait += waitSeconds;
    const now = this.now();
    if (now - this.samples[this.samples.length - 1]!.seconds >= SAMPLE_SECONDS) this.sample();
    if (now - this.lastDrawn >= this.interval) this.draw();
  }

  /** Sets the numbers to show from now on; those not given stay. */
  set(values: ProgressValues): void {
    this.values = { ...this.values, ...values };
  }

  /** Stops the clock for work that is not training, such as an evaluation. */
  pause(): void {
    this.pausedAt ??= this.clock();
  }

  resume(): void {
    if (this.pausedAt === undefined) return;
    this.pausedSeconds += (this.clock() - this.pausedAt) / 1000;
    this.pausedAt = undefined;
  }

  /** Prints a line of text for good; in a terminal it appears above the progress line. */
  print(text: string): void {
    this.write(`${this.open ? "\r\x1b[K" : ""}${text}\n`);
    if (this.open) {
      this.open = false;
      this.draw();
    }
  }

  /** Draws the last state and ends the line; from then on only `print` writes. */
  finish(): void {
    if (this.finished) return;
    if (this.terminal || this.drawnIteration !== this.iteration) this.draw();
    this.finished = true;
    if (this.open) this.write("\n");
    this.open = false;
  }

  /** The line as it is now, in at most `width` characters. */
  line(width = Infinity): string {
    const { imagesPerSecond, waitShare, secondsLeft } = this.rates();
    const share = this.total > 0 ? this.iteration / this.total : 1;
    const parts: Part[] = [
      { text: `${String(this.iteration).padStart(String(this.total).length)}/${this.total}`, rank: 0 },
      { text: `${String(Math.floor(100 * share)).padStart(3)}%`, rank: 1 },
      { text: `${imagesPerSecond === undefined ? "-" : formatRate(imagesPerSecond)} img/s`, rank: 3 },
      { text: `wait ${waitShare === undefined ? "-" : Math.round(100 * waitShare)}%`, rank: 1 },
      { text: `ETA ${secondsLeft === undefined ? "-" : formatDuration(secondsLeft)}`, rank: 2 },
    ];
    for (const [name, value] of Object.entries(this.values.losses ?? {})) {
      parts.push({ text: `${name} ${formatNumber(value)}`, rank: 4 });
    }
    const { learningRate, gradNorm, lossScale, overflows = 0, memory } = this.values;
    if (learningRate !== undefined) parts.push({ text: `lr ${formatNumber(learningRate)}`, rank: 5 });
    if (gradNorm !== undefined) parts.push({ text: `gradient ${formatNumber(gradNorm)}`, rank: 6 });
    if (lossScale !== undefined) {
      parts.push({ text: `scale ${formatNumber(lossScale)}`, rank: 6 }, { text: `overflows ${overflows}`, rank: 6 });
    }
    if (memory !== undefined) parts.push({ text: formatBytes(memory), rank: 6 });

    const join = () => parts.map(({ text }) => text).join("  ");
    while (parts.length > 1 && Bun.stringWidth(join()) > width) {
      const worst = Math.max(...parts.map(({ rank }) => rank));
      // The last of equals: losses are left out from the end.
      parts.splice(
        parts.findLastIndex(({ rank }) => rank === worst),
        1,
      );
    }
    // A bar where the line has room for one.
    const room = Math.min(width - Bun.stringWidth(join()) - 2, 24);
    if (this.terminal && room >= 8) {
      const filled = Math.floor(room * Math.min(share, 1));
      parts.splice(2, 0, { text: "━".repeat(filled) + "─".repeat(room - filled), rank: 7 });
    }
    return truncate(join(), width);
  }

  /** Writes to the stream; one that is closed, a terminal that is gone say, is written to no more, and ends nothing. */
  private write(text: string): void {
    if (this.closing.closed) return;
    try {
      this.stream.write(text);
    } catch {
      this.closing.closed = true;
    }
  }

  private now(): number {
    return (this.pausedAt ?? this.clock()) / 1000 - this.pausedSeconds;
  }

  private sample(): void {
    const now = this.now();
    this.samples.push({ seconds: now, iteration: this.iteration, images: this.images, wait: this.wait });
    while (this.samples.length > 2 && this.samples[1]!.seconds < now - WINDOW_SECONDS) this.samples.shift();
  }

  rates(): ProgressRates {
    const first = this.samples[0]!;
    const seconds = this.now() - first.seconds;
    const iterations = this.iteration - first.iteration;
    if (seconds <= 0 || iterations === 0) return {};
    return {
      imagesPerSecond: (this.images - first.images) / seconds,
      waitShare: Math.min(1, (this.wait - first.wait) / seconds),
      secondsLeft: (Math.max(0, this.total - this.iteration) * seconds) / iterations,
    };
  }

  private draw(): void {
    if (this.finished) return;
    this.lastDrawn = this.now();
    this.drawnIteration = this.iteration;
    if (this.terminal) {
      // A full last column would make some terminals wrap.
      this.write(`\r${this.line((this.stream.columns || 80) - 1)}\x1b[K`);
      this.open = true;
    } else {
      this.write(`${this.line()}\n`);
    }
  }
}

/** Cuts text to `width` columns. */
function truncate(text: string, width: number): string {
  if (Bun.stringWidth(text) <= width) return text;
  let out = "";
  for (const character of text) {
    if (Bun.stringWidth(out + character) > width) break;
    out += character;
  }
  return out;
}
