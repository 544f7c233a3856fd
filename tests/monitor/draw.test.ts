import { describe, expect, test } from "bun:test";
import { textColorOn } from "../../lib/monitor/color";
import { fitText } from "../../lib/monitor/draw";
import type { Rgb, RgbImage, SheetEntry } from "../../lib/monitor/index";
import {
  classColor,
  createImage,
  drawBoxes,
  drawTag,
  drawText,
  fillRect,
  measureText,
  paste,
  predictionSheet,
  resize,
  strokeRect,
} from "../../lib/monitor/index";

const WHITE: Rgb = [255, 255, 255];

function pixel(image: RgbImage, x: number, y: number): number[] {
  const at = 3 * (y * image.width + x);
  return [...image.data.subarray(at, at + 3)];
}

/** The image as text: "#" where it is not black. */
function art(image: RgbImage): string[] {
  return Array.from({ length: image.height }, (_, y) =>
    Array.from({ length: image.width }, (_, x) => (pixel(image, x, y).some((value) => value > 0) ? "#" : ".")).join(""),
  );
}

function count(image: RgbImage, color: Rgb): number {
  let found = 0;
  for (let i = 0; i < image.data.length; i += 3) {
    if (color.every((channel, c) => image.data[i + c] === channel)) found++;
  }
  return found;
}

describe("primitives", () => {
  test("fillRect cuts off what lies outside, and mixes", () => {
    const image = createImage(4, 3);
    fillRect(image, { x: -5, y: 1, width: 7, height: 100 }, WHITE);
    expect(art(image)).toEqual(["....", "##..", "##.."]);
    fillRect(image, { x: 10, y: 10, width: 5, height: 5 }, WHITE);
    fillRect(image, { x: 2, y: 0, width: -1, height: 3 }, WHITE);
    expect(count(image, WHITE)).toBe(4);
    fillRect(image, { x: 0, y: 0, width: 2, height: 2 }, [55, 155, 255], 0.5);
    expect([pixel(image, 0, 0), pixel(image, 0, 1)]).toEqual([
      [28, 78, 128],
      [155, 205, 255],
    ]);
  });

  test("strokeRect draws inside of the rectangle, each pixel once", () => {
    const image = createImage(8, 6);
    strokeRect(image, { x: 1, y: 1, width: 6, height: 4 }, WHITE, { thickness: 1, opacity: 0.5 });
    expect(art(image)).toEqual(["........", ".######.", ".#....#.", ".#....#.", ".######.", "........"]);
    expect(count(image, [128, 128, 128])).toBe(16);
  });

  test("strokeRect of thin, tiny and partly hidden rectangles", () => {
    const image = createImage(7, 5);
    strokeRect(image, { x: 3, y: -2, width: 20, height: 5 }, WHITE);
    expect(art(image)).toEqual(["...##..", "...####", "...####", ".......", "......."]);
    strokeRect(image, { x: 0.4, y: 4.3, width: 0, height: 0 }, WHITE);
    expect(art(image)[4]).toBe("#......");
  });

  test("strokeRect with dashes", () => {
    const image = createImage(12, 7);
    strokeRect(image, { x: 0, y: 0, width: 12, height: 7 }, WHITE, { thickness: 1, dash: 2 });
    expect(art(image)).toEqual([
      "##..##..##..",
      "#..........#",
      "#..........#",
      "............",
      "............",
      "#..........#",
      "##..##..##..",
    ]);
  });

  test("drawText", () => {
    const image = createImage(21, 13);
    drawText(image, "Ag.", 0, 0, WHITE);
    expect(art(image)).toEqual([
      ".....................",
      ".....................",
      ".####................",
      "##..##...............",
      "##..##...............",
      "##..##..###.#........",
      "######.##..##........",
      "##..##.##..##........",
      "##..##..####.........",
      "##..##.##.......##...",
      "##..##..####...####..",
      ".......##..##...##...",
      "........####.........",
    ]);
    const large = createImage(42, 26);
    drawText(large, "Ag.", 0, 0, WHITE, 2);
    expect(count(large, WHITE)).toBe(4 * count(image, WHITE));
    expect(measureText("Ag.", 2)).toEqual({ width: 42, height: 26 });
  });

  test("drawText drops accents, and draws a box for what the font lacks", () => {
    const draw = (text: string) => {
      const image = createImage(28, 13);
      drawText(image, text, 0, 0, WHITE);
      return art(image);
    };
    expect(draw("Mü")).toEqual(draw("Mu"));
    expect(draw("Mü")).not.toEqual(draw("Mo"));
    expect(draw("箱x")).toEqual(draw("😀x"));
    expect(draw("箱")).not.toEqual(draw(" "));
    expect(measureText("😀é").width).toBe(14);
  });

  test("drawTag is legible on every class colour", () => {
    for (let i = 0; i < 100; i++) {
      const color = classColor(i);
      const image = createImage(40, 14);
      drawTag(image, "cat", 0, 0, color);
      const text = textColorOn(color);
      expect(count(image, text)).toBeGreaterThan(30);
      const luma = ([r, g, b]: Rgb) => 0.299 * r + 0.587 * g + 0.114 * b;
      expect(Math.abs(luma(text) - luma(color))).toBeGreaterThan(90);
    }
  });

  test("fitText", () => {
    expect(fitText("giraffe", 49)).toBe("giraffe");
    expect(fitText("giraffe", 48)).toBe("gira..");
    expect(fitText("giraffe", 3)).toBe("..");
  });

  test("neighbouring classes have colours that differ", () => {
    for (let a = 0; a < 12; a++) {
      for (let b = 0; b < a; b++) {
        const distance = Math.hypot(...classColor(a).map((channel, c) => channel - classColor(b)[c]!));
        expect(distance).toBeGreaterThan(60);
      }
    }
    expect(new Set(Array.from({ length: 80 }, (_, i) => classColor(i).join())).size).toBe(80);
    expect(classColor(3)).toEqual(classColor(3));
  });

  test("paste cuts off what lies outside", () => {
    const source = createImage(3, 2, WHITE);
    for (const [x, y, rows] of [
      [0, 0, ["###.", "###.", "...."]],
      [-2, 1, ["....", "#...", "#..."]],
      [3, -1, ["...#", "....", "...."]],
      [4, 0, ["....", "....", "...."]],
      [0, 5, ["....", "....", "...."]],
      [-3, -2, ["....", "....", "...."]],
    ] as const) {
      const target = createImage(4, 3);
      paste(target, source, x, y);
      expect(art(target)).toEqual([...rows]);
    }
  });

  test("createImage refuses sizes that are none", () => {
    expect(() => createImage(0, 4)).toThrow("expected whole sizes from 1, got 0x4");
    expect(() => createImage(1.5, 4)).toThrow("got 1.5x4");
  });
});

