/** Receives how far a long piece of work has come; `total` is 0 where it is not known. */
export type ProgressListener = (label: string, done: number, total: number) => void;

/** Milliseconds that work may take before progress is shown. */
const QUIET = 2000;

/**
 * Shows progress of work that takes longer than two seconds: one line rewritten in place on a terminal, a line every ten
 * seconds elsewhere. Goes to standard error, so that it never mixes with results.
 */
export function showProgress(
  stream: { isTTY?: boolean; write(text: string): unknown } = process.stderr,
): ProgressListener {
  let label = "";
  let started = 0;
  let shown = Number.NEGATIVE_INFINITY;
  return (name, done, total) => {
    const now = performance.now();
    if (name !== label || done === 0) {
      label = name;
      started = now;
      shown = Number.NEGATIVE_INFINITY;
    }
    if (now - started < QUIET) return;
    const finished = total > 0 && done >= total;
    if (finished && shown < started) return;
    if (!finished && now - shown < (stream.isTTY ? 100 : 10_000)) return;
    shown = now;
    const share = total > 0 ? ` ${done}/${total} (${Math.floor((100 * done) / total)} %)` : ` ${done}`;
    stream.write(stream.isTTY ? `\r${label}:${share}${finished ? "\n" : ""}` : `${label}:${share}\n`);
  };
}

/** Lets timers, sockets and signals be served in the middle of long synchronous work. */
export function yieldToEventLoop(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
