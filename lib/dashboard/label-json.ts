/** What a page sends of an image's boxes, as the message that a training takes. */
import type { LabelBox, LabelEdit, LabelMessage } from "../formats";
import { DlfsError, ErrorCode } from "../native/error";
import { isObject, type JsonObject } from "../native/json";

/** The most edits of one message: an image has no more boxes. */
const MAX_EDITS = 10_000;
const MAX_TEXT = 1000;

/**
 * Reads `{"id", "author", "image", "split", "seen", "edits": [{"action", "id", "category", "box", "crowd", "score"}], "atOnce"}`,
 * with boxes as [x1, y1, x2, y2] in pixels. All but `atOnce` is needed; of an edit what LabelEdit needs.
 *
 * @param time when it was done, in milliseconds since 1970
 * @throws DlfsError naming the field that is wrong
 */
export function labelMessageOf(body: unknown, time: number): LabelMessage & { split: string; seen: string } {
  const fields = object(body, "body");
  const { edits, atOnce = false } = fields;
  if (!Array.isArray(edits) || edits.length > MAX_EDITS) fail("edits", `a list of at most ${MAX_EDITS}`, edits);
  if (typeof atOnce !== "boolean") fail("atOnce", "true or false", atOnce);
  const named = (name: string) => text(fields[name], name);
  return {
    ...{ id: named("id"), author: named("author"), image: named("image"), split: named("split"), seen: named("seen") },
    ...{ time, edits: (edits as unknown[]).map((edit, i) => editOf(edit, `edits[${i}]`)), atOnce },
  };
}

function editOf(given: unknown, place: string): LabelEdit {
  const { action, id, category, box, crowd, score } = object(given, place);
  const annotationId = () => {
    if (!Number.isSafeInteger(id) || (id as number) < 0) fail(`${place}.id`, "a box's number", id);
    return id as number;
  };
  if (action === "delete") return { action, annotationId: annotationId() };
  if (crowd !== undefined && typeof crowd !== "boolean") fail(`${place}.crowd`, "true or false", crowd);
  if (score !== undefined && !(typeof score === "number" && score >= 0 && score <= 1)) {
    fail(`${place}.score`, "0 to 1", score);
  }
  const rest = {
    ...(crowd !== undefined && { crowd: crowd as boolean }),
    ...(score !== undefined && { score: score as number }),
  };
  if (action === "add") {
    return { action, category: text(category, `${place}.category`), box: boxOf(box, `${place}.box`), ...rest };
  }
  if (action !== "change") fail(`${place}.action`, '"add", "change" or "delete"', action);
  return {
    ...{ action: "change", annotationId: annotationId(), ...rest },
    ...(category !== undefined && { category: text(category, `${place}.category`) }),
    ...(box !== undefined && { box: boxOf(box, `${place}.box`) }),
  };
}

function boxOf(given: unknown, name: string): LabelBox {
  const good = Array.isArray(given) && given.length === 4 && given.every((side) => Number.isFinite(side));
  if (!good || !(given[2] > given[0] && given[3] > given[1])) fail(name, "finite x1 < x2 and y1 < y2", given);
  return given as unknown as LabelBox;
}

function object(given: unknown, name: string): JsonObject {
  return isObject(given) ? given : fail(name, "an object", given);
}

function text(given: unknown, name: string): string {
  if (typeof given !== "string" || given === "" || given.length > MAX_TEXT) {
    fail(name, `a text of at most ${MAX_TEXT} characters`, given);
  }
  return given as string;
}

function fail(name: string, expected: string, given: unknown): never {
  const got = (JSON.stringify(given) ?? "nothing").slice(0, 100);
  throw new DlfsError(ErrorCode.argument, name, `expected ${expected}, got ${got}`);
}
