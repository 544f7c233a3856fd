/** A service that publishes a part of what it answers: to listeners, and to a folder from which it is labelled. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { decodeMessage, type Message, type SampleMessage } from "../../lib/formats";
import { CollectSink, LiveBus, LiveFileReader } from "../../lib/live";
import { openPublishing } from "../../lib/service/publishing";
import { PublishingBackend, type PublishingOptions } from "../../lib/service/publishing-backend";
import { InferenceService } from "../../lib/service/server";
import { serviceConfigOf } from "../../lib/service/service-config";
import { silentLog } from "../../lib/service/service-log";
import { StatisticsRecorder } from "../../lib/service/statistics";
import { sampleMessages } from "../formats/sample-messages";
import { FakeBackend, result } from "./fake-backend";
import { jpeg } from "./support";

const root = mkdtempSync(join(tmpdir(), "dlfs-publishing-"));
afterAll(() => rmSync(root, { recursive: true }));

/** A backend whose answers are heard. */
function publishing(options: Partial<PublishingOptions> = {}) {
  const [backend, bus] = [new FakeBackend(), new LiveBus()];
  const heard: Message[] = [];
  const errors: string[] = [];
  const send = async (frames: readonly Uint8Array[]) => {
    heard.push(...frames.map((frame) => decodeMessage(frame, "bus") as Message));
  };
  bus.attach({ name: "test", send });
  const common = { bus, share: 1, perSecond: 1000, maxImageBytes: 1e6, clock: () => 5 };
  const onError = ({ message }: Error) => errors.push(message);
  return { backend, bus, heard, errors, published: new PublishingBackend(backend, { ...common, onError, ...options }) };
}

const samplesOf = (messages: readonly Message[]): SampleMessage[] =>
  messages.flatMap(({ type, value }) => (type === "sample" ? [value] : []));

