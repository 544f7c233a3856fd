import { check } from "../native/error";

/** A failure that may be over at the next try: a busy server, a connection that was cut. */
export class TransientError extends Error {
  override readonly name = "TransientError";

  constructor(
    message: string,
    /** Milliseconds after which the other side asked to be tried again. */
    readonly retryAfter: number | null = null,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

export interface RetryOptions {
  /** How often a call is tried in all. Default 8: with the other defaults, failures of up to 25 seconds are bridged. */
  attempts?: number;
  /** Milliseconds before the second attempt, at most; doubled before each further one. Default 200. */
  firstDelay?: number;
  /** Milliseconds between two attempts, at most, and the most that a server's Retry-After is waited for. Default 30,000. */
  longestDelay?: number;
  /** Told of each failure that is followed by another attempt. */
  onRetry?: (error: TransientError, attempt: number, delay: number) => void;
}

/** What a call came to that failed as often as it may. */
export class RetriesExhausted extends Error {
  override readonly name = "RetriesExhausted";

  constructor(
    readonly last: TransientError,
    readonly attempts: number,
    readonly seconds: number,
  ) {
    const tries = attempts === 1 ? "" : ` (${attempts} attempts in ${seconds.toFixed(1)} s)`;
    super(`${last.message}${tries}`, { cause: last });
  }
}

/**
 * Calls `work` until it succeeds, fails with something else than a TransientError, or has failed `attempts` times
 * (RetriesExhausted). The delays grow exponentially, and half of each is random, so that clients that failed together do not
 * come back together.
 */
export async function retrying<T>(
  work: (attempt: number) => Promise<T>,
  options: RetryOptions = {},
  signal?: AbortSignal,
): Promise<T> {
  const { attempts = 8, firstDelay = 200, longestDelay = 30_000, onRetry } = options;
  check(Number.isSafeInteger(attempts) && attempts >= 1, "retry", () => `attempts must be at least 1, got ${attempts}`);
  const started = performance.now();
  for (let attempt = 1; ; attempt++) {
    signal?.throwIfAborted();
    try {
      return await work(attempt);
    } catch (error) {
      signal?.throwIfAborted();
      if (!(error instanceof TransientError)) throw error;
      if (attempt >= attempts) throw new RetriesExhausted(error, attempt, (performance.now() - started) / 1000);
      const longest = Math.min(longestDelay, firstDelay * 2 ** (attempt - 1));
      const drawn = longest * (0.5 + 0.5 * Math.random());
      const delay = Math.max(drawn, Math.min(error.retryAfter ?? 0, longestDelay));
      onRetry?.(error, attempt, delay);
      await sleep(delay, signal);
    }
  }
}

/** Resolves after `ms` milliseconds; rejects with the signal's reason as soon as that is aborted. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return raced(new Promise<void>((resolve) => setTimeout(resolve, ms)), signal);
}

/** `promise`, or the signal's reason as soon as that is aborted; what the promise comes to then is dropped. */
export function raced<T>(promise: Promise<T>, signal?: AbortSignal): Promise<T> {
  if (!signal) return promise;
  return new Promise<T>((resolve, reject) => {
    const stop = (): void => reject(signal.reason);
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", stop));
  });
}
