/** What must not harm a training, nor leave anything half done: messages that are wrong, too many or too late, and disks that are full. */
import { afterEach, describe, expect, test } from "bun:test";
import { existsSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { LabelMessage } from "../../lib/formats";
import { encodeMessage } from "../../lib/formats";
import { type Answer, Journal, LiveServer } from "../../lib/live";
import { fakeJpeg } from "../data/fakes";
import { runOnSmallDisk } from "../support/small-disk";
import { add, cleanUp, control, labels, setUp } from "./session-fixture";

const servers: LiveServer[] = [];
afterEach(async () => {
  for (const server of servers.splice(0)) await server[Symbol.asyncDispose]();
  await cleanUp();
});

/** A session at an address. */
async function serve(options: Parameters<typeof setUp>[0] = {}) {
  const parts = await setUp(options);
  const submit = parts.session.submit.bind(parts.session);
  const server = new LiveServer({ port: 0, token: "secret", bus: parts.bus, submit });
  servers.push(server);
  const post = (body: Uint8Array, headers: Record<string, string> = {}) =>
    fetch(new URL("messages", server.url), {
      method: "POST",
      headers: { Authorization: "Bearer secret", ...headers },
      body,
    });
  return { ...parts, server, post };
}

async function open(server: LiveServer) {
  const socket = new WebSocket(new URL("live?token=secret", server.url).href.replace(/^http/, "ws"));
  const closed = new Promise<number>((resolve) => {
    socket.onclose = ({ code }) => resolve(code);
  });
  await new Promise((resolve) => {
    socket.onopen = resolve;
  });
  return { socket, closed };
}

const brings = (bytes: Uint8Array, image = "train/new.jpg"): Partial<LabelMessage> => ({
  image,
  newImage: { width: 0, height: 0, bytes },
});

describe("a new image", () => {
  test("that comes with a box that is refused is not there, nor is its file", async () => {
    const { session, store, training, source } = await setUp();
    const answer = session.submit(labels("m", [{ ...add, category: "cow" }], brings(fakeJpeg(64, 48))), "test");
    await session.beforeStep(0);
    expect(await answer).toMatchObject({ accepted: false });
    expect([store.images("train").length, training.changes.length]).toEqual([2, 0]);
    expect(await source.stat("train/new.jpg")).toBeNull();
  });

  test("writes over no file, and comes again where the same one is there", async () => {
    const { session, store, source } = await setUp();
    const bytes = fakeJpeg(64, 48);
    await source.write("annotations/instances_train.json", new TextEncoder().encode("{}"));
    await source.write("train/new.jpg", bytes);
    const answers = [
      session.submit(labels("m", [], brings(bytes, "annotations/instances_train.json")), "test"),
      session.submit(labels("n", [], brings(bytes)), "test"),
    ];
    await session.beforeStep(0);
    expect(await Promise.all(answers)).toEqual([
      {
        accepted: false,
        reason: 'image: there is another file at "annotations/instances_train.json" of the data set\'s source',
      },
      { accepted: true, from: 1 },
    ]);
    expect(new TextDecoder().decode(await source.read("annotations/instances_train.json"))).toBe("{}");
    expect(store.images("train").map(({ key }) => key)).toEqual(["train/1.jpg", "train/2.jpg", "train/new.jpg"]);
  });

  test.each([
    ["../new.jpg", 'image: "../new.jpg": leaves the folder with ".."'],
    ["/etc/new.jpg", 'image: "/etc/new.jpg": is an absolute path'],
    ["val/1.jpg", 'image: "val/1.jpg" is of "val", which is not trained on'],
  ])("at %s is refused", async (key, reason) => {
    const { session, store, folder } = await setUp();
    store.addImages("val", [{ sourceId: 1, fileName: "1.jpg", key: "val/1.jpg", width: 64, height: 48 }]);
    const answer = session.submit(labels("m", [], brings(fakeJpeg(64, 48), key)), "test");
    await session.beforeStep(0);
    expect(await answer).toEqual({ accepted: false, reason });
    expect(existsSync(join(folder, "..", "new.jpg"))).toBe(false);
  });
});

describe("messages out of their order", () => {
  const all = (id: string, time: number, more: Partial<LabelMessage> = {}) =>
    labels(id, [add], { replace: true, time, ...more });

  test("do not undo their author's later work, also in a training that is gone on with", async () => {
    const { session, store, path } = await setUp();
    const answers = [all("b", 2000), all("a", 1000), all("other", 500, { author: "bob" })].map((message) =>
      session.submit(message, "test"),
    );
    await session.beforeStep(0);
    const reason =
      "time: ada has labelled train/1.jpg at 1970-01-01T00:00:02.000Z, after this, which is of 1970-01-01T00:00:01.000Z";
    expect(await Promise.all(answers)).toEqual([
      { accepted: true, from: 1 },
      { accepted: false, reason },
      { accepted: true, from: 1 },
    ]);
    const { session: resumed } = await setUp({ path, store });
    const late = resumed.submit(all("a", 1000), "test");
    await resumed.beforeStep(5);
    expect(await late).toEqual({ accepted: false, reason });
  });

  test("count where they take nothing away, or say what they saw", async () => {
    const { session, store } = await setUp();
    const tell = async (message: ReturnType<typeof labels>) => {
      const answer = session.submit(message, "test");
      await session.beforeStep(0);
      return (await answer).accepted;
    };
    expect(await tell(all("b", 2000))).toBe(true);
    expect(await tell(labels("a", [add], { time: 1000 }))).toBe(true);
    expect(store.annotationsOf(1).length).toBe(2);
  });
});

describe("a flood", () => {
  test("of 10,000 messages is taken in over some steps, or refused, each with an answer", async () => {
    const { session, training, events, bus, server } = await serve({ maxWaiting: 3000 });
    const { socket } = await open(server);
    for (let i = 0; i < 10_000; i++) socket.send(encodeMessage(control(`${i}`, "evaluate")));
    const answered = () => training.calls.length + session.status.refused;
    let most = 0;
    for (let step = 0; answered() < 10_000; step++) {
      const before = training.calls.length;
      await session.beforeStep(step);
      most = Math.max(most, training.calls.length - before);
      await Bun.sleep(0);
    }
    expect(most).toBe(256);
    expect(answered()).toBe(10_000);
    expect(training.calls.length).toBeGreaterThanOrEqual(3000);
    await bus.close();
    // Some of the answers are missed by a reader, which is told how many.
    const missed = events.reduce((sum, event) => sum + (event.kind === "dropped" ? event.count : 0), 0);
    expect(events.filter(({ kind }) => kind !== "dropped").length + missed).toBe(10_000);
  });

  test("leaves a step's time to the step: what takes longer waits for the next", async () => {
    const { session, training } = await setUp({ budgetMs: 0 });
    const answers = [1, 2, 3].map((i) => session.submit(control(`${i}`, "evaluate"), "test"));
    for (let step = 0; step < 3; step++) {
      await session.beforeStep(step);
      expect(training.calls.length).toBe(step + 1);
    }
    expect(await Promise.all(answers)).toEqual([1, 2, 3].map((from) => ({ accepted: true, from })));
  });

  test("of large messages takes no more memory than it may", async () => {
    const { session } = await setUp({ maxWaitingBytes: 5000 });
    const large = (id: string) => session.submit(labels(id, [], brings(new Uint8Array(3000))), "test");
    void large("m");
    expect(await large("n")).toEqual({
      accepted: false,
      reason: "3256 bytes of messages wait already, of 5000 that may; try again later",
    });
    await session.beforeStep(0);
    const again = large("o");
    await session.beforeStep(1);
    expect(await again).toMatchObject({ reason: expect.stringContaining("not a JPEG") as unknown as string });
  });
});

describe("at the address", () => {
  test("a message that is too large ends its own connection alone", async () => {
    const { server, session, post } = await serve();
    const [one, other] = [await open(server), await open(server)];
    one.socket.send(new Uint8Array(65 * 2 ** 20));
    expect(await one.closed).toBeGreaterThan(1000);
    other.socket.send(encodeMessage(control("c", "save")));
    while (session.status.waiting === 0) await Bun.sleep(1);
    expect((await post(new Uint8Array(65 * 2 ** 20))).status).toBe(413);
  });

  test("a page from elsewhere writes nothing, though it knows the token", async () => {
    const { session, post, server } = await serve();
    const frame = encodeMessage(control("c", "stop"));
    const { status } = await post(frame, { Origin: "https://evil.example" });
    expect([status, session.status.waiting]).toEqual([403, 0]);
    const own = post(frame, { Origin: new URL(server.url).origin });
    while (session.status.waiting === 0) await Bun.sleep(1);
    await session.beforeStep(0);
    expect((await own).status).toBe(200);
  });
});

describe("where the journal cannot be written", () => {
  test("what was taken in is answered when it can be, and nothing more is taken in until then", async () => {
    const full = { is: true };
    const { session, training, path, bus, events } = await setUp({ full });
    const states: [string, Answer][] = [];
    const tell = (id: string) =>
      void session.submit(control(id, "evaluate"), "test").then((answer) => states.push([id, answer]));
    tell("a");
    await session.beforeStep(0);
    expect([training.calls.length, states.length]).toEqual([1, 0]);
    tell("b");
    for (let step = 1; step < 50; step++) await session.beforeStep(step);
    expect(states).toEqual([
      ["b", { accepted: false, reason: `journal: ${path}: no space left on the disk; try again later` }],
    ]);
    full.is = false;
    tell("b");
    await session.beforeStep(50);
    await Bun.sleep(0);
    expect(states.slice(1)).toEqual([
      ["a", { accepted: true, from: 51 }],
      ["b", { accepted: true, from: 51 }],
    ]);
    expect((await Journal.read(path)).map(({ message, iteration }) => [message, iteration])).toEqual([
      ["a", 0],
      ["b", 50],
    ]);
    await bus.close();
    const said = events.flatMap((event) => (event.kind === "log" ? [event.text] : []));
    const failure = `${path}: no space left on the disk; labels and commands are refused until it can be`;
    expect(said).toEqual([failure, "the journal is written again"]);
  });

  test("until the training's end, what it has is told to whoever sent it", async () => {
    const { session, path } = await setUp({ full: { is: true } });
    const answer = session.submit(control("a", "evaluate"), "test");
    await session.beforeStep(0);
    await session.close();
    const reason = `it was taken in, and is not in the journal: ${path}: no space left on the disk`;
    expect(await answer).toEqual({ accepted: false, reason });
  });
});

test("on a full disk the journal and the store are whole, and the spool counts what it drops", () => {
  const ran = runOnSmallDisk(join(import.meta.dir, "full-disk.ts"), tmpdir(), 1024);
  if (!ran) return;
  rmSync(ran.folder, { recursive: true });
  const lines = ran.output.trimEnd().split("\n");
  const full = "no space left on the disk (ENOSPC)";
  expect(lines).toEqual([
    "labels: refused: SQLiteAnnStore.transaction: FOLDER/store.sqlite: database or disk is full",
    `another: refused: journal: FOLDER/journal.dlvs: cannot write the journal: ${full}; try again later`,
    "command: accepted",
    "labels: accepted",
    `log: FOLDER/journal.dlvs: cannot write the journal: ${full}; labels and commands are refused until it can be`,
    "log: the journal is written again",
    "journal: c m",
    "boxes: 2",
    "spool: warning: http://127.0.0.1: it answers 503 Service Unavailable; messages wait in FOLDER/spool",
    `spool: warning: http://127.0.0.1: FOLDER/spool: cannot write the spool of messages: ${full}; messages are dropped`,
    "spool: http://127.0.0.1: it takes messages again",
    "spool: 40 dropped, 0 refused, 0 wait; came: 1 2 43",
  ]);
});
