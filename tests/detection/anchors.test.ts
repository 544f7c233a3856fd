/** Anchors and default boxes against torchvision's generators. */
import { describe, expect, test } from "bun:test";
import { AnchorGenerator, DefaultBoxGenerator } from "../../lib/detection";
import { numbers, program } from "../graph/support";
import { expectClose } from "../support/compare";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { loadGolden } from "../support/golden";

const device = testDevice();

type Grid = [rows: number, columns: number];

interface Params {
  task: string;
  size: [number, number];
  features: Grid[];
  height: number;
  width: number;
  options: {
    aspect_ratios: number[][];
    min_ratio?: number;
    max_ratio?: number;
    scales?: number[];
    steps?: number[];
    clip?: boolean;
  };
}

const cases = loadGolden<Params>("detection");

interface Generator {
  forward: AnchorGenerator["forward"];
}

/** The anchors that a generator gives inside a program, for maps of these sizes. */
function generated(generator: Generator, [height, width]: Grid, features: Grid[]): number[] {
  const maps = features.map(([rows, columns], i) => [`map${i}`, { shape: [1, rows, columns, 1] }] as const);
  using made = program(device, { images: { shape: [1, height, width, 3] }, ...Object.fromEntries(maps) }, (inputs) => ({
    anchors: generator.forward(
      inputs.images!,
      maps.map(([name]) => inputs[name]!),
    ),
  }));
  made.run();
  return numbers(made.results.anchors);
}

describe("default boxes are torchvision's, to the bit or the last of them", () => {
  test.each(
    cases.filter(({ params }) => params.task === "default boxes").map((golden) => [golden.name, golden] as const),
  )("%s", (_name, golden) => {
    const { size, features, options } = golden.params;
    const { aspect_ratios: aspectRatios, min_ratio: minRatio, max_ratio: maxRatio, ...rest } = options;
    const generator = new DefaultBoxGenerator({ aspectRatios, minRatio, maxRatio, ...rest });
    expect(generator.perCell).toEqual(aspectRatios.map((ratios) => 2 + 2 * ratios.length));
    const got = generated(generator, size, features);
    // one rounding of a number below 320
    expectClose(got, golden.array("boxes"), { rtol: 0, atol: 2 ** -15 }, "boxes");
  });
});

describe("FCOS's anchors are torchvision's", () => {
  test.each(cases.filter(({ params }) => params.task === "points").map((golden) => [golden.name, golden] as const))(
    "%s",
    (_name, golden) => {
      const { height, width, features } = golden.params;
      const generator = new AnchorGenerator({ sizes: [[8], [16], [32], [64], [128]], aspectRatios: [1] });
      expect(generator.perCell).toBe(1);
      expect(generated(generator, [height, width], features)).toEqual(Array.from(golden.array("anchors")));
    },
  );
});

describe("options of default boxes that cannot be", () => {
  const make = (options: Partial<DefaultBoxGenerator["options"]>) => () =>
    new DefaultBoxGenerator({ aspectRatios: [[2], [2, 3]], ...options });
  test.each([
    ["no level", make({ aspectRatios: [] }), "at least 1 level"],
    ["a ratio of 0", make({ aspectRatios: [[0]] }), "positive aspect ratios"],
    ["as many scales as levels", make({ scales: [0.1, 0.2] }), "expected 3 positive scales"],
    ["a step too few", make({ steps: [8] }), "expected 2 positive steps"],
    ["ratios the wrong way round", make({ minRatio: 0.5, maxRatio: 0.2 }), "minRatio <= maxRatio, got 0.5 and 0.2"],
    ["maps of other levels", () => make({})().boxes([64, 64], [[8, 8]]), "expected 2 feature maps, got 1"],
  ] as const)("%s", (_name, run, message) => {
    expect(errorOf(run).message).toContain(message);
  });
});
