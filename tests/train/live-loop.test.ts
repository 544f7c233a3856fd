/** The live loop from end to end: corrections over the WebSocket make a training better; killed, and done again, it is the same. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { Journal } from "../../lib/live";
import { missing, mostRanks, testDevice } from "../support/device";
import { type LiveLoop, playLiveLoop } from "../support/live-loop";
import { writeSquares } from "../support/squares-dataset";

const work = mkdtempSync(join(tmpdir(), "dlfs-live-loop-"));
afterAll(() => rmSync(work, { recursive: true }));

/** A GPU takes its steps faster than anybody could tell it things. */
const STEPS = testDevice().backend === "cuda" ? 1200 : 120;
const settings = [
  ...`--size 64 --batch 16 --iterations ${STEPS} --precision fp32 --seed 4 --lr 0.04 --schedule cosine`.split(" "),
  ...`--evaluate-every ${STEPS} --checkpoint-every ${STEPS / 12} --keep 20 logEvery=1`.split(" "),
  ...["--backend", testDevice().backend, 'model={"name":"compact","width":4,"headConvs":1,"anchorBase":16}'],
];

const device = testDevice();
const reason = missing(device, "f32", ["collectives"]) ?? (mostRanks < 2 ? "one GPU has one rank" : null);

test.skipIf(reason !== null)(
  `two ranks are told things alike, killed, gone on with, and done again${reason ? ` (${reason})` : ""}`,
  async () => {
    const own = join(work, "ranks");
    writeSquares(device, join(own, "whole"), { train: 24, val: 4 });
    const endless = "--iterations 100000 --schedule constant --warmup none --checkpoint-every 10".split(" ");
    const more = "--evaluate-every 100000 --batch 4 --checksum-every 2".split(" ");
    const options = { launch: ["--gpus", "2"], endless: true };
    const { live, again, refused, killedAt, resumedFrom } = await playLiveLoop(
      join(own, "whole"),
      own,
      [...settings, ...endless, ...more],
      options,
    );
    expect(refused).toEqual([]);
    expect(killedAt).toBeGreaterThan(resumedFrom);
    const entries = await Journal.read(join(live.run, "live/journal.dlvs"));
    expect(entries.filter(({ content }) => "change" in content).length).toBe(16);
    expect(again.tensors).toEqual(live.tensors);
    expect(again.steps).toEqual(live.steps);
  },
);

describe("a training on a third of the labels, told the rest while it goes on", () => {
  let loop: LiveLoop;

  beforeAll(async () => {
    writeSquares(testDevice(), join(work, "whole"), { train: 60, val: 20 });
    loop = await playLiveLoop(join(work, "whole"), work, settings);
  });

  test("takes all of them in, and detects far better than without", async () => {
    expect(loop.refused).toEqual([]);
    const entries = await Journal.read(join(loop.live.run, "live/journal.dlvs"));
    expect(entries.filter(({ content }) => "change" in content).length).toBe(40);
    expect(loop.live.ap).toBeGreaterThan(loop.frozen!.ap + 0.05);
  });

  test("goes on where it was killed", () => {
    expect(loop.killedAt).toBeGreaterThan(loop.resumedFrom);
    expect(loop.resumedFrom).toBeGreaterThanOrEqual(STEPS / 12);
    expect(loop.live.steps.length).toBe(STEPS);
  });

  test("is done again to the byte on a machine that has its folder and the data alone", () => {
    expect(loop.again.tensors).toEqual(loop.live.tensors);
    expect(loop.again.steps).toEqual(loop.live.steps);
  });

  test("is on its dashboard, beside the other one", () => {
    expect(loop.shown.sort()).toEqual([loop.live, loop.frozen!].map(({ run }) => basename(run)).sort());
  });
});
