/** Messages to another system: in order and once, through failures of it, of the network, and of this process. */
import { afterAll, afterEach, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { decodeFrame, encodeMessage, messageOf } from "../../lib/formats";
import { HttpSink, type HttpSinkOptions } from "../../lib/live";

const folder = mkdtempSync(join(tmpdir(), "dlfs-http-sink-"));
afterAll(() => rmSync(folder, { recursive: true }));

/** Takes frames; `answer` says what is answered to the next POSTs. */
class Receiver {
  readonly iterations: number[] = [];
  readonly sequences: string[] = [];
  readonly headers: Headers[] = [];
  answer: number | "hang" = 200;
  /** Answers one POST with 200 in place of that. */
  takesOne = false;
  readonly server = Bun.serve({
    ...{ port: 0, hostname: "127.0.0.1" },
    fetch: async (request) => {
      const bytes = await request.bytes();
      const takes = this.takesOne || this.answer === 200;
      this.takesOne = false;
      if (!takes && this.answer === "hang") return await new Promise<Response>(() => {});
      if (!takes) return new Response("no", { status: this.answer as number });
      this.headers.push(request.headers);
      this.sequences.push(request.headers.get("dlfs-sequence")!);
      for (let at = 0; at < bytes.length; ) {
        const { frame, next } = decodeFrame(bytes, at, "post")!;
        const { value } = messageOf(frame, "post")!;
        this.iterations.push("iteration" in value ? value.iteration : -1);
        at = next;
      }
      return new Response("");
    },
  });
}

const receivers: Receiver[] = [];
afterEach(async () => {
  for (const { server } of receivers.splice(0)) await server.stop(true);
});

let spools = 0;
function setUp() {
  const receiver = new Receiver();
  receivers.push(receiver);
  const said: string[] = [];
  const spool = join(folder, `spool-${spools++}`);
  const options: HttpSinkOptions = {
    ...{ url: `${receiver.server.url}frames`, headers: { Authorization: "Bearer x" }, spool },
    ...{ firstDelay: 5, timeoutMs: 20_000, log: (line: string) => void said.push(line) },
  };
  return { receiver, said, spool, options };
}

const frames = (from: number, to: number): Uint8Array[] =>
  Array.from({ length: to - from + 1 }, (_, i) =>
    encodeMessage({ type: "metrics", value: { what: "train", iteration: from + i, epoch: 0, time: 0, values: {} } }),
  );
const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => from + i);

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await Bun.sleep(2);
}

