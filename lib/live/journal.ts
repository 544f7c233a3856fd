/** What has entered a training while it went on, in the order in which it counts (schemas/journal.fbs). */
import { existsSync } from "node:fs";
import { Builder } from "flatbuffers";
import type { ImageBoxes, ImageRecord, TargetChange } from "../data";
import type { ControlCommand } from "../formats";
import {
  decodeFrame,
  encodeFrame,
  FramedFileReader,
  FramedFileWriter,
  type FramedFormat,
} from "../formats/framed-stream";
import { Command } from "../formats/generated/dlfs/control/command";
import { Boxes } from "../formats/generated/dlfs/journal/boxes";
import { Change } from "../formats/generated/dlfs/journal/change";
import { Entry } from "../formats/generated/dlfs/journal/entry";
import { Image } from "../formats/generated/dlfs/journal/image";
import { MessageReader } from "../formats/messages/codec";
import { commandCodes } from "../formats/messages/control";
import { DlfsError, ErrorCode } from "../native/error";

const FORMAT: FramedFormat = { magic: "DLFSJRNL", version: 1, what: "journal" };
const KIND = "DLJE";

/** Something that was taken in. */
export interface JournalEntry {
  /** The message that it comes from. */
  message: string;
  author: string;
  /** When that was made: milliseconds since 1970-01-01 UTC. */
  time: number;
  /** Optimizer steps done when it was taken in; a command counts from the next step on. */
  iteration: number;
  content: { change: TargetChange } | { command: ControlCommand; value?: number };
}

/** The file that what enters a training is written to, before it counts. */
export class Journal implements AsyncDisposable {
  readonly #file: FramedFileWriter;

  private constructor(
    file: FramedFileWriter,
    /** What was in the file when it was opened. */
    readonly entries: readonly JournalEntry[],
  ) {
    this.#file = file;
  }

  /**
   * Starts a journal, or goes on with one behind its last whole entry.
   *
   * @throws DlfsError naming the file where it is damaged, or of a newer version
   */
  static async open(path: string): Promise<Journal> {
    if (!existsSync(path)) return new Journal(await FramedFileWriter.create(path, FORMAT), []);
    const { entries, position } = await readAll(path);
    return new Journal(await FramedFileWriter.append(path, FORMAT, position), entries);
  }

  /** @throws DlfsError naming the file where it is missing, damaged, or of a newer version */
  static async read(path: string): Promise<JournalEntry[]> {
    return (await readAll(path)).entries;
  }

  /** Resolves when they are on the disk: a training that is killed from then on does not lose them. */
  async append(entries: readonly JournalEntry[]): Promise<void> {
    await this.#file.append(entries.map((entry) => ({ kind: KIND, message: encodeEntry(entry) })));
    await this.#file.sync();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file[Symbol.asyncDispose]();
  }
}

/** Entries as bytes, one behind the other: for other ranks of a training. */
export function encodeEntries(entries: readonly JournalEntry[]): Uint8Array {
  return Buffer.concat(entries.map((entry) => encodeFrame({ kind: KIND, message: encodeEntry(entry) })));
}

/** @throws DlfsError naming `source` where they are no entries */
export function decodeEntries(bytes: Uint8Array, source: string): JournalEntry[] {
  const entries: JournalEntry[] = [];
  for (let at = 0; at < bytes.length; ) {
    const decoded = decodeFrame(bytes, at, source);
    if (!decoded) throw new DlfsError(ErrorCode.io, source, `it ends within an entry, at ${at}`);
    entries.push(decodeEntry(decoded.frame.message, source));
    at = decoded.next;
  }
  return entries;
}

async function readAll(path: string): Promise<{ entries: JournalEntry[]; position: number }> {
  await using reader = await FramedFileReader.open(path, FORMAT);
  const entries: JournalEntry[] = [];
  for await (const { kind, message } of reader.frames()) {
    if (kind === KIND) entries.push(decodeEntry(message, path));
  }
  return { entries, position: reader.position };
}

function encodeEntry({ message, author, time, iteration, content }: JournalEntry): Uint8Array {
  const b = new Builder(512);
  b.forceDefaults(true);
  const [messageAt, authorAt] = [b.createString(message), b.createString(author)];
  const changeAt = "change" in content ? encodeChange(b, content.change) : 0;
  Entry.startEntry(b);
  Entry.addMessage(b, messageAt);
  Entry.addAuthor(b, authorAt);
  Entry.addTime(b, BigInt(time));
  Entry.addIteration(b, BigInt(iteration));
  if ("change" in content) Entry.addChange(b, changeAt);
  else {
    Entry.addCommand(b, commandCodes[content.command]);
    if (content.value !== undefined) Entry.addValue(b, content.value);
  }
  b.finish(Entry.endEntry(b), KIND);
  return b.asUint8Array();
}

