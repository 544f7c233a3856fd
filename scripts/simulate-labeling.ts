/**
 * Whether `dlfs label rank` saves labelling: plays it on a data set whose labels are known. With each seed it begins with some images
 * at random, trains, and then labels in rounds: those that come first by each order that is asked for, beside images at random,
 * training from scratch each time. All orders of a seed begin with the same images, and its trainings have the same seed.
 *
 *   bun run scripts/simulate-labeling.ts --data DIR [--train-split train] [--val-split val] [--by mixed,uncertainty]
 *     [--round 20] [--rounds 5] [--seeds 3] [--model compact] [--size 320] [--batch 8] [--iterations 400] [--lr X]
 *     [--precision P] [--jobs 1] [--seconds S] [--out DIR]
 *
 * Prints AP on the validation split by the number of labelled images, and for each order the mean gain over random images: of AP
 * and AP50, over all rounds after the first, by seed. It is a gain where it is above two standard errors of the seeds' differences;
 * with three seeds that is a hint. Writes all figures to OUT/simulation.json, and OUT/simulation.svg shows them. --jobs runs several
 * trainings at a time: those of different seeds and orders wait for nothing of each other. The same command goes on where it was
 * stopped: trainings whose figures are in OUT are not repeated. After --seconds no further training begins, and it ends with 3 where
 * some are left.
 */
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { shuffledOrder } from "dlfs";
import { table } from "../lib/bench/table";
import { Semaphore } from "../lib/data/queues";
import { writeFileAtomic } from "../lib/formats";
import { criteria } from "../lib/label/rank";
import { labelingPicture } from "./labeling/picture";

const { values: args } = parseArgs({
  options: {
    data: { type: "string" },
    "train-split": { type: "string", default: "train" },
    "val-split": { type: "string", default: "val" },
    by: { type: "string", default: "mixed" },
    round: { type: "string", default: "20" },
    rounds: { type: "string", default: "5" },
    seeds: { type: "string", default: "3" },
    model: { type: "string", default: "compact" },
    size: { type: "string", default: "320" },
    batch: { type: "string", default: "8" },
    iterations: { type: "string", default: "400" },
    lr: { type: "string" },
    precision: { type: "string" },
    jobs: { type: "string", default: "1" },
    seconds: { type: "string" },
    out: { type: "string" },
  },
});

function fail(message: string): never {
  console.error(`simulate-labeling: ${message}`);
  process.exit(2);
}

function integer(name: "round" | "rounds" | "seeds" | "jobs" | "seconds", least: number): number {
  const value = Number(args[name]);
  return Number.isInteger(value) && value >= least
    ? value
    : fail(`--${name}: expected an integer from ${least}, got "${args[name]}"`);
}

interface CocoFile {
  images: { id: number; file_name: string }[];
  annotations: { id: number; image_id: number }[];
  categories: { id: number; name: string }[];
}

const data = args.data === undefined ? fail("--data: expected the folder of a data set") : resolve(args.data);
const [round, rounds, seeds] = [integer("round", 1), integer("rounds", 1), integer("seeds", 2)];
const jobs = new Semaphore(integer("jobs", 1));
const deadline =
  performance.now() + 1000 * (args.seconds === undefined ? Number.POSITIVE_INFINITY : integer("seconds", 1));
const known: readonly string[] = [...criteria, "mixed"];
const orders = args.by.split(",");
for (const by of orders) if (!known.includes(by)) fail(`--by: expected of ${known.join(", ")}, got "${by}"`);
const [trainSplit, valSplit] = [args["train-split"], args["val-split"]];
const annotationsOf = (split: string) => join(data, "annotations", `instances_${split}.json`);
for (const split of [trainSplit, valSplit]) {
  if (!existsSync(annotationsOf(split))) fail(`--data: ${annotationsOf(split)} does not exist`);
}
const truth = JSON.parse(await readFile(annotationsOf(trainSplit), "utf8")) as CocoFile;
const needed = round * (rounds + 1);
if (truth.images.length <= needed) {
  fail(
    `--rounds: ${rounds} of ${round} images after the first need more than ${needed}, and ${trainSplit} has ${truth.images.length}`,
  );
}
const out = resolve(args.out ?? (await mkdtemp(join(tmpdir(), "dlfs-labeling-"))));
await mkdir(out, { recursive: true });

/** What figures depend on besides order, seed and round. */
const recipe = [
  ...["--model", args.model, "--size", args.size, "--batch", args.batch, "--iterations", args.iterations],
  ...(args.lr === undefined ? [] : ["--lr", args.lr]),
  ...(args.precision === undefined ? [] : ["--precision", args.precision]),
];
const about = { data, trainSplit, valSplit, round, recipe };
const aboutFile = join(out, "recipe.json");
if (existsSync(aboutFile)) {
  const kept = await readFile(aboutFile, "utf8");
  if (kept !== JSON.stringify(about)) fail(`--out: ${aboutFile} is of another recipe: ${kept}`);
} else {
  await Bun.write(aboutFile, JSON.stringify(about));
}

