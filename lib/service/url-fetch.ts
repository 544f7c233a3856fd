/**
 * Fetches images that clients name by URL, where that is allowed at all. A service that fetches what strangers name can be made to
 * ask its own network, so a name is resolved once, every address it has must be a public one, and the connection goes to that
 * address and no other; the same for each redirect.
 */
import { lookup } from "node:dns/promises";
import { BlockList, isIP } from "node:net";
import { check } from "../native/error";
import { quoted } from "./tensors";
import { ServiceError } from "./types";

export interface UrlFetchOptions {
  /** The most bytes of an answer. */
  maxBytes: number;
  /** Seconds for all of it, redirects included. Default 10. */
  seconds?: number;
  /** Redirects that are followed. Default 3. */
  maxRedirects?: number;
  /** Hosts that may be named: names, or "*.example.org" for all below it. Default: any. */
  hosts?: readonly string[];
  /** Networks that may be asked although they are not public, as "10.1.0.0/16". Default none. */
  networks?: readonly string[];
  /** Certificates of authorities that are trusted besides the system's, as PEM. */
  ca?: string;
}

/** Not public (IANA's special-purpose registries), or of clouds' own services. */
const REFUSED_IPV4 = [
  ...["0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"],
  ...["192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"],
  ...["224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32"],
];
/** Of IPv6 only global unicast is public, without what stands for addresses of IPv4, tunnels and documentation. */
const PUBLIC_IPV6 = ["2000::/3"];
const REFUSED_IPV6 = ["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"];

function networksOf(list: readonly string[]): BlockList {
  const networks = new BlockList();
  for (const text of list) {
    const [address = "", bits = ""] = text.split("/");
    const family = isIP(address);
    const fits = family !== 0 && /^\d{1,3}$/.test(bits) && Number(bits) <= (family === 4 ? 32 : 128);
    check(fits, "URLs", () => `expected a network such as 10.1.0.0/16, got ${JSON.stringify(text)}`);
    networks.addSubnet(address, Number(bits), family === 4 ? "ipv4" : "ipv6");
  }
  return networks;
}

const refusedIpv4 = networksOf(REFUSED_IPV4);
const refusedIpv6 = networksOf(REFUSED_IPV6);
const publicIpv6 = networksOf(PUBLIC_IPV6);

/** The IPv4 address that an IPv6 address stands for (::ffff:a.b.c.d, in any spelling), else null. */
function mappedIpv4(address: string): string | null {
  const host = URL.canParse(`http://[${address}]/`) ? new URL(`http://[${address}]/`).hostname.slice(1, -1) : "";
  const found = /^::ffff:([0-9a-f]{1,4}):([0-9a-f]{1,4})$/.exec(host);
  if (!found) return null;
  const [high, low] = [Number.parseInt(found[1] as string, 16), Number.parseInt(found[2] as string, 16)];
  return `${high >> 8}.${high & 255}.${low >> 8}.${low & 255}`;
}

/** Whether an address is one of the public Internet. */
export function isPublicAddress(address: string): boolean {
  const family = isIP(address);
  if (family === 4) return !refusedIpv4.check(address, "ipv4");
  if (family !== 6) return false;
  const mapped = mappedIpv4(address);
  if (mapped !== null) return isPublicAddress(mapped);
  return publicIpv6.check(address, "ipv6") && !refusedIpv6.check(address, "ipv6");
}

const bad = (message: string): ServiceError => new ServiceError(400, `url: ${message}`);

export class UrlFetcher {
  readonly #options: Required<Omit<UrlFetchOptions, "ca">> & Pick<UrlFetchOptions, "ca">;
  readonly #networks: BlockList;

  constructor(options: UrlFetchOptions) {
    this.#options = { seconds: 10, maxRedirects: 3, hosts: [], networks: [], ...options };
    this.#networks = networksOf(this.#options.networks);
  }