function encodeChange(b: Builder, { from, image, before, after, pass, weight, seat }: TargetChange): number {
  const imageAt = encodeImage(b, image);
  const beforeAt = before === null ? 0 : encodeBoxes(b, before);
  const afterAt = encodeBoxes(b, after);
  Change.startChange(b);
  Change.addImage(b, imageAt);
  Change.addEpoch(b, from.epoch);
  Change.addIndex(b, from.index);
  if (before !== null) Change.addBefore(b, beforeAt);
  Change.addAfter(b, afterAt);
  Change.addPass(b, pass);
  Change.addWeight(b, weight);
  if (seat) {
    Change.addSeatEpoch(b, seat.at.epoch);
    Change.addSeatIndex(b, seat.at.index);
    Change.addSeatSlot(b, seat.slot);
  }
  return Change.endChange(b);
}

function encodeImage(b: Builder, { id, sourceId, split, fileName, key, width, height }: ImageRecord): number {
  const [splitAt, nameAt, keyAt] = [b.createString(split), b.createString(fileName), b.createString(key)];
  Image.startImage(b);
  Image.addId(b, BigInt(id));
  Image.addSourceId(b, BigInt(sourceId));
  Image.addSplit(b, splitAt);
  Image.addFileName(b, nameAt);
  Image.addKey(b, keyAt);
  Image.addWidth(b, width ?? 0);
  Image.addHeight(b, height ?? 0);
  return Image.endImage(b);
}

function encodeBoxes(b: Builder, { boxes, labels }: ImageBoxes): number {
  const boxesAt = Boxes.createBoxesVector(b, boxes);
  const labelsAt = Boxes.createLabelsVector(b, labels);
  return Boxes.createBoxes(b, boxesAt, labelsAt);
}

type Reader = MessageReader<Entry>;

function decodeEntry(bytes: Uint8Array, path: string): JournalEntry {
  const reader: Reader = new MessageReader(bytes, path, KIND, "entry of a journal", Entry);
  const { root } = reader;
  const common = {
    message: reader.required("message", () => root.message()),
    author: reader.required("author", () => root.author()),
    time: reader.count("time", () => root.time()),
    iteration: reader.count("iteration", () => root.iteration()),
  };
  const change = reader.field("change", () => root.change());
  if (change) return { ...common, content: { change: decodeChange(reader, change) } };
  const code = reader.field("command", () => root.command());
  const command = (Object.keys(commandCodes) as ControlCommand[]).find((name) => commandCodes[name] === code);
  if (!command || code === Command.None) return reader.fail("command", `${code} is none of this version`);
  const value = reader.field("value", () => root.value());
  return { ...common, content: { command, ...(value !== null && { value }) } };
}

function decodeChange(reader: Reader, change: Change): TargetChange {
  const image = reader.required("change.image", () => change.image());
  const before = reader.field("change.before", () => change.before());
  const after = reader.required("change.after", () => change.after());
  const seatEpoch = reader.field("change.seat_epoch", () => change.seatEpoch());
  const at = (read: () => number) => reader.field("change", read);
  return {
    image: decodeImage(reader, image),
    from: { epoch: at(() => change.epoch()), index: at(() => change.index()) },
    before: before && decodeBoxes(reader, before, "change.before"),
    after: decodeBoxes(reader, after, "change.after"),
    pass: at(() => change.pass()),
    weight: at(() => change.weight()),
    seat:
      seatEpoch === null
        ? null
        : { at: { epoch: seatEpoch, index: at(() => change.seatIndex()) }, slot: at(() => change.seatSlot()) },
  };
}

function decodeImage(reader: Reader, image: Image): ImageRecord {
  return {
    id: reader.count("image.id", () => image.id()),
    sourceId: reader.count("image.source_id", () => image.sourceId()),
    split: reader.required("image.split", () => image.split()),
    fileName: reader.required("image.file_name", () => image.fileName()),
    key: reader.required("image.key", () => image.key()),
    width: reader.field("image.width", () => image.width()),
    height: reader.field("image.height", () => image.height()),
    problem: null,
  };
}

function decodeBoxes(reader: Reader, table: Boxes, name: string): ImageBoxes {
  const boxes = reader.numbers(`${name}.boxes`, () => table.boxesArray()) ?? new Float64Array(0);
  const labels = reader.numbers(`${name}.labels`, () => table.labelsArray()) ?? new Int32Array(0);
  reader.expectLength(`${name}.boxes`, boxes.length, 4 * labels.length, `${labels.length} labels`);
  return { boxes, labels };
}