describe("resize", () => {
  const image: RgbImage = {
    width: 7,
    height: 5,
    data: Uint8Array.from({ length: 105 }, (_, i) => (i * 37 + 11) % 256),
  };

  // Recorded from Pillow 13: Image.frombytes("RGB", (7, 5), data).resize(size, Image.BILINEAR).
  const recorded = [
    [3, 2, [113, 97, 134, 154, 131, 111, 134, 169, 128, 93, 115, 152, 131, 108, 129, 152, 149, 83]],
    [
      4,
      9,
      [
        69, 94, 131, 170, 74, 111, 139, 176, 80, 119, 156, 181, 72, 97, 134, 173, 77, 114, 142, 179, 83, 122, 159, 184,
        77, 102, 139, 178, 82, 119, 147, 184, 88, 127, 164, 189, 82, 107, 144, 183, 87, 124, 152, 189, 93, 132, 169,
        134, 87, 112, 149, 188, 92, 129, 157, 194, 98, 137, 174, 65, 85, 117, 154, 119, 97, 134, 162, 125, 103, 142,
        172, 70, 85, 122, 159, 65, 102, 139, 167, 71, 108, 147, 172, 75, 90, 127, 164, 70, 107, 144, 172, 76, 113, 152,
        177, 80, 93, 130, 167, 73, 110, 147, 175, 79, 116, 155, 180, 83,
      ],
    ],
    [
      10,
      5,
      [
        11, 48, 85, 72, 109, 146, 150, 123, 160, 227, 21, 58, 139, 86, 123, 127, 164, 111, 192, 229, 23, 90, 127, 100,
        104, 141, 178, 165, 202, 239, 20, 57, 94, 81, 118, 155, 159, 132, 169, 236, 30, 67, 148, 95, 132, 136, 173, 120,
        201, 238, 32, 99, 136, 109, 113, 150, 187, 174, 211, 248, 29, 66, 103, 90, 127, 164, 168, 141, 178, 245, 39, 76,
        157, 104, 141, 145, 182, 129, 210, 247, 41, 108, 145, 118, 122, 159, 81, 183, 220, 1, 38, 75, 112, 99, 136, 173,
        113, 150, 187, 11, 48, 85, 76, 113, 150, 154, 101, 138, 219, 13, 50, 117, 90, 127, 131, 168, 90, 192, 229, 10,
        47, 84, 121, 108, 145, 182, 122, 159, 196, 20, 57, 94, 85, 122, 159, 163, 110, 147, 228, 22, 59, 126, 99, 136,
        140, 177, 99, 201, 238, 19,
      ],
    ],
  ] as const;
  test.each(recorded)("to %d x %d as Pillow does", (width, height, expected) => {
    const out = resize(image, width, height);
    expect([out.width, out.height]).toEqual([width, height]);
    expect([...out.data]).toEqual([...expected]);
  });

  test("to its own size is a copy", () => {
    const out = resize(image, 7, 5);
    expect(out.data).toEqual(image.data);
    out.data[0] = 99;
    expect(image.data[0]).toBe(11);
  });

  test("refuses data of another size", () => {
    expect(() => resize({ width: 2, height: 2, data: new Uint8Array(11) }, 1, 1)).toThrow(
      "expected 2x2x3 bytes of RGB, got 11",
    );
  });
});

