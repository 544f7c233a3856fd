import { parseArgs } from "node:util";
import { showProgress } from "../data";
import { Engine } from "../engine";
import {
  type AuditedImage,
  auditLabels,
  confidentScore,
  findingTable,
  type GivenBox,
  gatherCandidates,
  writeFindings,
} from "../label";
import { Device } from "../tensor";
import { stopOnSignals } from "../train";
import { number, positiveInteger, UsageError } from "./arguments";
import { classIndices, imagesOf, openSplits, tellFailures } from "./label-models";

export const auditHelp = `dlfs label audit: boxes that are likely missing, wrong or loose, worst first, by what a model is confident of.

Usage: dlfs label audit MODEL --data DIR --split S [options]

  MODEL               a model file (dlfs export), a checkpoint, or the folder of a run; best one that was not trained on the split
  --data DIR          the data set
  --split S           default val2017
  --out FILE          all of them as JSON lines
  --count N           how many are shown; default 30
  --score X           detections from it on count as confident; default: from which on three of four lie on boxes of their class
  --batch N           most images at a time; default 32 on a GPU, 8 on the CPU
  --backend NAME      cuda or cpu; default: DLFS_BACKEND, else cuda where it finds a device`;

const options = {
  data: { type: "string" },
  split: { type: "string" },
  out: { type: "string" },
  count: { type: "string" },
  score: { type: "string" },
  batch: { type: "string" },
  backend: { type: "string" },
} as const;

/** Detections below it say nothing, also not that a box is right. */
const LEAST_SCORE = 0.05;

export async function audit(argv: string[]): Promise<number> {
  const { values: args, positionals } = parseArgs({ args: argv, options, strict: true, allowPositionals: true });
  const { data, split = "val2017", out } = args;
  const [model, ...others] = positionals;
  if (model === undefined || others.length > 0) throw new UsageError("expected one MODEL");
  if (data === undefined) throw new UsageError("expected --data, the data set");
  const given = <T>(name: keyof typeof args, parse: (name: string, text: string) => T): T | undefined =>
    args[name] === undefined ? undefined : parse(name, args[name] as string);
  const [count, score, batch] = [
    given("count", positiveInteger) ?? 30,
    given("score", number),
    given("batch", positiveInteger),
  ];
  if (score !== undefined && !(score >= 0 && score <= 1))
    throw new UsageError(`--score: expected 0 to 1, got ${score}`);

  await using owned = new AsyncDisposableStack();
  const device = owned.use(new Device({ backend: args.backend }, console.log));
  const batchSizes = batch === undefined ? undefined : [batch];
  const engine = owned.use(await Engine.load(model, { device, batchSizes, warmUp: false }));
  const { classes } = engine;
  const dataset = owned.use(await openSplits(data, device, split, split));
  const { store } = dataset;
  const labelOf = new Map(classIndices(dataset, classes, model).map((index, label) => [index, label]));
  const records = store.images(split, { usable: true });
  const annotations = store.annotationsOfBatch(records.map(({ id }) => id));
  using stop = stopOnSignals(() => console.error("\nstopping; nothing is written"));
  const show = showProgress();
  try {
    const { images, failures } = await gatherCandidates(imagesOf(dataset, records), {
      ...{
        engines: [engine],
        scoreThreshold: Math.min(LEAST_SCORE, score ?? LEAST_SCORE),
        mirror: false,
        features: false,
      },
      ...{ signal: stop.signal, progress: (done, total) => show("detecting", done, total) },
    });
    const audited = images.map(({ name, place, found }): AuditedImage => {
      const boxes = (annotations[place] as (typeof annotations)[0]).map((row): GivenBox => {
        const label = labelOf.get(dataset.classes.indexOf(row.categoryId));
        const [x, y, width, height] = row.bbox;
        const box = [x, y, x + width, y + height] as const;
        return { id: row.sourceId, box, label: label ?? -1, ignore: row.isCrowd || label === undefined };
      });
      return { name, found, given: boxes };
    });
    const confident = score ?? confidentScore(audited);
    const findings = auditLabels(audited, { score: confident });
    if (out !== undefined) await writeFindings(out, findings, classes);
    for (const line of findingTable(findings, classes, count)) console.log(line);
    if (score === undefined) console.log(confidenceOf(confident, audited));
    tellFailures(failures);
    if (out !== undefined) console.log(`written: ${out}`);
    return 0;
  } catch (error) {
    if (stop.signal.aborted) return stop.exitStatus;
    throw error;
  }
}

/** What the findings rest on. */
function confidenceOf(score: number, images: readonly AuditedImage[]): string {
  const detections = images.reduce((sum, { found }) => sum + found.length, 0);
  if (score <= 1)
    return `the model counts as confident from ${score.toFixed(2)} on: three of four such detections lie on boxes`;
  const none = `of its ${detections} detections three of four lie on boxes of their class from no score on`;
  return `the model is never confident, so this says nothing of the labels: ${none}; a better model does, or --score`;
}
