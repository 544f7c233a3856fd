import { writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import {
  type Attribution,
  boxStats,
  checkRows,
  DeviceImageCodec,
  downloadDataset,
  exportDataset,
  exportFormats,
  type Finding,
  importDataset,
  importFormats,
  LocalDataSource,
  publishedDatasets,
  readDatasetArchives,
  SQLiteAnnStore,
  serveDataset,
} from "../data";
import { bestAnchorIoU } from "../detection/anchor-coverage";
import { detectorNames, modelFromConfig, namedModel } from "../models";
import { anchorLevels } from "../models/anchor-levels";
import { Device } from "../tensor";
import { oneOf, positiveInteger, sizeOf, UsageError } from "./arguments";
import { packHelp, runPack } from "./data-pack";
import { statsLines } from "./data-report";
import type { Verb } from "./main";

const help = `dlfs data: a store of images and boxes, in one file: brought in, looked at, checked, split and written in other formats.

Usage: dlfs data import INPUT --store FILE [options]
       dlfs data export --store FILE --format NAME --split NAME --out PATH
       dlfs data check --store FILE [--fix]
       dlfs data view --store FILE
       dlfs data split --store FILE --shares train=0.8,val=0.2 --seed N
       dlfs data stats --store FILE [--model NAME]
       dlfs data download NAME|FILE.json [--out DIR]
       dlfs data pack --data DIR --out DIR [options]

Of all:
  --store FILE        the store, an SQLite file; import makes it where there is none
  --images DIR        folder that the images' keys are relative to; kept in the store, so once is enough
  --split NAME        one split; check and stats default to all, import to what the input is called
  --author NAME       whose work changes are, in the log of changes

import: INPUT is an annotation file, or the folder of a data set: of COCO with annotations/instances_SPLIT.json, all splits
  --format NAME       coco (CVAT's COCO too), voc, yolo, csv, label-studio or cvat-xml; default: as the input looks
  --folder NAME       comes before the images' names in their keys: train2017. Default of coco: SPLIT, images/SPLIT or images
                      beside the annotation file's folder, whichever there is
  --first-pixel N     of voc: 1 (default) or 0, the number of the first pixel
  --image-prefix TEXT of label-studio: what comes before the images' names in tasks: /data/local-files/?d=
  --predictions WHICH of label-studio: unlabeled (default), always or never

export:
  --format NAME       coco, cvat (COCO as CVAT takes it), cvat-xml, voc, yolo, csv or label-studio
  --out PATH          a file; a folder of voc and yolo
  --unusable          images with a problem too
  --first-pixel, --image-prefix as for import

check: looks at every row and its file: is it there, an image that can be read, of the size in the row, not the same as another
one; do boxes lie in the image, have an area and a known category? Ends with 1 where something is wrong and was not set right.
  --fix               leave out images that cannot be used, fill in sizes, turn boxes of pictures that EXIF data turns on their
                      side and the annotations' size does not, clip boxes, delete those without area or outside;
                      the log of changes keeps what was there before
  --rows FILE         all that was found, a line of JSON each
  --no-duplicates     do not compare images' bytes: reads only the headers, much faster

view: serves a page with the images and their boxes until Ctrl-C
  --port N            default 7000
  --host NAME         default localhost: nobody else can see it

split: where an image goes follows from the seed and its key alone
  --shares LIST       splits with their shares: train=0.8,val=0.2
  --seed N            an integer from 0
  --from NAME         distribute the images of this split; default: all

stats: sizes, boxes and classes
  --model NAME        and how well a model's anchors cover the boxes: ${detectorNames.slice(0, 2).join(", ")}, ...
  --size N or HxW     the model's input, to which images are stretched; default 640
  --backend NAME      cuda or cpu, of check; default: DLFS_BACKEND, else cuda where it finds a device

download: fetches, verifies and unpacks a published data set (${publishedDatasets.map(({ name }) => name).join(", ")}); interrupted at any
point, the same command goes on from there. FILE.json describes archives of one's own:
{"name": ..., "archives": [{"name", "url", "size", "unpacked", "sha256"}]}
  --out DIR           default: ~/datasets/coco of coco2017, else ~/datasets/NAME
  --only NAMES        these archives, with commas between: annotations_trainval2017.zip,val2017.zip
  --keep              keep the archives, in DIR/.download

${packHelp}`;

const options = {
  store: { type: "string" },
  images: { type: "string" },
  split: { type: "string" },
  author: { type: "string" },
  format: { type: "string" },
  folder: { type: "string" },
  "first-pixel": { type: "string" },
  "image-prefix": { type: "string" },
  predictions: { type: "string" },
  out: { type: "string" },
  only: { type: "string" },
  keep: { type: "boolean" },
  unusable: { type: "boolean" },
  fix: { type: "boolean" },
  rows: { type: "string" },
  "no-duplicates": { type: "boolean" },
  port: { type: "string" },
  host: { type: "string" },
  shares: { type: "string" },
  seed: { type: "string" },
  from: { type: "string" },
  model: { type: "string" },
  size: { type: "string" },
  backend: { type: "string" },
} as const;

type Args = ReturnType<typeof parseArgs<{ options: typeof options }>>["values"];
type Option = keyof typeof options;

interface Command {
  /** Options that it takes besides --store, --images, --split and --author. */
  readonly takes: readonly Option[];
  run(args: Args, input: string | undefined): number | Promise<number>;
}

/** The store that --store names; it must be there, unless `create`. */
async function openStore(args: Args, create = false): Promise<SQLiteAnnStore> {
  const path = args.store;
  if (path === undefined) throw new UsageError("expected --store, the file of the store");
  if (!create && !(await Bun.file(path).exists())) {
    throw new UsageError(`--store: no such file, "${path}"; dlfs data import makes one`);
  }
  const store = new SQLiteAnnStore(path);
  if (args.images !== undefined) store.setMetadata("images", resolve(args.images));
  return store;
}

/** Where the images are. */
function sourceOf(store: SQLiteAnnStore): LocalDataSource {
  const folder = store.getMetadata("images");
  if (folder === null) throw new UsageError("expected --images, the folder of the images: the store does not know it");
  return new LocalDataSource(folder);
}

function attributionOf(args: Args): Attribution {
  return { source: "human", author: args.author ?? "" };
}

function firstPixelOf(args: Args): 0 | 1 | undefined {
  const text = args["first-pixel"];
  return text === undefined ? undefined : (Number(oneOf("first-pixel", text, ["0", "1"])) as 0 | 1);
}

function required(name: Option, value: string | undefined, what: string): string {
  if (value !== undefined) return value;
  throw new UsageError(`expected --${name}, ${what}`);
}

async function runImport(args: Args, input: string | undefined): Promise<number> {
  if (input === undefined) throw new UsageError("expected a file or folder: dlfs data import INPUT --store FILE");
  using store = await openStore(args, true);
  const reports = await importDataset(store, input, {
    format: args.format === undefined ? undefined : oneOf("format", args.format, importFormats),
    split: args.split,
    folder: args.folder,
    images: args.images,
    firstPixel: firstPixelOf(args),
    imagePrefix: args["image-prefix"],
    predictions:
      args.predictions === undefined
        ? undefined
        : oneOf("predictions", args.predictions, ["unlabeled", "always", "never"] as const),
  });
  for (const { split, images, annotations, crowds, problems } of reports) {
    console.log(`${split}: ${images} images, ${annotations} boxes${crowds > 0 ? `, ${crowds} of them crowds` : ""}`);
    for (const line of problems.lines()) console.log(`  ${line}`);
  }
  console.log(
    `store: ${store.path}, ${store.categories().length} categories, images in ${store.getMetadata("images")}`,
  );
  return 0;
}

async function runExport(args: Args): Promise<number> {
  const format = oneOf("format", required("format", args.format, exportFormats.join(", ")), exportFormats);
  const split = required("split", args.split, "the split to be written");
  const out = required("out", args.out, "what is written");
  using store = await openStore(args);
  const report = await exportDataset(store, format, out, {
    split,
    unusable: args.unusable,
    firstPixel: firstPixelOf(args),
    imagePrefix: args["image-prefix"],
  });
  console.log(`${split}: ${report.images} images, ${report.annotations} boxes`);
  if (report.leftOut > 0) console.log(`left out: ${report.leftOut} crowds, which ${format} does not know`);
  for (const path of report.paths) console.log(`written: ${path}`);
  return 0;
}

async function runCheck(args: Args): Promise<number> {
  using store = await openStore(args);
  const source = sourceOf(store);
  const faults = store.checkIntegrity();
  for (const line of faults) console.log(`store: ${line}`);
  const rows: Finding[] = [];
  using device = new Device({ backend: args.backend });
  const report = await checkRows(store, source, {
    splits: args.split === undefined ? undefined : [args.split],
    codec: new DeviceImageCodec(device),
    duplicates: !args["no-duplicates"],
    fix: args.fix,
    by: attributionOf(args),
    onFinding: args.rows === undefined ? undefined : (finding) => rows.push(finding),
  });
  if (args.rows !== undefined) {
    writeFileSync(args.rows, rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
    console.log(`written: ${args.rows}`);
  }
  const found = report.problems.count();
  for (const line of report.problems.lines()) console.log(line);
  console.log(`checked: ${report.images} images, ${report.boxes} boxes; ${found} findings, ${report.fixed} set right`);
  if (found > 0 && !args.fix)
    console.log("dlfs data check --fix sets right what can be; the log of changes keeps the rest");
  return faults.length > 0 || (found > 0 && !args.fix) ? 1 : 0;
}

async function runView(args: Args): Promise<number> {
  using store = await openStore(args);
  const port = args.port === undefined ? 7000 : positiveInteger("port", args.port);
  const server = serveDataset(store, sourceOf(store), { port, hostname: args.host });
  console.log(`${server.url}  (Ctrl-C ends)`);
  await new Promise<void>((done) => process.once("SIGINT", () => done()));
  await server.stop(true);
  return 0;
}

async function runSplit(args: Args): Promise<number> {
  const shares: Record<string, number> = {};
  for (const part of required("shares", args.shares, "such as train=0.8,val=0.2").split(",")) {
    const [, name, text] = /^([^=]+)=([\d.]+)$/.exec(part.trim()) ?? [];
    const share = Number(text);
    if (name === undefined || !Number.isFinite(share)) {
      throw new UsageError(`--shares: expected NAME=SHARE, got "${part}"`);
    }
    shares[name] = share;
  }
  const seed = Number(required("seed", args.seed, "an integer from 0"));
  if (!Number.isSafeInteger(seed) || seed < 0) {
    throw new UsageError(`--seed: expected an integer from 0, got "${args.seed}"`);
  }
  using store = await openStore(args);
  const counts = store.assignSplits({ shares, seed, from: args.from, by: attributionOf(args) });
  for (const [name, count] of Object.entries(counts)) console.log(`${name}: ${count} images`);
  return 0;
}

async function runStats(args: Args): Promise<number> {
  using store = await openStore(args);
  if (args.size !== undefined && args.model === undefined) throw new UsageError("--size is for --model");
  const size = args.size === undefined ? ([640, 640] as const) : sizeOf("size", args.size);
  const model =
    args.model === undefined
      ? null
      : modelFromConfig({ ...namedModel(args.model), classes: Math.max(1, store.categories().length) } as never);
  const levels = model ? anchorLevels(model, size) : null;
  const ious: number[] = [];
  const stats = boxStats(store, {
    split: args.split,
    onBox: levels
      ? ([x, y, w, h], width, height) => {
          if (width === null || height === null) return;
          const [across, down] = [size[1] / width, size[0] / height];
          ious.push(bestAnchorIoU(levels, x * across, y * down, w * across, h * down));
        }
      : undefined,
  });
  for (const line of statsLines(stats, levels ? { name: `${args.model} at ${size[0]}x${size[1]}`, ious } : null)) {
    console.log(line);
  }
  return 0;
}

async function runDownload(args: Args, input: string | undefined): Promise<number> {
  if (input === undefined) throw new UsageError("expected the name of a data set: dlfs data download coco2017");
  const stop = new AbortController();
  const interrupt = (): void => {
    if (stop.signal.aborted) process.exit(130);
    stop.abort();
  };
  process.on("SIGINT", interrupt);
  try {
    const { folder, bytes, files, present } = await downloadDataset(
      input.endsWith(".json") ? await readDatasetArchives(input) : input,
      {
        folder: args.out,
        only: args.only?.split(",").map((name) => name.trim()),
        keepArchives: args.keep,
        signal: stop.signal,
      },
    );
    console.log(
      `${folder}: ${files} files unpacked, ${present} there already; ${(bytes / 2 ** 20).toFixed(1)} MiB fetched`,
    );
    return 0;
  } catch (error) {
    if (!stop.signal.aborted) throw error;
    console.error("interrupted; the same command goes on from here");
    return 130;
  } finally {
    process.off("SIGINT", interrupt);
  }
}

const commands: Readonly<Record<string, Command>> = {
  import: { takes: ["format", "folder", "first-pixel", "image-prefix", "predictions"], run: runImport },
  export: { takes: ["format", "out", "unusable", "first-pixel", "image-prefix"], run: runExport },
  check: { takes: ["fix", "rows", "no-duplicates", "backend"], run: runCheck },
  view: { takes: ["port", "host"], run: runView },
  split: { takes: ["shares", "seed", "from"], run: runSplit },
  stats: { takes: ["model", "size"], run: runStats },
  download: { takes: ["out", "only", "keep"], run: runDownload },
};

export const verb: Verb = {
  help,
  async run(argv) {
    if (argv[0] === "pack") return runPack(argv.slice(1));
    const { values, positionals } = parseArgs({ args: argv, options, strict: true, allowPositionals: true });
    const [name, input, ...rest] = positionals;
    const names = [...Object.keys(commands), "pack"].join(", ");
    const command = name !== undefined && Object.hasOwn(commands, name) ? commands[name] : undefined;
    if (!command) throw new UsageError(`expected one of ${names}${name === undefined ? "" : `, got "${name}"`}`);
    const extra = name === "import" || name === "download" ? rest[0] : input;
    if (extra !== undefined) throw new UsageError(`unexpected argument "${extra}"`);
    const common: Option[] = ["store", "images", "split", "author"];
    for (const option of Object.keys(values) as Option[]) {
      if (![...common, ...command.takes].includes(option)) throw new UsageError(`--${option} is not for ${name}`);
    }
    return command.run(values, input);
  },
};