describe("drawBoxes", () => {
  test("draws a box with a tag above it", () => {
    const image = createImage(120, 80);
    drawBoxes(image, [{ box: [20, 30, 70, 60], classIndex: 1, score: 0.934 }], ["dog", "cat"]);
    const color = classColor(1);
    for (const [x, y] of [
      [20, 30],
      [69, 30],
      [20, 59],
      [69, 59],
      [21, 31],
    ] as const)
      expect(pixel(image, x, y)).toEqual([...color]);
    expect(pixel(image, 22, 32)).toEqual([0, 0, 0]);
    const tag = createImage(120, 80);
    drawTag(tag, "cat 0.93", 20, 16, color);
    for (let y = 16; y < 30; y++) for (let x = 20; x < 80; x++) expect(pixel(image, x, y)).toEqual(pixel(tag, x, y));
  });

  test("keeps tags inside of the image", () => {
    const image = createImage(60, 40);
    drawBoxes(image, [{ box: [50, 0, 60, 40], classIndex: 0 }], ["zebra"]);
    const expected = createImage(60, 40);
    strokeRect(expected, { x: 50, y: 0, width: 10, height: 40 }, classColor(0));
    drawTag(expected, "zebra", 60 - 39, 0, classColor(0));
    // The dark edge around a box does not show on black.
    expect(image.data).toEqual(expected.data);
  });

  test("tags make room for each other, and the one of the best score stays where they cannot", () => {
    const image = createImage(100, 100);
    const boxes = Array.from({ length: 40 }, (_, i) => ({ box: [30, 40, 70, 60], classIndex: i, score: i / 40 }));
    drawBoxes(image, boxes, []);
    const shown = boxes.filter(({ classIndex }) => count(image, classColor(classIndex)) > 300);
    expect(shown.length).toBeGreaterThanOrEqual(2);
    expect(shown.length).toBeLessThan(7);
    expect(shown.at(-1)?.classIndex).toBe(39);
  });

  test("a crowd is dashed and says so", () => {
    const solid = createImage(200, 100);
    const dashed = createImage(200, 100);
    drawBoxes(solid, [{ box: [10, 40, 190, 90], classIndex: 0 }], ["person (crowd)"]);
    drawBoxes(dashed, [{ box: [10, 40, 190, 90], classIndex: 0, crowd: true }], ["person"]);
    const color = classColor(0);
    expect(count(dashed, color)).toBeLessThan(count(solid, color) - 300);
    expect(pixel(dashed, 11, 30)).toEqual(pixel(solid, 11, 30));
  });
});

