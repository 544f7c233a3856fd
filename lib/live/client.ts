/** Tells a training things from another process. */
import { encodeMessage, type Message } from "../formats";
import { DlfsError, ErrorCode } from "../native/error";
import type { Answer } from "./session";

/** A training takes messages in between two steps: one that is evaluating takes its time. */
const TIMEOUT_MS = 90_000;

/** Where a training is reached, and what it must be shown. */
interface Reached {
  /** Of the training's address; its path does not matter. */
  url: string;
  token: string;
}

/** What a model finds on an image. */
export interface FoundBoxes {
  /** Steps that it has been trained for. */
  iteration: number;
  /** Best first; in pixels of the image, upright. */
  boxes: readonly { box: readonly number[]; label: number; score: number }[];
}

/**
 * Gives a message to a training, and waits for what becomes of it.
 *
 * @throws DlfsError naming the address where it cannot be reached, or answers something else
 */
export async function postMessage(
  reached: Reached,
  message: Message,
  { timeoutMs = TIMEOUT_MS }: { timeoutMs?: number } = {},
): Promise<Answer> {
  const init = { method: "POST", body: encodeMessage(message) };
  const answer = await ask(reached, "/messages", init, timeoutMs);
  const body = (await answer.json().catch(() => ({}))) as { error?: string; answers?: Answer[] };
  const [outcome] = body.answers ?? [];
  if (outcome) return outcome;
  throw failed(reached, `answers ${answer.status}${body.error ? `: ${body.error}` : ""}`);
}

/**
 * Asks a training what it makes of an image of its data set now.
 *
 * @throws DlfsError naming the address where it cannot be reached, or what it says where it cannot answer
 */
export async function askPredictions(
  reached: Reached,
  { image, split }: { image: string; split: string },
  { timeoutMs = TIMEOUT_MS }: { timeoutMs?: number } = {},
): Promise<FoundBoxes> {
  const answer = await ask(reached, `/predictions?${new URLSearchParams({ image, split })}`, {}, timeoutMs);
  const body = (await answer.json().catch(() => ({}))) as FoundBoxes & { error?: string };
  if (answer.ok) return body;
  throw failed(reached, `answers ${answer.status}${body.error ? `: ${body.error}` : ""}`);
}

async function ask({ url, token }: Reached, path: string, init: RequestInit, timeoutMs: number): Promise<Response> {
  const address = new URL(path, url);
  // Every address of a machine is no address to ask.
  if (["0.0.0.0", "[::]"].includes(address.hostname)) address.hostname = "127.0.0.1";
  const headers = { Authorization: `Bearer ${token}` };
  let answer: Response;
  try {
    answer = await fetch(address, { ...init, headers, signal: AbortSignal.timeout(timeoutMs) });
  } catch (error) {
    const { name, message } = error as Error;
    throw failed(
      { url },
      name === "TimeoutError" ? `does not answer in ${timeoutMs / 1000} s` : `cannot be reached: ${message}`,
    );
  }
  if (answer.status === 401) throw failed({ url }, "wants another token (of its address, or DLFS_LIVE_TOKEN)");
  return answer;
}

const failed = ({ url }: Pick<Reached, "url">, reason: string): DlfsError =>
  new DlfsError(ErrorCode.io, "live", `the training at ${new URL(url).origin} ${reason}`);
