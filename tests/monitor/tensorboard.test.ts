/** Event files of TensorBoard, byte by byte; scripts/check-watching.ts opens them in TensorBoard itself. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { crc32c, decodeTfRecords, encodeTfRecord } from "../../lib/formats";
import { ProtoReader } from "../../lib/formats/protobuf";
import { histogramOf, TensorBoardWriter } from "../../lib/monitor";

let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "dlfs-tensorboard-"));
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

const bytesOf = (text: string) => new TextEncoder().encode(text);

describe("records", () => {
  // RFC 3720, appendix B.4, and the check value of the CRC catalogue.
  test.each([
    [bytesOf("123456789"), 0xe3069283],
    [new Uint8Array(32), 0x8a9136aa],
    [new Uint8Array(32).fill(255), 0x62a8ab43],
    [Uint8Array.from({ length: 32 }, (_, i) => i), 0x46dd794e],
  ])("have the CRC-32C of %p", (data, expected) => {
    expect(crc32c(data)).toBe(expected);
  });

  test("are read back; a cut one at the end is left out, a changed one is named", () => {
    const parts = ["first", "", "third"].map((text) => encodeTfRecord(bytesOf(text)));
    // As TensorBoard's RecordWriter writes it: length, masked CRC, data, masked CRC.
    expect(parts[0]?.toHex()).toBe("0500000000000000eab2043e666972737455ff23e5");
    const file = Buffer.concat(parts);
    const texts = (data: Uint8Array) =>
      [...decodeTfRecords(data, "f")].map((record) => new TextDecoder().decode(record));
    expect(texts(file)).toEqual(["first", "", "third"]);
    for (let cut = 1; cut <= 21; cut++) expect(texts(file.subarray(0, file.length - cut))).toEqual(["first", ""]);
    for (let at = 0; at < file.length; at++) {
      const changed = Uint8Array.from(file);
      changed[at] = (changed[at] as number) ^ 16;
      expect(() => texts(changed)).toThrow("f: the record at byte ");
    }
  });
});

/** A message as numbers of fields and their values: bytes as text, inner messages where `inner` says so. */
function fields(reader: ProtoReader, inner: Record<number, unknown>): Record<number, unknown[]> {
  const found: Record<number, unknown[]> = {};
  while (reader.next()) {
    const kind = inner[reader.field];
    const bytes = (length: number) => reader.numberBytes(length === 8 ? 1 : 5);
    const doubles = (data: Uint8Array) => [...new Float64Array(Uint8Array.from(data).buffer)];
    const value =
      kind === "int"
        ? reader.int()
        : kind === "float"
          ? reader.float()
          : kind === "double"
            ? doubles(bytes(8))[0]
            : kind === "doubles"
              ? doubles(reader.bytes())
              : kind === "text"
                ? reader.text()
                : fields(reader.message(), kind as Record<number, unknown>);
    found[reader.field] = [...(found[reader.field] ?? []), value];
  }
  return found;
}

const HISTOGRAM = { 1: "double", 2: "double", 3: "double", 4: "double", 5: "double", 6: "doubles", 7: "doubles" };
const IMAGE = { 1: "int", 2: "int", 3: "int", 4: "text" };
const TENSOR = { 1: "int", 2: { 2: { 1: "int" } }, 8: "text" };
const VALUE = { 1: "text", 2: "float", 4: IMAGE, 5: HISTOGRAM, 8: TENSOR, 9: { 1: { 1: "text" } } };
const EVENT = { 1: "double", 2: "int", 3: "text", 5: { 1: VALUE }, 7: { 1: "int" } };

describe("event files", () => {
  test("have version and start, and each call as one event at once", () => {
    let time = 1_700_000_000_500;
    using writer = new TensorBoardWriter(join(folder, "events"), { clock: () => time, from: 40 });
    expect(writer.path).toContain("/events.out.tfevents.1700000000.");
    const events = () => {
      const file = readFileSync(writer.path);
      return [...decodeTfRecords(file, writer.path)].map((data) =>
        fields(new ProtoReader(Uint8Array.from(data)), EVENT),
      );
    };
    expect(events()).toEqual([
      { 1: [1_700_000_000.5], 2: [0], 3: ["brain.Event:2"] },
      { 1: [1_700_000_000.5], 2: [41], 7: [{ 1: [1] }] },
    ]);
    time += 250;
    writer.scalars(41, { "train/loss": 0.5, "train/rate": NaN });
    writer.scalars(42, {});
    writer.image(42, "predictions", { bytes: bytesOf("jpeg"), width: 3, height: 2 });
    writer.histogram(43, "weights/w", Float32Array.of(1, NaN, 2, 2));
    writer.histogram(43, "weights/none", Float32Array.of(Infinity));
    writer.text(44, "config", "# ü");
    const summaries = events()
      .slice(2)
      .map(({ 2: step, 5: summary }) => [...step!, ...(summary![0] as Record<number, unknown[]>)[1]!]);
    expect(summaries).toEqual([
      [41, { 1: ["train/loss"], 2: [0.5] }, { 1: ["train/rate"], 2: [NaN] }],
      [42, { 1: ["predictions"], 4: [{ 1: [2], 2: [3], 3: [3], 4: ["jpeg"] }] }],
      [43, { 1: ["weights/w"], 5: [expect.objectContaining({ 1: [1], 2: [2], 3: [3], 4: [5], 5: [9] })] }],
      [44, { 1: ["config"], 8: [{ 1: [7], 2: [{ 2: [{ 1: [1] }] }], 8: ["# ü"] }], 9: [{ 1: [{ 1: ["text"] }] }] }],
    ]);
    using other = new TensorBoardWriter(join(folder, "events"), { clock: () => time });
    expect(other.path).not.toBe(writer.path);
  });

  test("that cannot be written are errors that name the file", () => {
    expect(() => new TensorBoardWriter("/proc/none")).toThrow("/proc/none/events.out.tfevents.");
    const writer = new TensorBoardWriter(join(folder, "closed"));
    writer.close();
    writer.close();
    expect(() => writer.scalars(1, { loss: 1 })).toThrow(`${writer.path}: cannot write: it is closed`);
  });
});

test("histograms count each finite number once", () => {
  const values = Float32Array.from({ length: 1000 }, (_, i) => (i % 10 === 9 ? NaN : i / 1000));
  const { min, max, count, sum, limits, counts } = histogramOf(values)!;
  expect([min, max, count]).toEqual([0, Math.fround(0.998), 900]);
  expect(sum).toBeCloseTo(
    [...values].reduce((total, value) => total + (Number.isNaN(value) ? 0 : value), 0),
    6,
  );
  expect(counts.reduce((a, b) => a + b)).toBe(900);
  expect(limits.length).toBe(counts.length);
  let below = 0;
  for (const [i, limit] of limits.entries()) {
    below += counts[i] as number;
    const least = values.filter((value) => value < limit - 1e-6).length;
    expect(below).toBeGreaterThanOrEqual(least);
    expect(below).toBeLessThanOrEqual(values.filter((value) => value <= limit + 1e-6).length);
  }
  expect(histogramOf(Float32Array.of(3, 3))).toMatchObject({ limits: [3], counts: [2], sum: 6, squares: 18 });
  expect(histogramOf(new Float32Array())).toBeNull();
});
