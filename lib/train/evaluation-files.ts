/** What an evaluation found on each image, kept in the run folder: what the dashboard shows of it. */
import { readdir, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import type { Dataset, ImageRecord } from "../data";
import { type Message, makeFolder, type SampleMessage } from "../formats";
import { fileError } from "../formats/atomic-file";
import { writeLiveFile } from "../live";
import { detectionLoss } from "../metrics";
import { evaluationOf, type RunFolder } from "../monitor";
import type { Detection } from "./detect-step";
import type { EvaluatedSplit, ImageDetections } from "./evaluator";

/** Files of a run together, but for the latest, which is kept whatever its size. */
const MAX_BYTES = 256 * 2 ** 20;

/** What was found on an image beside what is known of it, and the loss (detectionLoss); no picture. */
export function evaluatedImage(
  { store, classes }: Pick<Dataset, "store" | "classes">,
  iteration: number,
  { id, key, split, width, height }: ImageRecord,
  found: readonly Detection[],
): SampleMessage {
  const known = store.annotationsOf(id);
  const predictions = {
    ...{ name: key, imageId: id, width: width ?? 0, height: height ?? 0 },
    boxes: Float32Array.from(found.flatMap(({ box }) => box)),
    scores: Float32Array.from(found, ({ score }) => score),
    labels: Uint32Array.from(found, ({ label }) => label),
  };
  const truth = {
    boxes: Float64Array.from(known.flatMap(({ bbox: [x, y, w, h] }) => [x, y, x + w, y + h])),
    labels: Uint32Array.from(known, ({ categoryId }) => classes.indexOf(categoryId)),
    ids: Float64Array.from(known, ({ id: box }) => box),
    crowd: Uint8Array.from(known, ({ isCrowd }) => (isCrowd ? 1 : 0)),
  };
  return { iteration, time: Date.now(), split, predictions, truth, loss: detectionLoss(predictions, truth) };
}

/** The evaluations of a run: a live file of sample messages for each, without pictures, of all images that were measured. */
export class EvaluationFiles {
  constructor(
    private readonly run: RunFolder,
    private readonly dataset: Pick<Dataset, "store" | "classes">,
    private readonly evaluated: EvaluatedSplit,
    private readonly maxBytes = MAX_BYTES,
  ) {}

  /**
   * Writes an evaluation, and removes the oldest ones where all are more than they may be.
   *
   * @param detections images that are missing here, since they could not be read say, count as images on which nothing was found,
   * as they do for the metrics
   * @throws DlfsError naming the file that could not be written; what was there before is as it was
   */
  async write(iteration: number, detections: readonly ImageDetections[]): Promise<void> {
    await makeFolder(this.run.evaluationsFolder);
    await writeLiveFile(this.run.evaluationPath(iteration), this.#messages(iteration, detections));
    const files = await this.#files();
    let bytes = 0;
    for (const { path, size } of files.reverse()) {
      bytes += size;
      if (bytes > this.maxBytes && bytes > size) await this.#remove(path);
    }
  }

  *#messages(iteration: number, detections: readonly ImageDetections[]): Generator<Message> {
    const { store } = this.dataset;
    const { split, partial = false } = this.evaluated;
    const found = new Map(detections.map((one) => [one.imageId, one.detections]));
    for (const image of store.images(split, { usable: true })) {
      const own = found.get(image.id);
      if (own === undefined && partial) continue;
      yield { type: "sample", value: evaluatedImage(this.dataset, iteration, image, own ?? []) };
    }
  }

  /** By iteration. */
  async #files(): Promise<{ iteration: number; path: string; size: number }[]> {
    const folder = this.run.evaluationsFolder;
    const names = (await readdir(folder)).map((name) => ({ iteration: evaluationOf(name), path: join(folder, name) }));
    const files = names.filter((file): file is { iteration: number; path: string } => file.iteration !== null);
    const sized = await Promise.all(files.map(async (file) => ({ ...file, size: (await stat(file.path)).size })));
    return sized.sort((a, b) => a.iteration - b.iteration);
  }

  async #remove(path: string): Promise<void> {
    await rm(path, { force: true }).catch((error: unknown) => {
      throw fileError(path, "remove the evaluation", error);
    });
  }
}
