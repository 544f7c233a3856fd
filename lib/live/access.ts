/** Who may ask an address of this machine: the same checks for a training's live address and for the dashboard. */
import { timingSafeEqual } from "node:crypto";
import { check } from "../native/error";

/** Lets in who knows a token. */
export class AccessGate {
  readonly #token: Uint8Array;

  /**
   * @param token who knows it may enter: `Authorization: Bearer TOKEN`, or `?token=TOKEN`
   * @param origins pages of other addresses that may open a WebSocket here, such as "https://labels.example"
   * @throws DlfsError where the token is empty
   */
  constructor(
    token: string,
    private readonly origins: readonly string[] = [],
  ) {
    check(token !== "", "AccessGate", () => "token: it is empty");
    this.#token = digest(token);
  }

  /** Whether a request has the token. Takes as long for any wrong one. */
  mayEnter(request: Request): boolean {
    const header = /^Bearer (.+)$/.exec(request.headers.get("authorization") ?? "")?.[1];
    const given = header ?? new URL(request.url).searchParams.get("token") ?? "";
    return timingSafeEqual(digest(given), this.#token);
  }

  /** Whether a request is of no page, of a page of this address, or of one that is named: browsers let any page open a WebSocket. */
  allowsOrigin(request: Request): boolean {
    const origin = request.headers.get("origin");
    if (origin === null || this.origins.includes(origin)) return true;
    return URL.canParse(origin) && new URL(origin).host === request.headers.get("host");
  }
}

/** The answer to who has no token. */
export function denied(): Response {
  const headers = { "WWW-Authenticate": "Bearer" };
  return Response.json({ error: "expected the token, as Authorization: Bearer TOKEN" }, { status: 401, headers });
}

/** An answer that says what is wrong. */
export const failure = (status: number, error: string): Response => Response.json({ error }, { status });

const digest = (text: string): Uint8Array => new Bun.CryptoHasher("sha256").update(text).digest();
