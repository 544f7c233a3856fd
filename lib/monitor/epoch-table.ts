import { formatBytes, formatDuration, formatNumber, formatRate } from "./number-format";

/** What a row says of one epoch, or of several short ones. */
export interface EpochRow {
  /** Epochs that are complete. */
  epoch: number;
  /** Iterations that are done. */
  iteration: number;
  /** Means over the epoch, by name. */
  losses: Readonly<Record<string, number>>;
  /** Mean 2-norm of the gradients, where it is taken. */
  gradNorm?: number;
  /** Of the last step. */
  learningRate: number;
  imagesPerSecond: number;
  /** Share of the time in which training waited for data. */
  waitShare: number;
  /** Bytes of device memory in use. */
  memory?: number;
  /** Seconds that the epoch took. */
  seconds: number;
  /** Seconds that all the rest will take. */
  secondsLeft?: number;
}

interface Column {
  readonly title: string;
  readonly width: number;
  readonly text: (row: EpochRow) => string;
}

/** Rows between two headings. */
const HEADING_EVERY = 20;

/**
 * A table of the epochs of a training, row by row, in columns of fixed width:
 *
 * ```
 *  epoch  iteration  classification  boxRegression  gradient       lr  img/s  wait    memory     time       ETA
 *      1        150          0.8312         0.5120     3.211     0.04    812    3%   4.2 GiB     0:02      0:18
 * ```
 */
export class EpochTable {
  #columns: readonly Column[] | null = null;
  #rows = 0;

  /** The row, under a heading where it is the first or the last heading is far above. */
  lines(row: EpochRow): string[] {
    this.#columns ??= columnsFor(row);
    const line = (text: (column: Column) => string) =>
      (this.#columns as readonly Column[]).map((column) => text(column).padStart(column.width)).join("  ");
    const heading = this.#rows++ % HEADING_EVERY === 0 ? [line(({ title }) => title)] : [];
    return [...heading, line(({ text }) => text(row))];
  }
}

function columnsFor({ losses, gradNorm, memory }: EpochRow): Column[] {
  const column = (title: string, width: number, text: Column["text"]): Column => {
    return { title, width: Math.max(width, title.length), text };
  };
  return [
    column("epoch", 6, ({ epoch }) => String(epoch)),
    column("iteration", 9, ({ iteration }) => String(iteration)),
    ...Object.keys(losses).map((name) => column(name, 9, (row) => formatNumber(row.losses[name] ?? NaN))),
    ...(gradNorm === undefined ? [] : [column("gradient", 8, (row) => formatNumber(row.gradNorm ?? NaN))]),
    column("lr", 8, ({ learningRate }) => formatNumber(learningRate)),
    column("img/s", 6, ({ imagesPerSecond }) => formatRate(imagesPerSecond)),
    column("wait", 4, ({ waitShare }) => `${Math.round(100 * waitShare)}%`),
    ...(memory === undefined ? [] : [column("memory", 8, (row) => formatBytes(row.memory ?? 0))]),
    column("time", 8, ({ seconds }) => formatDuration(seconds)),
    column("ETA", 8, ({ secondsLeft }) => (secondsLeft === undefined ? "-" : formatDuration(secondsLeft))),
  ];
}
