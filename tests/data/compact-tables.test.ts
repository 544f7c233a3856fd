import { describe, expect, test } from "bun:test";
import { readdir } from "node:fs/promises";
import { IdSet, ImageTable } from "../../lib/data/compact-tables";
import { CounterRandom } from "../../lib/data/random";
import { RecordSpool } from "../../lib/data/record-spool";
import { inFolder } from "./fakes";

describe("IdSet", () => {
  test.each([
    ["close together", 1, 4000],
    ["far apart", 2 ** 40, 6000],
  ])("tells new ids from known ones where they lie %s", (_, range, count) => {
    const random = new CounterRandom({ seed: 1, epoch: 0, image: 0, operation: 0 });
    const set = new IdSet();
    const known = new Set<number>();
    for (let i = 0; i < count; i++) {
      const id = Math.floor(random.next() * 3000) + Math.floor(random.next() * 3000) * range;
      expect(set.add(id)).toBe(!known.has(id));
      known.add(id);
    }
    for (const id of known) expect(set.add(id)).toBe(false);
  });
});

describe("ImageTable", () => {
  test("finds images by id and by key, past several growths", () => {
    const table = new ImageTable((name) => `train/${name}`);
    const image = (i: number) => ({
      sourceId: 7 * i + 2 ** 33,
      fileName: `größe ${i}.jpg`,
      key: "",
      width: i,
      height: 2,
    });
    for (let i = 0; i < 5000; i++) {
      expect(table.rowOf(image(i).sourceId)).toBe(-1);
      expect(table.use(table.add(image(i)))).toBe(-1);
    }
    const twin = table.add({ ...image(9), sourceId: 1 });
    expect(table.use(twin)).toBe(9);
    expect([table.length, table.usable, table.placeOf(twin), table.placeOf(4999)]).toEqual([5001, 5000, -1, 4999]);
    for (let i = 0; i < 5000; i++) expect(table.rowOf(image(i).sourceId)).toBe(i);
    const [first, second] = [...table.images()];
    expect(first).toEqual({ ...image(0), key: "train/größe 0.jpg", width: null });
    expect(second).toEqual({ ...image(1), key: "train/größe 1.jpg" });
  });
});

describe("RecordSpool", () => {
  test("gives rows back in order, from memory and from its file, of which no name is left", async () => {
    await inFolder(async (folder) => {
      using spool = new RecordSpool(3, 5, folder);
      const expected: number[][] = [[], [], []];
      const row = new Float64Array(7);
      for (let i = 0; i < 20_000; i++) {
        const bucket = (i * i) % 3;
        for (let k = 0; k < 5; k++) row[k + 2] = i + k / 8;
        spool.push(bucket, row, 2);
        (expected[bucket] as number[]).push(...row.subarray(2));
      }
      expect(spool.length).toBe(20_000);
      expect(await readdir(folder)).toEqual([]);
      for (const bucket of [2, 0, 1, 0]) expect([...spool.rows(bucket)]).toEqual(expected[bucket] as number[]);
    });
  });
});
