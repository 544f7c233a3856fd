import { check } from "../native/error";
import type { Rgb } from "./color";
import { classColor } from "./color";
import type { Rect, RgbImage } from "./draw";
import {
  checkImage,
  createImage,
  drawTag,
  drawText,
  fillRect,
  fitText,
  measureTag,
  measureText,
  paste,
  resize,
  strokeRect,
} from "./draw";
import { GLYPH_HEIGHT } from "./font";

/** A box to draw on an image. */
export interface SheetBox {
  /** [x1, y1, x2, y2] in pixels of the image. */
  box: ArrayLike<number>;
  /** Place of its class in `classNames`; also picks the colour. */
  classIndex: number;
  /** 0 to 1; predictions have one. */
  score?: number;
  /** Ground truth that covers many objects; drawn dashed. */
  crowd?: boolean;
}

/** One image with what should be found in it and what was found. */
export interface SheetEntry {
  image: RgbImage;
  /** Such as the file's name. */
  title?: string;
  truth: readonly SheetBox[];
  predictions: readonly SheetBox[];
}

export interface PredictionSheetOptions {
  classNames: readonly string[];
  /** A line on top: "iteration 1200, AP50 0.71". */
  heading?: string;
  /** Predictions below it are not drawn. Default 0.3. */
  scoreThreshold?: number;
  /** Pairs of pictures beside each other. Default 2. */
  pairsPerRow?: number;
  /** Width of each picture in pixels; smaller images are enlarged. Default 320. */
  cellWidth?: number;
}

const BACKGROUND: Rgb = [27, 30, 36];
const PANEL: Rgb = [15, 17, 20];
const TEXT: Rgb = [230, 232, 236];
const FAINT: Rgb = [150, 156, 166];

const MARGIN = 12;
/** Between the two pictures of a pair. */
const GAP = 4;
/** Line of text with space around it. */
const LINE = GLYPH_HEIGHT + 5;
/** No picture is taller than this many times its width. */
const MAX_ASPECT = 1.25;

/**
 * A contact sheet: for each image the ground truth beside the predictions, with classes, scores and a legend.
 *
 * @returns the sheet as RGB bytes, to be encoded by the caller
 */
export function predictionSheet(entries: readonly SheetEntry[], options: PredictionSheetOptions): RgbImage {
  check(entries.length > 0, "predictionSheet", () => "expected at least one image, got none");
  const { classNames, heading } = options;
  const scoreThreshold = options.scoreThreshold ?? 0.3;
  const cellWidth = options.cellWidth ?? 320;
  const pairsPerRow = Math.min(options.pairsPerRow ?? 2, entries.length);
  check(
    Number.isInteger(cellWidth) && cellWidth >= 16,
    "predictionSheet",
    () => `cellWidth must be a whole number from 16, got ${cellWidth}`,
  );
  check(
    Number.isInteger(pairsPerRow) && pairsPerRow >= 1,
    "predictionSheet",
    () => `pairsPerRow must be a whole number from 1, got ${pairsPerRow}`,
  );

  const pairWidth = 2 * cellWidth + GAP;
  const width = MARGIN + pairsPerRow * (pairWidth + MARGIN);
  const legend = layOutLegend(entries, classNames, scoreThreshold, width - 2 * MARGIN);
  const rows: { entries: SheetEntry[]; cellHeight: number }[] = [];
  for (let i = 0; i < entries.length; i += pairsPerRow) {
    const row = entries.slice(i, i + pairsPerRow);
    rows.push({ entries: row, cellHeight: Math.max(...row.map((entry) => cellHeightOf(entry, cellWidth))) });
  }
  const top = MARGIN + (heading === undefined ? 0 : LINE + 4);
  const height =
    top +
    rows.reduce((sum, row) => sum + 2 * LINE + row.cellHeight + MARGIN, 0) +
    legend.height +
    (legend.height && MARGIN);

  const sheet = createImage(width, height, BACKGROUND);
  if (heading !== undefined) drawText(sheet, fitText(heading, width - 2 * MARGIN), MARGIN, MARGIN, TEXT);
  let y = top;
  for (const row of rows) {
    for (const [i, entry] of row.entries.entries()) {
      const x = MARGIN + i * (pairWidth + MARGIN);
      const predictions = entry.predictions.filter(({ score }) => (score ?? 1) >= scoreThreshold);
      drawText(sheet, fitText(entry.title ?? "", pairWidth), x, y, TEXT);
      const right = x + cellWidth + GAP;
      const captions = [
        `ground truth: ${entry.truth.length}`,
        `predictions >= ${scoreThreshold.toFixed(2)}: ${predictions.length}`,
      ] as const;
      drawText(sheet, fitText(captions[0], cellWidth), x, y + LINE, FAINT);
      drawText(sheet, fitText(captions[1], cellWidth), right, y + LINE, FAINT);
      const cell = { y: y + 2 * LINE, width: cellWidth, height: row.cellHeight };
      drawCell(sheet, { ...cell, x }, entry.image, entry.truth, classNames);
      drawCell(sheet, { ...cell, x: right }, entry.image, predictions, classNames);
    }
    y += 2 * LINE + row.cellHeight + MARGIN;
  }
  for (const item of legend.items) {
    fillRect(sheet, { x: MARGIN + item.x, y: y + item.y + 2, width: 10, height: 10 }, classColor(item.classIndex));
    drawText(sheet, item.name, MARGIN + item.x + 15, y + item.y, TEXT);
  }
  return sheet;
}

