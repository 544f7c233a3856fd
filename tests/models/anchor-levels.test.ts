import { describe, expect, test } from "bun:test";
import { bestAnchorIoU } from "../../lib/detection/anchor-coverage";
import { modelFromConfig, namedModel } from "../../lib/models";
import { anchorLevels } from "../../lib/models/anchor-levels";

const model = (name: string) => modelFromConfig({ ...namedModel(name), classes: 2 } as never);

/** Every anchor of every cell, one by one. */
function slowBest(levels: ReturnType<typeof anchorLevels>, box: readonly [number, number, number, number]): number {
  const [x, y, w, h] = box;
  let best = 0;
  for (const { rows, columns, strideH, strideW, first } of levels) {
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        for (let i = 0; i < first.length; i += 4) {
          const [x1, y1] = [first[i]! + column * strideW, first[i + 1]! + row * strideH];
          const [x2, y2] = [first[i + 2]! + column * strideW, first[i + 3]! + row * strideH];
          const across = Math.max(0, Math.min(x2, x + w) - Math.max(x1, x));
          const down = Math.max(0, Math.min(y2, y + h) - Math.max(y1, y));
          best = Math.max(best, (across * down) / (w * h + (x2 - x1) * (y2 - y1) - across * down));
        }
      }
    }
  }
  return best;
}

describe("anchorLevels", () => {
  test.each([
    ["retinanet_resnet18_fpn", [96, 160]],
    ["ssdlite320_mobilenet_v2", [320, 320]],
    ["compact", [96, 128]],
  ] as const)("of %s give each box the best IoU of all anchors", (name, size) => {
    const levels = anchorLevels(model(name), size);
    const boxes: readonly (readonly [number, number, number, number])[] = [
      [3, 4, 20, 30],
      [60, 40, 60, 20],
      [0, 0, 128, 96],
      [90, 70, 5, 5],
      [10, 60, 100, 7],
    ];
    for (const box of boxes) expect(bestAnchorIoU(levels, ...box)).toBeCloseTo(slowBest(levels, box), 6);
  });

  test("are as many as the model's maps have cells", () => {
    const levels = anchorLevels(model("retinanet_resnet18_fpn"), [480, 640]);
    expect(levels.map(({ rows, columns, first }) => [rows, columns, first.length / 4])).toEqual([
      [60, 80, 9],
      [30, 40, 9],
      [15, 20, 9],
      [8, 10, 9],
      [4, 5, 9],
    ]);
  });

  test("are an error for a model without anchors", () => {
    expect(() => anchorLevels(model("fcos_resnet18_fpn"), [64, 64])).toThrow("FCOS has no anchors");
  });
});
