/** Counters and histograms with labels, which are added to where something happens and read when Prometheus asks. */
import { check } from "../native/error";
import type { HistogramMetric, Labels, NumberMetric } from "./prometheus";

/** What a meter counts. */
export interface MeterOptions<L extends string> {
  name: string;
  help: string;
  /** Names of the labels. Each combination of their values is a series of its own: values must be few, and no client's text. */
  labels: readonly L[];
}

/** Values that a meter keeps for each combination of labels. */
class Series<L extends string, V> {
  readonly #series = new Map<string, { labels: Labels; value: V }>();

  constructor(
    readonly labels: readonly L[],
    readonly create: () => V,
  ) {}

  of(values: Readonly<Record<L, string>>): V {
    let key = "";
    for (const label of this.labels) key += `${values[label]}\0`;
    let found = this.#series.get(key);
    if (found === undefined) {
      const labels = Object.fromEntries(this.labels.map((label) => [label, values[label]]));
      found = { labels, value: this.create() };
      this.#series.set(key, found);
    }
    return found.value;
  }

  all(): Iterable<{ labels: Labels; value: V }> {
    return this.#series.values();
  }
}

/** A counter: how often, or how much, since the process began. */
export class CounterMeter<L extends string = never> {
  readonly #series: Series<L, { total: number }>;

  constructor(readonly options: MeterOptions<L>) {
    this.#series = new Series(options.labels, () => ({ total: 0 }));
  }

  add(labels: Readonly<Record<L, string>>, amount = 1): void {
    check(amount >= 0, this.options.name, () => `counters only grow: got ${amount}`);
    this.#series.of(labels).total += amount;
  }

  metric(): NumberMetric {
    const values = [...this.#series.all()].map(({ labels, value: { total: value } }) => ({ labels, value }));
    return { name: this.options.name, help: this.options.help, type: "counter", values };
  }
}

/** A histogram: how often what was observed was in which range, and its sum. */
export class HistogramMeter<L extends string = never> {
  readonly #series: Series<L, { counts: number[]; sum: number }>;

  /** @param options with `bounds`: upper ends of the ranges, growing */
  constructor(readonly options: MeterOptions<L> & { bounds: readonly number[] }) {
    this.#series = new Series(options.labels, () => ({
      counts: new Array<number>(options.bounds.length + 1).fill(0),
      sum: 0,
    }));
  }

  /** @param times how often it was seen */
  observe(labels: Readonly<Record<L, string>>, value: number, times = 1): void {
    const series = this.#series.of(labels);
    const { bounds } = this.options;
    let bucket = 0;
    while (bucket < bounds.length && value > (bounds[bucket] as number)) bucket++;
    series.counts[bucket] = (series.counts[bucket] as number) + times;
    series.sum += value * times;
  }

  metric(): HistogramMetric {
    const { name, help, bounds } = this.options;
    const values = [...this.#series.all()].map(({ labels, value }) => ({
      labels,
      ...value,
      counts: [...value.counts],
    }));
    return { name, help, type: "histogram", bounds, values };
  }
}

/** Bounds for durations in seconds, from half a millisecond to half a minute. */
export const DURATION_BOUNDS: readonly number[] = [
  0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30,
];
