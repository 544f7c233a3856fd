import { describe, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { END_OF_OBJECT, JsonKeys, JsonReader } from "../../lib/data/json-reader";
import { CounterRandom } from "../../lib/data/random";
import { inFolder } from "./fakes";

/** The smallest window that a reader takes. */
const window = 128 << 10;

/** A document of some windows: texts of all lengths, escapes, numbers, nesting, blanks. */
function document(seed: number): { text: string; value: unknown } {
  const random = new CounterRandom({ seed, epoch: 0, image: 0, operation: 0 });
  const pieces = ["a", "é", "😀", '"', "\\", "\n", "\u0001", "]", "{"];
  const words = (most: number): string => {
    const length = Math.floor(random.logUniform(1, most));
    return Array.from({ length: Math.min(length, 40) }, () => pieces[random.integer(pieces.length)])
      .join("")
      .repeat(Math.ceil(length / 40));
  };
  const value = Array.from({ length: 300 }, (_, i) => ({
    id: i,
    [words(300)]: random.chance(0.5) ? words(3000) : random.uniform(-1e9, 1e9),
    "": [[], {}, [null, true, false, random.integer(1000)], { deep: [{ x: words(50) }] }],
  }));
  return { text: JSON.stringify(value, null, random.integer(3)), value };
}

describe("JsonReader.open", () => {
  test.each([1, 2, 3, 4, 5, 6])("reads a file in pieces as JSON.parse does, document %p", async (seed) => {
    await inFolder(async (folder) => {
      const path = join(folder, "x.json");
      const { text, value } = document(seed);
      writeFileSync(path, text);
      using json = JsonReader.open(path, { window });
      expect(json.value()).toEqual(value);
      json.end();
      expect(json.position).toBe(Buffer.byteLength(text));
      using skipping = JsonReader.open(path, { window });
      skipping.skip();
      skipping.end();
    });
  });

  test("reads a text that is longer than what is in memory", async () => {
    await inFolder(async (folder) => {
      const path = join(folder, "x.json");
      const long = "ab\\".repeat(400_000);
      writeFileSync(path, JSON.stringify({ [long]: long, after: [1] }));
      using json = JsonReader.open(path, { window });
      expect(json.value()).toEqual({ [long]: long, after: [1] });
    });
  });

  test("knows keys and paths after their bytes have left memory", async () => {
    await inFolder(async (folder) => {
      const path = join(folder, "x.json");
      const rows = Array.from({ length: 60_000 }, (_, id) => ({ id, bbox: [id, 1.5] }));
      const text = JSON.stringify({ outer: { rows } }).replace("[59000,", "[oops,").replaceAll("},{", "},\n{");
      writeFileSync(path, text);
      const keys = new JsonKeys(["rows", "id", "bbox", "outer"]);
      const read = (json: JsonReader): void => {
        json.enterObject();
        json.nextKey(keys);
        json.enterObject();
        json.nextKey(keys);
        json.enterArray();
        while (json.nextElement()) {
          json.enterObject();
          for (let key = json.nextKey(keys); key !== END_OF_OBJECT; key = json.nextKey(keys)) {
            if (key === 1) json.integer();
            else json.value();
          }
        }
      };
      using json = JsonReader.open(path, { window });
      expect(() => read(json)).toThrow(
        `${path}: outer.rows[59000].bbox[0]: not valid JSON at line 59001, column 21: expected a value, but got "o"`,
      );
      // The same message as from bytes in memory.
      expect(() => read(new JsonReader(new TextEncoder().encode(text), path))).toThrow("line 59001, column 21");
    });
  });

  test("names a file that ends too early, is empty, or is none", async () => {
    await inFolder(async (folder) => {
      const path = join(folder, "x.json");
      writeFileSync(path, `[${"1,".repeat(200_000)}`);
      using json = JsonReader.open(path, { window });
      expect(() => json.value()).toThrow("expected a value, but the file ends, is it incomplete?");
      expect(() => JsonReader.open(join(folder, "none"))).toThrow(`${join(folder, "none")}: no such file`);
      expect(() => JsonReader.open(folder)).toThrow(folder);
    });
  });
});
