/** Tells a training things from another process. */
import { encodeMessage, type Message } from "../formats";
import { DlfsError, ErrorCode } from "../native/error";
import type { Answer } from "./session";

/** A training takes messages in between two steps: one that is evaluating takes its time. */
const TIMEOUT_MS = 90_000;

/**
 * Gives a message to a training, and waits for what becomes of it.
 *
 * @param url of the training's address; its path does not matter
 * @throws DlfsError naming the address where it cannot be reached, or answers something else
 */
export async function postMessage(
  { url, token }: { url: string; token: string },
  message: Message,
  { timeoutMs = TIMEOUT_MS }: { timeoutMs?: number } = {},
): Promise<Answer> {
  const address = new URL("/messages", url);
  // Every address of a machine is no address to ask.
  if (["0.0.0.0", "[::]"].includes(address.hostname)) address.hostname = "127.0.0.1";
  const failed = (reason: string) => new DlfsError(ErrorCode.io, "live", `the training at ${address.origin} ${reason}`);
  let answer: Response;
  try {
    answer = await fetch(address, {
      method: "POST",
      headers: { Authorization: `Bearer ${token}` },
      body: encodeMessage(message),
      signal: AbortSignal.timeout(timeoutMs),
    });
  } catch (error) {
    const { name, message: reason } = error as Error;
    throw failed(name === "TimeoutError" ? `does not answer in ${timeoutMs / 1000} s` : `cannot be reached: ${reason}`);
  }
  const body = (await answer.json().catch(() => ({}))) as { error?: string; answers?: Answer[] };
  const [outcome] = body.answers ?? [];
  if (outcome) return outcome;
  if (answer.status === 401) throw failed("wants another token (of its address, or DLFS_LIVE_TOKEN)");
  throw failed(`answers ${answer.status}${body.error ? `: ${body.error}` : ""}`);
}
