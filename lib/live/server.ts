/** A training's address on the network: what it says to WebSockets, what it is told by WebSockets and POST. */
import type { ServerWebSocket } from "bun";
import { decodeMessage, type Message } from "../formats";
import { decodeFrame } from "../formats/framed-stream";
import { DlfsError, ErrorCode } from "../native/error";
import { AccessGate, denied, failure } from "./access";
import type { LiveBus, LiveSink } from "./bus";
import type { FoundBoxes } from "./client";
import type { Answer } from "./session";

/** The largest message that is taken: an image with its boxes. */
const MAX_MESSAGE_BYTES = 64 * 2 ** 20;
/** Bytes that may wait in the kernel and in Bun for one socket before it is given no more. */
const MAX_BUFFERED_BYTES = 1 << 20;

export interface LiveServerOptions {
  /** 0: any free one. */
  port: number;
  /** Default "127.0.0.1": nobody else on the network reaches it. */
  hostname?: string;
  /** Who knows it may read, and write where `submit` is given: `Authorization: Bearer TOKEN`, or `?token=TOKEN`. */
  token: string;
  bus: LiveBus;
  /** Takes messages in; without it the address is for reading alone. */
  submit?: (message: Message, sender: string) => Promise<Answer>;
  /** What the training makes of an image now, by its key and split. Default: that cannot be asked. */
  predict?: (image: string, split: string) => Promise<FoundBoxes>;
  /** Pages of other addresses that may open a WebSocket here, such as "https://labels.example". Default: none. */
  origins?: readonly string[];
  /** Answers what is asked for at other paths; whether the asker may know the answer is its affair. */
  also?: (request: Request) => Response | Promise<Response>;
}

interface Client {
  readonly name: string;
  sink: SocketSink | null;
}
type Socket = ServerWebSocket<Client>;

/** A reader behind a WebSocket: one frame a message. It is given no more than it takes. */
class SocketSink implements LiveSink {
  #drained: (() => void) | null = null;
  #closed = false;

  constructor(
    readonly name: string,
    private readonly socket: Socket,
  ) {}

  async send(frames: readonly Uint8Array[]): Promise<void> {
    for (const frame of frames) {
      while (!this.#closed && this.socket.getBufferedAmount() > MAX_BUFFERED_BYTES) await this.#drain();
      if (this.#closed) return;
      this.socket.sendBinary(frame);
    }
  }

  /** The socket has taken what it was given, or is closed. */
  wake(closed: boolean): void {
    this.#closed ||= closed;
    this.#drained?.();
  }

  async close(): Promise<void> {
    this.socket.close(1001, "the training has ended");
  }

  async #drain(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#drained = resolve;
    await promise;
    this.#drained = null;
  }
}

/**
 * Serves a bus:
 *
 * - `GET /live`: a WebSocket, each of whose binary messages is a frame (lib/formats/framed-stream.ts). Frames of labels and
 *   commands that a client sends are taken in, and answered by events "accepted" and "refused", which all clients hear.
 * - `POST /messages`: frames of labels and commands, one behind the other; the answer is JSON, `{"answers": [...]}` with an entry
 *   for each, when all are taken in or refused.
 * - `GET /predictions?image=KEY&split=S`: JSON, what the training makes of an image of its data set now: FoundBoxes.
 * - `GET /status`: JSON, how readers keep up.
 */
export class LiveServer implements AsyncDisposable {
  readonly #options: LiveServerOptions;
  readonly #server: Bun.Server<Client>;
  readonly #leave = new Map<Socket, () => Promise<void>>();
  readonly #gate: AccessGate;
  #clients = 0;

