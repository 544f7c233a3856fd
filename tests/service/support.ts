/** A service on a free port over a model side that is a fake, and requests to it as bytes. */
import { connect } from "node:net";
import { InferenceService, type ServiceOptions } from "../../lib/service/server";
import { bytesOf, imageCases } from "../support/image-cases";
import { FakeBackend } from "./fake-backend";

/** A JPEG that can be decoded. */
export const jpeg: Uint8Array<ArrayBuffer> = bytesOf(imageCases().find(({ params }) => params.format === "jpeg")!);

export interface Running extends AsyncDisposable {
  readonly backend: FakeBackend;
  readonly service: InferenceService;
  /** fetch() of a path. */
  ask(path: string, init?: BunFetchRequestInit): Promise<Response>;
  /** POST of a body. */
  post(path: string, body: Uint8Array | string | object, headers?: Record<string, string>): Promise<Response>;
}

export function start(options: ServiceOptions = {}): Running {
  const backend = new FakeBackend();
  const service = new InferenceService(backend, { port: 0, ...options });
  const ask = (path: string, init?: BunFetchRequestInit) => fetch(new URL(path, service.url), init);
  return {
    ...{ backend, service, ask },
    post: (path, body, headers = {}) => {
      const bytes = body instanceof Uint8Array || typeof body === "string" ? body : JSON.stringify(body);
      return ask(path, { method: "POST", body: bytes as Uint8Array<ArrayBuffer>, headers });
    },
    [Symbol.asyncDispose]: () => service.stop(0),
  };
}

/** Status and text of an error. */
export async function errorOf(answer: Response | Promise<Response>): Promise<[number, string]> {
  const { status, ...rest } = {
    status: (await answer).status,
    json: (await (await answer).json()) as { error: string },
  };
  return [status, rest.json.error];
}

/**
 * Sends parts over a connection of its own, numbers being milliseconds to wait, and gives what came until the other side closed it
 * or until it holds `until`.
 */
export function raw(url: URL, parts: readonly (string | Uint8Array | number)[], until?: RegExp): Promise<string> {
  return new Promise((done, fail) => {
    const socket = connect(Number(url.port), url.hostname);
    let text = "";
    socket.on("data", (data) => {
      text += data.toString("latin1");
      if (until?.test(text)) socket.destroy();
    });
    socket.on("close", () => done(text));
    socket.on("error", (error) => (text === "" ? fail(error) : done(text)));
    void (async () => {
      for (const part of parts) {
        if (typeof part === "number") await Bun.sleep(part);
        else if (!socket.destroyed) socket.write(part);
      }
    })();
  });
}
