/** A training's address: who may read and write, what is said and heard there, and readers that never read. */
import { afterEach, describe, expect, test } from "bun:test";
import { connect } from "node:net";
import { decodeMessage, encodeMessage, type Message } from "../../lib/formats";
import { type Answer, askPredictions, LiveBus, LiveServer, type LiveServerOptions } from "../../lib/live";
import { DlfsError, ErrorCode } from "../../lib/native";

const owned: AsyncDisposable[] = [];
afterEach(async () => {
  for (const one of owned.splice(0).reverse()) await one[Symbol.asyncDispose]();
});

function start(options: Partial<LiveServerOptions> = {}) {
  const bus = new LiveBus();
  const heard: [Message, string][] = [];
  const submit = async (message: Message, sender: string): Promise<Answer> => {
    heard.push([message, sender]);
    return { accepted: true, from: heard.length };
  };
  const server = new LiveServer({ port: 0, token: "secret", bus, submit, ...options });
  owned.push(server);
  return { bus, heard, server, at: (path: string) => new URL(path, server.url).href };
}

const control = (id: string): Message => ({ type: "control", value: { id, author: "a", time: 1, command: "save" } });
const train = (iteration: number): Message => ({
  type: "metrics",
  value: { what: "train", iteration, epoch: 0, time: 0, values: { loss: 1 } },
});

async function open(url: string, headers: Record<string, string> = {}) {
  const socket = new WebSocket(url.replace(/^http/, "ws"), { headers } as never);
  socket.binaryType = "arraybuffer";
  const messages: (Message | null)[] = [];
  const closed = Promise.withResolvers<{ code: number; reason: string }>();
  socket.onmessage = ({ data }) => messages.push(decodeMessage(new Uint8Array(data as ArrayBuffer), "socket"));
  socket.onclose = ({ code, reason }) => closed.resolve({ code, reason });
  const opened = Promise.withResolvers<boolean>();
  socket.onopen = () => opened.resolve(true);
  socket.onerror = () => opened.resolve(false);
  return { socket, messages, closed: closed.promise, opened: await opened.promise };
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await Bun.sleep(2);
}

const authorized = { Authorization: "Bearer secret" };

describe("a WebSocket", () => {
  test("hears what is said, and is heard", async () => {
    const { bus, heard, at } = start();
    const { socket, messages } = await open(at("/live?token=secret"));
    await until(() => bus.hasReaders);
    for (let i = 1; i <= 300; i++) bus.publish(train(i));
    await until(() => messages.length === 300);
    expect(messages).toEqual(Array.from({ length: 300 }, (_, i) => train(i + 1)));
    socket.send(encodeMessage(control("c")));
    await until(() => heard.length === 1);
    expect(heard).toEqual([[control("c"), "client 1"]]);
    socket.close();
    await until(() => !bus.hasReaders);
  });

  test("without the token, or with another one, is not opened", async () => {
    const { at } = start();
    expect((await open(at("/live"))).opened).toBe(false);
    expect((await open(at("/live?token=other"))).opened).toBe(false);
    expect((await open(at("/live"), authorized)).opened).toBe(true);
  });

  test("of a page from elsewhere is not opened, but for those that are named", async () => {
    const { at, server } = start({ origins: ["https://labels.example"] });
    const from = async (origin: string) => (await open(at("/live?token=secret"), { Origin: origin })).opened;
    expect(await from("https://evil.example")).toBe(false);
    expect(await from("null")).toBe(false);
    expect(await from("https://labels.example")).toBe(true);
    expect(await from(new URL(server.url).origin)).toBe(true);
  });

  test("that sends what is no message is closed, and says why", async () => {
    const { heard, at } = start();
    for (const [data, reason] of [
      ["hello", "client 1: expected binary messages, got text"],
      [Uint8Array.of(1, 2, 3), "client 2: damaged: frame: 3 bytes are not one whole frame"],
    ] as const) {
      const { socket, closed } = await open(at("/live?token=secret"));
      socket.send(data);
      expect(await closed).toEqual({ code: 1007, reason });
    }
    expect(heard).toEqual([]);
  });

  test("cannot write where the address is for reading alone", async () => {
    const { at } = start({ submit: undefined });
    const { socket, closed } = await open(at("/live?token=secret"));
    socket.send(encodeMessage(control("c")));
    expect((await closed).reason).toBe("client 1: this address is for reading alone");
    const post = await fetch(at("/messages"), {
      method: "POST",
      headers: authorized,
      body: encodeMessage(control("c")),
    });
    expect(post.status).toBe(403);
  });

  test("that connects and never reads costs the others nothing, and little memory", async () => {
    const { bus, at, server } = start();
    const { port, host } = new URL(server.url);
    const stalled = connect(Number(port), "127.0.0.1");
    const lines = ["GET /live?token=secret HTTP/1.1", `Host: ${host}`, "Upgrade: websocket", "Connection: Upgrade"];
    lines.push("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", "");
    stalled.write(lines.join("\r\n"));
    stalled.pause();
    await until(() => bus.readers.length === 1);
    const { messages } = await open(at("/live?token=secret"));
    await until(() => bus.readers.length === 2);
    const thumbnail = new Uint8Array(100_000);
    const empty = { boxes: new Float32Array(0), scores: new Float32Array(0), labels: new Uint32Array(0) };
    const truth = {
      boxes: new Float64Array(0),
      labels: new Uint32Array(0),
      ids: new Float64Array(0),
      crowd: new Uint8Array(0),
    };
    for (let i = 1; i <= 1000; i++) {
      const predictions = { name: "x", width: 1, height: 1, ...empty };
      bus.publish({ type: "sample", value: { iteration: i, time: 0, predictions, thumbnail, truth } });
      if (i % 20 === 0) await Bun.sleep(1);
    }
    await until(() => messages.length === 1000);
    const [slow] = bus.readers;
    expect(slow!.dropped).toBeGreaterThan(300);
    expect(slow!.waitingBytes).toBeLessThanOrEqual(32 * 2 ** 20);
    stalled.destroy();
    await until(() => bus.readers.length === 1);
  });
});

