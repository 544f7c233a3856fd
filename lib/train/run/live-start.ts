/** What a data set was when a live training began: its journal says what came since, and nothing of what others did meanwhile. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import type { AnnotationStore, TargetsStart } from "../../data";
import { writeFileAtomic } from "../../formats";
import { type JournalEntry, restoreStore } from "../../live";
import { DlfsError, ErrorCode } from "../../native";

const pathOf = (run: string): string => join(run, "live", "start.json");

interface Start extends TargetsStart {
  /** What the run is known by in the data set's store. */
  readonly id: string;
}

async function readStart(run: string): Promise<Start | null> {
  const path = pathOf(run);
  if (!existsSync(path)) return null;
  try {
    return (await Bun.file(path).json()) as Start;
  } catch (error) {
    throw new DlfsError(ErrorCode.io, path, `damaged: ${(error as Error).message}`);
  }
}

/** Why a data set, without a journal's changes, is not what a run began with; null where it is, or where that is not known. */
function differenceTo(run: string, then: Start | null, { images, boxes, fingerprint }: TargetsStart): string | null {
  if (!then || then.fingerprint === fingerprint) return null;
  const described = `${then.images} images with ${then.boxes} boxes then, ${images} with ${boxes} now`;
  return `the data set has been changed by others than ${run} since that began: ${described}`;
}

/** Keeps what a run begins with, and in the data set's store that its labels go there. */
export async function keepStart(run: string, start: TargetsStart, store: AnnotationStore): Promise<void> {
  const id = crypto.randomUUID();
  await writeFileAtomic(pathOf(run), `${JSON.stringify({ id, ...start } satisfies Start)}\n`);
  store.setMetadata(`live ${id}`, run);
}

/**
 * Looks at the data set of a run that goes on. A store that the run has not written to, of another machine say, or made anew, gets
 * what the journal has.
 *
 * @returns what to tell of
 * @throws DlfsError where the store knows images by other ids than the journal
 */
export async function findAgain(
  run: string,
  start: TargetsStart,
  data: Parameters<typeof restoreStore>[0],
  entries: readonly JournalEntry[],
): Promise<string[]> {
  const then = await readStart(run);
  const told: string[] = [];
  const difference = differenceTo(run, then, start);
  if (difference) told.push(`warning: ${difference}; training goes on, and cannot be done again to the same bytes`);
  if (!then || data.store.getMetadata(`live ${then.id}`) !== null) return told;
  const restored = restoreStore(data, entries);
  data.store.setMetadata(`live ${then.id}`, run);
  return [...told, `the data set has got back the labels of ${restored} images from the journal`];
}

/** @throws DlfsError where a run, or a journal, that is to be done again began with other data */
export async function checkReplay(replay: string, start: TargetsStart): Promise<void> {
  const difference = differenceTo(replay, await readStart(replay), start);
  if (difference) throw new DlfsError(ErrorCode.argument, "replay", `${difference}; it needs the data as they were`);
}
