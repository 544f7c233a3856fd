import { readFileSync } from "node:fs";

/** The signals by which a training is asked to end. */
export interface StopSignals extends Disposable {
  /** Aborted by the first of them; its reason is the exit status that the signal asks for. */
  readonly signal: AbortSignal;
  /** 130 after SIGINT, 143 after SIGTERM, 129 after SIGHUP, 0 before. */
  readonly exitStatus: number;
}

const STATUS = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const;
type Name = keyof typeof STATUS;

/** Whether the process was started to outlive its terminal (nohup). Where that cannot be told, SIGHUP is left as it is. */
function ignoresHangup(): boolean {
  try {
    const mask = /^SigIgn:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1];
    return mask === undefined || (BigInt(`0x${mask}`) & 1n) === 1n; // signal 1
  } catch {
    return true;
  }
}

/** A launcher passes on the signal that the ranks get themselves, too: signals so close are one. */
const ONE_SIGNAL_MS = 500;

/**
 * Turns the first SIGINT (Ctrl-C), SIGTERM or SIGHUP (a closed terminal, but under nohup) into an AbortSignal, so that a training
 * ends after the step under way with a checkpoint; a machine that is taken away says so by SIGTERM and waits some seconds. The
 * second ends the process at once.
 *
 * @param onStop told once
 */
export function stopOnSignals(onStop: () => void = () => {}): StopSignals {
  const stop = new AbortController();
  let first = 0;
  const interrupt = (signal: NodeJS.Signals): void => {
    const status = STATUS[signal as Name];
    if (stop.signal.aborted && performance.now() - first < ONE_SIGNAL_MS) return;
    if (stop.signal.aborted) process.exit(status);
    first = performance.now();
    stop.abort(status);
    onStop();
  };
  const signals: Name[] = ["SIGINT", "SIGTERM", ...(ignoresHangup() ? [] : ["SIGHUP" as const])];
  for (const name of signals) process.on(name, interrupt);
  return {
    signal: stop.signal,
    get exitStatus() {
      return stop.signal.aborted ? (stop.signal.reason as number) : 0;
    },
    [Symbol.dispose]() {
      for (const name of signals) process.off(name, interrupt);
    },
  };
}