describe("what is answered", () => {
  test("is published with the file, by its hash, behind what the model's labels mean", async () => {
    const { bus, heard, published } = publishing();
    const reply = await published.infer("shapes", undefined, { images: [jpeg, { width: 1, height: 1, data: jpeg }] });
    await published.infer("shapes", "1", { images: [jpeg] });
    expect(reply.results).toEqual([result(), result()]);
    await bus.close();
    const hash = new Bun.CryptoHasher("sha256").update(jpeg).digest("hex").slice(0, 32);
    expect(heard[0]).toMatchObject({
      ...{ type: "event", value: { kind: "started", run: "shapes/1", classes: ["red", "green"], time: 5 } },
    });
    expect(samplesOf(heard)).toMatchObject([
      {
        ...{ iteration: 1, time: 5, split: "shapes/1", thumbnail: jpeg },
        predictions: {
          ...{ name: `${hash}.jpeg`, width: 20, height: 10, boxes: Float32Array.of(1, 2, 3.5, 4.25, 5, 6, 7, 8) },
          ...{ scores: Float32Array.of(0.75, 0.5), labels: Uint32Array.of(1, 0) },
        },
      },
      { iteration: 3, predictions: { name: `${hash}.jpeg` } },
    ]);
    expect(heard.length).toBe(3);
  });

  test("of files that are too large is published without them, of damaged ones not at all", async () => {
    const { backend, bus, heard, published } = publishing({ maxImageBytes: jpeg.length - 1 });
    backend.answer = (request) => backend.reply(request, [result(), result({ error: "it ends early" })]);
    await published.infer("shapes", undefined, { images: [jpeg, jpeg] });
    await bus.close();
    expect(samplesOf(heard).map(({ thumbnail }) => thumbnail)).toEqual([undefined]);
  });

  test("is published in part: a share, and so many a second", async () => {
    let now = 0;
    const draws = [0.1, 0.6, 0.4, 0.5, 0.9, 0.2];
    const random = () => draws[now++ % draws.length]!;
    const { heard, bus, published } = publishing({ share: 0.5, random });
    await published.infer("shapes", undefined, { images: Array(6).fill(jpeg) });
    await bus.close();
    expect(samplesOf(heard).map(({ iteration }) => iteration)).toEqual([1, 3, 6]);

    let time = 0;
    const slow = publishing({ perSecond: 2, clock: () => time });
    for (; time < 3000; time += 100) await slow.published.infer("shapes", undefined, { images: [jpeg] });
    await slow.bus.close();
    // Two at once, then one each half second.
    expect(samplesOf(slow.heard).map((sample) => sample.time)).toEqual([0, 100, 500, 1000, 1500, 2000, 2500]);
  });

  test("is answered, though it cannot be published", async () => {
    const { backend, errors, published } = publishing();
    backend.answer = (request) => {
      const reply = backend.reply(request);
      backend.list = []; // unloaded meanwhile
      return reply;
    };
    const reply = await published.infer("shapes", undefined, { images: [jpeg] });
    expect(reply.results.length).toBe(1);
    expect(errors).toEqual(['unknown model "shapes"']);
  });

  test("has figures from time to time: of what has come since the last ones", async () => {
    let now = 1000;
    const { backend, bus, heard, published } = publishing({ clock: () => now });
    const recorder = new StatisticsRecorder("shapes", "1");
    const snapshot = (success: number, inferences: number, seconds: number, rejected: number) => ({
      ...recorder.snapshot({ queued: [1, 2], queuedBytes: 0, running: 0, engines: [] }),
      ...{ success, inferences, executions: success },
      failures: { REJECTED: rejected, CANCELED: 0, BACKEND: 0, OTHER: 0 },
      requestSeconds: { total: seconds, queue: 0, transfer: 0, decode: 0, infer: 0, postprocess: 0 },
    });
    backend.stats = [snapshot(10, 40, 1, 0)];
    now = 11_000;
    published.publishFigures();
    backend.stats = [snapshot(30, 80, 2, 5)];
    now = 21_000;
    published.publishFigures();
    await bus.close();
    const of = (requests: number, images: number, failures: number) => ({
      ...{ requestsPerSecond: requests, imagesPerSecond: images, failuresPerSecond: failures, queued: 3 },
    });
    expect(heard.map(({ value }) => value)).toMatchObject([
      { what: "service/shapes/1", iteration: 40, values: { ...of(1, 4, 0), requestMs: 100, batchSize: 4 } },
      { what: "service/shapes/1", iteration: 80, values: { ...of(2, 4, 0.5), requestMs: 50, batchSize: 2 } },
    ]);
  });
});

