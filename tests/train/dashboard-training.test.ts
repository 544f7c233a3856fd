/** A training with --dashboard: its page, by itself and at the live address, while it goes on; and its end. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { Journal } from "../../lib/live";
import { parseTrainArguments, Training } from "../../lib/train";
import { testDevice } from "../support/device";
import { writeTinyDataset } from "../support/tiny-dataset";

let folder = "";
const cache = process.env.DLFS_CACHE;
beforeAll(async () => {
  folder = await writeTinyDataset(testDevice(), 8);
  process.env.DLFS_CACHE = join(folder, "cache");
});
afterAll(async () => {
  if (cache === undefined) delete process.env.DLFS_CACHE;
  else process.env.DLFS_CACHE = cache;
  await rm(folder, { recursive: true, force: true });
});

interface Seen {
  lines: string[];
  origin: string;
  /** What was there before the eighth step. */
  page: number;
  refused: number;
  runs: { name: string; iteration: number }[];
  points: number;
  evaluation: { iteration: number; images: number };
  /** Of the evaluation's first image. */
  image: string | null;
  splits: string[];
  live: number;
}

/** What is asked of the dashboard, by path below its runs' API. */
type Ask = (path: string, init?: RequestInit) => Promise<Response>;

async function train(options: string[], during?: (run: string, ask: Ask) => Promise<void>): Promise<Seen> {
  const lines: string[] = [];
  const argv = [
    ...["--data", folder, "--size", "64", "--batch", "2", "--iterations", "8", "--precision", "fp32", "--seed", "3"],
    ...["--evaluate-every", "4", "--out", join(folder, "runs"), "--backend", testDevice().backend],
    ...['model={"name":"compact","width":4,"headConvs":1}', "logEvery=1", ...options],
  ];
  let seen: Seen | undefined;
  let doing: Promise<void> | undefined;
  const look = async (iteration: number): Promise<void> => {
    // A training takes labels in between two steps, so they go on meanwhile.
    if (doing) await Promise.race([doing, Bun.sleep(200)]);
    if (iteration !== 2 && iteration !== 7) return;
    const url = new URL(lines.find((line) => line.startsWith("dashboard: "))?.slice(11) as string);
    const token = new URLSearchParams(url.hash.slice(1)).get("token");
    const ask = (path: string, headers = { Authorization: `Bearer ${token}` }) => fetch(url.origin + path, { headers });
    const { runs } = (await (await ask("/api/runs")).json()) as Pick<Seen, "runs">;
    const own = runs.at(-1)?.name as string;
    if (iteration === 2) {
      doing = during?.(own, (path, init) => {
        const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json", ...init?.headers };
        return fetch(`${url.origin}/api/runs/${own}/${path}`, { ...init, headers });
      });
      return;
    }
    const answer = await ask(`/api/runs/${own}/curves?name=train/loss`);
    const { curves } = (await answer.json()) as { curves: Record<string, { count: number }> };
    const of = async (path: string) => await ask(`/api/runs/${own}/${path}`);
    const { splits } = (await (await of("dataset")).json()) as { splits: { name: string }[] };
    seen = {
      evaluation: (await (await of("evaluations/latest")).json()) as Seen["evaluation"],
      image: (await of("evaluations/latest/images/0/image")).headers.get("content-type"),
      splits: splits.map(({ name }) => name),
      ...{ lines, origin: url.origin, runs, points: curves["train/loss"]?.count ?? 0 },
      page: (await fetch(url.origin)).status,
      refused: (await ask("/api/runs", { Authorization: "Bearer other" })).status,
      live: (await ask("/status")).status,
    };
  };
  {
    await using training = await Training.prepare(parseTrainArguments(argv), {
      ...{ command: "dlfs train", log: (line: string) => void lines.push(line), observers: [{ onStepStart: look }] },
    });
    await training.run();
    await doing;
  }
  return seen as Seen;
}

test("has a page at an address of its own, which ends with it", async () => {
  const seen = await train(["--dashboard"]);
  expect([seen.page, seen.refused, seen.live]).toEqual([200, 401, 404]);
  expect(seen.runs).toHaveLength(1);
  // What the device has not finished is not written yet.
  expect(seen.points).toBeGreaterThan(0);
  expect([seen.evaluation, seen.image]).toMatchObject([{ iteration: 4, images: 8 }, "image/jpeg"]);
  expect(seen.splits).toEqual(["train2017", "val2017"]);
  expect(seen.lines.some((line) => line.startsWith("live: "))).toBe(false);
  expect(fetch(seen.origin)).rejects.toThrow();
});

test("has it at its live address, beside the runs before", async () => {
  const seen = await train(["--dashboard", "--live"]);
  expect([seen.page, seen.refused, seen.live]).toEqual([200, 401, 200]);
  expect(seen.runs).toHaveLength(2);
  expect(seen.lines.find((line) => line.startsWith("live: "))).toStartWith(`live: ${seen.origin}/live?token=`);
});

test("with --edit takes the boxes in that are drawn on its page", async () => {
  const seen: Record<string, unknown> = {};
  await train(["--dashboard", "--live", "--edit"], async (run, ask) => {
    const image = { image: "train2017/1.jpg", split: "train2017" };
    const before = (await (await ask(`annotations?${new URLSearchParams(image)}`)).json()) as Record<string, unknown>;
    const edits = [{ action: "add", category: "red", box: [40, 40, 60, 60] }];
    const body = JSON.stringify({ id: "m", author: "ada", ...image, seen: before.seen, edits });
    const answer = (await (await ask("labels", { method: "POST", body })).json()) as Record<string, unknown>;
    const { boxes } = answer.now as { boxes: unknown[] };
    const journal = await Journal.read(join(folder, "runs", run, "live", "journal.dlvs"));
    const messages = journal.map(({ message }) => message);
    Object.assign(seen, { before: before.into, into: answer.into, box: boxes.at(-1), messages });
    expect([3, 4, 5, 6, 7, 8]).toContain(answer.from as number);
  });
  expect(seen).toMatchObject({ before: "training", into: "training", messages: ["m"] });
  expect(seen.box).toMatchObject({ box: [40, 40, 60, 60], label: 0, author: "ada", source: "human" });
  expect(train(["--live", "--edit"])).rejects.toThrow("--edit: needs --dashboard");
});

test.each(["--dashboard", "--live"])(
  "refuses a port that is taken by its name, and leaves no run behind, with %s",
  async (kind) => {
    using taken = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response() });
    const runs = () => readdirSync(folder).includes("runs") && readdirSync(join(folder, "runs")).sort();
    const before = runs();
    await expect(train([kind, "--live-port", String(taken.port)])).rejects.toThrow(
      `cannot listen on 127.0.0.1:${taken.port}`,
    );
    expect(runs()).toEqual(before);
  },
);