describe("predictionSheet", () => {
  const entry = (width: number, height: number): SheetEntry => ({
    image: createImage(width, height, [10, 20, 30]),
    title: "photo.jpg",
    truth: [{ box: [0, 0, width / 2, height / 2], classIndex: 0 }],
    predictions: [
      { box: [width / 2, height / 2, width, height], classIndex: 1, score: 0.9 },
      { box: [0, 0, width, height], classIndex: 2, score: 0.1 },
    ],
  });
  const classNames = ["dog", "cat", "never"];

  test("puts ground truth to the left and predictions to the right", () => {
    const sheet = predictionSheet([entry(640, 480)], { classNames, cellWidth: 200 });
    expect(sheet.width).toBe(12 + 404 + 12);
    // Title, caption, picture, margin, legend, margin below the top margin.
    expect(sheet.height).toBe(12 + 36 + 150 + 12 + 18 + 12);
    expect(sheet.data.length).toBe(sheet.width * sheet.height * 3);
    const [left, right, top] = [12, 12 + 204, 12 + 36];
    expect(pixel(sheet, left + 99, top + 74)).toEqual([...classColor(0)]);
    expect(pixel(sheet, left + 150, top + 120)).toEqual([10, 20, 30]);
    expect(pixel(sheet, right + 100, top + 75)).toEqual([...classColor(1)]);
    expect(pixel(sheet, right + 199, top + 149)).toEqual([...classColor(1)]);
    expect(pixel(sheet, right + 10, top + 10)).toEqual([10, 20, 30]);
    // Too low a score: neither drawn nor in the legend.
    expect(count(sheet, classColor(2))).toBe(0);
    const all = predictionSheet([entry(640, 480)], { classNames, cellWidth: 200, scoreThreshold: 0.05 });
    expect(count(all, classColor(2))).toBeGreaterThan(500);
  });

  test("takes images of any size", () => {
    const entries = [entry(1, 1), entry(3000, 20), entry(20, 900), entry(64, 64), entry(333, 222)];
    const sheet = predictionSheet(entries, { classNames, cellWidth: 64, pairsPerRow: 2, heading: "iteration 5" });
    expect(sheet.width).toBe(12 + 2 * (132 + 12));
    expect(sheet.height).toBe(12 + 22 + (36 + 64 + 12) + (36 + 80 + 12) + (36 + 43 + 12) + 18 + 12);
  });

  test("without boxes there is no legend", () => {
    const empty = { image: createImage(32, 32), truth: [], predictions: [] };
    expect(predictionSheet([empty], { classNames, cellWidth: 32 }).height).toBe(12 + 36 + 32 + 12);
  });

  test("the legend breaks into lines, and a class without a name gets its number", () => {
    const boxes = Array.from({ length: 30 }, (_, classIndex) => ({ box: [1, 1, 5, 5], classIndex }));
    const many = { image: createImage(32, 32), truth: boxes, predictions: [] };
    const sheet = predictionSheet([many], { classNames: [], cellWidth: 100 });
    expect(sheet.height).toBeGreaterThan(12 + 36 + 100 + 12 + 10 * 18);
    for (const { classIndex } of boxes) expect(count(sheet, classColor(classIndex))).toBeGreaterThanOrEqual(100);
  });

  test("refuses what it cannot draw", () => {
    expect(() => predictionSheet([], { classNames })).toThrow("expected at least one image, got none");
    const torn = { image: { width: 4, height: 4, data: new Uint8Array(5) }, truth: [], predictions: [] };
    expect(() => predictionSheet([torn], { classNames })).toThrow("expected 4x4x3 bytes of RGB, got 5");
    expect(() => predictionSheet([entry(4, 4)], { classNames, cellWidth: 3 })).toThrow(
      "cellWidth must be a whole number from 16, got 3",
    );
    expect(() => predictionSheet([entry(4, 4)], { classNames, pairsPerRow: 0 })).toThrow(
      "pairsPerRow must be a whole number from 1, got 0",
    );
  });
});