describe("GET /predictions", () => {
  test("answers what the training makes of an image, or why it does not", async () => {
    const predict = async (image: string, split: string) => {
      if (image !== "a.jpg") throw new DlfsError(ErrorCode.io, "image", `none "${image}"`);
      return { iteration: 7, boxes: [{ box: [1, 2, 3, 4], label: split === "val" ? 1 : 0, score: 0.5 }] };
    };
    const { server } = start({ predict });
    const reached = { url: server.url, token: "secret" };
    const ask = (image: string, token = "secret") => askPredictions({ ...reached, token }, { image, split: "val" });
    expect(await ask("a.jpg")).toEqual({ iteration: 7, boxes: [{ box: [1, 2, 3, 4], label: 1, score: 0.5 }] });
    expect(ask("b.jpg")).rejects.toThrow('answers 422: image: none "b.jpg"');
    expect(ask("a.jpg", "other")).rejects.toThrow("wants another token");
    const bare = await fetch(new URL("/predictions", server.url), { headers: authorized });
    expect(bare.status).toBe(400);
    const { server: without } = start();
    expect(askPredictions({ ...reached, url: without.url }, { image: "a.jpg", split: "val" })).rejects.toThrow("404");
  });
});

describe("POST /messages", () => {
  test("answers each message", async () => {
    const { heard, at } = start();
    const body = Buffer.concat(["a", "b"].map((id) => encodeMessage(control(id))));
    const answer = await fetch(at("/messages"), { method: "POST", headers: authorized, body });
    const expected = [
      { accepted: true, from: 1 },
      { accepted: true, from: 2 },
    ];
    expect(await answer.json()).toEqual({ answers: expected });
    expect(heard.map(([{ value }]) => "id" in value && value.id)).toEqual(["a", "b"]);
  });

  test("takes none of a body that is wrong somewhere", async () => {
    const { heard, at } = start();
    const good = encodeMessage(control("a"));
    const damaged = good.slice();
    damaged[20]! ^= 1;
    for (const [body, error] of [
      [Buffer.concat([good, good.subarray(0, 30)]), `body: it ends within a frame, at ${good.length}`],
      [Buffer.concat([good, damaged]), "body: damaged: frame at"],
      ["text", "body: it ends within a frame, at 0"],
    ] as const) {
      const answer = await fetch(at("/messages"), { method: "POST", headers: authorized, body });
      expect(answer.status).toBe(400);
      expect((await answer.json()) as unknown).toEqual({ error: expect.stringContaining(error) });
    }
    expect(heard).toEqual([]);
  });

  test("needs the token", async () => {
    const { at } = start();
    const answer = await fetch(at("/messages"), { method: "POST", body: encodeMessage(control("a")) });
    expect([answer.status, answer.headers.get("www-authenticate")]).toEqual([401, "Bearer"]);
    expect((await fetch(at("/status"))).status).toBe(401);
    expect((await fetch(at("/other"), { headers: authorized })).status).toBe(404);
  });
});

test("a port that is taken is an error that names it", () => {
  const { server } = start();
  const port = Number(new URL(server.url).port);
  expect(() => start({ port })).toThrow(`live: cannot listen on 127.0.0.1:${port}`);
  expect(() => start({ token: "" })).toThrow("token: it is empty");
});