  /**
   * The bytes behind a URL.
   *
   * @param signal ends it
   * @param headers are sent along: a trace's
   * @throws ServiceError 400 saying what is wrong with the URL or with the answer
   */
  async fetch(url: string, signal: AbortSignal, headers: Readonly<Record<string, string>> = {}): Promise<Uint8Array> {
    const { seconds, maxRedirects } = this.#options;
    const time = AbortSignal.timeout(seconds * 1000);
    const either = AbortSignal.any([signal, time]);
    try {
      let target = this.#parse(url);
      for (let redirects = 0; ; redirects++) {
        const answer = await this.#ask(target, either, headers);
        if (![301, 302, 303, 307, 308].includes(answer.status)) return await this.#read(answer);
        await answer.body?.cancel();
        const location = answer.headers.get("location");
        if (redirects === maxRedirects) throw bad(`more than ${maxRedirects} redirects`);
        if (location === null || !URL.canParse(location, target.href)) throw bad("a redirect leads nowhere");
        target = this.#parse(new URL(location, target.href).href);
      }
    } catch (error) {
      if (error instanceof ServiceError) throw error;
      if (time.aborted) throw bad(`no answer within ${seconds} s`);
      if (signal.aborted) throw new ServiceError(499, "the client has gone");
      const code = (error as NodeJS.ErrnoException).code;
      throw bad(`the server cannot be reached${typeof code === "string" ? ` (${code})` : ""}`);
    }
  }

  #parse(text: string): URL {
    if (!URL.canParse(text)) throw bad(`expected http:// or https://, got ${quoted(text)}`);
    const url = new URL(text);
    if (url.protocol !== "http:" && url.protocol !== "https:") {
      throw bad(`expected http:// or https://, got ${quoted(url.protocol)}`);
    }
    if (url.username !== "" || url.password !== "") throw bad("it must have no user name or password");
    const { hosts } = this.#options;
    const name = url.hostname.toLowerCase().replace(/\.$/, "");
    const listed = hosts.some((host) => (host.startsWith("*.") ? name.endsWith(host.slice(1)) : name === host));
    if (hosts.length > 0 && !listed) throw bad(`the host ${quoted(name)} is not among those that are allowed`);
    return url;
  }

  /** The address that is asked: all that the name has must be allowed. */
  async #resolve(url: URL): Promise<string> {
    const host = url.hostname.startsWith("[") ? url.hostname.slice(1, -1) : url.hostname;
    let addresses: string[];
    try {
      addresses = isIP(host) ? [host] : (await lookup(host, { all: true })).map(({ address }) => address);
    } catch {
      throw bad(`the host ${quoted(host)} has no address`);
    }
    const [first] = addresses;
    if (first === undefined) throw bad(`the host ${quoted(host)} has no address`);
    // Said alike for all that are refused: it is nobody's business what this network has.
    if (!addresses.every((address) => this.#allowed(address))) throw bad(`the host ${quoted(host)} is not public`);
    return first;
  }

  #allowed(address: string): boolean {
    const plain = mappedIpv4(address) ?? address;
    return isPublicAddress(plain) || this.#networks.check(plain, isIP(plain) === 4 ? "ipv4" : "ipv6");
  }

  async #ask(url: URL, signal: AbortSignal, headers: Readonly<Record<string, string>>): Promise<Response> {
    const address = await this.#resolve(url);
    signal.throwIfAborted();
    const pinned = new URL(url.href);
    pinned.hostname = isIP(address) === 6 ? `[${address}]` : address;
    pinned.hash = "";
    return await fetch(pinned, {
      ...{ redirect: "manual", signal, decompress: false, keepalive: false },
      // Certificates are those of the name that was asked for.
      tls: { serverName: url.hostname, ...(this.#options.ca !== undefined && { ca: this.#options.ca }) },
      headers: { ...headers, Host: url.host, Accept: "image/*", "Accept-Encoding": "identity", "User-Agent": "dlfs" },
    } as BunFetchRequestInit);
  }

  async #read(answer: Response): Promise<Uint8Array> {
    const { maxBytes } = this.#options;
    if (answer.status !== 200) {
      await answer.body?.cancel();
      throw bad(`the server answered ${answer.status}`);
    }
    const parts: Uint8Array[] = [];
    let size = 0;
    for await (const part of answer.body ?? []) {
      size += part.length;
      if (size > maxBytes) throw bad(`the image is larger than the limit of ${maxBytes} bytes`);
      parts.push(part);
    }
    return Buffer.concat(parts);
  }
}
