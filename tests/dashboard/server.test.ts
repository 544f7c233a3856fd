/** What the dashboard answers, to whom, and that it follows runs that grow, are resumed, appear and vanish. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { appendFile, mkdir, mkdtemp, readdir, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DashboardServer } from "../../lib/dashboard";
import { RunFolder } from "../../lib/monitor";
import { sampleOf, writeRun, writeSamples } from "./run-fixture";

let root: string;
let server: DashboardServer;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "dlfs-dashboard-"));
  (await writeRun(root, "cells", 100)).close();
  server = await DashboardServer.open({ folders: [root], port: 0, token: "secret" });
});
afterAll(async () => {
  await server[Symbol.asyncDispose]();
  await rm(root, { recursive: true });
});

const authorized = { Authorization: "Bearer secret" };
const ask = (path: string, init: RequestInit = { headers: authorized }) => fetch(new URL(path, server.url), init);
// biome-ignore lint/suspicious/noExplicitAny: answers are compared as a whole
async function get(path: string): Promise<any> {
  const answer = await ask(path);
  expect([path, answer.status]).toEqual([path, 200]);
  return await answer.json();
}

describe("access", () => {
  test("needs the token but for the page, which says nothing", async () => {
    for (const path of ["/api/runs", "/api/state", "/api/runs/cells-1/log", "/api/none"]) {
      expect((await ask(path, {})).status).toBe(401);
      expect((await ask(path, { headers: { Authorization: "Bearer other" } })).status).toBe(401);
    }
    expect((await ask("/api/runs?token=secret", {})).status).toBe(200);
    const files = await readdir(new URL("../../lib/dashboard/page", import.meta.url));
    const served = files.filter((name) => /\.(js|css)$/.test(name)).map((name) => `/${name}`);
    expect(served).toContain("/page.js");
    for (const path of ["/", "/uplot.js", "/uplot.css", ...served]) {
      const answer = await ask(path, {});
      expect([path, answer.status]).toEqual([path, 200]);
      expect(answer.headers.get("content-security-policy")).toContain("script-src 'self'");
      expect((await answer.text()).length).toBeGreaterThan(100);
    }
  });

  test("is for reading alone", async () => {
    for (const method of ["POST", "PUT", "DELETE"]) {
      expect((await ask("/api/runs", { method, headers: authorized })).status).toBe(405);
    }
  });

  test("reaches nothing but a run's own files", async () => {
    await symlink("/etc", join(root, "cells-1", "pictures", "etc"));
    for (const path of [
      "/api/runs/..%2f..%2fetc/config",
      "/api/runs/cells-1/pictures/..%2fconfig.json",
      "/api/runs/cells-1/pictures/etc%2fhostname",
      "/api/runs/cells-1/pictures/none.jpg",
      "/api/runs/none/log",
      "/page/index.html",
    ]) {
      expect([path, (await ask(path)).status]).toEqual([path, 404]);
    }
    expect((await ask("/api/runs/%ff/log")).status).toBe(400);
  });

  test("a folder that is none, and a port in use, are named", async () => {
    const options = { folders: [join(root, "none")], port: 0, token: "t" };
    expect(DashboardServer.open(options)).rejects.toThrow("it is no folder of runs");
    const { port } = new URL(server.url);
    expect(DashboardServer.open({ folders: [root], port: Number(port), token: "t" })).rejects.toThrow(
      /cannot listen on/,
    );
    expect(DashboardServer.open({ folders: [root], port: 0, token: "" })).rejects.toThrow("token");
  });
});

test("runs are listed with what is known of them", async () => {
  const { runs } = await get("/api/runs");
  expect(runs.find(({ name }: { name: string }) => name === "cells-1")).toEqual({
    ...{ name: "cells-1", started: 1_700_000_000_000, written: 1_700_000_000_000, iteration: 100, iterations: 200 },
    ...{ done: false, live: false, generation: 0, evaluation: { iteration: 100, AP: 0.99, AP50: 1 }, samples: 0 },
    curves: [
      ...["evaluation/AP", "evaluation/AP50", "train/boxRegression", "train/classification", "train/epoch"],
      ...["train/imagesPerSecond", "train/learningRate", "train/loss", "train/waitShare"],
    ],
  });
});

describe("curves", () => {
  test("are columns over the steps done; the loss is the sum of losses", async () => {
    const { curves } = await get("/api/runs/cells-1/curves?name=train/loss&name=evaluation/AP&name=none");
    expect(Object.keys(curves)).toEqual(["train/loss", "evaluation/AP"]);
    const loss = curves["train/loss"];
    expect([loss.count, loss.first, loss.last, loss.x.length]).toEqual([100, 1, 100, 100]);
    expect(loss.y[0]).toBe(2.5);
    expect(curves["evaluation/AP"].x).toEqual([20, 40, 60, 80, 100]);
  });

  test("are thinned, cut and smoothed as is asked for", async () => {
    const url = "/api/runs/cells-1/curves?name=train/classification&from=11&to=30&buckets=4&smooth=0.9";
    const { x, smooth } = (await get(url)).curves["train/classification"];
    expect([x.at(0) >= 10, x.at(-1) <= 31, x.length <= 10, smooth.x.length <= 10]).toEqual([true, true, true, true]);
    expect(smooth.y).not.toEqual(x);
  });

  test("refuse what is no number by its name", async () => {
    for (const query of ["from=x", "buckets=0", "buckets=1e9", "smooth=1", "smooth=-1", "buckets=1.5"]) {
      const answer = await ask(`/api/runs/cells-1/curves?name=train/loss&${query}`);
      expect([query, answer.status]).toEqual([query, 400]);
      expect(((await answer.json()) as { error: string }).error).toStartWith(query.split("=")[0] as string);
    }
  });

  test("grow with the file, a line at a time, and begin anew when it is replaced", async () => {
    const run = await writeRun(root, "growing", 10);
    const loss = async () => {
      const { generation, curves } = await get("/api/runs/growing-1/curves?name=train/loss");
      return [generation, curves["train/loss"].count];
    };
    expect(await loss()).toEqual([0, 10]);
    const state = async () => (await get("/api/state?run=growing-1")).runs["growing-1"];
    const before = await state();
    expect(await state()).toEqual(before);
    await appendFile(join(run.path, "metrics.jsonl"), '{"kind":"train","iteration":10,"a');
    expect(await loss()).toEqual([0, 10]);
    await appendFile(join(run.path, "metrics.jsonl"), '":1}\nno JSON\n{"kind":"train","iteration":11,"a":"NaN"}\n');
    expect(await loss()).toEqual([0, 12]);
    const { metrics, ...others } = await state();
    expect(metrics).not.toBe(before.metrics);
    expect(others).toEqual({ log: before.log, samples: "", evaluations: "", pictures: before.pictures });
    run.close();
    // Goes on from step 5: the lines behind it are gone.
    RunFolder.open(run.path, { from: 5 }).close();
    expect(await loss()).toEqual([1, 5]);
  });
});

describe("the log", () => {
  test("is given from its end, in whole lines, and further back", async () => {
    const log = (query: string) => get(`/api/runs/cells-1/log${query}`);
    const all = await log("");
    expect(all.text.split("\n").map((line: string) => line.slice(25))).toEqual([
      "log of cells",
      "warning: something",
      "",
    ]);
    const end = await log("?bytes=50");
    expect(end.text).toEndWith("Z warning: something\n");
    expect(end.text.split("\n")).toHaveLength(2);
    expect((await log(`?before=${end.from}`)).text + end.text).toBe(all.text);
  });

  test("of a run without one is empty", async () => {
    await mkdir(join(root, "bare"));
    await Bun.write(join(root, "bare", "metrics.jsonl"), "");
    expect(await get("/api/runs/bare/log")).toEqual({ text: "", from: 0, to: 0 });
    expect(await get("/api/runs/bare/samples")).toEqual({ classes: [], iterations: [], iteration: null, samples: [] });
    expect(await get("/api/runs/bare/pictures")).toEqual({ pictures: [] });
    expect(await get("/api/runs/bare/config")).toBeNull();
    await rm(join(root, "bare"), { recursive: true });
    expect((await get("/api/runs")).runs.map(({ name }: { name: string }) => name)).not.toContain("bare");
  });
});

describe("samples", () => {
  test("are those of the last evaluation, or of another, with their images, and grow", async () => {
    const run = await writeRun(root, "seen", 10);
    run.close();
    const jpeg = Uint8Array.of(0xff, 0xd8, 1, 2, 3);
    await writeSamples(run.path, [sampleOf(5, "a.jpg", jpeg), sampleOf(5, "b.jpg")]);
    const first = await get("/api/runs/seen-1/samples");
    expect([first.classes, first.iterations, first.iteration]).toEqual([["cell", "clot"], [5], 5]);
    expect(first.samples).toHaveLength(2);
    expect(first.samples[0]).toEqual({
      ...{ index: 0, name: "a.jpg", imageId: 7, split: "val", width: 200, height: 100, hasImage: true },
      found: [
        { box: [10, 20, 60, 80], score: 0.9, label: 0 },
        { box: [100, 10, 180, 90], score: 0.6, label: 1 },
        { box: [5, 5, 30, 30], score: 0.2, label: 1 },
      ],
      truth: [{ box: [12, 22, 58, 82], label: 0, id: 41, crowd: false }],
    });
    const image = await ask("/api/runs/seen-1/samples/0/image");
    expect(image.headers.get("content-type")).toBe("image/jpeg");
    expect(await image.bytes()).toEqual(jpeg);
    for (const item of ["1", "2", "x", "-1"]) {
      expect([item, (await ask(`/api/runs/seen-1/samples/${item}/image`)).status]).toEqual([item, 404]);
    }
    // What else is written to their file makes no others of them.
    const state = async () => (await get("/api/state?run=seen-1")).runs["seen-1"].samples;
    const before = await state();
    await writeSamples(run.path, []);
    expect(await state()).toBe(before);
    // The first evaluation's a.jpg was done again.
    await writeSamples(run.path, [sampleOf(9, "a.jpg", jpeg), sampleOf(5, "a.jpg")]);
    const later = await get("/api/runs/seen-1/samples");
    expect([later.iterations, later.iteration, later.samples.length]).toEqual([[5, 9], 9, 1]);
    expect(await state()).not.toBe(before);
    const again = await get("/api/runs/seen-1/samples?iteration=5");
    expect(again.samples.map(({ index }: { index: number }) => index)).toEqual([3, 1]);
  });

  test("of a damaged file are refused by its name", async () => {
    const run = await writeRun(root, "damaged", 2);
    run.close();
    await mkdir(join(run.path, "live"));
    await Bun.write(join(run.path, "live", "live.dlvs"), "not a live file at all");
    const answer = await ask("/api/runs/damaged-1/samples");
    expect(answer.status).toBe(500);
    expect(((await answer.json()) as { error: string }).error).toContain("live.dlvs");
    // It hides neither the other runs nor its own curves.
    const { runs } = await get("/api/runs");
    const named = (name: string) => runs.find((run: { name: string }) => run.name === name);
    expect([named("damaged-1").iteration, named("damaged-1").problem]).toEqual([
      2,
      expect.stringContaining("live.dlvs"),
    ]);
    expect(named("cells-1").problem).toBeUndefined();
    await rm(run.path, { recursive: true });
  });
});

test("pictures are listed and given, as what runs nothing", async () => {
  const folder = join(root, "cells-1", "pictures");
  await Bun.write(join(folder, "predictions-00000020.jpg"), "jpeg");
  await Bun.write(join(folder, "pr-curve.svg"), "<svg/>");
  const { pictures } = await get("/api/runs/cells-1/pictures");
  expect(pictures).toEqual(["pr-curve.svg", "predictions-00000020.jpg"]);
  const svg = await ask("/api/runs/cells-1/pictures/pr-curve.svg");
  expect(svg.headers.get("content-type")).toBe("image/svg+xml");
  expect(svg.headers.get("content-security-policy")).toContain("sandbox");
});

test("runs of several folders that are called the same are told apart, and a run itself may be given", async () => {
  const other = join(root, "other", "deep");
  (await writeRun(other, "cells", 3)).close();
  await using both = await DashboardServer.open({
    folders: [join(root, "cells-1"), other],
    ...{ port: 0, token: "t" },
  });
  const answer = await fetch(new URL("api/runs?token=t", both.url));
  const { runs } = (await answer.json()) as { runs: { name: string; iteration: number }[] };
  expect(runs.map(({ name }) => name)).toEqual(["cells-1", "cells-1 (2)"]);
  expect(runs.map(({ iteration }) => iteration).sort()).toEqual([100, 3]);
});
