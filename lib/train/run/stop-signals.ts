/** The signals by which a training is asked to end. */
export interface StopSignals extends Disposable {
  /** Aborted by the first SIGINT or SIGTERM; its reason is the exit status that the signal asks for. */
  readonly signal: AbortSignal;
  /** 130 after SIGINT, 143 after SIGTERM, 0 before. */
  readonly exitStatus: number;
}

/**
 * Turns the first SIGINT (Ctrl-C) or SIGTERM into an AbortSignal, so that a training ends after the step under way with a
 * checkpoint; a machine that is taken away says so by SIGTERM and waits some seconds. The second ends the process at once.
 *
 * @param onStop told once
 */
export function stopOnSignals(onStop: () => void = () => {}): StopSignals {
  const stop = new AbortController();
  const interrupt = (signal: NodeJS.Signals): void => {
    const status = signal === "SIGTERM" ? 143 : 130;
    if (stop.signal.aborted) process.exit(status);
    stop.abort(status);
    onStop();
  };
  process.on("SIGINT", interrupt);
  process.on("SIGTERM", interrupt);
  return {
    signal: stop.signal,
    get exitStatus() {
      return stop.signal.aborted ? (stop.signal.reason as number) : 0;
    },
    [Symbol.dispose]() {
      process.off("SIGINT", interrupt);
      process.off("SIGTERM", interrupt);
    },
  };
}
