/** The bus: publishing waits for nobody, memory stays bounded, what a reader has missed is counted and told to it. */
import { describe, expect, test } from "bun:test";
import { decodeMessage, type Message } from "../../lib/formats";
import { LiveBus, type LiveSink } from "../../lib/live";

const train = (iteration: number): Message => ({
  type: "metrics",
  value: { what: "train", iteration, epoch: 0, time: 0, values: { loss: iteration } },
});
const evaluation = (iteration: number): Message => ({
  type: "metrics",
  value: { what: "evaluation", iteration, epoch: 0, time: 0, values: { AP: 0.5 } },
});
const sample = (iteration: number, bytes = 1000): Message => ({
  type: "sample",
  value: {
    ...{ iteration, time: 0, thumbnail: new Uint8Array(bytes) },
    predictions: {
      ...{ name: "x", width: 1, height: 1, boxes: new Float32Array(0), scores: new Float32Array(0) },
      labels: new Uint32Array(0),
    },
    truth: {
      ...{ boxes: new Float64Array(0), labels: new Uint32Array(0), ids: new Float64Array(0) },
      crowd: new Uint8Array(0),
    },
  },
});
const started: Message = {
  type: "event",
  value: {
    ...{ kind: "started", iteration: 0, time: 0, run: "r", config: "{}", classes: ["cat"] },
    versions: { dlfs: "0", bun: "1", backend: "cpu", libraries: {} },
  },
};

/** Keeps what it is given; waits before each batch where it is told to. */
class Collector implements LiveSink {
  readonly messages: Message[] = [];
  closed = false;
  wait: Promise<void> | null = null;
  constructor(readonly name: string) {}

  async send(frames: readonly Uint8Array[]): Promise<void> {
    await this.wait;
    for (const frame of frames) this.messages.push(decodeMessage(frame, this.name)!);
  }

  async close(): Promise<void> {
    this.closed = true;
  }
}

/** What a message is, in short. */
const short = ({ type, value }: Message): string =>
  type === "event"
    ? `${value.kind}${value.kind === "dropped" ? ` ${value.count}` : ""}`
    : `${type} ${"iteration" in value ? value.iteration : ""}`;

describe("a bus", () => {
  test("gives every reader all messages in order, those who come later the start first", async () => {
    const bus = new LiveBus();
    const [first, second] = [new Collector("first"), new Collector("second")];
    bus.attach(first);
    bus.publish(started);
    for (let i = 1; i <= 600; i++) bus.publish(train(i));
    bus.attach(second);
    bus.publish(train(601));
    await bus.close();
    expect(first.messages.map(short)).toEqual([
      "started",
      ...Array.from({ length: 601 }, (_, i) => `metrics ${i + 1}`),
    ]);
    expect(second.messages.map(short)).toEqual(["started", "metrics 601"]);
    expect([first.closed, second.closed]).toEqual([true, true]);
  });

  test("drops for a stalled reader what matters least, tells it how much, and costs the others nothing", async () => {
    const bus = new LiveBus();
    const [quick, stalled] = [new Collector("quick"), new Collector("stalled")];
    const free = Promise.withResolvers<void>();
    stalled.wait = free.promise;
    bus.attach(quick);
    bus.attach(stalled, { maxMessages: 6 });
    bus.publish(evaluation(1));
    await Bun.sleep(1); // it has this one in hand, and takes no more
    for (let i = 2; i <= 4; i++) bus.publish(sample(i));
    for (let i = 5; i <= 9; i++) bus.publish(train(i));
    for (let i = 10; i <= 12; i++) bus.publish(evaluation(i));
    await Bun.sleep(1);
    expect(quick.messages.length).toBe(12);
    const [, status] = bus.readers;
    expect(status).toMatchObject({ name: "stalled", sent: 1, waiting: 6, dropped: 5 });
    free.resolve();
    await bus.close();
    // Three samples and the two oldest steps went.
    const rest = ["metrics 7", "metrics 8", "metrics 9", "metrics 10", "metrics 11", "metrics 12"];
    expect(stalled.messages.map(short)).toEqual(["metrics 1", "dropped 5", ...rest]);
  });

  test("keeps no more bytes than it may, however many messages come", async () => {
    const bus = new LiveBus();
    const stalled = new Collector("stalled");
    stalled.wait = new Promise(() => {});
    bus.attach(stalled, { maxBytes: 50_000 });
    for (let i = 0; i < 10_000; i++) bus.publish(sample(i, 3000));
    bus.publish(sample(10_000, 100_000)); // larger than all that may wait
    const [status] = bus.readers;
    expect(status!.waitingBytes).toBeLessThanOrEqual(50_000);
    expect(status!.waitingBytes).toBeGreaterThan(40_000);
    expect(status!.dropped + status!.waiting + status!.sent).toBe(10_001);
  });

  test("gives up a reader that fails, says so once, and goes on", async () => {
    const said: string[] = [];
    const bus = new LiveBus({ onError: (reader, { message }) => said.push(`${reader}: ${message}`) });
    const good = new Collector("good");
    bus.attach({ name: "bad", send: () => Promise.reject(new Error("broken pipe")) });
    bus.attach(good);
    bus.publish(train(1));
    await Bun.sleep(1);
    bus.publish(train(2));
    await bus.close();
    expect(said).toEqual(["bad: broken pipe"]);
    expect(good.messages.map(short)).toEqual(["metrics 1", "metrics 2"]);
  });

  test("ends in time with a reader that never takes anything", async () => {
    const bus = new LiveBus();
    const stalled = new Collector("stalled");
    stalled.wait = new Promise(() => {});
    bus.attach(stalled);
    bus.publish(train(1));
    await bus.close(20);
    expect(bus.hasReaders).toBe(false);
  });

  test("makes nothing where nobody listens, and a reader that leaves gets nothing more", async () => {
    const bus = new LiveBus();
    bus.publish({ type: "control", value: { id: "c", author: "", time: 0, command: "learningRate" } }); // would not encode
    const reader = new Collector("reader");
    const leave = bus.attach(reader);
    bus.publish(train(1));
    await leave(100);
    bus.publish(train(2));
    expect(reader.messages.map(short)).toEqual(["metrics 1"]);
    expect(reader.closed).toBe(true);
  });
});
