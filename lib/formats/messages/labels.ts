/** Labels that enter a data set while it is trained on (schemas/labels.fbs). */
import { Builder } from "flatbuffers";
import { check } from "../../native/error";
import * as fb from "../generated/labels_generated";
import { type MessageCodec, MessageReader, optionalText } from "./codec";

/** What is done to one box. */
export type LabelEdit =
  | { action: "add"; category: string; box: LabelBox; crowd?: boolean; score?: number }
  | { action: "change"; annotationId: number; category?: string; box?: LabelBox; crowd?: boolean; score?: number }
  | { action: "delete"; annotationId: number };

/** In pixels of the image, upright. */
export type LabelBox = readonly [x1: number, y1: number, x2: number, y2: number];

/** What has been done to the boxes of one image. */
export interface LabelMessage {
  /** Of this message alone: the same one again changes nothing. */
  id: string;
  author: string;
  /** Milliseconds since 1970-01-01 UTC, when it was done. */
  time: number;
  /** The image's key in the data set's source. */
  image: string;
  /** Needed where several splits have the image. */
  split?: string;
  /** An image that the data set has not had yet: its size, 0 where the file is to be asked, and its file unless the source has it. */
  newImage?: { width: number; height: number; bytes?: Uint8Array };
  edits: readonly LabelEdit[];
  /** The edits, all of them "add", are all boxes that the image has: whatever else it had goes. */
  replace?: boolean;
  /** The image is trained on at once rather than in its turn. */
  atOnce?: boolean;
  /** How many times as often as others the image is drawn from then on, above 0; default 1. */
  weight?: number;
  /** The boxes that the author saw, as seenOf of lib/live has them in short: where the image has others by now, nothing is done. */
  seen?: string;
}

const actions = { add: fb.Action.Add, change: fb.Action.Change, delete: fb.Action.Delete } as const;

export const labelMessages: MessageCodec<LabelMessage> = {
  kind: "DLLB",

  encode(message) {
    const {
      id,
      author,
      time,
      image,
      split,
      newImage,
      edits,
      replace = false,
      atOnce = false,
      weight = 1,
      seen,
    } = message;
    check(weight > 0 && weight < Number.POSITIVE_INFINITY, `labels ${id}`, () => `weight: above 0, got ${weight}`);
    const b = new Builder(256 + 96 * edits.length + (newImage?.bytes?.length ?? 0));
    b.forceDefaults(true);
    const editsAt = fb.Labels.createEditsVector(
      b,
      edits.map((edit) => encodeEdit(b, edit)),
    );
    const newImageAt = newImage === undefined ? 0 : encodeNewImage(b, newImage);
    const [idAt, authorAt, imageAt] = [b.createString(id), b.createString(author), b.createString(image)];
    const [splitAt, seenAt] = [optionalText(b, split), optionalText(b, seen)];
    fb.Labels.startLabels(b);
    fb.Labels.addId(b, idAt);
    fb.Labels.addAuthor(b, authorAt);
    fb.Labels.addTime(b, BigInt(time));
    fb.Labels.addImage(b, imageAt);
    if (split !== undefined) fb.Labels.addSplit(b, splitAt);
    if (newImage !== undefined) fb.Labels.addNewImage(b, newImageAt);
    fb.Labels.addEdits(b, editsAt);
    fb.Labels.addReplace(b, replace);
    fb.Labels.addAtOnce(b, atOnce);
    fb.Labels.addWeight(b, weight);
    if (seen !== undefined) fb.Labels.addSeen(b, seenAt);
    b.finish(fb.Labels.endLabels(b), this.kind);
    return b.asUint8Array();
  },

  decode(message, source) {
    const reader = new MessageReader(message, source, this.kind, "message of labels", fb.Labels);
    const { root } = reader;
    const split = reader.field("split", () => root.split());
    const added = reader.field("new_image", () => root.newImage());
    const weight = reader.field("weight", () => root.weight());
    const seen = reader.field("seen", () => root.seen());
    if (!(weight > 0 && weight < Number.POSITIVE_INFINITY)) reader.fail("weight", `expected above 0, got ${weight}`);
    const decoded: LabelMessage = {
      id: nonEmpty(reader, "id", () => root.id()),
      author: reader.required("author", () => root.author()),
      time: reader.count("time", () => root.time()),
      image: nonEmpty(reader, "image", () => root.image()),
      ...(split !== null && { split }),
      ...(added && { newImage: decodeNewImage(reader, added) }),
      edits: reader.list(
        "edits",
        () => root.editsLength(),
        (i) => root.edits(i),
        (edit, name) => decodeEdit(reader, edit, name),
      ),
      replace: reader.field("replace", () => root.replace()),
      atOnce: reader.field("at_once", () => root.atOnce()),
      weight,
      ...(seen !== null && { seen }),
    };
    const other = decoded.replace ? decoded.edits.findIndex(({ action }) => action !== "add") : -1;
    if (other >= 0) reader.fail(`edits[${other}].action`, 'expected "add", since these are all boxes of the image');
    return decoded;
  },
};

