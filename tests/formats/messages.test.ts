/** The messages of a training's stream: what is written is read, by older and newer versions too, and what is damaged is refused. */
import { describe, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { Builder } from "flatbuffers";
import {
  controlMessages,
  decodeFrame,
  decodeMessage,
  encodeFrame,
  encodeMessage,
  eventMessages,
  labelMessages,
  messageOf,
} from "../../lib/formats";
import * as control from "../../lib/formats/generated/control_generated";
import * as event from "../../lib/formats/generated/event_generated";
import * as labels from "../../lib/formats/generated/labels_generated";
import { DlfsError } from "../../lib/native";
import { sampleMessages } from "./sample-messages";

const root = join(import.meta.dir, "../..");

describe("messages", () => {
  test("are read as they were written", () => {
    for (const message of sampleMessages) expect(decodeMessage(encodeMessage(message), "stream")).toEqual(message);
  });

  test("of labels keep what their author saw", () => {
    const value = { id: "m", author: "", time: 1, image: "x", edits: [], replace: false, atOnce: false, weight: 1 };
    for (const message of [value, { ...value, seen: "a1" }]) {
      expect(decodeMessage(encodeMessage({ type: "labels", value: message }), "stream")?.value).toEqual(message);
    }
  });

  test("of a socket are one whole frame", () => {
    const bytes = encodeMessage(sampleMessages[0]!);
    for (const wrong of [bytes.subarray(0, -1), Buffer.concat([bytes, bytes]), new Uint8Array(0)]) {
      expect(() => decodeMessage(wrong, "socket")).toThrow(`socket: damaged: frame: ${wrong.length} bytes are not one`);
    }
  });

  test("that are cut, or of which a byte has changed, are errors that name the source, or messages still", () => {
    for (const { type, value } of sampleMessages) {
      const { kind, message } = decodeFrame(
        encodeMessage({ type, value } as (typeof sampleMessages)[0]),
        0,
        "x",
      )!.frame;
      const read = (bytes: Uint8Array) => {
        try {
          messageOf({ kind, message: bytes }, "stream");
        } catch (error) {
          expect(error).toBeInstanceOf(DlfsError);
          expect((error as Error).message).toStartWith("stream: damaged: index, ");
        }
      };
      for (let length = 0; length < message.length; length += 1 + (message.length >> 7)) read(message.slice(0, length));
      for (let at = 0; at < message.length; at++) {
        for (const bits of [0x01, 0x80, 0xff]) {
          const wrong = message.slice();
          wrong[at]! ^= bits;
          read(wrong);
        }
      }
    }
  });

  test("of a kind that is not known are passed over", () => {
    const bytes = encodeFrame({ kind: "XXXX", message: new Uint8Array(5) });
    expect(decodeMessage(bytes, "stream")).toBeNull();
  });
});

describe("evolution", () => {
  test("what version 1 wrote is read", async () => {
    const bytes = await Bun.file(join(import.meta.dir, "messages-v1.bin")).bytes();
    const found = [];
    for (let at = 0; at < bytes.length; ) {
      const { frame, next } = decodeFrame(bytes, at, "v1")!;
      found.push(messageOf(frame, "v1"));
      at = next;
    }
    expect(found).toEqual([...sampleMessages]);
  });

  test("fields that a newer version has added are passed over", () => {
    const b = new Builder();
    b.forceDefaults(true);
    const [id, author, image, extra] = ["m", "ada", "x.jpg", "of the future"].map((text) => b.createString(text));
    const edits = labels.Labels.createEditsVector(b, []);
    const fields = 11;
    b.startObject(fields + 2);
    labels.Labels.addId(b, id!);
    labels.Labels.addAuthor(b, author!);
    labels.Labels.addTime(b, 5n);
    labels.Labels.addImage(b, image!);
    labels.Labels.addEdits(b, edits);
    b.addFieldOffset(fields, extra!, 0);
    b.addFieldInt32(fields + 1, 7, 0);
    b.finish(b.endObject(), labelMessages.kind);
    const { id: found, edits: none, weight } = labelMessages.decode(b.asUint8Array(), "stream");
    expect({ found, none, weight }).toEqual({ found: "m", none: [], weight: 1 });
  });

  test("an event of a newer version is no error, a command of one is", () => {
    const b = new Builder();
    const text = b.createString("news");
    event.Event.startEvent(b);
    event.Event.addKind(b, 99 as event.Kind);
    event.Event.addText(b, text);
    b.finish(event.Event.endEvent(b), eventMessages.kind);
    const other = { kind: "other", code: 99, text: "news", iteration: 0, time: 0 } as const;
    expect(eventMessages.decode(b.asUint8Array(), "stream")).toEqual(other);
    const c = new Builder();
    const [id, author] = [c.createString("c"), c.createString("ada")];
    control.Control.startControl(c);
    control.Control.addId(c, id);
    control.Control.addAuthor(c, author);
    control.Control.addCommand(c, 99 as control.Command);
    c.finish(control.Control.endControl(c), controlMessages.kind);
    expect(() => controlMessages.decode(c.asUint8Array(), "stream")).toThrow("command: 99 is none of this version");
  });

  test.skipIf(Bun.which("flatc") === null)("the schemas have only grown since version 1 (flatc)", () => {
    const first = join(root, "tests/golden/schemas-v1");
    const names = readdirSync(first);
    expect(names.length).toBeGreaterThan(5);
    for (const name of names) {
      const check = Bun.spawnSync(["flatc", "--conform", join(first, name), join(root, "schemas", name)]);
      expect(`${name}: ${check.stdout}${check.stderr}`).toBe(`${name}: `);
    }
  });
});

describe("messages that make no sense", () => {
  const edit = { action: "add", category: "cat", box: [0, 0, 1, 1] } as const;
  const message = { id: "m", author: "ada", time: 1, image: "x.jpg", edits: [edit] } as const;
  const encoded = (change: object) => labelMessages.encode({ ...message, ...change });

  for (const [what, change, expected] of [
    ["an id that is empty", { id: "" }, "id: it is empty"],
    ["an image that is empty", { image: "" }, "image: it is empty"],
    [
      "an added box without a class",
      { edits: [{ action: "add", box: [0, 0, 1, 1] }] },
      'edits[0].category: "add" needs',
    ],
    [
      "an added box without a place",
      { edits: [edit, { action: "add", category: "cat" }] },
      'edits[1].box: "add" needs',
    ],
    ["a box without width", { edits: [{ ...edit, box: [5, 0, 5, 1] }] }, "edits[0].box: expected finite x1 < x2"],
    ["a box that is not finite", { edits: [{ ...edit, box: [0, 0, Number.NaN, 1] }] }, "edits[0].box: expected finite"],
    ["a score above 1", { edits: [{ ...edit, score: 2 }] }, "edits[0].score: expected 0 to 1, got 2"],
    [
      "a deletion among all boxes",
      { replace: true, edits: [{ action: "delete", annotationId: 1 }] },
      "edits[0].action",
    ],
  ] as const) {
    test(`${what} is refused by name`, () => {
      expect(() => labelMessages.decode(encoded(change), "socket 1")).toThrow(`socket 1: damaged: index, ${expected}`);
    });
  }

  test("a weight that is not above 0 is neither written nor read", () => {
    expect(() => encoded({ weight: 0 })).toThrow("labels m: weight: above 0, got 0");
    const b = new Builder();
    const [id, author, image] = ["m", "ada", "x"].map((text) => b.createString(text));
    const edits = labels.Labels.createEditsVector(b, []);
    labels.Labels.startLabels(b);
    labels.Labels.addId(b, id!);
    labels.Labels.addAuthor(b, author!);
    labels.Labels.addImage(b, image!);
    labels.Labels.addEdits(b, edits);
    labels.Labels.addWeight(b, -1);
    b.finish(labels.Labels.endLabels(b), labelMessages.kind);
    expect(() => labelMessages.decode(b.asUint8Array(), "s")).toThrow("weight: expected above 0, got -1");
  });

  test("a learning rate's factor is there, and above 0; other commands have no value", () => {
    const one = { id: "c", author: "", time: 0 };
    expect(() => controlMessages.encode({ ...one, command: "learningRate" })).toThrow(
      "value: expected a factor above 0",
    );
    expect(() => controlMessages.encode({ ...one, command: "pause", value: 1 })).toThrow('"pause" takes none, got 1');
  });
});
