import { DlfsError, ErrorCode } from "../native/error";

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
  constructor(readonly names: readonly string[]) {
    this.encoded = names.map((name) => ENCODER.encode(name));
  }
}

/** What nextKey answers for a key that is not in the list, and after the last key. */
export const UNKNOWN_KEY = -1;
export const END_OF_OBJECT = -2;

/**
 * Reads JSON from bytes, value by value, in one pass: an annotation file of some hundred megabytes never exists as one
 * string or one tree of objects, parts that are not wanted are skipped, and every error names the file, the path of the
 * field (`annotations[12].bbox[2]`) and the line. The caller walks: enterObject, nextKey, a value, ..., enterArray,
 * nextElement, a value, ...; a value of a key or element must be read or skipped before the next one.
 */
export class JsonReader {
  readonly #bytes: Uint8Array;
  /** The file's, for messages. */
  readonly name: string;
  #at = 0;
  #depth = 0;
  /** Per open container: the number of the element (arrays), or -1; and where the present key's text starts and ends. */
  readonly #element: number[] = [];
  readonly #keyStart: number[] = [];
  readonly #keyEnd: number[] = [];

  constructor(bytes: Uint8Array, name: string) {
    this.#bytes = bytes;
    this.name = name;
    if (bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf) this.#at = 3;
  }

  /** Bytes read so far. */
  get position(): number {
    return this.#at;
  }

  /** The path of the value being read, such as `annotations[12].bbox`; empty at the top. */
  path(): string {
    let path = "";
    for (let i = 0; i < this.#depth; i++) {
      const element = this.#element[i] as number;
      const keyEnd = this.#keyEnd[i] as number;
      if (element >= 0) path += `[${element}]`;
      else if (keyEnd >= 0) path += (path === "" ? "" : ".") + this.#text(this.#keyStart[i] as number, keyEnd);
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
    const first = this.#keyEnd[this.#depth - 1] === -1;
    if (this.#peek() === CLOSE_OBJECT) {
      this.#at++;
      this.#depth--;
      return END_OF_OBJECT;
    }
    if (!first) {
      if (this.#peek() !== COMMA) this.#syntax('"," or "}"');
      this.#at++;
    }
    if (this.#peek() !== QUOTE) this.#syntax("a key in quotes");
    const start = this.#at + 1;
    const escaped = this.#skipString();
    const end = this.#at - 1;
    this.#keyStart[this.#depth - 1] = start;
    this.#keyEnd[this.#depth - 1] = end;
    if (this.#peek() !== COLON) this.#syntax('":"');
    this.#at++;
    if (escaped) return keys.names.indexOf(this.#unescape(start, end));
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
    if (this.#peek() === CLOSE_ARRAY) {
      this.#at++;
      this.#depth--;
      return false;
    }
    if (this.#element[top] === -2) {
      this.#element[top] = 0;
    } else {
      if (this.#peek() !== COMMA) this.#syntax('"," or "]"');
      this.#at++;
      (this.#element[top] as number)++;
    }
    return true;
  }

  /** A finite number. */
  number(expected = "a number"): number {
    if (this.kind() !== "number") this.#mismatch(expected);
    const bytes = this.#bytes;
    const start = this.#at;
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
    const start = this.#at + 1;
    const escaped = this.#skipString();
    return escaped ? this.#unescape(start, this.#at - 1) : this.#text(start, this.#at - 1);
  }

  boolean(expected = "true or false"): boolean {
    if (this.kind() !== "boolean") this.#mismatch(expected);
    const value = this.#bytes[this.#at] === 0x74;
    this.#literal(value ? "true" : "false");
    return value;
  }

  null(): void {
    if (this.kind() !== "null") this.#mismatch("null");
    this.#literal("null");
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
    const bytes = this.#bytes;
    const open: number[] = [];
    let at = this.#at;
    do {
      const c = bytes[at];
      if (c === QUOTE) {
        this.#at = at;
        this.#skipString();
        at = this.#at;
        continue;
      }
      if (c === undefined) this.#syntax('"]" or "}"', at);
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
    this.#element[this.#depth] = element;
    this.#keyStart[this.#depth] = 0;
    this.#keyEnd[this.#depth] = -1;
    this.#depth++;
  }

  #skipSpace(): number {
    const bytes = this.#bytes;
    let c = bytes[this.#at];
    while (c === 0x20 || c === 0x0a || c === 0x0d || c === 0x09) c = bytes[++this.#at];
    return this.#at;
  }

  /** The next byte after white space; -1 at the end of the file. */
  #peek(): number {
    return this.#bytes[this.#skipSpace()] ?? -1;
  }

  /** Passes over a string, from its opening quote; whether it holds escapes. */
  #skipString(): boolean {
    const bytes = this.#bytes;
    let escaped = false;
    let at = this.#at + 1;
    for (;;) {
      const c = bytes[at];
      if (c === QUOTE) break;
      if (c === undefined) this.#syntax("the closing quote of a text", at);
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
    const start = this.#at;
    this.skip();
    const got = this.#text(start, this.#at);
    const message = `expected ${expected}, got ${got.length > 60 ? `${got.slice(0, 57)}...` : got}`;
    throw new DlfsError(ErrorCode.io, this.name, path === "" ? message : `${path}: ${message}`);
  }

  /** Text that is not JSON at byte `at`: names what was expected there and where that is. */
  #syntax(expected: string, at = this.#at): never {
    const before = this.#bytes.subarray(0, at);
    let line = 1;
    let lineStart = 0;
    for (let i = before.indexOf(0x0a); i >= 0; i = before.indexOf(0x0a, i + 1)) {
      line++;
      lineStart = i + 1;
    }
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
    this.fail(`not valid JSON at line ${line}, column ${at - lineStart + 1}: expected ${expected}, but ${got}${hint}`);
  }
}
