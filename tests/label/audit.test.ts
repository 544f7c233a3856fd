/** Likely label errors: each kind on its own, and planted ones among many good labels. */
import { describe, expect, test } from "bun:test";
import { EpochRandom } from "../../lib/data";
import {
  type AuditedImage,
  auditLabels,
  confidentScore,
  type FoundBox,
  findingLines,
  findingTable,
  type GivenBox,
} from "../../lib/label";

const given = (x: number, label = 0, more: Partial<GivenBox> = {}): GivenBox => ({
  box: [x, 0, x + 10, 10],
  label,
  ...more,
});
const found = (x: number, score: number, label = 0): FoundBox => ({ box: [x, 0, x + 10, 10], score, label });
const audit = (boxes: GivenBox[], detections: FoundBox[], score: number | undefined = 0.5) =>
  auditLabels([{ name: "a.jpg", given: boxes, found: detections }], { score }).map(({ problem, value, iou }) => [
    problem,
    Number(value.toFixed(4)),
    Number(iou.toFixed(4)),
  ]);

describe("one image", () => {
  test("where labels and model agree has no findings", () => {
    expect(audit([given(0), given(30, 1)], [found(0, 0.9), found(30, 0.6, 1), found(60, 0.4)])).toEqual([]);
    expect(audit([given(0)], [])).toEqual([]);
  });

  test("has a missing box where nothing is given, once", () => {
    expect(audit([given(0)], [found(0, 0.9), found(50, 0.8), found(51, 0.7, 1)])).toEqual([["missing", 0.8, 0]]);
    // A second detection of a box that is given is no missing box, nor one within a crowd or a class nobody knows.
    expect(audit([given(0)], [found(0, 0.9), found(1, 0.8)])).toEqual([]);
    const crowd = { box: [0, 0, 100, 100], label: 0, ignore: true } as const;
    expect(audit([crowd], [found(20, 0.9), found(40, 0.9, 1)])).toEqual([]);
  });

  test("has a wrong box where another class is likelier, unless that one has a box of its own", () => {
    expect(audit([given(0)], [found(0, 0.9, 1)])).toEqual([["wrong", 0.9, 1]]);
    expect(audit([given(0)], [found(0, 0.3), found(0, 0.9, 1)])).toEqual([["wrong", 0.6, 1]]);
    expect(audit([given(0)], [found(0, 0.9), found(0, 0.8, 1)])).toEqual([]);
    expect(audit([given(0), given(1, 1)], [found(1, 0.9, 1)])).toEqual([]);
  });

  test("has a loose box where the same class lies beside it", () => {
    // Moved by 3 of 10: IoU 7 / 13; by 6: 4 / 16, which is no second object.
    expect(audit([given(0)], [found(3, 0.8)])).toEqual([["loose", Number((0.8 * (6 / 13)).toFixed(4)), 0.5385]]);
    expect(audit([given(0)], [found(6, 0.8)])).toEqual([["loose", 0.6, 0.25]]);
    expect(audit([given(0)], [found(1, 0.8)])).toEqual([]);
    expect(audit([given(0)], [found(9, 0.8)])).toEqual([["missing", 0.7579, 0.0526]]);
  });

  test("a model that is not confident says nothing", () => {
    expect(audit([given(0)], [found(0, 0.4, 1), found(3, 0.4), found(50, 0.4)])).toEqual([]);
    expect(() => audit([], [], 2)).toThrow("score: expected 0 to 1, or Infinity, got 2");
  });
});

test("confidence begins where three of four detections lie on boxes of their class", () => {
  // Right at 0.8, 0.6 and 0.4 but not at 0.5, right at 0.2 below two that are not: 3 of 4 from 0.4 on, 4 of 7 from 0.2 on.
  const ignored = given(80, 1, { ignore: true });
  const one = (score: number, ...more: FoundBox[]): AuditedImage => ({
    ...{ name: "", given: [given(0), ignored], found: [found(0, score), found(80, 0.01, 1), ...more] },
  });
  const images = [one(0.8), one(0.6, found(50, 0.5)), one(0.4, found(50, 0.3), found(50, 0.25)), one(0.2)];
  expect(confidentScore(images)).toBe(0.4);
  const wrong = { name: "", given: [given(0)], found: [found(50, 0.9)] };
  expect([confidentScore([wrong]), confidentScore([])]).toEqual([Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY]);
  expect(auditLabels([wrong])).toEqual([]);
});