describe("an HTTP sink", () => {
  test("posts frames in order, with their numbers and what is to be said of the sender", async () => {
    const { receiver, options, spool } = setUp();
    const sink = await HttpSink.open(options);
    await sink.send(frames(1, 3));
    await sink.send(frames(4, 4));
    await sink.close();
    expect(receiver.iterations).toEqual(range(1, 4));
    expect(receiver.sequences.map((text) => text.split(":")[1])).toEqual(["0", "3"]);
    expect(new Set(receiver.sequences.map((text) => text.split(":")[0])).size).toBe(1);
    expect(receiver.headers[0]!.get("authorization")).toBe("Bearer x");
    expect(receiver.headers[0]!.get("content-type")).toBe("application/vnd.dlfs.frames");
    expect(existsSync(spool)).toBe(false);
  });

  for (const [what, answer] of [
    ["an overloaded receiver", 503],
    ["a receiver that asks for less", 429],
    ["a receiver that never answers", "hang"],
  ] as const) {
    test(`keeps frames on the disk for ${what}, and sends them later, in order and once`, async () => {
      const { receiver, said, spool, options } = setUp();
      const sink = await HttpSink.open({ ...options, ...(answer === "hang" && { timeoutMs: 500 }) });
      await sink.send(frames(1, 2));
      receiver.answer = answer;
      for (let i = 3; i <= 400; i++) await sink.send(frames(i, i));
      expect(sink.status).toEqual({ spooled: 398, dropped: 0, refused: 0 });
      expect(existsSync(spool)).toBe(true);
      receiver.answer = 200;
      await until(() => !existsSync(spool));
      await sink.send(frames(401, 401));
      await until(() => receiver.iterations.length >= 401 && sink.status.spooled === 0);
      expect(receiver.iterations).toEqual(range(1, 401));
      expect(said.filter((line) => line.startsWith("warning: http://127.0.0.1: ")).length).toBe(1);
      expect(said[1]).toBe("http://127.0.0.1: it takes messages again");
      await sink.close();
    });
  }

  test("that is ended leaves what was not taken to the next one with its spool", async () => {
    const { receiver, spool, options } = setUp();
    receiver.answer = 500;
    const first = await HttpSink.open(options);
    await first.send(frames(1, 700));
    await first.close();
    expect(existsSync(spool)).toBe(true);
    receiver.answer = 200;
    const second = await HttpSink.open(options);
    expect(second.status.spooled).toBe(700);
    await second.send(frames(701, 702));
    await until(() => !existsSync(spool));
    expect(receiver.iterations).toEqual(range(1, 702));
    await second.close();
  });

  test("does not begin again with a spool of which some was sent", async () => {
    const { receiver, spool, options } = setUp();
    receiver.answer = 500;
    const first = await HttpSink.open(options);
    await first.send(frames(1, 700));
    // Batches have 256 frames: one is taken, then the process ends.
    receiver.takesOne = true;
    await until(() => existsSync(`${spool}.sent`));
    await first.close();
    const taken = receiver.iterations.length;
    receiver.answer = 200;
    const second = await HttpSink.open(options);
    await until(() => !existsSync(spool));
    await second.close();
    // What was under way when the first one ended may have come twice, and nothing else.
    expect(receiver.iterations.slice(0, taken)).toEqual(range(1, taken));
    const rest = receiver.iterations.slice(taken);
    expect(rest).toEqual(range(rest[0]!, 700));
    expect(rest[0]!).toBeGreaterThan(1);
    expect(rest[0]!).toBeLessThanOrEqual(taken + 1);
  });

  test("counts, says and forgets what the receiver refuses", async () => {
    const { receiver, said, spool, options } = setUp();
    const sink = await HttpSink.open(options);
    receiver.answer = 400;
    await sink.send(frames(1, 3));
    await sink.send(frames(4, 4));
    receiver.answer = 200;
    await sink.send(frames(5, 5));
    expect(sink.status).toEqual({ spooled: 0, dropped: 0, refused: 4 });
    expect(said).toEqual(["warning: http://127.0.0.1: it answers 400 Bad Request: messages are refused, and lost"]);
    expect(receiver.iterations).toEqual([5]);
    expect(receiver.sequences[0]).toEndWith(":4");
    expect(existsSync(spool)).toBe(false);
    await sink.close();
  });

  test("drops and counts what there is no room for", async () => {
    const { receiver, said, options, spool } = setUp();
    receiver.answer = 500;
    const sink = await HttpSink.open({ ...options, maxSpoolBytes: 2000 });
    for (let i = 1; i <= 50; i++) await sink.send(frames(i, i));
    const { spooled, dropped } = sink.status;
    expect(spooled).toBeGreaterThan(5);
    expect(spooled + dropped).toBe(50);
    expect(said[1]).toBe(
      `warning: http://127.0.0.1: ${spool}: its limit of 2000 bytes is reached; messages are dropped`,
    );
    receiver.answer = 200;
    await until(() => !existsSync(spool));
    expect(receiver.iterations).toEqual(range(1, spooled));
    await sink.close();
  });

  test("says what a damaged spool has cost, and goes on", async () => {
    const { receiver, said, options, spool } = setUp();
    receiver.answer = 500;
    const first = await HttpSink.open({ ...options, timeoutMs: 300 });
    await first.send(frames(1, 300));
    receiver.answer = "hang";
    await Bun.sleep(20);
    const bytes = await Bun.file(spool).bytes();
    bytes[bytes.length - 40]! ^= 1;
    await Bun.write(spool, bytes);
    receiver.answer = 200;
    await until(() => !existsSync(spool));
    expect(said.some((line) => line.includes("what waited there is lost"))).toBe(true);
    expect(first.status.dropped).toBe(300 - receiver.iterations.length);
    await first.send(frames(301, 301));
    await until(() => receiver.iterations.at(-1) === 301);
    await first.close();
  });

  test("refuses addresses that are none", () => {
    const { options } = setUp();
    expect(HttpSink.open({ ...options, url: "nowhere" })).rejects.toThrow('HttpSink: url: "nowhere" is none');
    expect(HttpSink.open({ ...options, url: "ftp://x/" })).rejects.toThrow('url: expected http or https, got "ftp:"');
  });
});
