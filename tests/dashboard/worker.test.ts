/** A dashboard in a thread of its own answers as one in this thread does, and says when it does no more. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Dashboard, DashboardServer, DashboardWorker } from "../../lib/dashboard";
import { AccessGate } from "../../lib/live";
import { writeEvaluation, writeRun } from "./run-fixture";

let root: string;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "dlfs-dashboard-"));
  const run = await writeRun(root, "cells", 50);
  await writeEvaluation(run, 40, 30, 2);
  run.close();
});
afterAll(async () => {
  await rm(root, { recursive: true });
});

const ask = (path: string, init: RequestInit = {}) =>
  new Request(`http://127.0.0.1:1/${path}`, { headers: { Authorization: "Bearer secret" }, ...init });

test("answers the same, in whatever order", async () => {
  await using worker = await DashboardWorker.open({ folders: [root], token: "secret" });
  using dashboard = await Dashboard.open([root], new AccessGate("secret"));
  const requests = [
    ...["", "uplot.js", "api/runs", "api/runs/cells-1/curves?name=train/loss", "api/runs/none/log", "elsewhere"].map(
      (path) => () => ask(path),
    ),
    () => ask("api/runs/cells-1/evaluations/latest/images"),
    () => ask("api/runs", { headers: {} }),
    () => ask("api/runs", { method: "POST", body: "{}" }),
  ];
  const answers = await Promise.all(requests.map((request) => worker.handle(request())));
  for (const [i, request] of requests.entries()) {
    const wanted = await dashboard.handle(request());
    const answer = answers[i] as Response;
    expect([answer.status, answer.headers.get("content-type")]).toEqual([
      wanted.status,
      wanted.headers.get("content-type"),
    ]);
    expect(answer.headers.get("content-security-policy")).toBe(wanted.headers.get("content-security-policy"));
    expect(await answer.bytes()).toEqual(await wanted.bytes());
  }
  expect(answers.map(({ status }) => status)).toEqual([200, 200, 200, 200, 404, 404, 200, 401, 405]);
});

test("takes bodies", async () => {
  await using worker = await DashboardWorker.open({ folders: [root], token: "secret", edit: true });
  const headers = { Authorization: "Bearer secret", "Content-Type": "application/json" };
  const answer = await worker.handle(ask("api/runs/cells-1/labels", { method: "POST", body: "{", headers }));
  expect([answer.status, await answer.text()]).toEqual([400, expect.stringContaining("JSON")]);
});

test("refuses what a dashboard refuses", async () => {
  const missing = join(root, "missing");
  expect(DashboardWorker.open({ folders: [missing], token: "secret" })).rejects.toThrow(`${missing}: it is no folder`);
  expect(DashboardWorker.open({ folders: [root], token: "" })).rejects.toThrow("token: it is empty");
});

test("says that it has ended", async () => {
  const worker = await DashboardWorker.open({ folders: [root], token: "secret" });
  await worker[Symbol.asyncDispose]();
  await worker[Symbol.asyncDispose]();
  const answer = await worker.handle(ask("api/runs"));
  expect([answer.status, await answer.json()]).toEqual([503, { error: "the dashboard has ended" }]);
});

test("keeps no process alive, and is waited for by one that ends it", async () => {
  const run = async (end: string) => {
    const path = join(import.meta.dir, "../../lib/dashboard/index.ts");
    const options = JSON.stringify({ folders: [root], token: "secret" });
    const code = `import { DashboardWorker } from ${JSON.stringify(path)};
      const worker = await DashboardWorker.open(${options}); ${end} console.log("end");`;
    const child = Bun.spawn([process.execPath, "-e", code], { stdout: "pipe", stderr: "inherit" });
    return [(await child.stdout.text()).trim(), await child.exited];
  };
  const ends = ["", "await worker[Symbol.asyncDispose]();"].map(run);
  expect(await Promise.all(ends)).toEqual([
    ["end", 0],
    ["end", 0],
  ]);
});

test("is ended by a server that cannot have its port", async () => {
  using taken = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response() });
  const port = taken.port as number;
  expect(DashboardServer.open({ folders: [root], port, token: "secret", thread: true })).rejects.toThrow(
    `cannot listen on 127.0.0.1:${port}`,
  );
});
