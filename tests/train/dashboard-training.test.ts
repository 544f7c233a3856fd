/** A training with --dashboard: its page, by itself and at the live address, while it goes on; and its end. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { parseTrainArguments, Training } from "../../lib/train";
import { testDevice } from "../support/device";
import { writeTinyDataset } from "../support/tiny-dataset";

let folder = "";
beforeAll(async () => {
  folder = await writeTinyDataset(testDevice(), 8);
});
afterAll(async () => {
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

async function train(...options: string[]): Promise<Seen> {
  const lines: string[] = [];
  const argv = [
    ...["--data", folder, "--size", "64", "--batch", "2", "--iterations", "8", "--precision", "fp32", "--seed", "3"],
    ...["--evaluate-every", "4", "--out", join(folder, "runs"), "--backend", testDevice().backend],
    ...['model={"name":"compact","width":4,"headConvs":1}', "logEvery=1", ...options],
  ];
  let seen: Seen | undefined;
  const look = async (iteration: number): Promise<void> => {
    if (iteration !== 7) return;
    const url = new URL(lines.find((line) => line.startsWith("dashboard: "))?.slice(11) as string);
    const token = new URLSearchParams(url.hash.slice(1)).get("token");
    const ask = (path: string, headers = { Authorization: `Bearer ${token}` }) => fetch(url.origin + path, { headers });
    const { runs } = (await (await ask("/api/runs")).json()) as Pick<Seen, "runs">;
    const own = runs.at(-1)?.name as string;
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
  }
  return seen as Seen;
}

test("has a page at an address of its own, which ends with it", async () => {
  const seen = await train("--dashboard");
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
  const seen = await train("--dashboard", "--live");
  expect([seen.page, seen.refused, seen.live]).toEqual([200, 401, 200]);
  expect(seen.runs).toHaveLength(2);
  expect(seen.lines.find((line) => line.startsWith("live: "))).toStartWith(`live: ${seen.origin}/live?token=`);
});

test("refuses a port that is taken by its name", async () => {
  using taken = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response() });
  expect(train("--dashboard", "--live-port", String(taken.port))).rejects.toThrow(
    `cannot listen on 127.0.0.1:${taken.port}`,
  );
});