  /** @throws DlfsError where the port cannot be had, or the token is empty */
  constructor(options: LiveServerOptions) {
    const { port, hostname = "127.0.0.1", token, origins, also } = options;
    this.#options = options;
    this.#gate = new AccessGate(token, origins);
    try {
      this.#server = Bun.serve<Client>({
        ...{ port, hostname, maxRequestBodySize: MAX_MESSAGE_BYTES },
        routes: {
          "/live": { GET: (request: Request, server: Bun.Server<Client>) => this.#upgrade(request, server) },
          "/messages": { POST: (request: Request) => this.#guarded(request, () => this.#post(request)) },
          "/predictions": { GET: (request: Request) => this.#guarded(request, () => this.#predict(request)) },
          "/status": {
            GET: (request: Request) => this.#guarded(request, () => Response.json({ readers: options.bus.readers })),
          },
        },
        fetch: also ?? (() => failure(404, "not found: /live, /messages, /predictions and /status are here")),
        error: () => failure(500, "something went wrong here"),
        websocket: {
          maxPayloadLength: MAX_MESSAGE_BYTES,
          backpressureLimit: MAX_MESSAGE_BYTES,
          idleTimeout: 120,
          open: (socket) => this.#open(socket),
          message: (socket, data) => void this.#hear(socket, data),
          drain: (socket) => socket.data.sink?.wake(false),
          close: (socket) => this.#close(socket),
        },
      });
    } catch (error) {
      throw new DlfsError(ErrorCode.io, "live", `cannot listen on ${hostname}:${port}: ${(error as Error).message}`);
    }
  }

  /** "http://127.0.0.1:7007/" */
  get url(): string {
    return this.#server.url.href;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#leave.values()].map((leave) => leave()));
    await this.#server.stop(true);
  }

  #upgrade(request: Request, server: Bun.Server<Client>): Response | undefined {
    if (!this.#gate.allowsOrigin(request)) return failure(403, "pages of this origin may not read or write here");
    if (!this.#gate.mayEnter(request)) return denied();
    const name = `client ${++this.#clients}`;
    return server.upgrade(request, { data: { name, sink: null } }) ? undefined : failure(426, "expected a WebSocket");
  }

  #guarded(request: Request, answer: () => Response | Promise<Response>): Response | Promise<Response> {
    if (!this.#gate.allowsOrigin(request)) return failure(403, "pages of this origin may not read or write here");
    return this.#gate.mayEnter(request) ? answer() : denied();
  }

  #open(socket: Socket): void {
    const sink = new SocketSink(socket.data.name, socket);
    socket.data.sink = sink;
    this.#leave.set(socket, this.#options.bus.attach(sink));
  }

  #close(socket: Socket): void {
    socket.data.sink?.wake(true);
    void this.#leave.get(socket)?.();
    this.#leave.delete(socket);
  }

  async #hear(socket: Socket, data: string | Buffer): Promise<void> {
    const { submit } = this.#options;
    const { name } = socket.data;
    try {
      if (typeof data === "string") throw new DlfsError(ErrorCode.argument, name, "expected binary messages, got text");
      const message = decodeMessage(data, name);
      if (!submit) throw new DlfsError(ErrorCode.argument, name, "this address is for reading alone");
      if (message) await submit(message, name);
    } catch (error) {
      // Whatever a client has sent, the training goes on.
      if (!(error instanceof DlfsError)) console.error(error);
      // What cannot be read has no id that an event could name.
      socket.close(1007, (error as Error).message.slice(0, 120));
    }
  }

  async #post(request: Request): Promise<Response> {
    const { submit } = this.#options;
    if (!submit) return failure(403, "this address is for reading alone");
    const bytes = await request.bytes();
    const messages: Message[] = [];
    try {
      for (let at = 0; at < bytes.length; ) {
        const decoded = decodeFrame(bytes, at, "body");
        if (!decoded) throw new DlfsError(ErrorCode.io, "body", `it ends within a frame, at ${at}`);
        const message = decodeMessage(bytes.subarray(at, decoded.next), "body");
        if (!message) throw new DlfsError(ErrorCode.io, "body", `the frame at ${at} is of no kind that is known`);
        messages.push(message);
        at = decoded.next;
      }
    } catch (error) {
      if (error instanceof DlfsError) return failure(400, error.message);
      throw error;
    }
    return Response.json({ answers: await Promise.all(messages.map((message) => submit(message, "POST"))) });
  }
  async #predict(request: Request): Promise<Response> {
    const { predict } = this.#options;
    if (!predict) return failure(404, "this training cannot be asked about images");
    const { searchParams } = new URL(request.url);
    const [image, split] = [searchParams.get("image"), searchParams.get("split")];
    if (!image || !split) return failure(400, "expected image, the key of one, and split");
    try {
      return Response.json(await predict(image, split));
    } catch (error) {
      if (error instanceof DlfsError) return failure(422, error.message);
      throw error;
    }
  }
}