function encodeEdit(b: Builder, edit: LabelEdit): number {
  const { category, box, crowd, score } =
    edit.action === "delete" ? ({} as Partial<LabelEdit & { action: "add" }>) : edit;
  const categoryAt = optionalText(b, category);
  const boxAt = box === undefined ? 0 : fb.Edit.createBoxVector(b, [...box]);
  fb.Edit.startEdit(b);
  fb.Edit.addAction(b, actions[edit.action]);
  if (edit.action !== "add") fb.Edit.addAnnotationId(b, BigInt(edit.annotationId));
  if (category !== undefined) fb.Edit.addCategory(b, categoryAt);
  if (box !== undefined) fb.Edit.addBox(b, boxAt);
  if (crowd !== undefined) fb.Edit.addCrowd(b, crowd);
  if (score !== undefined) fb.Edit.addScore(b, score);
  return fb.Edit.endEdit(b);
}

type Reader = MessageReader<fb.Labels>;

function decodeEdit(reader: Reader, edit: fb.Edit, place: string): LabelEdit {
  const code = reader.field(`${place}.action`, () => edit.action());
  const action = (Object.keys(actions) as (keyof typeof actions)[]).find((name) => actions[name] === code);
  if (!action) return reader.fail(`${place}.action`, `${code} is none of this version`);
  const id = reader.field(`${place}.annotation_id`, () => edit.annotationId());
  if (action !== "add" && id === null) reader.fail(`${place}.annotation_id`, `"${action}" needs it`);
  const annotationId = id === null ? 0 : reader.count(`${place}.annotation_id`, () => id);
  if (action === "delete") return { action, annotationId };
  const category = reader.field(`${place}.category`, () => edit.category()) ?? undefined;
  const box = decodeBox(reader, edit, `${place}.box`);
  const crowd = reader.field(`${place}.crowd`, () => edit.crowd());
  const score = reader.field(`${place}.score`, () => edit.score());
  if (score !== null && !(score >= 0 && score <= 1)) reader.fail(`${place}.score`, `expected 0 to 1, got ${score}`);
  const rest = { ...(crowd !== null && { crowd }), ...(score !== null && { score }) };
  if (action === "change") return { action, annotationId, ...(category && { category }), ...(box && { box }), ...rest };
  if (!category) return reader.fail(`${place}.category`, '"add" needs it');
  if (!box) return reader.fail(`${place}.box`, '"add" needs it');
  return { action, category, box, ...rest };
}

function decodeBox(reader: Reader, edit: fb.Edit, name: string): LabelBox | undefined {
  const count = reader.field(name, () => edit.boxLength());
  if (count === 0) return undefined;
  if (count !== 4) reader.fail(name, `expected 4 numbers, x1, y1, x2, y2, got ${count}`);
  const [x1, y1, x2, y2] = reader.field(name, () => [0, 1, 2, 3].map((i) => edit.box(i) as number)) as number[];
  const box = [x1, y1, x2, y2] as [number, number, number, number];
  if (!box.every(Number.isFinite) || !(box[2] > box[0] && box[3] > box[1])) {
    reader.fail(name, `expected finite x1 < x2 and y1 < y2, got ${box.join(", ")}`);
  }
  return box;
}

function encodeNewImage(b: Builder, { width, height, bytes }: NonNullable<LabelMessage["newImage"]>): number {
  const bytesAt = bytes === undefined ? 0 : fb.NewImage.createBytesVector(b, bytes);
  fb.NewImage.startNewImage(b);
  fb.NewImage.addWidth(b, width);
  fb.NewImage.addHeight(b, height);
  if (bytes !== undefined) fb.NewImage.addBytes(b, bytesAt);
  return fb.NewImage.endNewImage(b);
}

function decodeNewImage(reader: Reader, added: fb.NewImage): NonNullable<LabelMessage["newImage"]> {
  const bytes = reader.numbers("new_image.bytes", () => added.bytesArray());
  return {
    width: reader.field("new_image.width", () => added.width()),
    height: reader.field("new_image.height", () => added.height()),
    ...(bytes && { bytes }),
  };
}

function nonEmpty(reader: Reader, name: string, read: () => string | null): string {
  const text = reader.required(name, read);
  return text === "" ? reader.fail(name, "it is empty") : text;
}
