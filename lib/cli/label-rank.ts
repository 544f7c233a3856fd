import { basename } from "node:path";
import { parseArgs } from "node:util";
import { type Dataset, showProgress } from "../data";
import { Engine, listImages } from "../engine";
import {
  aggregations,
  type Criterion,
  checkSameClasses,
  criteria,
  gatherCandidates,
  gatherFeatures,
  rankImages,
  rankingFormatOf,
  rankingFormats,
  writeRanking,
} from "../label";
import { check } from "../native";
import { Device } from "../tensor";
import { stopOnSignals } from "../train";
import { number, oneOf, positiveInteger, UsageError } from "./arguments";
import { classIndices, imagesOf, openSplits, type PlacedImage, tellFailures } from "./label-models";

export const rankHelp = `dlfs label rank: which images to label next: those whose labels would teach most, first.

Usage: dlfs label rank MODEL [MODEL2 ...] SOURCE --out FILE [options]
       dlfs label rank MODEL [MODEL2 ...] --data DIR --split S --out FILE [options]

  MODEL               a model file (dlfs export), a checkpoint, or the folder of a run; further ones for disagreement
  SOURCE              unlabelled images, as dlfs predict takes them: a folder, gs:// or s3://, a pattern, a list, an image
  --data DIR          a data set: the images of --split without boxes are ordered, and those with boxes are what is labelled
  --split S           default train2017
  --labelled S        the split with what is labelled; default --split
  --all               also images that have boxes
  --by CRITERION      uncertainty (default): entropy of the scores; margin: between the two likeliest classes; disagreement: between
                      the models, or of one with itself on the mirror image; diversity: unlike what is labelled and chosen
                      before, by the backbone's features; balance: objects of rare classes; mixed: a weighted sum
  --weights LIST      of mixed; default uncertainty=1,disagreement=1,diversity=1,balance=1
  --aggregate HOW     from an image's boxes to the image: sum (default), mean or max
  --count N           how many; default all
  --score X           boxes below it count for nothing; default 0.05
  --out FILE          FILE.txt: a path a line; FILE.jsonl: an object a line, with the values; FILE.json: Label Studio's tasks
  --format F          paths, jsonl or label-studio; default by FILE's name
  --prefix TEXT       before the images' names in Label Studio's tasks, such as /data/local-files/?d=
  --batch N           most images at a time; default 32 on a GPU, 8 on the CPU
  --backend NAME      cuda or cpu; default: DLFS_BACKEND, else cuda where it finds a device`;

const options = {
  data: { type: "string" },
  split: { type: "string" },
  labelled: { type: "string" },
  all: { type: "boolean" },
  by: { type: "string" },
  weights: { type: "string" },
  aggregate: { type: "string" },
  count: { type: "string" },
  score: { type: "string" },
  out: { type: "string" },
  format: { type: "string" },
  prefix: { type: "string" },
  batch: { type: "string" },
  backend: { type: "string" },
} as const;

const MIXED = "uncertainty=1,disagreement=1,diversity=1,balance=1";

/** "uncertainty=1,balance=0.5" */
function weightsOf(text: string): Partial<Record<Criterion, number>> {
  const weights: Partial<Record<Criterion, number>> = {};
  for (const part of text.split(",")) {
    const [name = "", value = ""] = part.split("=");
    const weight = number("weights", value);
    if (weight < 0) throw new UsageError(`--weights: expected numbers from 0, got "${part}"`);
    weights[oneOf("weights", name, criteria)] = weight;
  }
  if (Object.values(weights).every((weight) => weight === 0)) throw new UsageError("--weights: all of them are 0");
  return weights;
}

interface Pool {
  images: PlacedImage[];
  labelled: PlacedImage[];
  /** By the model's labels. */
  classCounts?: number[];
  description: string;
}

async function listed(source: string): Promise<Pool> {
  const { images, frames, description } = await listImages(source);
  check(frames === undefined, source, () => "expected images, and this is a video");
  const placed = images.map((image) => ({ ...image, location: image.location ?? image.name }));
  return { images: placed, labelled: [], description };
}

