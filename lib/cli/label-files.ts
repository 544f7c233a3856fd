import { parseArgs } from "node:util";
import { exportDataset, showProgress } from "../data";
import { addClasses, importLabels, labelFormats, mergeLabels, writeLabelSetup } from "../label";
import { stopOnSignals } from "../train";
import { oneOf, UsageError } from "./arguments";
import { mergeHelp, mergeOptions, openLabels, storeHelp, storeOptions, targetOf, tellMerge } from "./label-store";

export const filesHelp = `dlfs label export: a split as a file for Label Studio or CVAT, with what their tasks must be set up with.
dlfs label import: what people made of it, back into the data set: what is different, as their work, and nothing else.

Usage: dlfs label export --data DIR --split S --format NAME --out FILE
       dlfs label import FILE --data DIR --split S [options]

${storeHelp}
  --split S           default of import with --store: all splits; a name that several splits have needs it
  --image-prefix TEXT of Label Studio: what comes before the images' names in tasks: /data/local-files/?d=

export:
  --format NAME       label-studio (tasks), cvat (COCO as CVAT takes it), cvat-xml (CVAT for images 1.1), or coco, with the ids
                      that the data set came with: its annotation file as people have corrected it
  --out FILE          and FILE.labels.xml or FILE.labels.json: the labeling configuration, or CVAT's labels (Raw)
  --unusable          images with a problem too

import: FILE is Label Studio's export as JSON, or CVAT's COCO or CVAT for images, also as the archive that CVAT gives. Ends with 1
where images were refused: with turned boxes, with shapes that are no boxes, unknown ones; all others are taken.
  --format NAME       ${labelFormats.join(", ")}; default: as it looks
  --negatives         of CVAT, which does not say what was looked at: images without boxes have none
${mergeHelp}`;

const exportFormats = ["label-studio", "cvat", "cvat-xml", "coco"] as const;

export async function exportLabels(argv: string[]): Promise<number> {
  const { values: args } = parseArgs({
    ...{ args: argv, strict: true, allowPositionals: false },
    options: {
      ...storeOptions,
      format: { type: "string" },
      out: { type: "string" },
      unusable: { type: "boolean" },
    },
  });
  const { split, out, unusable } = args;
  if (split === undefined) throw new UsageError("expected --split, the split to be written");
  if (out === undefined) throw new UsageError("expected --out, the file that is written");
  if (args.format === undefined) throw new UsageError(`expected --format: ${exportFormats.join(", ")}`);
  const format = oneOf("format", args.format, exportFormats);
  using labels = await openLabels(args);
  const { store } = labels;
  const report = await exportDataset(store, format, out, { split, unusable, imagePrefix: args["image-prefix"] });
  console.log(`${split}: ${report.images} images, ${report.annotations} boxes`);
  const written = [...report.paths];
  if (format !== "coco") written.push(await writeLabelSetup(out, format, store));
  for (const path of written) console.log(`written: ${path}`);
  return 0;
}

export async function importLabelFile(argv: string[]): Promise<number> {
  const { values: args, positionals } = parseArgs({
    ...{ args: argv, strict: true, allowPositionals: true },
    options: { ...storeOptions, ...mergeOptions, format: { type: "string" }, negatives: { type: "boolean" } },
  });
  const [path, ...others] = positionals;
  if (path === undefined || others.length > 0) throw new UsageError("expected one FILE");
  const format = args.format === undefined ? undefined : oneOf("format", args.format, labelFormats);
  using labels = await openLabels(args);
  const { store, name } = labels;
  const imagePrefix = args["image-prefix"];
  using file = await importLabels(path, { format, imagePrefix, progress: showProgress() });
  for (const line of file.problems) console.log(line);
  const dry = args["dry-run"] ?? false;
  if (args["add-classes"] && !dry) {
    for (const added of addClasses(store, file.store)) console.log(`new class: ${added}`);
  }
  const target = targetOf(store, args);
  using stop = stopOnSignals(() => console.error("\nstopping after this image"));
  const show = showProgress();
  const report = await mergeLabels(store, file.store, file.inexact, {
    ...{ target, split: args.split, author: args.author },
    ...{ negatives: file.isExplicit || args.negatives, exact: file.isExplicit, signal: stop.signal },
    progress: (done, total) => show("comparing", done, total),
  });
  return tellMerge(report, name, dry) || stop.exitStatus;
}
