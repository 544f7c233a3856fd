/** HTTP/1.1 over a connection whose bytes are the caller's: what is sent may be anything. */
import { connect, type Socket } from "node:net";

export interface RawAnswer {
  /** 0: the connection ended without an answer. */
  readonly status: number;
  readonly headers: ReadonlyMap<string, string>;
  readonly body: Buffer;
}

const NONE: RawAnswer = { status: 0, headers: new Map(), body: Buffer.alloc(0) };

/** One connection after the other, each used until the other side ends it. */
export class RawClient {
  #socket: Socket | null = null;
  #buffer: Buffer = Buffer.alloc(0);
  #settle: ((answer: RawAnswer) => void) | null = null;

  constructor(
    readonly host: string,
    readonly port: number,
  ) {}

  /**
   * Sends parts, numbers among them being milliseconds to wait, and gives the answer.
   *
   * @param ms after which the connection is given up
   */
  async request(parts: readonly (Uint8Array | number)[], ms: number): Promise<RawAnswer> {
    const socket = await this.#connected();
    if (!socket) return NONE;
    const answer = new Promise<RawAnswer>((done) => {
      this.#settle = done;
    });
    const timer = setTimeout(() => socket.destroy(), ms);
    void (async () => {
      for (const part of parts) {
        if (socket.destroyed || this.#settle === null) return;
        if (typeof part === "number") await Bun.sleep(part);
        else if (!socket.write(part))
          await new Promise<void>((done) => socket.once("drain", done).once("close", () => done()));
      }
    })();
    try {
      return await answer;
    } finally {
      clearTimeout(timer);
    }
  }

  /** Sends parts and goes away, before there is an answer. */
  async abandon(parts: readonly (Uint8Array | number)[], abrupt: boolean): Promise<void> {
    this.close();
    const socket = await this.#connected();
    if (!socket) return;
    for (const part of parts) {
      if (typeof part === "number") await Bun.sleep(part);
      else if (!socket.destroyed) socket.write(part);
    }
    if (abrupt) socket.resetAndDestroy();
    else this.close();
  }

  close(): void {
    this.#socket?.destroy();
    this.#socket = null;
  }

  async #connected(): Promise<Socket | null> {
    if (this.#socket && !this.#socket.destroyed) return this.#socket;
    const socket = connect(this.port, this.host);
    this.#buffer = Buffer.alloc(0);
    const opened = await new Promise<boolean>((done) => {
      socket.once("connect", () => done(true));
      socket.once("error", () => done(false));
    });
    if (!opened) return null;
    socket.setNoDelay(true);
    socket.on("error", () => {});
    socket.on("data", (data: Buffer) => {
      this.#buffer = this.#buffer.length === 0 ? data : Buffer.concat([this.#buffer, data]);
      this.#read(false);
    });
    socket.on("close", () => {
      if (this.#socket !== socket) return;
      this.#socket = null;
      this.#read(true);
    });
    this.#socket = socket;
    return socket;
  }

  #read(ended: boolean): void {
    if (!this.#settle) {
      this.#buffer = Buffer.alloc(0);
      return;
    }
    const finish = (answer: RawAnswer, close: boolean) => {
      const settle = this.#settle;
      this.#settle = null;
      this.#buffer = Buffer.alloc(0);
      if (close) this.close();
      settle?.(answer);
    };
    const end = this.#buffer.indexOf("\r\n\r\n");
    if (end < 0) {
      if (ended) finish(NONE, true);
      return;
    }
    const [first = "", ...lines] = this.#buffer.subarray(0, end).toString("latin1").split("\r\n");
    const status = Number(/^HTTP\/1\.[01] (\d{3})/.exec(first)?.[1] ?? 0);
    const headers = new Map(
      lines.map((line) => {
        const colon = line.indexOf(":");
        return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()] as const;
      }),
    );
    if (status === 100) {
      this.#buffer = this.#buffer.subarray(end + 4);
      this.#read(ended);
      return;
    }
    const length = Number(
      headers.get("content-length") ?? (headers.get("connection") === "close" ? Number.POSITIVE_INFINITY : 0),
    );
    const body = this.#buffer.subarray(end + 4);
    if (body.length < length && !ended) return;
    finish(
      { status, headers, body: Buffer.from(body.subarray(0, length)) },
      headers.get("connection") === "close" || body.length > length,
    );
  }
}
