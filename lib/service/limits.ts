/** What the service takes from a client at most, and the gates that keep it within that. */
import { check } from "../native/error";
import { ServiceError } from "./types";

export interface ServiceLimits {
  /** Bytes of a request's body, before and after decompression. Default 64 MiB. */
  readonly maxBodyBytes: number;
  /** Bytes of JSON in a body, which is parsed on the thread that answers others, too. Default 16 MiB. */
  readonly maxJsonBytes: number;
  /** Pixels of an image, by its file's header. Default 2^26. */
  readonly maxPixels: number;
  /** Images of a request to /predict; larger requests than a batch go as several. Default 64. */
  readonly maxImages: number;
  /** Requests that are answered at a time; more are refused with 503. Default 512. */
  readonly maxConcurrent: number;
  /** Requests whose bodies are on their way at a time; more are refused with 503. Default 1024. */
  readonly maxReceiving: number;
  /** Bytes of all bodies in memory; what would be more is refused with 503. Default 2 GiB. */
  readonly maxBufferedBytes: number;
  /** Seconds until a body must have come, from its request's head on. Default 30. */
  readonly bodySeconds: number;
  /** Seconds until a request is answered with 503, from its body's end on. Default 120. */
  readonly answerSeconds: number;
  /** Seconds after which a connection without traffic is closed, up to 255. Default 60. */
  readonly idleSeconds: number;
}

export const defaultLimits: ServiceLimits = {
  ...{ maxBodyBytes: 64 * 2 ** 20, maxJsonBytes: 16 * 2 ** 20, maxPixels: 2 ** 26, maxImages: 64 },
  ...{ maxConcurrent: 512, maxReceiving: 1024, maxBufferedBytes: 2 ** 31 },
  ...{ bodySeconds: 30, answerSeconds: 120, idleSeconds: 60 },
};

/** The limits with defaults. @throws DlfsError naming the one that is none */
export function limitsOf(given: Partial<ServiceLimits> = {}): ServiceLimits {
  const limits = { ...defaultLimits };
  for (const [name, value] of Object.entries(given)) {
    check(Object.hasOwn(limits, name), "limits", () => `there is none named ${JSON.stringify(name)}`);
    if (value === undefined) continue;
    const seconds = name.endsWith("Seconds");
    const fits =
      typeof value === "number" && (seconds ? value > 0 && value < 1e6 : Number.isSafeInteger(value) && value > 0);
    check(fits, `limits.${name}`, () => `expected ${seconds ? "seconds" : "an integer from 1"}, got ${value}`);
    Object.assign(limits, { [name]: value });
  }
  const { idleSeconds } = limits;
  check(
    Number.isInteger(idleSeconds) && idleSeconds <= 255,
    "limits.idleSeconds",
    () => `expected whole seconds up to 255, got ${idleSeconds}`,
  );
  return limits;
}

/** The longest time that a request may say it can wait: timers hold no more than 24 days. */
export const MAX_WAIT_MS = 86_400_000;

/** After how many seconds a client that was refused for load may try again. */
const RETRY_SECONDS = 1;

/** Counts what is in use, up to a limit. */
export class Gate {
  #used = 0;

  /** @param what is said to clients where it is full: "too many requests" */
  constructor(
    readonly limit: number,
    readonly what: string,
  ) {}

  get used(): number {
    return this.#used;
  }

  /** @throws ServiceError 503 where there is no room */
  expectRoom(amount = 1): void {
    if (this.#used + amount > this.limit) throw new ServiceError(503, `busy: ${this.what}`, RETRY_SECONDS);
  }

  /** Takes a part, which goes back when what is returned is disposed of. @throws ServiceError 503 where there is no room */
  enter(amount = 1): Disposable {
    this.expectRoom(amount);
    this.#used += amount;
    let open = true;
    return {
      [Symbol.dispose]: () => {
        if (open) this.#used -= amount;
        open = false;
      },
    };
  }
}
