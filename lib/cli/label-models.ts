/** What dlfs label rank and dlfs label audit have in common: a data set's images, and what could not be read. */
import { type Dataset, DeviceImageCodec, type ImageRecord, loadDataset, showProgress } from "../data";
import type { ReadableImage } from "../label";
import { check } from "../native";
import type { Device } from "../tensor";

/** An image of a data set, or of a list. */
export interface PlacedImage extends ReadableImage {
  readonly location: string;
}

export function imagesOf({ source }: Dataset, records: readonly ImageRecord[]): PlacedImage[] {
  return records.map(({ key }) => ({
    ...{ name: key, location: source.locate(key) },
    read: (signal?: AbortSignal) => source.read(key, { signal }),
  }));
}

/** The data set with one or two splits; the first must have boxes. */
export async function openSplits(data: string, device: Device, labelled: string, other: string): Promise<Dataset> {
  const valSplit = other === labelled ? null : other;
  const codec = new DeviceImageCodec(device);
  return await loadDataset(data, { codec, trainSplit: labelled, valSplit, progress: showProgress() });
}

/** For each of a model's classes its index in the data set. */
export function classIndices(dataset: Dataset, classes: readonly string[], model: string): number[] {
  const { names } = dataset.classes;
  return classes.map((name) => {
    const index = names.indexOf(name);
    check(index >= 0, model, () => `${dataset.folder} has no class "${name}", but ${names.join(", ")}`);
    return index;
  });
}

/** Failures that are named one by one. */
const NAMED_FAILURES = 10;

export function tellFailures(failures: readonly { name: string; error: string }[]): void {
  if (failures.length === 0) return;
  console.log(`${failures.length} images could not be used:`);
  for (const { name, error } of failures.slice(0, NAMED_FAILURES)) console.log(`  ${name}: ${error}`);
  if (failures.length > NAMED_FAILURES) console.log(`  and ${failures.length - NAMED_FAILURES} more`);
}