describe("a service", () => {
  const settings = (publish: object) => serviceConfigOf({ value: { publish }, at: "serve.yaml" }).publish!;

  test("fills a folder that can be labelled, and goes on with it", async () => {
    const folder = join(root, "collected");
    const config = settings({ folder, share: 1, perSecond: 1000 });
    const other = jpeg.slice();
    other.set([1], jpeg.length - 1);
    for (const image of [jpeg, jpeg, other]) {
      await using publishing = await openPublishing(config, new FakeBackend(), silentLog);
      const service = new InferenceService(publishing.backend, { port: 0 });
      const answer = await fetch(new URL("/predict", service.url), { method: "POST", body: image });
      expect(answer.status).toBe(200);
      await service.stop(0);
    }
    const names = readdirSync(join(folder, "images"));
    expect(names.length).toBe(2);
    await using reader = await LiveFileReader.open(join(folder, "live.dlvs"));
    const samples = samplesOf(await Array.fromAsync(reader.messages()));
    expect(samples.map(({ thumbnail }) => thumbnail)).toEqual([undefined, undefined, undefined]);
    expect(new Set(samples.map(({ predictions }) => predictions.name))).toEqual(new Set(names));
    const first = readFileSync(join(folder, "images", samples[0]!.predictions.name));
    expect(new Uint8Array(first)).toEqual(jpeg);
  });

  test("lets those listen who know the token, and posts to another system", async () => {
    const posted = Promise.withResolvers<string | null>();
    await using receiver = Bun.serve({
      ...{ port: 0, hostname: "127.0.0.1" },
      fetch: (request) => {
        posted.resolve(request.headers.get("content-type"));
        return new Response("");
      },
    });
    const before = process.env.DLFS_LIVE_TOKEN;
    process.env.DLFS_LIVE_TOKEN = "listener";
    try {
      const config = settings({ folder: join(root, "spool"), post: receiver.url.href, port: 0, share: 1 });
      await using publishing = await openPublishing(config, new FakeBackend(), silentLog);
      const url = new URL("live?token=listener", publishing.url!);
      const socket = new WebSocket(url.href.replace(/^http/, "ws"));
      socket.binaryType = "arraybuffer";
      const heard: string[] = [];
      const both = new Promise<void>((resolve) => {
        socket.onmessage = ({ data }) => {
          heard.push(decodeMessage(new Uint8Array(data as ArrayBuffer), "socket")!.type);
          if (heard.length === 2) resolve();
        };
      });
      await new Promise((resolve) => {
        socket.onopen = resolve;
      });
      await publishing.backend.infer("shapes", undefined, { images: [jpeg] });
      await both;
      expect(heard).toEqual(["event", "sample"]);
      expect(await posted.promise).toBe("application/vnd.dlfs.frames");
    } finally {
      if (before === undefined) delete process.env.DLFS_LIVE_TOKEN;
      else process.env.DLFS_LIVE_TOKEN = before;
    }
  });

  test("says what is wrong with its settings before it begins", async () => {
    expect(() => settings({ share: 0.5 })).toThrow(
      "serve.yaml.publish: expected one of folder, post and port at least",
    );
    expect(() => settings({ port: 1, share: 2 })).toThrow("serve.yaml.publish.share: expected a number from 0 up to 1");
    const config = settings({ port: 0 });
    const before = process.env.DLFS_LIVE_TOKEN;
    delete process.env.DLFS_LIVE_TOKEN;
    await expect(openPublishing(config, new FakeBackend(), silentLog)).rejects.toThrow(
      "publish.port: expected DLFS_LIVE_TOKEN in the environment",
    );
    if (before !== undefined) process.env.DLFS_LIVE_TOKEN = before;
  });
});

describe("a folder of samples", () => {
  const sample = (name: string, bytes: number): Message => {
    const { value } = sampleMessages.find(({ type }) => type === "sample") as Message & { type: "sample" };
    const predictions = { ...value.predictions, name };
    return { type: "sample", value: { ...value, predictions, thumbnail: new Uint8Array(bytes) } };
  };

  async function collect(folder: string, messages: readonly Message[], maxBytes?: number) {
    const said: string[] = [];
    const bus = new LiveBus();
    const sink = await CollectSink.open(folder, { maxBytes, onError: ({ message }) => said.push(message) });
    bus.attach(sink);
    for (const message of messages) bus.publish(message);
    await bus.close();
    await using reader = await LiveFileReader.open(join(folder, "live.dlvs"));
    const kept = samplesOf(await Array.fromAsync(reader.messages())).map(({ predictions }) => predictions.name);
    return { said, kept, missed: sink.missed };
  }

  test("holds no more than it may, also when it is opened again, and says so once", async () => {
    const folder = join(root, "limited");
    const limit = 9000;
    const first = await collect(folder, [sample("a", 4000), sample("b", 6000), sample("c", 6000)], limit);
    const full = `${folder}: its limit of ${limit} bytes is reached; images are not kept`;
    expect(first).toEqual({ said: [full], kept: ["a"], missed: 2 });
    const second = await collect(folder, [sample("d", 6000), sample("e", 100)], limit);
    expect(second).toEqual({ said: [full], kept: ["a", "e"], missed: 1 });
  });

  test("has no file outside of it", async () => {
    const folder = join(root, "inside");
    const { said, kept, missed } = await collect(folder, [sample("../../x", 10), sample("ok", 10)]);
    expect([kept, missed, said.length]).toEqual([["ok"], 1, 1]);
    expect(said[0]).toContain('leaves the folder with ".."');
  });
});
