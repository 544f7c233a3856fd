import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { check, DlfsError, ErrorCode } from "../native/error";
import { fileError } from "./local-data-source";

const QUOTE = 0x22;
const COMMA = 0x2c;
const MINUS = 0x2d;
const DOT = 0x2e;
const ZERO = 0x30;
const NINE = 0x39;
const COLON = 0x3a;
const OPEN_ARRAY = 0x5b;
const BACKSLASH = 0x5c;
const CLOSE_ARRAY = 0x5d;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;

const DECODER = new TextDecoder("utf-8", { fatal: true });
const ENCODER = new TextEncoder();
const POWERS = Array.from({ length: 23 }, (_, i) => 10 ** i);

export type JsonKind = "object" | "array" | "string" | "number" | "boolean" | "null";

/** The keys that a record may have; JsonReader.nextKey answers with a place in this list. */
export class JsonKeys {
  readonly encoded: readonly Uint8Array[];
  /** The key that came after each one the last time: records of a list mostly have theirs in the same order. */
  readonly followers: Int32Array;
  /** The key that was read last. */
  last = 0;

  constructor(readonly names: readonly string[]) {
    this.encoded = names.map((name) => ENCODER.encode(name));
    this.followers = new Int32Array(names.length);
  }
}

/** For objects of which any key is wanted; the empty one is only there to be compared with. */
const NO_KEYS = new JsonKeys(["\0"]);

/** What nextKey answers for a key that is not in the list, and after the last key. */
export const UNKNOWN_KEY = -1;
export const END_OF_OBJECT = -2;

/** Bytes of a file that are in memory at a time, unless a single text needs more. */
const WINDOW = 4 << 20;

/** A token is started with at least this many bytes in the window, so that only texts can reach past its end. */
const MARGIN = 64 << 10;

/** The longest text that is read. */
const MAX_TEXT = 512 << 20;

/**
 * Reads JSON from bytes or, piece by piece, from a file, value by value, in one pass: an annotation file of gigabytes never
 * exists as one buffer, one string or one tree of objects, parts that are not wanted are skipped, and every error names the
 * file, the path of the field (`annotations[12].bbox[2]`) and the line. The caller walks: enterObject, nextKey, a value, ..., enterArray,
 * nextElement, a value, ...; a value of a key or element must be read or skipped before the next one.
 */
export class JsonReader implements Disposable {
  /** All bytes, or those of a file from #offset on. */
  #bytes: Uint8Array;
  /** Where the file lies on that #bytes are read from; -1: nothing is to follow. */
  #file = -1;
  /** What #bytes is a part of, so that it can be filled again. */
  #window: Uint8Array | null = null;
  /** Bytes of the file before #bytes. */
  #offset = 0;
  /** From here on in #bytes more is read before the next token. */
  #low = Number.POSITIVE_INFINITY;
  /** The file's, for messages. */
  readonly name: string;
  #at = 0;
  #depth = 0;
  /** Per open container: the number of the element (arrays), or -1; and where the present key's text starts and ends. */
  #element: Int32Array = new Int32Array(64);
  #keyStart: Int32Array = new Int32Array(64);
  #keyEnd: Int32Array = new Int32Array(64);
  /** Keys whose bytes have left the window; #keyStart is -1 then. */
  readonly #keyText: string[] = [];

  constructor(bytes: Uint8Array, name: string) {
    this.#bytes = bytes;
    this.name = name;
    this.size = bytes.length;
    this.#skipMark();
  }

  /** Bytes in all. */
  readonly size: number;

  /**
   * Reads a file in pieces, from byte `start` on; to be disposed of.
   *
   * @param window bytes in memory at a time
   * @param name what messages call it; default: its path
   */
  static open(
    path: string,
    { start = 0, window = WINDOW, name = path }: { start?: number; window?: number; name?: string } = {},
  ): JsonReader {
    let file = -1;
    try {
      file = openSync(path, "r");
      const info = fstatSync(file);
      check(info.isFile(), "JsonReader", () => `${path}: is not a file`, ErrorCode.io);
      const reader = new JsonReader(new Uint8Array(0), name);
      reader.#file = file;
      reader.#window = new Uint8Array(Math.max(window, 2 * MARGIN));
      reader.#offset = start;
      reader.#low = 0;
      (reader as { size: number }).size = info.size;
      reader.#refill(0);
      if (start === 0) reader.#skipMark();
      return reader;
    } catch (error) {
      if (file >= 0) closeSync(file);
      throw fileError("JsonReader", path, error);
    }
  }

