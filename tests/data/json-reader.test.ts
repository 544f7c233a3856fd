import { describe, expect, test } from "bun:test";
import { END_OF_OBJECT, JsonKeys, JsonReader, UNKNOWN_KEY } from "../../lib/data/json-reader";

const reader = (text: string): JsonReader => new JsonReader(new TextEncoder().encode(text), "file.json");

/** Reads a whole value into ordinary objects. */
function readAll(json: JsonReader): unknown {
  switch (json.kind()) {
    case "object": {
      const keys = new JsonKeys(["a", "b", "c", "é", "x y"]);
      const out: Record<string, unknown> = {};
      json.enterObject();
      for (let key = json.nextKey(keys); key !== END_OF_OBJECT; key = json.nextKey(keys)) {
        out[keys.names[key] as string] = readAll(json);
      }
      return out;
    }
    case "array": {
      const out: unknown[] = [];
      json.enterArray();
      while (json.nextElement()) out.push(readAll(json));
      return out;
    }
    case "string":
      return json.string();
    case "number":
      return json.number();
    case "boolean":
      return json.boolean();
    case "null":
      json.null();
      return null;
  }
}

describe("JsonReader", () => {
  test.each([
    `{"a": [1, 2.5, -3e2], "b": {"c": "text"}, "x y": null}`,
    ` [true ,false,\n\tnull, "", [], {}, [[[{}]]]] `,
    `["\\u00e9\\n\\"\\\\\\/", "grün", "\\ud83d\\ude00", "😀"]`,
    `{"é": 1, "\\u0061": 2}`,
    "0",
    `"just a text"`,
  ])("reads %p as JSON.parse does", (text) => {
    const json = reader(text);
    expect(readAll(json)).toEqual(JSON.parse(text));
    json.end();
  });

  test("numbers are JSON.parse's to the last bit", () => {
    const texts = ["0.1", "-0", "473.07", "123456789012345", "0.000000000000001", "1234567890.12345678", "5e-324"];
    texts.push("9007199254740993", "1.7976931348623157e308", "0.30000000000000004", "-12.5E+3", "123456.789012345");
    let state = 1;
    for (let i = 0; i < 500; i++) {
      state = (state * 48271) % 2147483647;
      texts.push((state / 1000).toFixed(i % 9), String(state / 2147483647));
    }
    for (const text of texts) expect(reader(text).number()).toBe(JSON.parse(text));
  });

  test("starts after a byte order mark", () => {
    expect(reader("\ufeff[1]").kind()).toBe("array");
  });

  test("skips values of every kind", () => {
    const json = reader(`{"u": {"a": ["]}", {"b": [1, "\\"]"]}]}, "v": "x", "w": -1.5, "t": true, "n": null, "a": 7}`);
    const keys = new JsonKeys(["a"]);
    json.enterObject();
    for (let i = 0; i < 5; i++) {
      expect(json.nextKey(keys)).toBe(UNKNOWN_KEY);
      json.skip();
    }
    expect(json.nextKey(keys)).toBe(0);
    expect(json.number()).toBe(7);
    expect(json.nextKey(keys)).toBe(END_OF_OBJECT);
    json.end();
  });

  test("skips nesting of any depth", () => {
    const json = reader("[".repeat(200_000) + "]".repeat(200_000));
    json.skip();
    json.end();
  });

  test.each([
    ["", "line 1, column 1: expected a value, but the file ends, is it incomplete?"],
    ["[1, 2", 'line 1, column 6: expected "," or "]", but the file ends'],
    ["[1 2]", 'expected "," or "]", but got "2"'],
    ["[1,]", 'expected a value, but got "]"'],
    ['{"a": 1,}', 'a: not valid JSON at line 1, column 9: expected a key in quotes, but got "}"'],
    ['{"a" 1}', 'expected ":", but got "1"'],
    ["{a: 1}", 'expected a key in quotes, but got "a"'],
    ['["text', "expected the closing quote of a text, but the file ends"],
    ['["a\\', "expected the closing quote of a text, but the file ends"],
    ['["a\nb"]', "expected no control character in a text, but got byte 0xa"],
    ['["\\q"]', "expected a valid escape sequence"],
    ["[01]", "expected a number"],
    ["[-]", "expected a number"],
    ["[1.]", "expected a digit after the decimal point"],
    ["[1e]", "expected a digit in the exponent"],
    ["[tru]", "expected true"],
    ["[1e999]", "[0]: expected a finite number, got 1e999"],
    ["[NaN]", "expected a value, but got NaN"],
    ["[-Infinity]", "but got -Infinity"],
    ["[Nan]", 'expected a value, but got "N"'],
  ])("rejects %p", (text, message) => {
    expect(() => readAll(reader(text))).toThrow(message);
  });

  test.each([
    ["[[1, 2}]", 'expected "]", but got "}"'],
    ['{"a": [1, 2', 'expected "]" or "}", but the file ends'],
  ])("rejects %p when skipping", (text, message) => {
    expect(() => reader(text).skip()).toThrow(message);
  });

  test("names file, path, line and column", () => {
    const json = reader(`{\n  "a": [\n    {"b": [1, 2, oops]}\n  ]\n}`);
    expect(() => readAll(json)).toThrow(
      'file.json: a[0].b[2]: not valid JSON at line 3, column 18: expected a value, but got "o"',
    );
  });

  test("names what came instead of what was expected", () => {
    expect(() => reader('"x"').number("a number >= 0")).toThrow('expected a number >= 0, got "x"');
    expect(() => reader("[1]").number()).toThrow("expected a number, got a list");
    expect(() => reader("{}").string()).toThrow("expected a text, got an object");
    expect(() => reader("null").enterArray()).toThrow("expected a list, got null");
    expect(() => reader("1.5").integer()).toThrow("expected an integer, got 1.5");
    expect(() => reader("9007199254740993").integer()).toThrow("expected an integer, got 9007199254740993");
    expect(() => reader(`"${"long ".repeat(40)}"`).boolean()).toThrow(
      `expected true or false, got "${"long ".repeat(11)}l...`,
    );
  });

  test("rejects what follows the value, and bytes that are no UTF-8", () => {
    const json = reader("[] []");
    json.skip();
    expect(() => json.end()).toThrow("expected the end of the file");
    const bytes = Uint8Array.from([0x22, 0xff, 0x22]);
    expect(() => new JsonReader(bytes, "f").string()).toThrow("expected UTF-8");
  });
});
