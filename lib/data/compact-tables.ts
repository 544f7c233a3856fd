/** What an import remembers of millions of entries, in a few bytes each: a million objects and strings would take 300 MiB. */
import type { NewImage } from "./annotation-store";

const ENCODER = new TextEncoder();
const DECODER = new TextDecoder();

/** Pages of 65,536 ids that are kept as bits; more means that the ids are scattered. */
const MAX_PAGES = 2048;
const PAGE_IDS = 1 << 16;

/** Spreads integers up to 2^53 over 32 bits (the finalizer of MurmurHash3). */
function mix(id: number): number {
  let h = (id ^ Math.imul(Math.floor(id / 2 ** 32), 0x9e3779b1)) | 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** A set of integers >= 0: a bit each where they lie close together, as ids in files do, else 11 to 22 bytes. */
export class IdSet {
  #pages: Map<number, Uint32Array> | null = new Map();
  /** The page that was used last, and its number: ids mostly come in order. */
  #page: Uint32Array = new Uint32Array(0);
  #pageNumber = -1;
  #table = new Float64Array(0);
  #size = 0;

  /** Adds an id; whether it is new. */
  add(id: number): boolean {
    if (this.#pages === null) return this.#insert(id);
    const number = Math.floor(id / PAGE_IDS);
    if (number !== this.#pageNumber) {
      let page = this.#pages.get(number);
      if (!page) {
        if (this.#pages.size === MAX_PAGES) {
          this.#scatter(this.#pages);
          return this.#insert(id);
        }
        page = new Uint32Array(PAGE_IDS / 32);
        this.#pages.set(number, page);
      }
      this.#page = page;
      this.#pageNumber = number;
    }
    const page = this.#page;
    const bit = id - number * PAGE_IDS;
    const word = page[bit >> 5] as number;
    if ((word >>> (bit & 31)) & 1) return false;
    page[bit >> 5] = word | (1 << (bit & 31));
    return true;
  }

  #scatter(pages: ReadonlyMap<number, Uint32Array>): void {
    this.#pages = null;
    this.#table = new Float64Array(1 << 16).fill(-1);
    for (const [number, page] of pages) {
      for (const [i, word] of page.entries()) {
        for (let rest = word, bit = 0; rest !== 0; rest >>>= 1, bit++) {
          if (rest & 1) this.#insert(number * PAGE_IDS + 32 * i + bit);
        }
      }
    }
  }

  #insert(id: number): boolean {
    if (4 * this.#size >= 3 * this.#table.length) {
      const old = this.#table;
      this.#table = new Float64Array(2 * old.length).fill(-1);
      this.#size = 0;
      for (const other of old) if (other >= 0) this.#insert(other);
    }
    const mask = this.#table.length - 1;
    for (let at = mix(id) & mask; ; at = (at + 1) & mask) {
      if (this.#table[at] === id) return false;
      if (this.#table[at] !== -1) continue;
      this.#table[at] = id;
      this.#size++;
      return true;
    }
  }
}

/** An open-addressing table of row numbers, with their hashes; -1 is an empty place. */
class RowTable {
  #rows = new Int32Array(1024).fill(-1);
  #hashes = new Uint32Array(1024);
  #size = 0;

  /** The row with this hash that `same` accepts, or -1. */
  find(hash: number, same: (row: number) => boolean): number {
    const mask = this.#rows.length - 1;
    for (let at = hash & mask; ; at = (at + 1) & mask) {
      const row = this.#rows[at] as number;
      if (row < 0 || (this.#hashes[at] === hash && same(row))) return row;
    }
  }

  add(row: number, hash: number): void {
    if (2 * this.#size >= this.#rows.length) {
      const [rows, hashes] = [this.#rows, this.#hashes];
      this.#rows = new Int32Array(2 * rows.length).fill(-1);
      this.#hashes = new Uint32Array(2 * rows.length);
      for (let i = 0; i < rows.length; i++) {
        if ((rows[i] as number) >= 0) this.#put(rows[i] as number, hashes[i] as number);
      }
    }
    this.#put(row, hash);
    this.#size++;
  }

  #put(row: number, hash: number): void {
    const mask = this.#rows.length - 1;
    let at = hash & mask;
    while (this.#rows[at] !== -1) at = (at + 1) & mask;
    this.#rows[at] = row;
    this.#hashes[at] = hash;
  }
}

function grown<T extends Float64Array | Uint8Array>(array: T, length: number): T {
  if (length <= array.length) return array;
  const larger = new (array.constructor as new (n: number) => T)(Math.max(length, 2 * array.length));
  larger.set(array as never);
  return larger;
}

/** What an ImageTable has of each image, side by side because the rows of boxes come in any order. */
const FACTS = 4;
const [ID, PLACE, WIDTH, HEIGHT] = [0, 1, 2, 3];

/** Images in the order they were added: about 60 bytes each, and their names. */
export class ImageTable {
  length = 0;
  /** Id, place among the usable ones (-1: left out), width and height (0: not known) of each. */
  #facts = new Float64Array(1024 * FACTS);
  /** Where in #text the file name of each ends. */
  #ends = new Float64Array(1024);
  #text = new Uint8Array(1 << 15);
  #usable = 0;
  readonly #byId = new RowTable();
  readonly #byKey = new RowTable();

  /** @param keyOf the key of a file name */
  constructor(readonly keyOf: (fileName: string) => string) {}

  /** The number of images that are not left out. */
  get usable(): number {
    return this.#usable;
  }

  /** Adds an image; its row. */
  add(image: NewImage): number {
    const row = this.length++;
    const name = ENCODER.encode(image.fileName);
    const start = row === 0 ? 0 : (this.#ends[row - 1] as number);
    this.#facts = grown(this.#facts, FACTS * (row + 1));
    this.#ends = grown(this.#ends, row + 1);
    this.#text = grown(this.#text, start + name.length);
    this.#facts[FACTS * row + ID] = image.sourceId;
    this.#facts[FACTS * row + PLACE] = -1;
    this.#facts[FACTS * row + WIDTH] = image.width ?? 0;
    this.#facts[FACTS * row + HEIGHT] = image.height ?? 0;
    this.#text.set(name, start);
    this.#ends[row] = start + name.length;
    this.#byId.add(row, mix(image.sourceId));
    return row;
  }

  /** The row of an id, or -1. */
  rowOf(id: number): number {
    // Mostly ids are numbered through, and the row follows from the first one.
    const guess = id - (this.#facts[ID] as number);
    if (guess >= 0 && guess < this.length && this.#facts[FACTS * guess + ID] === id) return guess;
    return this.#byId.find(mix(id), (row) => this.#facts[FACTS * row + ID] === id);
  }

  /** Marks an image as usable, unless another usable one has its key; the row of that one, or -1. */
  use(row: number): number {
    const key = this.keyOf(this.fileName(row));
    const hash = Bun.hash.xxHash32(key);
    const other = this.#byKey.find(hash, (candidate) => this.keyOf(this.fileName(candidate)) === key);
    if (other >= 0) return other;
    this.#byKey.add(row, hash);
    this.#facts[FACTS * row + PLACE] = this.#usable++;
    return -1;
  }

  idOf(row: number): number {
    return this.#facts[FACTS * row + ID] as number;
  }

  /** The place among the usable images, or -1. */
  placeOf(row: number): number {
    return this.#facts[FACTS * row + PLACE] as number;
  }

  widthOf(row: number): number | null {
    return this.#facts[FACTS * row + WIDTH] || null;
  }

  heightOf(row: number): number | null {
    return this.#facts[FACTS * row + HEIGHT] || null;
  }

  fileName(row: number): string {
    const start = row === 0 ? 0 : (this.#ends[row - 1] as number);
    return DECODER.decode(this.#text.subarray(start, this.#ends[row] as number));
  }

  /** The usable images, by place. */
  *images(): Generator<NewImage> {
    for (let row = 0; row < this.length; row++) {
      if (this.placeOf(row) < 0) continue;
      const fileName = this.fileName(row);
      const [width, height] = [this.widthOf(row), this.heightOf(row)];
      yield { sourceId: this.idOf(row), fileName, key: this.keyOf(fileName), width, height };
    }
  }
}
