// An image with what a model found on it, beside the same with what is known.
import { picture } from "./api.js";
import { element } from "./dom.js";

export const color = (label) => `hsl(${(label * 137.508) % 360} 85% 45%)`;
/** Sides of what is drawn at most. */
const MAX_SIDE = 640;
/** Images by run and name, which do not change. Those longest unused are let go. */
const bitmaps = new Map();
const MAX_BITMAPS = 96;

function bitmapOf(run, sample) {
  const key = `${run}/${sample.name}`;
  const found = bitmaps.get(key) ?? load(run, sample);
  bitmaps.delete(key);
  bitmaps.set(key, found);
  for (const old of bitmaps.keys()) {
    if (bitmaps.size <= MAX_BITMAPS) break;
    bitmaps.delete(old);
  }
  return found;
}

/** null where the image cannot be had, or shown. */
async function load(run, { name, width, height }) {
  try {
    const known = width > 0 && height > 0;
    const size = known && { resizeWidth: sizeOf(width, height)[0], resizeHeight: sizeOf(width, height)[1] };
    return await createImageBitmap(await picture(run, name), { imageOrientation: "from-image", ...size });
  } catch {
    return null;
  }
}

const sizeOf = (width, height) => {
  const scale = Math.min(1, MAX_SIDE / Math.max(width, height));
  return [width, height].map((side) => Math.max(1, Math.round(side * scale)));
};

function canvasOf(bitmap, { width, height }, boxes, title) {
  const canvas = document.createElement("canvas");
  const [w, h] = [width || bitmap?.width || 1, height || bitmap?.height || 1];
  [canvas.width, canvas.height] = sizeOf(w, h);
  const scale = canvas.width / w;
  const context = canvas.getContext("2d");
  context.fillStyle = "#888";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (bitmap) context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const unit = Math.max(1, canvas.width / 360);
  context.font = `600 ${11 * unit}px system-ui, sans-serif`;
  context.textBaseline = "top";
  for (const { box, label, text, dashed } of [...boxes].reverse()) {
    const [left, top, right, bottom] = box.map((side) => side * scale);
    context.strokeStyle = context.fillStyle = color(label);
    context.lineWidth = 2 * unit;
    context.setLineDash(dashed ? [6 * unit, 4 * unit] : []);
    context.strokeRect(left, top, right - left, bottom - top);
    const size = context.measureText(text).width + 6 * unit;
    const x = Math.max(0, Math.min(left, canvas.width - size));
    const y = top >= 15 * unit ? top - 15 * unit : top;
    context.fillRect(x, y, size, 15 * unit);
    context.fillStyle = "#fff";
    context.fillText(text, x + 3 * unit, y + 2 * unit);
  }
  canvas.setAttribute("role", "img");
  canvas.setAttribute(
    "aria-label",
    `${title}: ${boxes.length === 0 ? "nothing" : boxes.map(({ text }) => text).join(", ")}`,
  );
  return canvas;
}

/**
 * Fills a figure with a sample; where it is filled already, once its image is there.
 *
 * @param label the class whose boxes are shown; "": all
 */
export async function drawSample(figure, run, sample, classes, { score, label }) {
  const nameOf = (index) => classes[index] ?? `class ${index}`;
  const chosen = (box) => label === "" || box.label === Number(label);
  const found = sample.found
    .filter((box) => box.score >= score && chosen(box))
    .map((box) => ({ ...box, text: `${nameOf(box.label)} ${box.score.toFixed(2)}` }));
  const truth = sample.truth
    .filter(chosen)
    .map((box) => ({ ...box, dashed: box.crowd, text: `${nameOf(box.label)}${box.crowd ? " (crowd)" : ""}` }));
  const loss = sample.loss === undefined ? "" : `, loss ${sample.loss.toPrecision(3)}`;
  const text = `${sample.name}: ${found.length} found, ${truth.length} known${loss}`;
  const turn = {};
  turns.set(figure, turn);
  const fill = (bitmap) => {
    const pair = element(
      "div",
      { class: "pair" },
      canvasOf(bitmap, sample, found, "found"),
      canvasOf(bitmap, sample, truth, "known"),
    );
    figure.replaceChildren(pair, element("figcaption", { textContent: text }));
    Object.assign(figure.dataset, { found: String(found.length), truth: String(truth.length) });
  };
  if (figure.childElementCount === 0) fill(null);
  const bitmap = await bitmapOf(run, sample);
  if (turns.get(figure) !== turn) return;
  fill(bitmap);
  figure.dataset.image = bitmap ? "shown" : "none";
}
/** What a figure was given last counts. */
const turns = new WeakMap();
