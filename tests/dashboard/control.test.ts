/** What a training is told on the dashboard: taken in, refused, or nobody there to hear it. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DashboardServer } from "../../lib/dashboard";
import type { ControlMessage, Message } from "../../lib/formats";
import { type Answer, LiveBus, LiveServer, removeLiveAddress, writeLiveAddress } from "../../lib/live";
import { writeRun } from "./run-fixture";

let root: string;
let run: string;
let dashboard: DashboardServer;
let training: LiveServer;
let heard: ControlMessage[] = [];
const answerTo = ({ command }: ControlMessage): Answer =>
  command === "resume" ? { accepted: false, reason: "command: it does not pause" } : { accepted: true, from: 7 };

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "dlfs-control-"));
  const folder = await writeRun(root, "cells", 10);
  folder.close();
  run = folder.path;
  await mkdir(join(run, "live"));
  const submit = async ({ value }: Message) => {
    heard.push(value as ControlMessage);
    return answerTo(value as ControlMessage);
  };
  training = new LiveServer({ port: 0, token: "live", bus: new LiveBus(), submit });
  dashboard = await DashboardServer.open({ folders: [root], port: 0, token: "secret", edit: true });
});
afterAll(async () => {
  await dashboard[Symbol.asyncDispose]();
  await training[Symbol.asyncDispose]();
  await rm(root, { recursive: true });
});
beforeEach(async () => {
  heard = [];
  await writeLiveAddress(run, { url: training.url, token: "live", split: "train" });
});

async function tell(body: unknown, server = dashboard, more: Record<string, string> = {}): Promise<[number, string]> {
  const headers = { Authorization: "Bearer secret", "Content-Type": "application/json", ...more };
  const text = typeof body === "string" ? body : JSON.stringify(body);
  const answer = await fetch(new URL("api/runs/cells-1/control", server.url), { method: "POST", headers, body: text });
  return [answer.status, await answer.text()];
}
const isLive = async (): Promise<boolean> => {
  const answer = await fetch(new URL("api/runs", dashboard.url), { headers: { Authorization: "Bearer secret" } });
  return ((await answer.json()) as { runs: { live: boolean }[] }).runs[0]!.live;
};

describe("a training that goes on", () => {
  test("is told commands, and its answer is told", async () => {
    expect(await isLive()).toBe(true);
    expect(await tell({ command: "evaluate", author: "ada" })).toEqual([200, '{"from":7}']);
    expect(await tell({ command: "learningRate", value: 0.5, author: "ada", id: "mine" })).toEqual([200, '{"from":7}']);
    expect(heard.map(({ command, value, author }) => [command, value, author])).toEqual([
      ["evaluate", undefined, "ada"],
      ["learningRate", 0.5, "ada"],
    ]);
    expect([heard[0]!.id.length > 20, heard[1]!.id]).toEqual([true, "mine"]);
  });

  test("that refuses one is heard", async () => {
    const [status, text] = await tell({ command: "resume", author: "ada" });
    expect([status, text]).toEqual([422, expect.stringContaining("it does not pause")]);
  });

  test("is not told what makes no sense", async () => {
    for (const [body, reason] of [
      ["{", "body: expected JSON"],
      ["null", "body: expected an object"],
      [{ command: "explode", author: "ada" }, "command: expected pause, resume"],
      [{ command: "pause" }, "author: expected a text"],
      [{ command: "pause", author: "ada", id: "" }, "id: expected a text"],
      [{ command: "learningRate", author: "ada", value: "1" }, "value: expected a number"],
      [{ command: "learningRate", author: "ada", value: -1 }, "value: expected a factor above 0"],
      [{ command: "stop", author: "ada", value: 1 }, "takes none, got 1"],
    ] as const) {
      expect(await tell(body)).toEqual([400, expect.stringContaining(reason)]);
    }
    expect((await tell({ command: "pause", author: "ada", more: "x".repeat(5000) }))[0]).toBe(413);
    expect(heard).toEqual([]);
  });

  test("is told nothing by a form, another page, who has no token, or without --edit", async () => {
    const body = { command: "stop", author: "ada" };
    expect((await tell(body, dashboard, { "Content-Type": "text/plain" }))[0]).toBe(415);
    expect((await tell(body, dashboard, { Origin: "https://elsewhere.example" }))[0]).toBe(403);
    expect((await tell(body, dashboard, { Authorization: "Bearer other" }))[0]).toBe(401);
    await using readOnly = await DashboardServer.open({ folders: [root], port: 0, token: "secret" });
    expect((await tell(body, readOnly))[0]).toBe(405);
    expect(heard).toEqual([]);
  });
});

test("where none goes on, that is said", async () => {
  await removeLiveAddress(run);
  expect(await isLive()).toBe(false);
  expect(await tell({ command: "pause", author: "ada" })).toEqual([
    409,
    expect.stringContaining("no training of cells-1"),
  ]);
});

test("one that cannot be reached, or has another token, is named", async () => {
  await writeLiveAddress(run, { url: "http://127.0.0.1:9/", token: "live", split: "train" });
  expect(await tell({ command: "pause", author: "ada" })).toEqual([502, expect.stringContaining("cannot be reached")]);
  await writeLiveAddress(run, { url: training.url, token: "other", split: "train" });
  expect(await tell({ command: "pause", author: "ada" })).toEqual([
    502,
    expect.stringContaining("wants another token"),
  ]);
  expect(heard).toEqual([]);
});
