/** Commands for a training that goes on, given on the page. */
import { type ControlCommand, type ControlMessage, controlCommands, encodeMessage } from "../formats";
import { failure, findLiveAddress, postMessage } from "../live";
import { check, DlfsError, ErrorCode } from "../native/error";
import { json } from "./query";
import type { RunView } from "./runs";

const MAX_BYTES = 4096;
const MAX_TEXT = 200;
/** A training that is evaluating answers when it is through; who asks is told before browsers give up. */
const WAIT_MS = 20_000;

/** `POST /api/runs/R/control`: {"command": "learningRate", "value": 0.5, "author": "ada", "id": "..."}; the id may be left out. */
export class ControlRoutes {
  /** @param token of trainings that do not leave theirs in their run folder */
  constructor(
    private readonly token: string | undefined,
    private readonly waitMs = WAIT_MS,
  ) {}

  /**
   * 200 with the step from which on it counts; 409 where no training goes on; 422 where it is refused; 502 where the training cannot
   * be reached, or has not answered yet.
   */
  async write(run: RunView, request: Request): Promise<Response> {
    // What a form of another page can send is not taken, whatever it knows.
    if (!/^application\/json\b/.test(request.headers.get("content-type") ?? "")) {
      return failure(415, "expected Content-Type: application/json");
    }
    const text = await request.text();
    if (text.length > MAX_BYTES) return failure(413, `expected at most ${MAX_BYTES} bytes, got ${text.length}`);
    const message = controlMessageOf(text);
    try {
      const address = await findLiveAddress(run.path);
      if (!address) return failure(409, `no training of ${run.name} goes on that can be told things: --live`);
      const token = address.token ?? this.token ?? "";
      const told = { type: "control", value: message } as const;
      const answer = await postMessage({ url: address.url, token }, told, { timeoutMs: this.waitMs });
      return answer.accepted ? json({ from: answer.from }) : failure(422, answer.reason);
    } catch (error) {
      if (!(error instanceof DlfsError)) throw error;
      return failure(502, error.message);
    }
  }
}

/** @throws DlfsError naming what is wrong */
function controlMessageOf(text: string): ControlMessage {
  const wrong = (field: string, reason: string) => new DlfsError(ErrorCode.argument, field, reason);
  let given: Record<string, unknown>;
  try {
    given = JSON.parse(text) as Record<string, unknown>;
  } catch (error) {
    throw wrong("body", `expected JSON: ${(error as Error).message}`);
  }
  check(typeof given === "object" && given !== null, "body", () => "expected an object");
  const { id = crypto.randomUUID(), author, command, value } = given;
  for (const [field, one] of Object.entries({ id, author })) {
    const good = typeof one === "string" && one !== "" && one.length <= MAX_TEXT;
    check(good, field, () => `expected a text of at most ${MAX_TEXT} characters`);
  }
  const known = controlCommands.find((name) => name === command);
  check(known !== undefined, "command", () => `expected ${controlCommands.join(", ")}, got ${JSON.stringify(command)}`);
  check(value === undefined || typeof value === "number", "value", () => `expected a number, got ${typeof value}`);
  const message: ControlMessage = {
    ...{ id: id as string, author: author as string, time: Date.now(), command: known as ControlCommand },
    ...(value !== undefined && { value: value as number }),
  };
  encodeMessage({ type: "control", value: message }); // knows which commands have which values
  return message;
}
