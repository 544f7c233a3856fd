// Images with what a model found on them, beside the same with what is known.
import { image } from "./api.js";

const color = (label) => `hsl(${(label * 137.508) % 360} 85% 45%)`;
/** Sides of what is drawn at most. */
const MAX_SIDE = 800;
/** Images by run and number: they do not change. Those longest unused are let go. */
const bitmaps = new Map();
const MAX_BITMAPS = 64;

function bitmapOf(run, index) {
  const key = `${run}/${index}`;
  const found = bitmaps.get(key) ?? load(run, index);
  bitmaps.delete(key);
  bitmaps.set(key, found);
  for (const old of bitmaps.keys()) {
    if (bitmaps.size <= MAX_BITMAPS) break;
    bitmaps.delete(old);
  }
  return found;
}

async function load(run, index) {
  try {
    return await createImageBitmap(await image(run, `samples/${index}/image`), { imageOrientation: "from-image" });
  } catch {
    return null;
  }
}

function canvasOf(bitmap, { width, height }, boxes, title) {
  const canvas = document.createElement("canvas");
  const [w, h] = [width || bitmap?.width || 1, height || bitmap?.height || 1];
  const scale = Math.min(1, MAX_SIDE / Math.max(w, h));
  canvas.width = Math.max(1, Math.round(w * scale));
  canvas.height = Math.max(1, Math.round(h * scale));
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
 * The elements of samples.
 *
 * @param label the class whose boxes are shown; "": all
 */
export async function drawSamples(run, { samples, classes }, { score, label }) {
  const nameOf = (index) => classes[index] ?? `class ${index}`;
  const chosen = (box) => label === "" || box.label === Number(label);
  return await Promise.all(
    samples.map(async (sample) => {
      const bitmap = sample.hasImage ? await bitmapOf(run, sample.index) : null;
      const found = sample.found
        .filter((box) => box.score >= score && chosen(box))
        .map((box) => ({ ...box, text: `${nameOf(box.label)} ${box.score.toFixed(2)}` }));
      const truth = sample.truth
        .filter(chosen)
        .map((box) => ({ ...box, dashed: box.crowd, text: `${nameOf(box.label)}${box.crowd ? " (crowd)" : ""}` }));
      const figure = document.createElement("figure");
      figure.className = "sample";
      figure.dataset.found = String(found.length);
      figure.dataset.truth = String(truth.length);
      const pair = document.createElement("div");
      pair.className = "pair";
      pair.append(canvasOf(bitmap, sample, found, "found"), canvasOf(bitmap, sample, truth, "known"));
      const caption = document.createElement("figcaption");
      const loss = sample.loss === undefined ? "" : `, loss ${sample.loss.toPrecision(3)}`;
      caption.textContent = `${sample.name}: ${found.length} found, ${truth.length} known${loss}`;
      figure.append(pair, caption);
      return figure;
    }),
  );
}
