/** Dynamic loss scaling: the scale and its counters after each of several steps. */
import { exact } from "../../support/compare";
import { loadGolden } from "../../support/golden";
import type { OpCase } from "./case";

interface LossScaleOptions {
  initial: number;
  growth?: number;
  backoff?: number;
  interval?: number;
  least?: number;
  patience?: number;
  /** Counters to begin with: good steps, overflows in all, overflows in a row at the least scale. */
  counters?: readonly [number, number, number];
  failed?: number;
  /** Whether each step overflows. */
  overflows: readonly number[];
}

/** The rule step by step: torch.amp.GradScaler.update, with a least scale and an end. */
function follow(options: LossScaleOptions) {
  const { initial, growth = 2, backoff = 0.5, interval = 2000, least = 1, patience = 20, overflows } = options;
  let { failed = 0 } = options;
  let [good, all, stuck] = options.counters ?? [0, 0, 0];
  let scale = initial;
  const scales = overflows.map((overflow) => {
    if (failed !== 0) return scale;
    if (overflow === 0) {
      good++;
      stuck = 0;
      const grown = Math.fround(scale * growth);
      if (good === interval && Number.isFinite(grown)) scale = grown;
      if (good === interval) good = 0;
      return scale;
    }
    good = 0;
    all++;
    if (scale <= least) {
      stuck++;
      if (stuck === patience) failed = 1;
    } else scale = Math.max(least, Math.fround(scale * backoff));
    return scale;
  });
  return { scales, scale: [scale], counters: [good, all, stuck], failed: [failed] };
}

function lossScale(name: string, options: LossScaleOptions): OpCase {
  const { initial, growth = 2, backoff = 0.5, interval = 2000, least = 1, patience = 20, overflows } = options;
  return {
    op: "loss_scale_step",
    name,
    dtypes: ["f32"],
    inputs: {
      initial: { shape: [1], kind: "f32", values: () => [initial] },
      overflows: { shape: [overflows.length], kind: "i32", values: () => overflows },
      begun: { shape: [3], kind: "i32", values: () => options.counters ?? [0, 0, 0] },
      given: { shape: [1], kind: "i32", values: () => [options.failed ?? 0] },
    },
    outputs: {
      scales: { shape: [overflows.length], kind: "f32", tolerance: exact },
      scale: { shape: [1], kind: "f32", inPlaceOf: "initial", tolerance: exact },
      counters: { shape: [3], kind: "i32", inPlaceOf: "begun" },
      failed: { shape: [1], kind: "i32", inPlaceOf: "given" },
    },
    prepare(c) {
      const [scale, counters, failed] = [c.address("scale")!, c.address("counters")!, c.address("failed")!];
      const [flags, scales] = [c.address("overflows")!, c.address("scales")!];
      const rule = [growth, backoff, interval, least, patience] as const;
      return () => {
        for (const s of overflows.keys()) {
          c.native.lossScaleStep(c.stream, scale, counters, failed, flags + 4 * s, ...rule);
          c.native.copy(c.stream, scales + 4 * s, scale, 4);
        }
      };
    },
    reference: () => follow(options),
  };
}

/** Steps that do not overflow and then ones that do, so many of each in turn. */
const steps = (...counts: readonly number[]): number[] =>
  counts.flatMap((count, i) => new Array<number>(count).fill(i % 2));

/** torch.amp.GradScaler's own scales, by record_loss_scale.py; it has no least scale. */
const recorded = loadGolden<Record<"initial" | "growth" | "backoff" | "interval", number>>("loss-scale").map(
  (golden) => {
    const opCase = lossScale(`${golden.name} (recorded)`, {
      ...{ ...golden.params, least: 1e-37 },
      overflows: Array.from(golden.array("overflows")),
    });
    const scales = golden.array("scales");
    const reference: OpCase["reference"] = (inputs) => ({
      ...{ ...opCase.reference(inputs), scales, scale: [scales.at(-1) as number] },
    });
    return { ...opCase, reference };
  },
);

export const lossScaleCases: OpCase[] = [
  ...recorded,
  lossScale("the default rule", { initial: 65536, overflows: steps(0, 3, 2000, 1, 1999, 1, 2001) }),
  lossScale("another rule", { initial: 100, growth: 1.7, backoff: 0.3, interval: 3, overflows: steps(7, 2, 5, 1, 9) }),
  lossScale("grows up to the largest scale that fp32 has", { initial: 2 ** 126, interval: 2, overflows: steps(9) }),
  lossScale("does not fall below the least", { initial: 10, least: 3, overflows: steps(0, 5) }),
  lossScale("fails after overflows in a row at the least, and then stays as it is", {
    initial: 2,
    patience: 3,
    interval: 2,
    overflows: steps(0, 3, 1, 3, 5, 1),
  }),
  lossScale("a training that has failed changes nothing", {
    initial: 8,
    interval: 1,
    failed: 1,
    counters: [5, 6, 7],
    overflows: steps(2, 2),
  }),
  lossScale("goes on from saved counters", { initial: 8, counters: [1998, 40, 0], overflows: steps(3, 1) }),
];
