/** What the parts of dlfs label have in common that take labels out of a data set, or into it. */
import { type DataSource, DeviceImageCodec, LocalDataSource, loadDataset, SQLiteAnnStore, showProgress } from "../data";
import { intoDataset, intoTraining, type LabelTarget, type MergeReport } from "../label";
import { check, ErrorCode } from "../native";
import { Device } from "../tensor";
import { UsageError } from "./arguments";

export const storeOptions = {
  data: { type: "string" },
  store: { type: "string" },
  split: { type: "string" },
  "image-prefix": { type: "string" },
} as const;

export const storeHelp = `  --data DIR          the data set, in COCO's layout (a folder or an address); or
  --store FILE        a store of dlfs data`;

export const mergeOptions = {
  author: { type: "string" },
  live: { type: "string" },
  "add-classes": { type: "boolean" },
  "dry-run": { type: "boolean" },
} as const;

export const mergeHelp = `  --author NAME       whose work changes are where the labels do not say; default: nobody's
  --live URL          give them to a training that goes on, which writes them to its data set itself: what dlfs train --live prints
  --add-classes       classes that the data set does not have become its; else images with one are refused
  --dry-run           only say what would change`;

interface StoreArgs {
  data?: string;
  store?: string;
  split?: string;
}

export interface OpenStore extends Disposable {
  readonly store: SQLiteAnnStore;
  /** Where it is, for messages. */
  readonly name: string;
  /** Where its images are. */
  source(): DataSource;
}

/** The store that --data or --store names, which must be there. */
export async function openLabels({ data, store, split }: StoreArgs): Promise<OpenStore> {
  if ((data === undefined) === (store === undefined))
    throw new UsageError("expected --data, a data set, or --store, a store of dlfs data");
  if (store !== undefined) {
    if (!(await Bun.file(store).exists())) throw new UsageError(`--store: no such file, "${store}"`);
    const opened = new SQLiteAnnStore(store);
    const source = () => {
      const folder = opened.getMetadata("images");
      if (folder === null)
        throw new UsageError(`${store} does not know where its images are: dlfs data check --images`);
      return new LocalDataSource(folder);
    };
    return { store: opened, name: store, source, [Symbol.dispose]: () => opened.close() };
  }
  if (split === undefined) throw new UsageError("expected --split, of the data set");
  using device = new Device({ backend: "cpu" });
  const codec = new DeviceImageCodec(device);
  const splits = { trainSplit: split, valSplit: null, requireBoxes: false };
  const dataset = await loadDataset(data as string, { codec, ...splits, progress: showProgress() });
  const kept = dataset.store as SQLiteAnnStore;
  check(
    kept.path !== ":memory:",
    "label",
    () => `the annotations of ${data} cannot be kept on this machine: dlfs data import makes a --store`,
    ErrorCode.io,
  );
  return {
    store: kept,
    name: dataset.folder,
    source: () => dataset.source,
    [Symbol.dispose]: () => dataset[Symbol.dispose](),
  };
}

/** Where labels go: to the store, or to a training. */
export function targetOf(
  store: SQLiteAnnStore,
  args: { live?: string; "dry-run"?: boolean; "add-classes"?: boolean },
): LabelTarget {
  const undo = args["dry-run"] ?? false;
  if (undo && args["add-classes"]) throw new UsageError("--dry-run adds no classes: --add-classes does not go with it");
  if (undo || args.live === undefined) return intoDataset({ store, classes: store.classes() }, { undo });
  return intoTraining(args.live);
}

/** Says what a merge came to; the exit status. */
export function tellMerge(report: MergeReport, name: string, dry: boolean): number {
  const { images, changedImages, same, added, changed, deleted, kept, refused } = report;
  const would = dry ? " would be" : "";
  console.log(`${images} images compared, ${changedImages}${would} changed in ${name}`);
  console.log(`boxes: ${same} as they were, ${added} added, ${changed} changed, ${deleted} deleted`);
  if (kept > 0) console.log(`${kept} images without boxes there keep theirs: --negatives takes those away`);
  if (refused.length > 0) console.log(`refused, ${refused.length} images:`);
  for (const { image, reason } of refused) console.log(`  ${image}: ${reason}`);
  return refused.length > 0 ? 1 : 0;
}