/** There is no time for more. */
class OutOfTime extends Error {}

/** Runs dlfs to its end, as soon as there is room for it; its standard output. */
async function dlfs(what: string, ...command: string[]): Promise<string> {
  await jobs.acquire();
  try {
    if (performance.now() > deadline) throw new OutOfTime();
    const program = fileURLToPath(new URL("../lib/cli/main.ts", import.meta.url));
    const env = { ...process.env, DLFS_CACHE: join(out, "cache") };
    const child = Bun.spawn([process.execPath, "run", program, ...command], { env, stdout: "pipe", stderr: "pipe" });
    const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
    if ((await child.exited) === 0) return stdout;
    const said = (stderr.trim() || stdout.trim()).slice(-1000);
    console.error(`simulate-labeling: ${what} ended with ${child.exitCode}: ${said}`);
    process.exit(1);
  } finally {
    jobs.release();
  }
}

/** The folder of a split's images, as loadDataset looks for it. */
function imagesOf(split: string): string {
  const found = [split, join("images", split), "images"].map((name) => join(data, name)).find(existsSync);
  return found ?? fail(`--data: ${data} has no ${split}/, images/${split}/ or images/`);
}

/** A data set as it is after some labelling: what is labelled, what is not yet, and what is evaluated on. */
async function writeData(folder: string, labelled: ReadonlySet<number>): Promise<void> {
  await rm(folder, { recursive: true, force: true });
  await mkdir(join(folder, "annotations"), { recursive: true });
  const write = (split: string, content: unknown) =>
    Bun.write(join(folder, "annotations", `instances_${split}.json`), JSON.stringify(content));
  const part = (isIn: (id: number) => boolean, annotations: CocoFile["annotations"]) => ({
    ...truth,
    images: truth.images.filter(({ id }) => isIn(id)),
    annotations,
  });
  const boxes = truth.annotations.filter(({ image_id }) => labelled.has(image_id));
  await write(
    "labelled",
    part((id) => labelled.has(id), boxes),
  );
  await write(
    "pool",
    part((id) => !labelled.has(id), []),
  );
  await write("evaluated", JSON.parse(await readFile(annotationsOf(valSplit), "utf8")));
  for (const split of ["labelled", "pool"]) await symlink(imagesOf(trainSplit), join(folder, split));
  await symlink(imagesOf(valSplit), join(folder, "evaluated"));
}

interface Figures {
  AP: number;
  AP50: number;
}

interface Step extends Figures {
  /** Ids of the images that are labelled. */
  labelled: number[];
  run: string;
  /** That training and evaluation took, waiting for room included. */
  seconds: number;
}

/** Trains on what is labelled, from scratch, and evaluates. */
async function train(folder: string, seed: number, labelled: readonly number[]): Promise<Step> {
  const kept = Bun.file(join(folder, "step.json"));
  if (await kept.exists()) return (await kept.json()) as Step;
  const started = performance.now();
  const set = join(folder, "data");
  await writeData(set, new Set(labelled));
  const splits = ["--data", set, "--train-split", "labelled", "--val-split", "evaluated"];
  const settings = [...splits, ...recipe, "--seed", `${seed}`, `evaluateEvery=${args.iterations}`];
  const stdout = await dlfs("training", "train", ...settings, "--out", join(folder, "runs"));
  const run = /^run folder: (.*)$/m.exec(stdout)?.[1] ?? fail("training says no run folder");
  const { AP, AP50 } = await evaluationOf(run);
  const seconds = Math.round((performance.now() - started) / 100) / 10;
  const step: Step = { AP, AP50, labelled: [...labelled], run, seconds };
  await writeFileAtomic(join(folder, "step.json"), JSON.stringify(step));
  const figures = `AP ${AP.toFixed(4)}, AP50 ${AP50.toFixed(4)}, ${seconds} s`;
  console.error(`${folder.slice(out.length + 1)}: ${labelled.length} labelled, ${figures}`);
  return step;
}

/** The figures of a run's last evaluation. */
async function evaluationOf(run: string): Promise<Figures> {
  const path = join(run, "metrics.jsonl");
  const lines = (await readFile(path, "utf8")).trimEnd().split("\n");
  const rows = lines.map((line) => JSON.parse(line) as { kind: string } & Partial<Figures>);
  const { AP, AP50 } = rows.findLast(({ kind }) => kind === "evaluation") ?? fail(`${path}: no evaluation is in it`);
  return { AP: AP as number, AP50: AP50 as number };
}

const idOf = new Map(truth.images.map(({ id, file_name }) => [file_name, id]));

