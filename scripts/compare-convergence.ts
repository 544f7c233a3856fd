/**
 * Trains RetinaNet with ResNet-50 from scratch, here and in torchvision, by the same recipe with several seeds each, and says whether
 * the detectors trained here are worse beyond chance: by more than two standard errors of the difference of the means of AP50 and of
 * AP75. Both are measured by the same code on the validation split.
 *
 *   bun run scripts/compare-convergence.ts --python PYTHON --data DIR [--train-split train] [--val-split val] [--size 480x640]
 *     [--batch 16] [--iterations 1500] [--lr 0.01] [--precisions bf16,fp32] [--seeds 3] [--peer-seeds N]
 *     [--jobs 1] [--gpus 1] [--out DIR]
 *
 * The recipe is that of scripts/peers/train.py: SGD, 100 steps of warm-up, a tenth of the rate at 70 % and a hundredth at 90 % of
 * the steps, both flips, gradients clipped to a norm of 10. torchvision trains in bf16 (autocast), with --peer-seeds seeds where
 * that is given. --jobs trainings run at a time, spread over --gpus GPUs. Prints a table and writes it, with all figures, to
 * OUT/convergence.json; exits with 1 where something is worse or fails. The same command goes on where it was stopped: trainings
 * whose figures are in OUT are not repeated.
 */