function cellHeightOf({ image }: SheetEntry, cellWidth: number): number {
  checkImage(image, "predictionSheet");
  return Math.max(1, Math.round(cellWidth * Math.min(image.height / image.width, MAX_ASPECT)));
}

function nameOf(classIndex: number, classNames: readonly string[]): string {
  return classNames[classIndex] ?? `class ${classIndex}`;
}

/** The classes that occur, by name, in lines of at most `width` pixels. */
function layOutLegend(
  entries: readonly SheetEntry[],
  classNames: readonly string[],
  scoreThreshold: number,
  width: number,
) {
  const used = new Set<number>();
  for (const { truth, predictions } of entries) {
    for (const { classIndex } of truth) used.add(classIndex);
    for (const { classIndex, score } of predictions) if ((score ?? 1) >= scoreThreshold) used.add(classIndex);
  }
  const items: { classIndex: number; name: string; x: number; y: number }[] = [];
  let x = 0;
  let y = 0;
  for (const classIndex of [...used].sort((a, b) => a - b)) {
    const name = fitText(nameOf(classIndex, classNames), width - 15);
    const itemWidth = 15 + measureText(name).width;
    if (x > 0 && x + itemWidth > width) {
      x = 0;
      y += LINE;
    }
    items.push({ classIndex, name, x, y });
    x += itemWidth + 16;
  }
  return { items, height: items.length > 0 ? y + LINE : 0 };
}

/** Draws an image, as large as the cell allows, with its boxes. */
function drawCell(
  sheet: RgbImage,
  cell: Rect,
  image: RgbImage,
  boxes: readonly SheetBox[],
  classNames: readonly string[],
): void {
  fillRect(sheet, cell, PANEL);
  const scale = Math.min(cell.width / image.width, cell.height / image.height);
  const width = Math.max(1, Math.round(image.width * scale));
  const height = Math.max(1, Math.round(image.height * scale));
  const picture = resize(image, width, height);
  drawBoxes(picture, boxes, classNames, { scaleX: width / image.width, scaleY: height / image.height });
  paste(sheet, picture, cell.x + Math.floor((cell.width - width) / 2), cell.y + Math.floor((cell.height - height) / 2));
}

export interface DrawBoxesOptions {
  /** Factors from the boxes' coordinates to the image's. Default 1. */
  scaleX?: number;
  scaleY?: number;
  thickness?: number;
}

/**
 * Draws boxes with tags of class name and score into `image`. Boxes of high score lie on top, and a tag goes where it
 * covers the fewest others; one that would hide most of another is left out.
 */
export function drawBoxes(
  image: RgbImage,
  boxes: readonly SheetBox[],
  classNames: readonly string[],
  options: DrawBoxesOptions = {},
): void {
  const { scaleX = 1, scaleY = 1, thickness = 2 } = options;
  const ordered = [...boxes].sort((a, b) => (a.score ?? 1) - (b.score ?? 1));
  const rects = ordered.map(({ box }) => ({
    x: box[0]! * scaleX,
    y: box[1]! * scaleY,
    width: (box[2]! - box[0]!) * scaleX,
    height: (box[3]! - box[1]!) * scaleY,
  }));
  for (const [i, { classIndex, crowd }] of ordered.entries()) {
    const rect = rects[i]!;
    // A thin dark edge keeps the line visible on a background of its own colour.
    const edge = { x: rect.x - 1, y: rect.y - 1, width: rect.width + 2, height: rect.height + 2 };
    if (!crowd) strokeRect(image, edge, [0, 0, 0], { thickness: 1, opacity: 0.55 });
    strokeRect(image, rect, classColor(classIndex), { thickness, dash: crowd ? 4 : 0 });
  }
  const tags: { rect: Rect; text: string; color: Rgb }[] = [];
  for (let i = ordered.length - 1; i >= 0; i--) {
    const { classIndex, score, crowd } = ordered[i]!;
    const name = nameOf(classIndex, classNames) + (crowd ? " (crowd)" : "");
    const text = score === undefined ? name : `${name} ${score.toFixed(2)}`;
    const rect = placeTag(image, rects[i]!, measureTag(text), tags);
    if (rect) tags.push({ rect, text, color: classColor(classIndex) });
  }
  // The best ones were placed first and are drawn last.
  for (const { rect, text, color } of tags.reverse()) drawTag(image, text, rect.x, rect.y, color);
}

/** Largest part of a tag that may lie on others. */
const MAX_COVERED = 0.35;

function placeTag(
  image: RgbImage,
  box: Rect,
  size: { width: number; height: number },
  placed: readonly { rect: Rect }[],
): Rect | undefined {
  const { width, height } = size;
  const left = Math.max(0, Math.min(box.x, image.width - width));
  const right = Math.max(0, Math.min(box.x + box.width - width, image.width - width));
  const below = box.y + box.height;
  const candidates = [
    [left, box.y - height],
    [left, box.y],
    [right, box.y - height],
    [left, below],
    [left, below - height],
    [right, below],
  ] as const;
  let best: Rect | undefined;
  let bestCovered = MAX_COVERED * width * height;
  for (const [x, y] of candidates) {
    if (y < 0 || y + height > image.height) continue;
    const rect = { x, y, width, height };
    let covered = 0;
    for (const other of placed) covered += intersection(rect, other.rect);
    if (covered >= bestCovered) continue;
    best = rect;
    bestCovered = covered;
    if (covered === 0) break;
  }
  return best;
}

function intersection(a: Rect, b: Rect): number {
  const width = Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x);
  const height = Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y);
  return width > 0 && height > 0 ? width * height : 0;
}