/** The images that are labelled next. */
async function choose(folder: string, step: Step, by: string, random: readonly number[]): Promise<number[]> {
  const known = new Set(step.labelled);
  if (by === "random") return random.filter((id) => !known.has(id)).slice(0, round);
  const chosen = join(folder, `next-${by}.jsonl`);
  // Of its own: several orders may choose from the same images at a time.
  const set = join(folder, `data-${by}`);
  if (!existsSync(chosen)) {
    await writeData(set, known);
    const from = ["--data", set, "--split", "pool", "--labelled", "labelled"];
    await dlfs("ranking", "label", "rank", step.run, ...from, "--by", by, "--count", `${round}`, "--out", chosen);
  }
  const lines = (await readFile(chosen, "utf8")).trimEnd().split("\n");
  return lines.map((line) => {
    const { image } = JSON.parse(line) as { image: string };
    return idOf.get(image.replace(/^pool\//, "")) ?? fail(`${chosen}: ${image} is no image of ${trainSplit}`);
  });
}

/** All rounds of a seed and an order, after the first, which the seed's orders share. */
async function play(seed: number, by: string, random: readonly number[], first: Step): Promise<Step[]> {
  const steps = [first];
  let folder = join(out, `seed-${seed}`, "start");
  for (let r = 1; r <= rounds; r++) {
    const last = steps.at(-1) as Step;
    const next = await choose(folder, last, by, random);
    folder = join(out, `seed-${seed}`, by, `${r}`);
    steps.push(await train(folder, seed, [...last.labelled, ...next]));
  }
  return steps;
}

const columns = ["random", ...orders];
/** By order and seed. */
const played = await Promise.allSettled(
  Array.from({ length: seeds }, async (_, seed) => {
    const random = [...shuffledOrder(truth.images.length, seed, 0)].map((i) => truth.images[i]!.id);
    const first = await train(join(out, `seed-${seed}`, "start"), seed, random.slice(0, round));
    // What has been stopped in one order has not been in the others, which go on to the end of their trainings.
    const results = await Promise.allSettled(columns.map((by) => play(seed, by, random, first)));
    return results.map(settledValue);
  }),
);

function settledValue<T>(result: PromiseSettledResult<T>): T {
  if (result.status === "fulfilled") return result.value;
  throw result.reason;
}

const stopped = played.find((result) => result.status === "rejected");
if (stopped) {
  if (!(stopped.reason instanceof OutOfTime)) throw stopped.reason;
  const steps = [...new Bun.Glob("seed-*/**/step.json").scanSync({ cwd: out })].length;
  console.log(
    `out of time after ${steps} of ${seeds * (1 + columns.length * rounds)} trainings; the same command goes on`,
  );
  process.exit(3);
}
/** By order, seed and round. */
const bySeed = played.map(settledValue);
const all = new Map(columns.map((by, k) => [by, bySeed.map((results) => results[k] as Step[])]));

const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
const error = (values: readonly number[]) =>
  Math.sqrt(values.reduce((sum, value) => sum + (value - mean(values)) ** 2, 0) / (values.length - 1) / values.length);
const shown = (values: readonly number[]) => `${mean(values).toFixed(4)} ± ${error(values).toFixed(4)}`;

const at = (by: string, r: number, name: keyof Figures) => (all.get(by) as Step[][]).map((steps) => steps[r]![name]);
const rows = Array.from({ length: rounds + 1 }, (_, r) => [
  `${round * (r + 1)}`,
  ...columns.map((by) => shown(at(by, r, "AP"))),
]);
for (const line of table(["labelled", ...columns], rows, 0)) console.log(line);

// Detectors that find nothing are equal, and say nothing.
if (mean(at("random", rounds, "AP50")) < 0.1) {
  console.log("the detectors have learned next to nothing: the comparison needs more --iterations");
}
const gains = orders.flatMap((by) =>
  (["AP", "AP50"] as const).map((name) => {
    const gains = (all.get(by) as Step[][]).map((steps, seed) => {
      const others = (all.get("random") as Step[][])[seed] as Step[];
      return mean(steps.slice(1).map((step, i) => step[name] - others[i + 1]![name]));
    });
    const [gain, uncertain] = [mean(gains), 2 * error(gains)];
    const said = gain > uncertain ? "a gain" : gain < -uncertain ? "a loss" : "no gain beyond chance";
    console.log(`${by} - random, ${name}: ${shown(gains)} over ${seeds} seeds: ${said}`);
    return { by, name, gain, bySeed: gains, said };
  }),
);
await Bun.write(
  join(out, "simulation.json"),
  `${JSON.stringify({ ...about, rounds, gains, steps: Object.fromEntries(all) }, null, 1)}\n`,
);
const counts = Array.from({ length: rounds + 1 }, (_, r) => round * (r + 1));
const values = new Map([...all].map(([by, runs]) => [by, runs.map((steps) => steps.map(({ AP }) => AP))]));
const title = `${basename(data)}: ${args.model} at ${args.size}, rounds of ${round} images`;
await Bun.write(join(out, "simulation.svg"), labelingPicture(title, counts, values));
for (const name of ["simulation.json", "simulation.svg"]) console.log(`written: ${join(out, name)}`);