/** Scenes with three classes, a model that finds nine of ten objects a bit beside their boxes, and finds things that are not there. */
function plant(seed: number) {
  const random = new EpochRandom(seed, 0, 0);
  const uniform = (low: number, high: number) => low + (high - low) * random.uniform();
  const planted: { image: number; problem: string; box: readonly number[] }[] = [];
  const images = Array.from({ length: 60 }, (_, image): AuditedImage => {
    const boxes: GivenBox[] = [];
    const detections: FoundBox[] = [];
    for (let cell = 0; cell < 9; cell++) {
      const [x, y] = [100 * (cell % 3) + uniform(0, 20), 100 * Math.floor(cell / 3) + uniform(0, 20)];
      const [w, h] = [uniform(30, 70), uniform(30, 70)];
      const label = Math.floor(uniform(0, 3));
      const moved = (by: number, low = -by) =>
        [
          x + w * uniform(low, by),
          y + h * uniform(low, by),
          x + w + w * uniform(low, by),
          y + h + h * uniform(low, by),
        ] as const;
      const kind = cell === 4 ? image % 6 : 6;
      const problem = ["missing", "wrong", "loose"][kind];
      const shift = 0.45;
      const box =
        problem === "loose" ? ([x + shift * w, y, x + w + shift * w, y + h] as const) : ([x, y, x + w, y + h] as const);
      if (problem !== undefined) planted.push({ image, problem, box });
      if (problem !== "missing") boxes.push({ box, label: problem === "wrong" ? (label + 1) % 3 : label });
      if (random.uniform() < 0.9) detections.push({ box: moved(0.06), label, score: uniform(0.5, 0.98) });
      if (random.uniform() < 0.2)
        detections.push({ box: moved(0.06), label: (label + 2) % 3, score: uniform(0.05, 0.3) });
      if (random.uniform() < 0.1) {
        const at = 100 * (cell % 3);
        detections.push({ box: [at, 300, at + 40, 340], label, score: uniform(0.05, 0.6) });
      }
    }
    return { name: `${image}.jpg`, given: boxes, found: detections };
  });
  return { images, planted };
}

test.each([1, 2, 3])("most planted errors are among the first, seed %i", (seed) => {
  const { images, planted } = plant(seed);
  expect(planted.length).toBe(30);
  const first = auditLabels(images).slice(0, planted.length);
  const isPlanted = (finding: (typeof first)[0]) =>
    planted.some(({ image, problem, box }) => {
      const { box: at } = finding.given ?? finding.found;
      return (
        finding.index === image &&
        finding.problem === problem &&
        box.every((edge, k) => Math.abs(edge - at[k]!) < (finding.given ? 1e-9 : 10))
      );
    });
  const right = first.filter(isPlanted);
  expect(right.length).toBeGreaterThanOrEqual(20);
  expect(first.slice(0, 10).every(isPlanted)).toBe(true);
  expect(new Set(right.map(({ problem }) => problem)).size).toBe(3);
});

test("findings are lines for programs and a table for people", () => {
  const image = { name: "a.jpg", given: [given(0, 0, { id: 7 })], found: [found(0, 0.9, 1), found(50.04, 0.8)] };
  const findings = auditLabels([image], { score: 0.5 });
  const lines = findingLines(findings, ["cell", "dog"]).trimEnd().split("\n");
  expect(lines.map((line) => JSON.parse(line) as unknown)).toEqual([
    {
      ...{ rank: 1, image: "a.jpg", problem: "wrong", value: 0.9, iou: 1 },
      given: { id: 7, class: "cell", box: [0, 0, 10, 10] },
      found: { class: "dog", score: 0.9, box: [0, 0, 10, 10] },
    },
    {
      ...{ rank: 2, image: "a.jpg", problem: "missing", value: 0.8, iou: 0, given: null },
      found: { class: "cell", score: 0.8, box: [50, 0, 60, 10] },
    },
  ]);
  expect(findingTable(findings, ["cell", "dog"], 1)).toEqual([
    "value  problem  image  class        score  box",
    "0.900  wrong    a.jpg  cell -> dog  0.90   [0 0 10 10]",
    "2 boxes in question: 1 missing, 1 wrong, 0 loose",
  ]);
  expect(findingTable([], [])).toEqual(["0 boxes in question: 0 missing, 0 wrong, 0 loose"]);
});
