/** What the page's box editor asks for. */
import { failure } from "../live";
import { DlfsError, ErrorCode } from "../native/error";
import { ConflictError, type LabelEditor } from "./edits";
import { labelMessageOf } from "./label-json";
import { integer, json, optionalInteger, word, wrong } from "./query";
import type { RunView } from "./runs";

/** The largest message: a thousand edits and more. */
const MAX_BYTES = 1 << 20;
/** Who asks is told that a training takes its time before its browser, or what is between, gives up. */
const WAIT_MS = 20_000;

/**
 * Of a run, below /api/runs/R/:
 *
 * - `GET annotations?image=KEY&split=S&iteration=N`: the image's boxes, what was found on it (in an evaluation), `seen`, the boxes
 *   in short, and `into`, what labels of it would go to ("training" or "data set"), and `predicts`, whether predictions can be asked for.
 * - `GET predictions?image=KEY&split=S`: what the run's model makes of it: FoundBoxes. With --edit alone.
 * - `GET images?split=S&boxes=any|none|some&text=T&after=ID&limit=N`: keys of the data set's images. With --edit alone.
 * - `POST labels`: JSON as labelMessageOf has it. 200 when it is done, with the image as it is now; 202 where the training has not
 *   answered yet: the same again asks on; 409 where somebody else has changed the image, with the image as it is now; 422 where it
 *   is refused; 502 where the training cannot be reached. With --edit alone.
 */
export class EditRoutes {
  constructor(
    private readonly editor: LabelEditor,
    private readonly waitMs = WAIT_MS,
  ) {}

  /** null for what is not here. */
  async answer(run: RunView, part: string, query: URLSearchParams): Promise<Response | null> {
    if (part === "annotations") {
      const iteration = optionalInteger(query, "iteration");
      return json(await this.editor.describe(run, needed(query, "image"), needed(query, "split"), iteration));
    }
    if (part !== "images" && part !== "predictions") return null;
    if (!this.editor.writable) return failure(403, `${part} are there with --edit alone`);
    if (part === "predictions") {
      return json(await this.editor.predict(run, needed(query, "image"), needed(query, "split")));
    }
    const boxes = word(query, "boxes", ["any", "none", "some"] as const);
    const [split, text] = [query.get("split") ?? "", query.get("text") ?? ""];
    const [after, limit] = [optionalInteger(query, "after") ?? 0, integer(query, "limit", 100, 1, 500)];
    return json(await this.editor.images(run, { split, boxes, text, after, limit }));
  }

  async write(run: RunView, request: Request): Promise<Response> {
    // What a form of another page can send is not taken, whatever it knows.
    if (!/^application\/json\b/.test(request.headers.get("content-type") ?? "")) {
      return failure(415, "expected Content-Type: application/json");
    }
    const text = await request.text();
    if (text.length > MAX_BYTES) return failure(413, `expected at most ${MAX_BYTES} bytes, got ${text.length}`);
    const message = labelMessageOf(parsed(text), Date.now());
    const { image, split } = message;
    try {
      const outcome = await within(this.editor.write(run, message), this.waitMs);
      if (!outcome) return Response.json({ waiting: true }, { status: 202 });
      return json({ ...outcome, now: await this.editor.describe(run, image, split) });
    } catch (error) {
      if (error instanceof ConflictError) {
        return Response.json(
          { error: error.message, now: await this.editor.describe(run, image, split) },
          { status: 409 },
        );
      }
      if (!(error instanceof DlfsError)) throw error;
      if (error.op === "live") return failure(502, error.message);
      if (error.code === ErrorCode.argument) return failure(422, error.message);
      throw error;
    }
  }
}

/** What a promise comes to, or undefined where that takes longer. */
async function within<T>(promise: Promise<T>, ms: number): Promise<T | undefined> {
  const late = Promise.withResolvers<undefined>();
  const timer = setTimeout(() => late.resolve(undefined), ms);
  try {
    return await Promise.race([promise, late.promise]);
  } finally {
    clearTimeout(timer);
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw wrong("body", `JSON: ${(error as Error).message}`);
  }
}

function needed(query: URLSearchParams, name: string): string {
  const text = query.get(name);
  if (text === null || text === "") throw wrong(name, "a text, got none");
  return text;
}