function poolOf(dataset: Dataset, split: string, labelledSplit: string, all: boolean, classes: number[]): Pool {
  const { store, folder } = dataset;
  const withBoxes = (name: string) => {
    const records = store.images(name, { usable: true });
    const boxes = store.annotationsOfBatch(records.map(({ id }) => id));
    return records.map((record, i) => ({ record, labelled: (boxes[i] as unknown[]).length > 0 }));
  };
  const own = withBoxes(split);
  const unlabelled = own.filter(({ labelled }) => all || !labelled).map(({ record }) => record);
  check(
    unlabelled.length > 0,
    folder,
    () => `all ${own.length} images of ${split} have boxes; --all orders them nevertheless`,
  );
  const labelled = (labelledSplit === split ? own : withBoxes(labelledSplit)).filter((one) => one.labelled);
  const chosen = new Set(unlabelled.map(({ id }) => id));
  const known = labelled.map(({ record }) => record).filter(({ id }) => !chosen.has(id));
  const counts = store.classCounts(labelledSplit);
  return {
    ...{ images: imagesOf(dataset, unlabelled), labelled: imagesOf(dataset, known) },
    classCounts: classes.map((index) => counts[index] as number),
    description: `${unlabelled.length} images of ${split} to order, ${known.length} labelled in ${labelledSplit}`,
  };
}

export async function rank(argv: string[]): Promise<number> {
  const { values: args, positionals } = parseArgs({ args: argv, options, strict: true, allowPositionals: true });
  const given = <T>(name: keyof typeof args, parse: (name: string, text: string) => T): T | undefined =>
    args[name] === undefined ? undefined : parse(name, args[name] as string);
  const { data, out, split = "train2017" } = args;
  const models = data === undefined ? positionals.slice(0, -1) : positionals;
  if (models.length === 0) throw new UsageError("expected MODEL and SOURCE, or MODEL and --data");
  if (out === undefined) throw new UsageError("expected --out, the file of the order");
  for (const name of ["split", "labelled", "all"] as const) {
    if (data === undefined && args[name] !== undefined) throw new UsageError(`--${name} is for --data`);
  }
  const by = given("by", (name, text) => oneOf(name, text, [...criteria, "mixed"] as const)) ?? "uncertainty";
  if (args.weights !== undefined && by !== "mixed") throw new UsageError("--weights is for --by mixed");
  const weights = by === "mixed" ? weightsOf(args.weights ?? MIXED) : { [by]: 1 };
  const counts = (name: Criterion) => (weights[name] ?? 0) > 0;
  if (models.length > 1 && !counts("disagreement")) throw new UsageError(`--by ${by} takes one MODEL`);
  const format = given("format", (name, text) => oneOf(name, text, rankingFormats)) ?? rankingFormatOf(out);
  const aggregation = given("aggregate", (name, text) => oneOf(name, text, aggregations));
  const [count, scoreThreshold, batch] = [
    given("count", positiveInteger),
    given("score", number) ?? 0.05,
    given("batch", positiveInteger),
  ];

  await using owned = new AsyncDisposableStack();
  const device = owned.use(new Device({ backend: args.backend }, console.log));
  const engines: Engine[] = [];
  for (const model of models) {
    const batchSizes = batch === undefined ? undefined : [batch];
    engines.push(owned.use(await Engine.load(model, { device, batchSizes, warmUp: false })));
  }
  checkSameClasses(engines);
  const [engine] = engines as [Engine, ...Engine[]];
  const { classes } = engine;
  let pool: Pool;
  if (data === undefined) {
    pool = await listed(positionals.at(-1) as string);
  } else {
    const labelled = args.labelled ?? split;
    const dataset = owned.use(await openSplits(data, device, labelled, split));
    const indices = classIndices(dataset, classes, models[0] as string);
    pool = poolOf(dataset, split, labelled, args.all ?? false, indices);
  }
  console.log(pool.description);
  using stop = stopOnSignals(() => console.error("\nstopping; nothing is written"));
  const show = showProgress();
  const diverse = counts("diversity");
  try {
    const { images, failures } = await gatherCandidates(pool.images, {
      ...{ engines: engines as [Engine, ...Engine[]], scoreThreshold, features: diverse, signal: stop.signal },
      mirror: counts("disagreement") && engines.length === 1,
      progress: (done, total) => show("detecting", done, total),
    });
    const labelled = diverse
      ? await gatherFeatures(pool.labelled, engine, {
          ...{ signal: stop.signal, progress: (done, total) => show("looking at what is labelled", done, total) },
        })
      : [];
    const { classCounts } = pool;
    const ranked = rankImages(images, { weights, count, aggregation, classes: classes.length, classCounts, labelled });
    const locations = pool.images.map(({ location }) => location);
    const modelVersion = `${basename(models[0] as string)}@${engine.iteration}`;
    await writeRanking(out, ranked, images, { format, locations, classes, modelVersion, imagePrefix: args.prefix });
    tellFailures(failures);
    console.log(`${ranked.length} of ${images.length} images, by ${by}`);
    console.log(`written: ${out}`);
    return 0;
  } catch (error) {
    if (stop.signal.aborted) return stop.exitStatus;
    throw error;
  }
}
