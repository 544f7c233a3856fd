/** Who may ask: API keys, and pages of other origins. */
import { createHash, timingSafeEqual } from "node:crypto";
import { check, DlfsError, ErrorCode } from "../native/error";
import { ServiceError } from "./types";

/** Shorter ones can be guessed. */
const LEAST_KEY_LENGTH = 16;

const digest = (text: string): Buffer => createHash("sha256").update(text).digest();

/** Keys of which clients show one, as `Authorization: Bearer KEY` or `X-API-Key: KEY`. Only their digests are kept. */
export class ApiKeys {
  readonly #digests: readonly Buffer[];

  /** @throws DlfsError for a key that is too short, or has characters that no header can hold; it does not show the key */
  constructor(keys: readonly string[]) {
    for (const [i, key] of keys.entries()) {
      check(
        key.length >= LEAST_KEY_LENGTH && /^[\x21-\x7e]+$/.test(key),
        "API keys",
        () => `key ${i + 1}: expected at least ${LEAST_KEY_LENGTH} visible ASCII characters, got ${key.length}`,
      );
    }
    this.#digests = keys.map(digest);
  }

  /** The keys of a file: one in each line; empty lines and those that begin with # are none. @throws DlfsError */
  static async read(path: string): Promise<string[]> {
    let text: string;
    try {
      text = await Bun.file(path).text();
    } catch (error) {
      throw new DlfsError(ErrorCode.io, path, `cannot be read: ${(error as Error).message}`);
    }
    const keys = text
      .split(/\r?\n/)
      .map((line) => line.trim())
      .filter((line) => line !== "" && !line.startsWith("#"));
    check(keys.length > 0, path, () => "expected an API key in a line of its own, got none");
    return keys;
  }

  /** Keys in a variable of the environment, with commas or spaces between them. */
  static parse(text: string): string[] {
    return text.split(/[\s,]+/).filter((key) => key !== "");
  }

  /**
   * Takes as long whichever key is right, and how much of it.
   *
   * @throws ServiceError 401 where the request shows none of the keys
   */
  check(request: Request): void {
    if (this.#digests.length === 0) return;
    const bearer = /^Bearer +(\S+) *$/i.exec(request.headers.get("authorization") ?? "")?.[1];
    const shown = bearer ?? request.headers.get("x-api-key");
    if (shown === null) {
      throw new ServiceError(401, "expected an API key, as Authorization: Bearer KEY or X-API-Key: KEY");
    }
    const got = digest(shown);
    let right = false;
    for (const key of this.#digests) right = timingSafeEqual(key, got) || right;
    if (!right) throw new ServiceError(401, "unknown API key");
  }
}

/** Which pages of other origins may ask from a browser: none, where there are no origins. */
export class Cors {
  readonly #origins: ReadonlySet<string>;

  /** @param origins as browsers send them, "https://example.org", or "*": any */
  constructor(origins: readonly string[]) {
    for (const origin of origins) {
      check(
        origin === "*" || (URL.canParse(origin) && new URL(origin).origin === origin),
        "CORS",
        () => `expected an origin such as https://example.org, or *, got ${JSON.stringify(origin)}`,
      );
    }
    this.#origins = new Set(origins);
  }

  /** Whether the request comes from a page of an origin that may ask. */
  allows(request: Request): boolean {
    const origin = request.headers.get("origin");
    return origin !== null && (this.#origins.has("*") || this.#origins.has(origin));
  }

  /** Adds what lets the page read the answer. */
  apply(request: Request, headers: Headers): void {
    if (this.#origins.size === 0) return;
    headers.append("Vary", "Origin");
    if (!this.allows(request)) return;
    headers.set("Access-Control-Allow-Origin", request.headers.get("origin") as string);
    headers.set(
      "Access-Control-Expose-Headers",
      "Inference-Header-Content-Length, Retry-After, X-Request-Id, traceparent",
    );
  }

  /** The answer to a browser that asks before it asks. @throws ServiceError 403 where the page may not */
  preflight(request: Request, methods: readonly string[]): Response {
    if (!this.allows(request)) throw new ServiceError(403, "pages of this origin may not ask: see --cors");
    return new Response(null, {
      status: 204,
      headers: {
        "Access-Control-Allow-Methods": methods.join(", "),
        "Access-Control-Allow-Headers":
          "Authorization, Content-Encoding, Content-Type, Inference-Header-Content-Length, X-API-Key, X-Request-Id, traceparent",
        "Access-Control-Max-Age": "600",
      },
    });
  }
}
