/**
 * Trains the same detector in two precisions with several seeds each, and says whether the second is worse than the first beyond
 * chance: by more than two standard errors of the difference of the means of AP.
 *
 *   bun run scripts/compare-precisions.ts [--precisions f32,bf16] [--seeds 3] [--jobs 1] [--out DIR] OPTIONS OF train_coco.ts
 *
 * The standard error is sqrt(s1^2 / n + s2^2 / n), s being the standard deviations over the seeds (Welch). Prints a table of each
 * run's AP and AP50 on the validation split; exits with 1 where the second precision is worse, or a run fails.
 */
import { readFileSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { table } from "../lib/bench/table";

// Options of this script come first; the first that is none of them, or "--", begins those of the training.
const own = ["--precisions", "--seeds", "--jobs", "--out"];
const argv = process.argv.slice(2);
const end = argv.findIndex((argument, i) => i % 2 === 0 && !own.includes(argument));
const training = (end < 0 ? [] : argv.slice(end)).filter((argument) => argument !== "--");
const { values: args } = parseArgs({
  args: end < 0 ? argv : argv.slice(0, end),
  options: {
    precisions: { type: "string", default: "f32,bf16" },
    seeds: { type: "string", default: "3" },
    jobs: { type: "string", default: "1" },
    out: { type: "string" },
  },
});

function fail(message: string): never {
  console.error(`compare-precisions: ${message}`);
  process.exit(2);
}

const precisions = args.precisions.split(",");
const [seeds, jobs] = [Number(args.seeds), Number(args.jobs)];
if (precisions.length !== 2) fail(`--precisions: expected two, such as f32,bf16, got "${args.precisions}"`);
if (!Number.isInteger(seeds) || seeds < 2) fail(`--seeds: expected an integer from 2, got "${args.seeds}"`);
if (!Number.isInteger(jobs) || jobs < 1) fail(`--jobs: expected an integer from 1, got "${args.jobs}"`);

interface Run {
  precision: string;
  seed: number;
  ap: number;
  ap50: number;
  seconds: number;
}

const example = fileURLToPath(new URL("../examples/train_coco.ts", import.meta.url));
const out = args.out ?? (await mkdtemp(join(tmpdir(), "dlfs-precisions-")));

async function train(precision: string, seed: number): Promise<Run> {
  const folder = join(out, `${precision}-${seed}`);
  const options = [...training, "--precision", precision, "--seed", `${seed}`, "--out", folder];
  const start = performance.now();
  const child = Bun.spawn([process.execPath, "run", example, ...options], { stdout: "pipe", stderr: "pipe" });
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  if ((await child.exited) !== 0) {
    throw new Error(
      `${precision}, seed ${seed}, ended with ${child.exitCode}: ${stderr.trim() || stdout.trim().slice(-500)}`,
    );
  }
  const path = /^run folder: (.*)$/m.exec(stdout)?.[1];
  if (!path) throw new Error(`${precision}, seed ${seed}: no run folder in its output`);
  const { AP: ap, AP50: ap50 } = JSON.parse(readFileSync(join(path, "summary.json"), "utf8"));
  const run = { precision, seed, ap, ap50, seconds: (performance.now() - start) / 1000 };
  console.error(
    `${precision}, seed ${seed}: AP ${run.ap.toFixed(4)} AP50 ${run.ap50.toFixed(4)}, ${run.seconds.toFixed(0)} s`,
  );
  return run;
}

const waiting = Array.from({ length: seeds }, (_, seed) => precisions.map((precision) => ({ precision, seed }))).flat();
const runs: Run[] = [];
async function worker(): Promise<void> {
  for (let next = waiting.shift(); next; next = waiting.shift()) runs.push(await train(next.precision, next.seed));
}
await Promise.all(Array.from({ length: Math.min(jobs, waiting.length) }, worker)).catch((error: Error) => {
  console.error(`compare-precisions: ${error.message}`);
  process.exit(1);
});

const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
const variance = (values: readonly number[]) =>
  values.reduce((sum, value) => sum + (value - mean(values)) ** 2, 0) / (values.length - 1);
const of = (precision: string) => runs.filter((run) => run.precision === precision).sort((a, b) => a.seed - b.seed);
const aps = precisions.map((precision) => of(precision).map(({ ap }) => ap)) as [number[], number[]];

const rows = precisions.flatMap((precision) => {
  const found = of(precision);
  const cells = found.map(({ seed, ap, ap50, seconds }) => [
    ...[precision, `${seed}`, ap.toFixed(4), ap50.toFixed(4), seconds.toFixed(0)],
  ]);
  const means = [mean(found.map(({ ap }) => ap)), mean(found.map(({ ap50 }) => ap50))];
  return [...cells, [precision, "mean", ...means.map((value) => value.toFixed(4)), ""]];
});
for (const line of table(["precision", "seed", "AP", "AP50", "s"], rows, 2)) console.log(line);

const difference = mean(aps[1]) - mean(aps[0]);
const standardError = Math.sqrt(variance(aps[0]) / seeds + variance(aps[1]) / seeds);
const worse = difference < -2 * standardError;
console.log(
  `${precisions[1]} - ${precisions[0]}: ${(100 * difference).toFixed(2)} points of AP, standard error ${(100 * standardError).toFixed(2)}: ` +
    (worse ? "worse by more than two standard errors" : "not worse by more than two standard errors"),
);
process.exit(worse ? 1 : 0);
