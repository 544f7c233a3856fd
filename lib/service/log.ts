/** The service's log: JSON lines, one for each request. */
import pino, { type Logger } from "pino";

export type { Logger } from "pino";

export const logLevels = ["debug", "info", "warn", "error", "silent"] as const;
export type LogLevel = (typeof logLevels)[number];

/** Lines are kept until there are so many bytes of them, or until the next flush. */
const BUFFER_BYTES = 4096;
const FLUSH_MS = 200;

/**
 * A log on standard output that does not hold up answers: lines are written together, at the latest after a fifth of a second and
 * at the end of the process.
 */
export function createLog(level: LogLevel, destination: number | string = 1): Logger & Disposable {
  const stream = pino.destination({ dest: destination, sync: false, minLength: BUFFER_BYTES });
  const log = pino(
    {
      level,
      base: { service: "dlfs" },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    stream,
  );
  const timer = setInterval(() => stream.flush(), FLUSH_MS);
  timer.unref();
  const close = () => {
    clearInterval(timer);
    process.off("exit", close);
    try {
      stream.flushSync();
    } catch {
      // Nobody reads any more, and there is nowhere to say so.
    }
  };
  process.on("exit", close);
  return Object.assign(log, { [Symbol.dispose]: close });
}
