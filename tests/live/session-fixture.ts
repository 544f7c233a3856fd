/** A session of labels and commands by itself: a store of two images, and a training that notes what it is told. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type AnnotationStore,
  type ImageChange,
  LocalDataSource,
  SQLiteAnnStore,
  type TargetChange,
} from "../../lib/data";
import type { ControlCommand, EventMessage, LabelEdit, LabelMessage, Message } from "../../lib/formats";
import { decodeMessage } from "../../lib/formats";
import {
  Journal,
  type JournalEntry,
  LiveBus,
  LiveSession,
  type LiveSessionOptions,
  type LiveTraining,
} from "../../lib/live";
import { FakeCodec } from "../data/fakes";

const folders: string[] = [];
const journals: Journal[] = [];

export async function closeJournals(): Promise<void> {
  for (const journal of journals.splice(0)) await journal[Symbol.asyncDispose]();
}

/** Removes what sessions have left: to be called after each test. */
export async function cleanUp(): Promise<void> {
  await closeJournals();
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true });
}

/** Two images of 64x48, the first with a box of class "cat". */
export function makeStore(store: AnnotationStore = new SQLiteAnnStore()): AnnotationStore {
  store.addCategories([
    { id: 3, name: "cat", supercategory: null },
    { id: 7, name: "dog", supercategory: null },
  ]);
  const images = [1, 2].map((i) => {
    return { sourceId: 10 * i, fileName: `${i}.jpg`, key: `train/${i}.jpg`, width: 64, height: 48 };
  });
  const [first] = store.addImages("train", images) as [number];
  const box = { imageId: first, sourceId: 5, categoryId: 3, bbox: [1, 2, 30, 20] as const, area: 600, isCrowd: false };
  store.addAnnotations([box]);
  return store;
}

export class FakeTraining implements LiveTraining {
  readonly changes: TargetChange[] = [];
  readonly calls: string[] = [];
  change({ image, boxes, weight = 1 }: ImageChange): TargetChange {
    const from = { epoch: 1, index: this.changes.length };
    this.changes.push({ from, image, before: null, after: boxes, pass: 2, weight, seat: null });
    return this.changes.at(-1) as TargetChange;
  }
  setRateFactor(factor: number) {
    this.calls.push(`rate ${factor}`);
  }
  evaluate() {
    this.calls.push("evaluate");
  }
  save() {
    this.calls.push("save");
  }
  stop() {
    this.calls.push("stop");
  }
}

export interface SetUpOptions extends Partial<LiveSessionOptions> {
  /** Of the journal. */
  path?: string;
  store?: AnnotationStore;
  /** While it is true the journal cannot be written. */
  full?: { is: boolean };
}

export async function setUp(options: SetUpOptions = {}) {
  const folder = mkdtempSync(join(tmpdir(), "dlfs-session-"));
  folders.push(folder);
  const { path = join(folder, "journal.dlvs"), store = makeStore(), full, ...rest } = options;
  const [training, opened, bus] = [new FakeTraining(), await Journal.open(path), new LiveBus()];
  journals.push(opened);
  const append = (entries: readonly JournalEntry[]) =>
    full?.is ? Promise.reject(new Error(`${path}: no space left on the disk`)) : opened.append(entries);
  const journal = { entries: opened.entries, append } as Journal;
  const events: EventMessage[] = [];
  bus.attach({
    name: "test",
    send: async (frames) => {
      for (const frame of frames) events.push(decodeMessage(frame, "bus")!.value as EventMessage);
    },
  });
  const source = new LocalDataSource(folder);
  const data = { store, split: "train", classes: store.classes(), boxesPerImage: 3, source, codec: new FakeCodec() };
  // How much is taken in at a time must not depend on how busy the machine is.
  const session = new LiveSession({ data, training, journal, bus, budgetMs: Number.POSITIVE_INFINITY, ...rest });
  return { folder, path, store, training, journal, bus, events, session, source };
}

export const add = { action: "add", category: "dog", box: [5, 6, 20, 30] } as const satisfies LabelEdit;
export const labels = (id: string, edits: readonly LabelEdit[], more: Partial<LabelMessage> = {}): Message => ({
  type: "labels",
  value: { id, author: "ada", time: 1_700_000_000_000, image: "train/1.jpg", edits, ...more },
});
export const control = (id: string, command: ControlCommand, value?: number): Message => ({
  type: "control",
  value: { id, author: "ada", time: 1, command, ...(value !== undefined && { value }) },
});