  [Symbol.dispose](): void {
    if (this.#file >= 0) closeSync(this.#file);
    this.#file = -1;
  }

  /** Bytes read so far. */
  get position(): number {
    return this.#offset + this.#at;
  }

  /** Passes over the mark that some programs start UTF-8 with. */
  #skipMark(): void {
    const bytes = this.#bytes;
    if (bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf) this.#at = 3;
  }

  /** Reads on, keeping the bytes from `keep` in #bytes on, which move to its start; whether anything came. */
  #refill(keep: number): boolean {
    if (this.#window === null || this.#low === Number.POSITIVE_INFINITY) return false;
    for (let i = 0; i < this.#depth; i++) {
      const [start, end] = [this.#keyStart[i] as number, this.#keyEnd[i] as number];
      if (end < 0 || start < 0) continue;
      this.#keyText[i] = this.#text(start, end);
      this.#keyStart[i] = -1;
    }
    let window = this.#window;
    const left = this.#bytes.length - keep;
    if (left > window.length / 2) {
      if (window.length >= MAX_TEXT) this.fail(`a text of more than ${MAX_TEXT >> 20} MiB`);
      window = new Uint8Array(2 * window.length);
      window.set(this.#bytes.subarray(keep));
      this.#window = window;
    } else {
      this.#window.copyWithin(0, keep, keep + left);
    }
    this.#offset += keep;
    this.#at -= keep;
    let filled = left;
    while (filled < window.length) {
      let read: number;
      try {
        read = readSync(this.#file, window, filled, window.length - filled, this.#offset + filled);
      } catch (error) {
        throw fileError("JsonReader", this.name, error);
      }
      if (read === 0) break;
      filled += read;
    }
    this.#bytes = window.subarray(0, filled);
    this.#low = filled < window.length ? Number.POSITIVE_INFINITY : filled - MARGIN;
    return filled > left;
  }

  /** The path of the value being read, such as `annotations[12].bbox`; empty at the top. */
  path(): string {
    let path = "";
    for (let i = 0; i < this.#depth; i++) {
      const element = this.#element[i] as number;
      const keyEnd = this.#keyEnd[i] as number;
      if (element >= 0) path += `[${element}]`;
      else if (keyEnd >= 0) {
        const start = this.#keyStart[i] as number;
        const key = start < 0 ? this.#keyText[i] : this.#text(start, keyEnd);
        path += (path === "" ? "" : ".") + key;
      }
    }
    return path;
  }

  /** Throws a DlfsError: file, path and `message`. */
  fail(message: string): never {
    const path = this.path();
    throw new DlfsError(ErrorCode.io, this.name, path === "" ? message : `${path}: ${message}`);
  }

  /** The kind of the next value. */
  kind(): JsonKind {
    const c = this.#peek();
    if (c === OPEN_OBJECT) return "object";
    if (c === OPEN_ARRAY) return "array";
    if (c === QUOTE) return "string";
    if (c === MINUS || (c >= ZERO && c <= NINE)) return "number";
    if (c === 0x74 || c === 0x66) return "boolean";
    if (c === 0x6e) return "null";
    return this.#syntax("a value");
  }

  enterObject(): void {
    if (this.kind() !== "object") this.#mismatch("an object");
    this.#at++;
    this.#push(-1);
  }

  /** The place in `keys` of the next key, UNKNOWN_KEY where it is another one, or END_OF_OBJECT. */
  nextKey(keys: JsonKeys): number {
    const top = this.#depth - 1;
    let next = this.#peek();
    if (next === CLOSE_OBJECT) {
      this.#at++;
      this.#depth = top;
      return END_OF_OBJECT;
    }
    if (this.#keyEnd[top] !== -1) {
      if (next !== COMMA) this.#syntax('"," or "}"');
      this.#at++;
      next = this.#peek();
    }
    if (next !== QUOTE) this.#syntax("a key in quotes");
    const from = this.#at + 1;
    const guess = keys.followers[keys.last] as number;
    const expected = keys.encoded[guess] as Uint8Array;
    let matched = 0;
    while (matched < expected.length && expected[matched] === this.#bytes[from + matched]) matched++;
    if (matched === expected.length && this.#bytes[from + matched] === QUOTE) {
      keys.last = guess;
      this.#keyStart[top] = from;
      this.#keyEnd[top] = from + matched;
      this.#at = from + matched + 1;
      if (this.#peek() !== COLON) this.#syntax('":"');
      this.#at++;
      return guess;
    }
    const before = this.#offset;
    const escaped = this.#skipString();
    // A text that reaches past the window moves to its start.
    const start = from - (this.#offset - before);
    const end = this.#at - 1;
    this.#keyStart[top] = start;
    this.#keyEnd[top] = end;
    const key = escaped ? keys.names.indexOf(this.#unescape(start, end)) : this.#keyAt(keys, start, end);
    if (this.#peek() !== COLON) this.#syntax('":"');
    this.#at++;
    if (key >= 0) {
      keys.followers[keys.last] = key;
      keys.last = key;
    }
    return key;
  }

  #keyAt(keys: JsonKeys, start: number, end: number): number {
    for (let i = 0; i < keys.encoded.length; i++) {
      const key = keys.encoded[i] as Uint8Array;
      if (key.length !== end - start) continue;
      let same = 0;
      while (same < key.length && key[same] === this.#bytes[start + same]) same++;
      if (same === key.length) return i;
    }
    return UNKNOWN_KEY;
  }

  enterArray(): void {
    if (this.kind() !== "array") this.#mismatch("a list");
    this.#at++;
    this.#push(-2);
  }

  /** Moves to the next element of the array; false after the last. */
  nextElement(): boolean {
    const top = this.#depth - 1;
    const next = this.#peek();
    if (next === CLOSE_ARRAY) {
      this.#at++;
      this.#depth--;
      return false;
    }
    if (this.#element[top] === -2) {
      this.#element[top] = 0;
    } else {
      if (next !== COMMA) this.#syntax('"," or "]"');
      this.#at++;
      (this.#element[top] as number)++;
    }
    return true;
  }

  /** A finite number. */
  number(expected = "a number"): number {
    const start = this.#skipSpace();
    const bytes = this.#bytes;
    const lead = bytes[start] as number;
    if (lead !== MINUS && !(lead >= ZERO && lead <= NINE)) this.#mismatch(expected);
    let at = start;
    if (bytes[at] === MINUS) at++;
    let value = 0;
    let digits = 0;
    const whole = at;
    for (let c = bytes[at] as number; c >= ZERO && c <= NINE; c = bytes[++at] as number) {
      value = value * 10 + (c - ZERO);
      digits++;
    }
    if (digits === 0 || (digits > 1 && bytes[whole] === ZERO)) this.#syntax("a number");
    let fraction = 0;
    if (bytes[at] === DOT) {
      at++;
      for (let c = bytes[at] as number; c >= ZERO && c <= NINE; c = bytes[++at] as number) {
        value = value * 10 + (c - ZERO);
        fraction++;
      }
      if (fraction === 0) this.#syntax("a digit after the decimal point", at);
    }
    let exponent = false;
    if (((bytes[at] as number) | 0x20) === 0x65) {
      exponent = true;
      at++;
      if (bytes[at] === MINUS || bytes[at] === 0x2b) at++;
      const from = at;
      while ((bytes[at] as number) >= ZERO && (bytes[at] as number) <= NINE) at++;
      if (at === from) this.#syntax("a digit in the exponent", at);
    }
    if (at === bytes.length && this.#low !== Number.POSITIVE_INFINITY) {
      this.fail(`expected ${expected}, got one of more than ${MARGIN >> 10} KiB`);
    }
    this.#at = at;
    // Up to 15 digits and 22 decimal places both integers are exact, so the quotient is correctly rounded.
    if (!exponent && digits + fraction <= 15) {
      const magnitude = fraction === 0 ? value : value / (POWERS[fraction] as number);
      return bytes[start] === MINUS ? -magnitude : magnitude;
    }
    const parsed = Number(this.#text(start, at));
    return Number.isFinite(parsed) ? parsed : this.fail(`expected a finite number, got ${this.#text(start, at)}`);
  }

  /** An integer that a double holds exactly. */
  integer(expected = "an integer"): number {
    const start = this.#skipSpace();
    const value = this.number(expected);
    return Number.isSafeInteger(value) ? value : this.fail(`expected ${expected}, got ${this.#text(start, this.#at)}`);
  }

  string(expected = "a text"): string {
    if (this.kind() !== "string") this.#mismatch(expected);
    const from = this.position + 1;
    const escaped = this.#skipString();
    const start = from - this.#offset;
    return escaped ? this.#unescape(start, this.#at - 1) : this.#text(start, this.#at - 1);
  }

  boolean(expected = "true or false"): boolean {
    if (this.kind() !== "boolean") this.#mismatch(expected);
    const value = this.#bytes[this.#at] === 0x74;
    this.#literal(value ? "true" : "false");
    return value;
  }

  null(): null {
    if (this.kind() !== "null") this.#mismatch("null");
    this.#literal("null");
    return null;
  }

  /** The next value as a whole, for records that are small. */
  value(): unknown {
    const kind = this.kind();
    if (kind === "string") return this.string();
    if (kind === "number") return this.number();
    if (kind === "boolean") return this.boolean();
    if (kind === "null") return this.null();
    if (kind === "array") {
      const list: unknown[] = [];
      this.enterArray();
      while (this.nextElement()) list.push(this.value());
      return list;
    }
    const object: Record<string, unknown> = {};
    this.enterObject();
    for (let key = this.nextKey(NO_KEYS); key !== END_OF_OBJECT; key = this.nextKey(NO_KEYS)) {
      const top = this.#depth - 1;
      const start = this.#keyStart[top] as number;
      const name = start < 0 ? (this.#keyText[top] as string) : this.#unescape(start, this.#keyEnd[top] as number);
      // Not by assignment, which "__proto__" would not survive.
      Object.defineProperty(object, name, {
        value: this.value(),
        enumerable: true,
        writable: true,
        configurable: true,
      });
    }
    return object;
  }

  /** Passes over the next value. Brackets and strings of what is skipped are checked, numbers and commas are not. */
  skip(): void {
    const kind = this.kind();
    if (kind === "string") this.#skipString();
    else if (kind === "number") this.number();
    else if (kind === "boolean") this.boolean();
    else if (kind === "null") this.null();
    else this.#skipContainer();
  }

  #skipContainer(): void {
    let bytes = this.#bytes;
    const open: number[] = [];
    let at = this.#at;
    do {
      const c = bytes[at];
      if (c === QUOTE) {
        this.#at = at;
        this.#skipString();
        bytes = this.#bytes;
        at = this.#at;
        continue;
      }
      if (c === undefined) {
        this.#at = at;
        if (!this.#refill(at)) this.#syntax('"]" or "}"', at);
        bytes = this.#bytes;
        at = this.#at;
        continue;
      }
      if (c === OPEN_ARRAY || c === OPEN_OBJECT) {
        // The closing bracket of either kind is two code points after the opening one.
        open.push(c + 2);
      } else if ((c === CLOSE_ARRAY || c === CLOSE_OBJECT) && open.pop() !== c) {
        this.#syntax(c === CLOSE_ARRAY ? '"}"' : '"]"', at);
      }
      at++;
    } while (open.length > 0);
    this.#at = at;
  }

  /** Checks that nothing but white space follows. */
  end(): void {
    if (this.#skipSpace() < this.#bytes.length) this.#syntax("the end of the file");
  }

  #push(element: number): void {
    if (this.#depth === this.#element.length) {
      const grown = (array: Int32Array): Int32Array => {
        const larger = new Int32Array(2 * array.length);
        larger.set(array);
        return larger;
      };
      this.#element = grown(this.#element);
      this.#keyStart = grown(this.#keyStart);
      this.#keyEnd = grown(this.#keyEnd);
    }
    this.#element[this.#depth] = element;
    this.#keyStart[this.#depth] = 0;
    this.#keyEnd[this.#depth] = -1;
    this.#depth++;
  }

  /** Passes over white space, and sees to it that the next token is in memory as a whole, unless it is a long text. */
  #skipSpace(): number {
    // Most often there is nothing or one blank to pass over.
    let next = this.#at;
    if (this.#bytes[next] === 0x20) next++;
    if ((this.#bytes[next] as number) > 0x20 && next < this.#low) {
      this.#at = next;
      return next;
    }
    for (;;) {
      const bytes = this.#bytes;
      let c = bytes[this.#at];
      while (c === 0x20 || c === 0x0a || c === 0x0d || c === 0x09) c = bytes[++this.#at];
      if (this.#at < this.#low || !this.#refill(this.#at)) return this.#at;
    }
  }

  /** The next byte after white space; -1 at the end of the file. */
  #peek(): number {
    return this.#bytes[this.#skipSpace()] ?? -1;
  }

  /** Passes over a string, from its opening quote; whether it holds escapes. */
  #skipString(): boolean {
    let bytes = this.#bytes;
    let escaped = false;
    let at = this.#at + 1;
    for (;;) {
      const c = bytes[at];
      if (c === QUOTE) break;
      if (c === undefined) {
        const done = at - this.#at;
        if (!this.#refill(this.#at)) this.#syntax("the closing quote of a text", at);
        bytes = this.#bytes;
        at = this.#at + done;
        continue;
      }
      if (c < 0x20) this.#syntax("no control character in a text", at);
      if (c === BACKSLASH) {
        escaped = true;
        at++;
      }
      at++;
    }
    this.#at = at + 1;
    return escaped;
  }

  #text(start: number, end: number): string {
    try {
      return DECODER.decode(this.#bytes.subarray(start, end));
    } catch {
      return this.#syntax("UTF-8", start);
    }
  }

  #unescape(start: number, end: number): string {
    try {
      return JSON.parse(`"${this.#text(start, end)}"`) as string;
    } catch (error) {
      if (error instanceof DlfsError) throw error;
      return this.#syntax("a valid escape sequence", start);
    }
  }

  #literal(text: string): void {
    for (let i = 0; i < text.length; i++) {
      if (this.#bytes[this.#at + i] !== text.charCodeAt(i)) this.#syntax(text);
    }
    this.#at += text.length;
  }

  /** The wrong kind of value: names what came. */
  #mismatch(expected: string): never {
    const kind = this.kind();
    if (kind === "object" || kind === "array")
      this.fail(`expected ${expected}, got ${kind === "array" ? "a list" : "an object"}`);
    const path = this.path();
    const from = this.position;
    this.skip();
    const got = this.#text(from - this.#offset, this.#at);
    const message = `expected ${expected}, got ${got.length > 60 ? `${got.slice(0, 57)}...` : got}`;
    throw new DlfsError(ErrorCode.io, this.name, path === "" ? message : `${path}: ${message}`);
  }

  /** Text that is not JSON at byte `at`: names what was expected there and where that is. */
  #syntax(expected: string, at = this.#at): never {
    let line = 1;
    let lineStart = 0;
    const countLines = (bytes: Uint8Array, offset: number): void => {
      for (let i = bytes.indexOf(0x0a); i >= 0; i = bytes.indexOf(0x0a, i + 1)) {
        line++;
        lineStart = offset + i + 1;
      }
    };
    for (let offset = 0; offset < this.#offset; ) {
      const piece = new Uint8Array(Math.min(WINDOW, this.#offset - offset));
      const read = readSync(this.#file, piece, 0, piece.length, offset);
      if (read === 0) break;
      countLines(piece.subarray(0, read), offset);
      offset += read;
    }
    countLines(this.#bytes.subarray(0, at), this.#offset);
    const c = this.#bytes[at];
    // What Python's json module writes although JSON does not have it.
    const foreign = /^-?(?:NaN|Infinity)\b/.exec(String.fromCharCode(...this.#bytes.subarray(at, at + 10)));
    const got =
      c === undefined
        ? "the file ends"
        : foreign
          ? `got ${foreign[0]}`
          : c > 0x20 && c < 0x7f
            ? `got "${String.fromCharCode(c)}"`
            : `got byte 0x${c.toString(16)}`;
    const hint = c === undefined ? ", is it incomplete?" : "";
    this.fail(
      `not valid JSON at line ${line}, column ${this.#offset + at - lineStart + 1}: expected ${expected}, but ${got}${hint}`,
    );
  }
}
