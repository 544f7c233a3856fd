/**
 * The live loop from end to end on the demo: a training on a third of its labels, told the rest by an annotator while it goes on,
 * beside one that is told nothing. It is killed and gone on with in the middle, then done again by its journal.
 *
 *   bun run scripts/check-live-loop.ts [--train 1200] [--val 200] [--backend cuda] [-- SETTINGS of dlfs train]
 *
 * Without settings: those of `npm run train`, three times. Prints the APs, and exits with 1 where the corrections gain nothing, one
 * is refused, or the training that is done again has other bytes. tests/train/live-loop.test.ts is the same with some squares.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { DeviceImageCodec, generateDemo } from "../lib/data";
import { Device } from "../lib/tensor";
import { playLiveLoop, type Trained } from "../tests/support/live-loop";

const { values: args, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    train: { type: "string", default: "1200" },
    val: { type: "string", default: "200" },
    backend: { type: "string" },
  },
});
const work = await mkdtemp(join(tmpdir(), "dlfs-live-loop-"));
try {
  const whole = join(work, "whole");
  {
    using device = new Device({ backend: args.backend }, () => {});
    const codec = new DeviceImageCodec(device);
    const encode = (data: Uint8Array, width: number, height: number, quality: number) =>
      codec.encode({ data, width, height }, quality);
    await generateDemo(whole, { encode, train: Number(args.train), val: Number(args.val) });
  }
  const backend = args.backend ? ["--backend", args.backend] : [];
  const demo = ["--size", "192", "--batch", "8", "--lr", "0.04", "--iterations", "1500", "--augment", "none"];
  const settings = [...demo, "--checkpoint-every", "100", ...backend, ...positionals];
  const { live, again, refused, killedAt, resumedFrom, ...rest } = await playLiveLoop(whole, work, settings);
  const frozen = rest.frozen as Trained;
  console.log(`killed after step ${killedAt}, gone on with from ${resumedFrom}`);
  console.log(
    `AP on val: ${frozen.ap.toFixed(3)} with a third of the labels, ${live.ap.toFixed(3)} corrected while it trained`,
  );
  const same = Bun.deepEquals(again.tensors, live.tensors) && Bun.deepEquals(again.steps, live.steps);
  console.log(same ? "done again: the same bytes" : "done again: OTHER BYTES");
  for (const reason of refused) console.log(`refused: ${reason}`);
  if (!same || refused.length > 0 || live.ap <= frozen.ap) process.exitCode = 1;
} finally {
  await rm(work, { recursive: true, force: true });
}
