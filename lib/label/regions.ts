/** Boxes as Label Studio's results: in percent of the image, with the names of its configuration. */
import { studioShapes } from "../data";
import { DlfsError, ErrorCode } from "../native/error";
import { isObject, type JsonObject } from "../native/json";
import type { LabelConfig } from "./label-config";

/** A box in pixels of an image. */
export interface NamedBox {
  readonly label: string;
  readonly box: readonly [x1: number, y1: number, x2: number, y2: number];
  /** 0 to 1; of boxes that a model has found. */
  readonly score?: number;
  /** Around a group: the region's note says "crowd", as in the tasks that dlfs writes. */
  readonly crowd?: boolean;
}

export interface ImageSize {
  readonly width: number;
  readonly height: number;
}

/** How regions that this model has proposed are named: one that comes back so is a prediction that was accepted. */
const PROPOSED = "dlfs-";

/** A result of Label Studio for a box. `id` must be one of its own in the task. */
export function regionOf(
  { label, box, score }: NamedBox,
  { width, height }: ImageSize,
  config: LabelConfig,
  id: string,
) {
  // Label Studio refuses all tasks of a request for one box that is a rounding beyond its image.
  const percent = (value: number, side: number) => Math.min(100, Math.max(0, (100 * value) / side));
  const [x1, y1] = [percent(box[0], width), percent(box[1], height)];
  const [x2, y2] = [percent(box[2], width), percent(box[3], height)];
  return {
    id: `${PROPOSED}${id}`,
    from_name: config.fromName,
    to_name: config.toName,
    type: "rectanglelabels",
    original_width: width,
    original_height: height,
    image_rotation: 0,
    value: {
      ...{ x: x1, y: y1, width: x2 - x1, height: y2 - y1 },
      ...{ rotation: 0, rectanglelabels: [label] },
    },
    ...(score !== undefined && { score }),
  };
}

/**
 * The boxes of an annotation's results, in pixels. Results that are no shapes (choices, texts) are passed over.
 *
 * @throws DlfsError naming the result that cannot be used: a rotated one, another shape, or one without place, size or label
 */
export function boxesOf(results: unknown, config: Pick<LabelConfig, "fromName">): NamedBox[] {
  if (!Array.isArray(results)) throw new DlfsError(ErrorCode.argument, "annotation.result", "expected a list");
  return results.flatMap((result, i) => {
    const fail = (message: string): never => {
      throw new DlfsError(ErrorCode.argument, `annotation.result[${i}]`, message);
    };
    if (!isObject(result)) return fail("expected an object");
    if (studioShapes.has(String(result.type)))
      fail(`type: expected "rectanglelabels", got ${JSON.stringify(result.type)}`);
    if (result.type !== "rectanglelabels" || result.from_name !== config.fromName) return [];
    const value = isObject(result.value) ? result.value : fail("value: expected an object");
    const number = (fields: JsonObject, name: string): number => {
      const found = fields[name];
      return typeof found === "number" && Number.isFinite(found)
        ? found
        : fail(`${name}: expected a number, got ${JSON.stringify(found)}`);
    };
    if ((value.rotation ?? 0) !== 0)
      fail(`rotation: expected 0, got ${JSON.stringify(value.rotation)}: boxes are upright`);
    const [label] = Array.isArray(value.rectanglelabels) ? value.rectanglelabels : [];
    if (typeof label !== "string" || label === "") fail("rectanglelabels: expected a label");
    const [width, height] = [number(result, "original_width"), number(result, "original_height")];
    const [x, y] = [(number(value, "x") / 100) * width, (number(value, "y") / 100) * height];
    const [w, h] = [(number(value, "width") / 100) * width, (number(value, "height") / 100) * height];
    if (!(w > 0 && h > 0)) fail(`expected a width and a height above 0, got ${w} and ${h}`);
    const isProposed =
      typeof result.id === "string" && result.id.startsWith(PROPOSED) && typeof result.score === "number";
    const notes = isObject(result.meta) && Array.isArray(result.meta.text) ? result.meta.text : [];
    const crowd = notes.includes("crowd") && { crowd: true };
    const found = isProposed && { score: result.score as number };
    return [{ label, box: [x, y, x + w, y + h], ...found, ...crowd } as NamedBox];
  });
}
