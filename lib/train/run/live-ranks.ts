/** Ranks that are told things while they train: rank 0 takes in what comes, and all have it from the same batch on. */
import type { CocoDataLoader } from "../../data";
import type { ProcessGroup } from "../../distributed";
import { decodeEntries, encodeEntries, type JournalEntry, RateReplay } from "../../live";
import type { TrainerObserver } from "../observers";
import type { Trainer } from "../trainer";

/** Gives all ranks what rank 0 has read. */
export async function shareEntries(
  group: ProcessGroup | undefined,
  read: () => Promise<readonly JournalEntry[]>,
): Promise<readonly JournalEntry[]> {
  if (!group) return await read();
  const own = group.isRoot ? encodeEntries(await read()) : new Uint8Array();
  const [entries] = await group.exchange("what entered before", own);
  return decodeEntries(entries as Uint8Array, "rank 0");
}

/**
 * What the ranks do before a step that they have agreed to meet before: rank 0 gives the others what it has taken in. The loaders of
 * all have come equally far at the start of a step, so that what rank 0's says of the batches to come holds for all of them.
 */
async function meet(group: ProcessGroup, taken: Promise<readonly JournalEntry[]> | null): Promise<JournalEntry[]> {
  const { phase } = group;
  group.phase = "labels and commands"; // a training that pauses stays here
  try {
    const [entries] = await group.exchange("live", encodeEntries((await taken) ?? []));
    return decodeEntries(entries as Uint8Array, "rank 0");
  } finally {
    group.phase = phase;
  }
}

/** Rank 0's side: collects what is taken in, and has the ranks meet where something waits. */
export class LiveLeader {
  readonly #group: ProcessGroup;
  #taken: JournalEntry[] = [];

  constructor(group: ProcessGroup) {
    this.#group = group;
  }

  /** Something waits to be taken in. */
  onWaiting(): void {
    this.#group.requestMeeting();
  }

  onTaken(entry: JournalEntry): void {
    this.#taken.push(entry);
  }

  /**
   * Before a step: takes in what waits where the ranks meet.
   *
   * @param takeIn LiveSession.beforeStep
   * @param waits whether something still waits then
   */
  async beforeStep(
    iteration: number,
    takeIn: (iteration: number, takes: boolean) => Promise<void> | undefined,
    waits: () => boolean,
  ): Promise<void> {
    if (!this.#group.meetsBefore(iteration)) return await takeIn(iteration, false);
    const take = async () => {
      await takeIn(iteration, true);
      return this.#taken.splice(0);
    };
    await meet(this.#group, take());
    if (waits()) this.#group.requestMeeting();
  }
}

/** The other ranks' side: does what rank 0 does. */
export class LiveFollower {
  readonly #group: ProcessGroup;
  readonly #loader: CocoDataLoader;
  readonly #rates: RateReplay;
  #trainer: Trainer | null = null;

  /** @param entries of an earlier training, or of this one before it was stopped */
  constructor(group: ProcessGroup, loader: CocoDataLoader, entries: readonly JournalEntry[]) {
    this.#group = group;
    this.#loader = loader;
    this.#rates = new RateReplay(entries);
  }

  /** Begins: the trainer is there. */
  attach(trainer: Trainer): void {
    this.#trainer = trainer;
  }

  get observer(): TrainerObserver {
    return { onStepStart: (iteration) => this.#beforeStep(iteration) };
  }

  async #beforeStep(iteration: number): Promise<void> {
    const trainer = this.#trainer as Trainer;
    const setRate = (factor: number) => {
      trainer.rateFactor = factor;
    };
    this.#rates.before(iteration, setRate);
    if (!this.#group.meetsBefore(iteration)) return;
    for (const { content } of await meet(this.#group, null)) {
      if ("change" in content) this.#loader.take(content.change);
      else if (content.command === "learningRate") setRate(content.value as number);
      else if (content.command === "evaluate") trainer.requestEvaluation();
      else if (content.command === "save") trainer.requestCheckpoint();
    }
  }
}
