/** What Label Studio is asked with: a legacy token as it is, a personal access token by way of short-lived ones. */
import { DlfsError, ErrorCode } from "../../native/error";
import { isObject } from "../../native/json";

/** Milliseconds before its end at which a short-lived token is replaced. */
const AHEAD = 30_000;

export class StudioToken {
  readonly #refresh: URL;
  #access: { token: string; until: number } | null = null;
  #renewing: Promise<string> | null = null;

  /**
   * @param url Label Studio's address
   * @param token a legacy token (hexadecimal digits), or a personal access token (a JSON Web Token)
   */
  constructor(
    url: string,
    private readonly token: string,
  ) {
    this.#refresh = new URL("api/token/refresh/", url.endsWith("/") ? url : `${url}/`);
  }

  /** The value of the header Authorization. @throws DlfsError where Label Studio does not take the token */
  async header(): Promise<string> {
    if (this.token.split(".").length !== 3) return `Token ${this.token}`;
    if (this.#access && this.#access.until > Date.now()) return `Bearer ${this.#access.token}`;
    this.#renewing ??= this.#renew().finally(() => {
      this.#renewing = null;
    });
    return `Bearer ${await this.#renewing}`;
  }

  async #renew(): Promise<string> {
    const fail = (message: string): never => {
      throw new DlfsError(ErrorCode.io, "label studio", `${this.#refresh.href}: ${message}`);
    };
    const answer = await fetch(this.#refresh, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ refresh: this.token }),
      redirect: "error",
      signal: AbortSignal.timeout(20_000),
    }).catch((error: Error) => fail(error.message));
    const body: unknown = await answer.json().catch(() => null);
    const access = isObject(body) ? body.access : undefined;
    if (!answer.ok || typeof access !== "string")
      return fail(`the personal access token is not taken (HTTP ${answer.status})`);
    this.#access = { token: access, until: endOf(access) - AHEAD };
    return access;
  }
}

/** When a JSON Web Token ends, in milliseconds since 1970; at once where it does not say. */
function endOf(token: string): number {
  try {
    const payload: unknown = JSON.parse(Buffer.from(token.split(".")[1] ?? "", "base64url").toString());
    return isObject(payload) && typeof payload.exp === "number" ? 1000 * payload.exp : 0;
  } catch {
    return 0;
  }
}
