/** TensorBoard as one that listens: figures as curves, answers counted, and a file that cannot be written. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { EventContent, Message } from "../../lib/formats";
import { LiveBus, TensorBoardSink } from "../../lib/live";
import { TensorBoardWriter } from "../../lib/monitor";
import { sampleMessages } from "../formats/sample-messages";
import { readEventFile } from "../support/event-file";

const folder = mkdtempSync(join(tmpdir(), "dlfs-tensorboard-sink-"));
afterAll(() => rmSync(folder, { recursive: true }));

const event = (iteration: number, content: EventContent) =>
  ({ type: "event", value: { ...content, iteration, time: 0 } }) as Message;

test("has the figures by their steps, counts of answers, warnings and the end", async () => {
  const writer = new TensorBoardWriter(join(folder, "all"));
  const bus = new LiveBus();
  bus.attach(new TensorBoardSink(writer));
  const values = { loss: 0.5, learningRate: 0.25 };
  bus.publish({ type: "metrics", value: { what: "train", iteration: 3, epoch: 0, time: 0, values } });
  bus.publish(event(3, { kind: "accepted", id: "a", from: 4 }));
  bus.publish(event(4, { kind: "refused", id: "b", reason: "no" }));
  bus.publish(event(4, { kind: "accepted", id: "c", from: 5 }));
  bus.publish(event(4, { kind: "log", level: "info", text: "a line" }));
  bus.publish(event(5, { kind: "log", level: "warning", text: "warning: slow" }));
  bus.publish({ type: "metrics", value: { what: "evaluation", iteration: 5, epoch: 0, time: 0, values: { AP: 0.5 } } });
  bus.publish(event(6, { kind: "ended", text: "done" }));
  await bus.close();
  expect(readEventFile(writer.path)).toEqual([
    { step: 3, name: "train/loss", value: 0.5 },
    { step: 3, name: "train/learningRate", value: 0.25 },
    { step: 3, name: "live/accepted", value: 1 },
    { step: 4, name: "live/refused", value: 1 },
    { step: 4, name: "live/accepted", value: 2 },
    { step: 5, name: "live/warnings", value: "warning: slow" },
    { step: 5, name: "evaluation/AP", value: 0.5 },
    { step: 6, name: "live/ended", value: "done" },
  ]);
});

test("is told what else it has missed, and takes messages of all kinds", async () => {
  const writer = new TensorBoardWriter(join(folder, "kinds"));
  const bus = new LiveBus();
  bus.attach(new TensorBoardSink(writer), { maxMessages: sampleMessages.length });
  for (let round = 0; round < 2; round++) for (const message of sampleMessages) bus.publish(message);
  await bus.close();
  const missed = readEventFile(writer.path).find(({ name }) => name === "live/dropped");
  expect(missed?.value).toBeGreaterThanOrEqual(sampleMessages.length);
});

test("says once that its file cannot be written, and stays", async () => {
  const writer = new TensorBoardWriter(join(folder, "closed"));
  writer.close(); // as good as a full disk
  const said: string[] = [];
  const bus = new LiveBus();
  bus.attach(new TensorBoardSink(writer, ({ message }) => said.push(message)));
  for (let iteration = 1; iteration <= 3; iteration++) {
    bus.publish({ type: "metrics", value: { what: "train", iteration, epoch: 0, time: 0, values: { loss: 1 } } });
    await Bun.sleep(1);
  }
  expect([said, bus.hasReaders]).toEqual([[`${writer.path}: cannot write: it is closed`], true]);
  await bus.close();
});