import { existsSync } from "node:fs";
import { mkdir, mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { evaluateResultsFile } from "dlfs";
import { table } from "../lib/bench/table";

const { values: args } = parseArgs({
  options: {
    python: { type: "string", default: "python3" },
    data: { type: "string" },
    "train-split": { type: "string", default: "train" },
    "val-split": { type: "string", default: "val" },
    size: { type: "string", default: "480x640" },
    batch: { type: "string", default: "16" },
    iterations: { type: "string", default: "1500" },
    lr: { type: "string", default: "0.01" },
    precisions: { type: "string", default: "bf16,fp32" },
    seeds: { type: "string", default: "3" },
    jobs: { type: "string", default: "1" },
    gpus: { type: "string", default: "1" },
    "peer-seeds": { type: "string" },
    out: { type: "string" },
  },
});

function fail(message: string): never {
  console.error(`compare-convergence: ${message}`);
  process.exit(2);
}

const data = args.data === undefined ? fail("--data: expected the folder of a data set") : resolve(args.data);
const [seeds, jobs, gpus] = [Number(args.seeds), Number(args.jobs), Number(args.gpus)];
if (!Number.isInteger(seeds) || seeds < 2) fail(`--seeds: expected an integer from 2, got "${args.seeds}"`);
const peerSeeds = Number(args["peer-seeds"] ?? seeds);
if (!Number.isInteger(peerSeeds) || peerSeeds < 2) fail(`--peer-seeds: expected an integer from 2, got "${peerSeeds}"`);
if (!Number.isInteger(jobs) || jobs < 1) fail(`--jobs: expected an integer from 1, got "${args.jobs}"`);
if (!Number.isInteger(gpus) || gpus < 1) fail(`--gpus: expected an integer from 1, got "${args.gpus}"`);
const annotations = join(data, "annotations", `instances_${args["val-split"]}.json`);
if (!existsSync(annotations)) fail(`--data: ${annotations} does not exist`);
const out = resolve(args.out ?? (await mkdtemp(join(tmpdir(), "dlfs-convergence-"))));
await mkdir(out, { recursive: true });

interface Run {
  who: string;
  seed: number;
  AP: number;
  AP50: number;
  AP75: number;
  seconds: number;
}

/** Runs a program to its end, on one GPU; its standard output. */
async function runProgram(command: string[], what: string, gpu: number): Promise<string> {
  const env = { ...process.env, CUDA_VISIBLE_DEVICES: `${gpu}` };
  const child = Bun.spawn(command, { stdout: "pipe", stderr: "pipe", env });
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  if ((await child.exited) === 0) return stdout;
  throw new Error(`${what} ended with ${child.exitCode}: ${(stderr.trim() || stdout.trim()).slice(-1000)}`);
}

const common = ["--data", data, "--train-split", args["train-split"], "--val-split", args["val-split"]];
/** What the figures of a training depend on. */
const recipeOfRuns = { size: args.size, batch: args.batch, iterations: args.iterations, lr: args.lr };
const recipe = ["--size", args.size, "--batch", args.batch, "--iterations", args.iterations, "--lr", args.lr];

async function torchvision(seed: number, gpu: number): Promise<string> {
  const results = join(out, `torchvision-${seed}.json`);
  const script = fileURLToPath(new URL("peers/train.py", import.meta.url));
  const command = [args.python, script, ...common, ...recipe, "--seed", `${seed}`, "--out", results];
  console.error((await runProgram(command, `torchvision, seed ${seed}`, gpu)).trim());
  return results;
}

/** Every setting of the recipe is said: nothing is left to defaults that may change. */
async function dlfs(precision: string, seed: number, gpu: number): Promise<string> {
  const program = fileURLToPath(new URL("../lib/cli/main.ts", import.meta.url));
  const settings = [
    ...["--model", "retinanet_resnet50_fpn", "--norm", "batch", "--precision", precision, "--seed", `${seed}`],
    ...["--flip", "both", "--augment", "none", "--clip-norm", "10", "momentum=0.9", "weightDecay=0.0001"],
    ...["schedule.kind=multiStep", "schedule.milestones=[0.7,0.9]", "schedule.gamma=0.1"],
    ...["warmup.kind=linear", "warmup.iterations=100", "warmup.factor=0.01", `evaluateEvery=${args.iterations}`],
  ];
  const folder = join(out, `dlfs-${precision}-${seed}`);
  const command = [process.execPath, "run", program, "train", ...common, ...recipe, ...settings, "--out", folder];
  const stdout = await runProgram(command, `dlfs, ${precision}, seed ${seed}`, gpu);
  const run =
    /^run folder: (.*)$/m.exec(stdout)?.[1] ?? fail(`dlfs, ${precision}, seed ${seed}: no run folder in its output`);
  const results = join(folder, "evaluation");
  await runProgram(
    [
      process.execPath,
      "run",
      program,
      "eval",
      "--run",
      run,
      "--precision",
      precision,
      "--batch",
      args.batch,
      "--out",
      results,
    ],
    `dlfs eval, ${precision}, seed ${seed}`,
    gpu,
  );
  return join(results, "detections.json");
}

async function measured(who: string, seed: number, train: () => Promise<string>): Promise<Run> {
  const kept = Bun.file(join(out, `${who.replaceAll(" ", "-")}-${seed}.figures.json`));
  const key = JSON.stringify(recipeOfRuns);
  if (await kept.exists()) {
    const { recipe, run } = await kept.json();
    if (JSON.stringify(recipe) === key) return run;
    fail(`--out: ${kept.name} is of another recipe: ${JSON.stringify(recipe)}`);
  }
  const started = performance.now();
  const results = await train();
  const seconds = (performance.now() - started) / 1000;
  const { AP, AP50, AP75 } = (await evaluateResultsFile(annotations, results, { progress: () => {} })).result.stats;
  console.error(
    `${who}, seed ${seed}: AP ${AP.toFixed(4)}  AP50 ${AP50.toFixed(4)}  AP75 ${AP75.toFixed(4)}, ${seconds.toFixed(0)} s`,
  );
  const run: Run = { who, seed, AP, AP50, AP75, seconds };
  await Bun.write(kept, JSON.stringify({ recipe: recipeOfRuns, run }));
  return run;
}

const precisions = args.precisions.split(",");
const trainings = (who: string, train: (seed: number, gpu: number) => Promise<string>, length = seeds) =>
  Array.from({ length }, (_, seed) => (gpu: number) => measured(who, seed, () => train(seed, gpu)));
// The longest first, so that none of them is left over for the end.
const work = [
  ...precisions.toReversed().flatMap((name) => trainings(`dlfs ${name}`, (seed, gpu) => dlfs(name, seed, gpu))),
  ...trainings("torchvision bf16", torchvision, peerSeeds),
];
const runs: Run[] = [];
async function worker(gpu: number): Promise<void> {
  for (let next = work.shift(); next; next = work.shift()) runs.push(await next(gpu));
}
await Promise.all(Array.from({ length: Math.min(jobs, work.length) }, (_, i) => worker(i % gpus))).catch(
  (error: Error) => {
    console.error(`compare-convergence: ${error.message}`);
    process.exit(1);
  },
);

const figures = ["AP", "AP50", "AP75"] as const;
const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
const variance = (values: readonly number[]) =>
  values.reduce((sum, value) => sum + (value - mean(values)) ** 2, 0) / (values.length - 1);
const of = (who: string) => runs.filter((run) => run.who === who).sort((a, b) => a.seed - b.seed);

const rows = ["torchvision bf16", ...precisions.map((precision) => `dlfs ${precision}`)].flatMap((who) => {
  const found = of(who);
  const each = found.map((run) => [
    who,
    `${run.seed}`,
    ...figures.map((name) => run[name].toFixed(4)),
    run.seconds.toFixed(0),
  ]);
  const spread = figures.map((name) => {
    const values = found.map((run) => run[name]);
    return `${mean(values).toFixed(4)} ± ${Math.sqrt(variance(values)).toFixed(4)}`;
  });
  return [...each, [who, "mean", ...spread, ""]];
});
for (const line of table(["", "seed", ...figures, "s"], rows, 2)) console.log(line);

// Detectors that find nothing are equal, and say nothing.
const learned = mean(of("torchvision bf16").map(({ AP50 }) => AP50)) > 0.1;
if (!learned) console.log("torchvision has learned next to nothing: the comparison needs more --iterations");
let worse = !learned;
for (const precision of precisions) {
  for (const name of ["AP50", "AP75"] as const) {
    const [theirs, ours] = [of("torchvision bf16"), of(`dlfs ${precision}`)].map((found) =>
      found.map((run) => run[name]),
    ) as [number[], number[]];
    const difference = mean(ours) - mean(theirs);
    const error = Math.sqrt(variance(ours) / ours.length + variance(theirs) / theirs.length);
    const isWorse = difference < -2 * error;
    worse ||= isWorse;
    const verdict = isWorse ? "worse by more than two standard errors" : "not worse by more than two standard errors";
    console.log(
      `dlfs ${precision} - torchvision, ${name}: ${(100 * difference).toFixed(2)} points, standard error ${(100 * error).toFixed(2)}: ${verdict}`,
    );
  }
}
const { python: _, data: __, out: ___, jobs: ____, gpus: _____, ...settings } = args;
await Bun.write(join(out, "convergence.json"), `${JSON.stringify({ settings, runs }, null, 2)}\n`);
console.log(`written: ${join(out, "convergence.json")}`);
process.exit(worse ? 1 : 0);
