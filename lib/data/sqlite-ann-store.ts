import { Database, type SQLQueryBindings, type Statement } from "bun:sqlite";
import { dirname, resolve } from "node:path";
import { check, DlfsError, ErrorCode } from "../native/error";
import {
  type AnnotationRecord,
  AnnotationStore,
  type AnnotationUpdate,
  type AssignSplitsOptions,
  type Attribution,
  type Category,
  type Change,
  type FileFacts,
  type ImageQuery,
  type ImageRecord,
  type ImageUpdate,
  type ImportRecord,
  type NewAnnotation,
  type NewImage,
  type PageOptions,
  type StoreCounts,
} from "./annotation-store";
import { splitOf } from "./split-hash";
import { ANNOTATION_INDICES, categoryKey, migrate } from "./sqlite-schema";

const IMAGE_COLUMNS = `i.id, i.split, i.source_id AS sourceId, i.file_name AS fileName, i.key, i.width, i.height, i.problem`;

const ANNOTATION_COLUMNS = `a.id, a.source_id, a.image_id, a.category_id, a.x, a.y, a.width, a.height, a.area, a.is_crowd,
  a.score, a.origin, a.modified`;

const CATEGORY_KEY = categoryKey("a.category_id", "a.image_id");

/** The values of ANNOTATION_COLUMNS. */
type AnnotationRow = [
  id: number,
  sourceId: number,
  imageId: number,
  categoryId: number,
  x: number,
  y: number,
  width: number,
  height: number,
  area: number,
  isCrowd: number,
  score: number | null,
  origin: number,
  modified: number,
];

/** Rows that one statement inserts, and the values that each of them needs. */
const ROWS = 64;
const ROW_VALUES = 13;

/** Boxes from which on an index is rather made anew than kept up to date: 4 times as fast, but no use to later imports. */
const LARGE = 100_000;

/** Memory for pages of the file, and for an index while it is sorted, in KiB. */
const CACHE_KIB = 65536;
const SORT_KIB = 4096;

/** Images that one statement asks the boxes of. */
const ASKED = 32;

/**
 * As much of a file as SQLite maps into memory at most: pages that the system has cached are read where they are. The
 * mapped pages count as the process's, but are the cache's and given back when memory is needed.
 */
const MAPPED_BYTES = 0x7fff0000;

/** Images that are held at a time while many are gone through. */
const PAGE = 10_000;

const HUMAN: Attribution = { source: "human" };
const IMPORTED: Attribution = { source: "imported" };

/** Rows of a table that one change concerns. */
interface Range {
  first: number;
  last: number;
}

/**
 * An AnnotationStore in an SQLite file, or in memory. A file may be opened by several processes at a time: readers see the
 * state of a moment and never wait, writers take turns. Files of earlier versions of dlfs are brought up to date when opened.
 */
export class SQLiteAnnStore extends AnnotationStore {
  readonly path: string;
  readonly #db: Database;
  #open = true;
  /** Known rows of the table origins. */
  readonly #origins = new Map<number, { source: Attribution["source"]; author: string }>();

  /** Opens the file, creating it where there is none; ":memory:" gives a store that ends with the process. */
  constructor(path = ":memory:") {
    super();
    this.path = path;
    let db: Database | null = null;
    try {
      db = new Database(path, { create: true, readwrite: true, strict: true });
      db.run("PRAGMA busy_timeout = 30000");
      db.run("PRAGMA foreign_keys = ON");
      if (path !== ":memory:") {
        // A reader never blocks a writer; what a crash can lose is the last transaction, never the file.
        db.run("PRAGMA journal_mode = WAL");
        db.run("PRAGMA synchronous = NORMAL");
        db.run(`PRAGMA mmap_size = ${MAPPED_BYTES}`);
      }
      // For batches of rows that lie together, and for the leaves that an import appends to; in KiB.
      db.run(`PRAGMA cache_size = ${-CACHE_KIB}`);
      migrate(db, path);
      this.#db = db;
    } catch (error) {
      db?.close();
      throw error instanceof DlfsError ? error : storeError("open", path, error);
    }
  }

  override categories(): Category[] {
    return this.#all<Category>("SELECT id, name, supercategory FROM categories ORDER BY id");
  }

  override addCategories(categories: readonly Category[]): void {
    this.transaction(() => {
      const present = this.#prepare("SELECT name FROM categories WHERE id = ?");
      const insert = this.#prepare("INSERT INTO categories (id, name, supercategory) VALUES (?, ?, ?)");
      for (const { id, name, supercategory } of categories) {
        const other = present.get(id) as { name: string } | null;
        check(
          other === null || other.name === name,
          "addCategories",
          () => `category ${id} is "${name}", but the store ${this.path} has it as "${other?.name}"`,
        );
        if (other) continue;
        insert.run(id, name, supercategory);
        this.#log("category", "add", { first: id, last: id }, IMPORTED, { name, supercategory });
      }
    });
  }

  override splits(): string[] {
    return this.#all<{ split: string }>("SELECT DISTINCT split FROM images ORDER BY split").map((row) => row.split);
  }

  override images(split: string, { usable = false }: { usable?: boolean } = {}): ImageRecord[] {
    const filter = usable ? "AND problem IS NULL" : "";
    return this.#all<ImageRecord>(
      `SELECT ${IMAGE_COLUMNS} FROM images i WHERE split = ? ${filter} ORDER BY source_id`,
      split,
    );
  }

  override image(id: number): ImageRecord | null {
    return this.#all<ImageRecord>(`SELECT ${IMAGE_COLUMNS} FROM images i WHERE id = ?`, id)[0] ?? null;
  }

  override findImages(query: ImageQuery, { after, limit }: PageOptions = {}): ImageRecord[] {
    const { from, parameters } = selectionOf(query, after);
    const most = limit === undefined ? "" : " LIMIT ?";
    if (limit !== undefined) parameters.push(limit);
    return this.#all<ImageRecord>(`SELECT ${IMAGE_COLUMNS} ${from}${most}`, ...parameters);
  }

  override countImages(query: ImageQuery): number {
    const { from, parameters } = selectionOf(query);
    const simple = query.categoryId === undefined && query.split !== undefined && Object.keys(query).length === 1;
    const sql = simple
      ? "SELECT count(*) AS n FROM images WHERE split = ?"
      : `SELECT count(*) AS n FROM (SELECT 1 ${from})`;
    return this.#all<{ n: number }>(sql, ...parameters)[0]?.n ?? 0;
  }

  override addImages(split: string, images: Iterable<NewImage>, by: Attribution = IMPORTED): number[] {
    return this.transaction(() => {
      const insert = this.#prepare(
        "INSERT INTO images (id, split, source_id, file_name, key, width, height) VALUES (?, ?, ?, ?, ?, ?, ?)",
      );
      const first = this.#counter("images") + 1;
      const ids: number[] = [];
      for (const { sourceId, fileName, key, width, height } of images) {
        const id = first + ids.length;
        try {
          insert.run(id, split, sourceId, fileName, key, width, height);
        } catch (error) {
          throw storeError("addImages", `image ${sourceId} (${key}) of split ${split}`, error);
        }
        ids.push(id);
      }
      this.#added("image", { first, last: first + ids.length - 1 }, by);
      return ids;
    });
  }

  override updateImages(updates: Iterable<ImageUpdate>, by: Attribution = HUMAN): void {
    this.transaction(() => {
      const change = this.#prepare(
        "UPDATE images SET width = coalesce(?, width), height = coalesce(?, height), problem = ? WHERE id = ?",
      );
      for (const { id, width, height, problem } of updates) {
        const old = this.image(id);
        if (old === null) throw unknown("updateImages", "image", id, this.path);
        change.run(width ?? null, height ?? null, problem === undefined ? old.problem : problem, id);
        const detail = { width: old.width, height: old.height, problem: old.problem };
        this.#log("image", "change", { first: id, last: id }, by, detail);
      }
    });
  }

  override deleteImages(ids: Iterable<number>, by: Attribution = HUMAN): void {
    this.transaction(() => {
      const statement = this.#prepare("DELETE FROM images WHERE id = ?");
      for (const id of ids) {
        const old = this.image(id);
        if (old === null) continue;
        statement.run(id);
        this.#log("image", "delete", { first: id, last: id }, by, old);
      }
    });
  }

  override tags(): { tag: string; images: number }[] {
    return this.#all("SELECT tag, count(*) AS images FROM tags GROUP BY tag ORDER BY tag");
  }

  override tagsOf(imageId: number): string[] {
    const rows = this.#all<{ tag: string }>("SELECT tag FROM tags WHERE image_id = ? ORDER BY tag", imageId);
    return rows.map((row) => row.tag);
  }

  override addTag(tag: string, imageIds: Iterable<number>, by: Attribution = HUMAN): void {
    check(tag !== "", "addTag", () => "the tag's name is empty");
    this.#changeTag("INSERT OR IGNORE INTO tags (tag, image_id) VALUES (?, ?)", { added: tag }, imageIds, by);
  }

  override removeTag(tag: string, imageIds: Iterable<number>, by: Attribution = HUMAN): void {
    this.#changeTag("DELETE FROM tags WHERE tag = ? AND image_id = ?", { removed: tag }, imageIds, by);
  }

  override assignSplits(options: AssignSplitsOptions): Record<string, number> {
    const { shares, seed, from, groupOf, by = HUMAN } = options;
    const names = Object.keys(shares);
    const choose = splitOf(shares, seed);
    return this.transaction(() => {
      const counts = Object.fromEntries(names.map((name) => [name, 0]));
      const query = from === undefined ? {} : { split: from };
      check(
        this.countImages(query) > 0,
        "assignSplits",
        () => `${this.path} has no images${from === undefined ? "" : ` of split "${from}"`}`,
      );
      const move = this.#prepare("UPDATE images SET split = ? WHERE id = ?");
      let range = null as Range | null;
      for (let page = this.findImages(query, { limit: PAGE }); page.length > 0; ) {
        for (const image of page) {
          const split = choose(groupOf?.(image) ?? image.key);
          (counts[split] as number)++;
          if (split === image.split) continue;
          try {
            move.run(split, image.id);
          } catch (error) {
            throw storeError("assignSplits", `image ${image.sourceId} (${image.key}) to split "${split}"`, error);
          }
          range = { first: range?.first ?? image.id, last: image.id };
        }
        page = this.findImages(query, { limit: PAGE, after: (page.at(-1) as ImageRecord).id });
      }
      if (range) this.#log("split", "change", range, by, { shares, seed, from: from ?? null });
      return counts;
    });
  }

  override annotationsOf(imageId: number): AnnotationRecord[] {
    return this.annotationsOfBatch([imageId])[0] as AnnotationRecord[];
  }

  override annotationsOfBatch(imageIds: readonly number[]): AnnotationRecord[][] {
    return this.#guard("annotationsOfBatch", () => {
      const rows = new Map<number, AnnotationRow[]>(imageIds.map((id) => [id, []]));
      const ids = [...rows.keys()];
      for (let at = 0; at < ids.length; at += ASKED) {
        const asked: (number | null)[] = ids.slice(at, at + ASKED);
        // One statement for many images takes a third of the time of one for each; null is no image's id.
        const count = asked.length === 1 ? 1 : ASKED;
        while (asked.length < count) asked.push(null);
        const statement = this.#prepare(
          `SELECT ${ANNOTATION_COLUMNS} FROM annotations a WHERE a.image_id IN (${Array(count).fill("?").join(",")})
           ORDER BY a.image_id, a.id`,
        );
        for (const row of statement.values(...asked) as AnnotationRow[]) rows.get(row[2])?.push(row);
      }
      return imageIds.map((id) => (rows.get(id) as AnnotationRow[]).map((row) => this.#record(row)));
    });
  }

  override *annotations(split: string): Iterable<AnnotationRecord> {
    // Not a cached statement: two walks may be under way at a time.
    const database = this.#database();
    using images = database.prepare("SELECT id FROM images WHERE split = ? ORDER BY source_id") as Statement<{
      id: number;
    }> &
      Disposable;
    let batch: number[] = [];
    for (const row of images.iterate(split)) {
      batch.push((row as { id: number }).id);
      if (batch.length < 256) continue;
      for (const records of this.annotationsOfBatch(batch)) yield* records;
      batch = [];
    }
    for (const records of this.annotationsOfBatch(batch)) yield* records;
  }

  override addAnnotations(
    annotations: Iterable<NewAnnotation>,
    { by = IMPORTED, expected = 0 }: { by?: Attribution; expected?: number } = {},
  ): number {
    return this.transaction(() => {
      // Rows come image by image, so that the other index only grows at its end.
      const later = "annotations_by_category";
      const indexLater = expected > LARGE && expected > this.#rows("annotations");
      if (indexLater) this.#database().run(`DROP INDEX ${later}`);
      const first = this.#counter("annotations") + 1;
      const last = this.#insertAnnotations(annotations, first, by);
      if (indexLater) this.#createIndex(later);
      this.#added("annotation", { first, last }, by);
      return last - first + 1;
    });
  }

  /** Inserts rows with ids from `first` on; the last one's. Many at a time: a call costs as much as three rows. */
  #insertAnnotations(annotations: Iterable<NewAnnotation>, first: number, by: Attribution): number {
    const origin = this.#originId(by);
    const time = by.time ?? Date.now();
    const insert = (rows: number): Statement =>
      this.#prepare(
        `INSERT INTO annotations (id, source_id, image_id, category_id, x, y, width, height, area, is_crowd,
           score, origin, modified) VALUES ${Array(rows).fill("(?,?,?,?,?,?,?,?,?,?,?,?,?)").join(",")}`,
      );
    const many = insert(ROWS);
    const single = insert(1);
    const values: (number | null)[] = new Array(ROWS * ROW_VALUES);
    let filled = 0;
    let id = first;
    const flush = (): void => {
      try {
        if (filled === values.length) {
          // As one list, not spread over as many arguments: a quarter of the time of inserting. The type does not know of it.
          many.run(values as unknown as SQLQueryBindings);
          return;
        }
      } catch {
        // One row is refused, and with it all of the statement: found below.
      }
      for (let at = 0; at < filled; at += ROW_VALUES) {
        const row = values.slice(at, at + ROW_VALUES) as number[];
        try {
          single.run(...row);
        } catch (error) {
          const what = `annotation ${row[1]} of image ${row[2]}, category ${row[3]}`;
          throw storeError("addAnnotations", what, error);
        }
      }
    };
    for (const { sourceId, imageId, categoryId, bbox, area, isCrowd, score, by: own } of annotations) {
      values[filled++] = id++;
      values[filled++] = sourceId;
      values[filled++] = imageId;
      values[filled++] = categoryId;
      values[filled++] = bbox[0];
      values[filled++] = bbox[1];
      values[filled++] = bbox[2];
      values[filled++] = bbox[3];
      values[filled++] = area;
      values[filled++] = isCrowd ? 1 : 0;
      values[filled++] = score ?? null;
      values[filled++] = own ? this.#originId(own) : origin;
      values[filled++] = own?.time ?? time;
      if (filled < values.length) continue;
      flush();
      filled = 0;
    }
    flush();
    return id - 1;
  }

  /** Makes an index of a large table anew. */
  #createIndex(name: keyof typeof ANNOTATION_INDICES): void {
    const db = this.#database();
    // What is sorted at a time is as large as the cache: where that fits into the processor's, it takes half the time.
    db.run(`PRAGMA cache_size = ${-SORT_KIB}`);
    db.run("PRAGMA threads = 1");
    try {
      db.run(`CREATE INDEX ${name} ON ${ANNOTATION_INDICES[name]}`);
    } finally {
      db.run("PRAGMA threads = 0");
      db.run(`PRAGMA cache_size = ${-CACHE_KIB}`);
    }
  }

  override updateAnnotations(updates: Iterable<AnnotationUpdate>, by: Attribution = HUMAN): void {
    this.transaction(() => {
      const origin = this.#originId(by);
      const time = by.time ?? Date.now();
      const change = this.#prepare(
        `UPDATE annotations SET category_id = ?, x = ?, y = ?, width = ?, height = ?, area = ?, is_crowd = ?, score = ?,
           origin = ?, modified = ? WHERE id = ?`,
      );
      for (const update of updates) {
        const { id } = update;
        const old = this.#annotation(id);
        if (old === null) throw unknown("updateAnnotations", "annotation", id, this.path);
        const { categoryId = old.categoryId, bbox = old.bbox, isCrowd = old.isCrowd, score = old.score } = update;
        const area = update.area ?? (update.bbox ? bbox[2] * bbox[3] : old.area);
        try {
          change.run(categoryId, ...bbox, area, isCrowd ? 1 : 0, score, origin, time, id);
        } catch (error) {
          throw storeError("updateAnnotations", `annotation ${id}, category ${categoryId}`, error);
        }
        this.#log("annotation", "change", { first: id, last: id }, by, old);
      }
    });
  }

  override deleteAnnotations(ids: Iterable<number>, by: Attribution = HUMAN): void {
    this.transaction(() => {
      const statement = this.#prepare("DELETE FROM annotations WHERE id = ?");
      for (const id of ids) {
        const old = this.#annotation(id);
        if (old === null) continue;
        statement.run(id);
        this.#log("annotation", "delete", { first: id, last: id }, by, old);
      }
    });
  }

  override lastChange(): number {
    return this.#all<{ n: number }>("SELECT coalesce(max(number), 0) AS n FROM changes")[0]?.n ?? 0;
  }

  override changesSince(since: number, limit = 1000): Change[] {
    return this.#all<Change & { detail: string | null }>(
      `SELECT c.number, c.time, o.source, o.author, c.entity, c.action, c.first, c.last, c.detail
       FROM changes c JOIN origins o ON o.id = c.origin WHERE c.number > ? ORDER BY c.number LIMIT ?`,
      since,
      limit,
    ).map((row) => ({ ...row, detail: row.detail === null ? null : JSON.parse(row.detail) }));
  }

  /** How many changes of annotations are people's work, after number `since`. */
  changesOfPeople(since = 0): number {
    return (
      this.#all<{ n: number }>(
        `SELECT count(*) AS n FROM changes c JOIN origins o ON o.id = c.origin
         WHERE c.number > ? AND c.entity = 'annotation' AND o.source = 'human'`,
        since,
      )[0]?.n ?? 0
    );
  }

  /** Writes all of the store to another file, which must not be there yet. */
  copyTo(path: string): void {
    this.#guard("copyTo", () => this.#database().run("VACUUM INTO ?", [path]));
  }

  override checkIntegrity(): string[] {
    const lines = this.#all<{ integrity_check: string }>("PRAGMA integrity_check")
      .map((row) => row.integrity_check)
      .filter((line) => line !== "ok");
    const references = this.#all<{ table: string; rowid: number; parent: string }>("PRAGMA foreign_key_check");
    for (const { table, rowid, parent } of references.slice(0, 100)) {
      lines.push(`${table}, row ${rowid}: what it refers to in ${parent} is missing`);
    }
    const count = (sql: string): number => this.#all<{ n: number }>(sql)[0]?.n ?? 0;
    const orphans = count("SELECT count(*) AS n FROM annotations WHERE origin NOT IN (SELECT id FROM origins)");
    if (orphans > 0) lines.push(`annotations: ${orphans} with an origin that is missing`);
    for (const table of ["images", "annotations"] as const) {
      const last = count(`SELECT coalesce(max(id), 0) AS n FROM ${table}`);
      if (last > this.#counter(table)) lines.push(`${table}: id ${last} is past the counter of ids`);
    }
    for (const name of Object.keys(ANNOTATION_INDICES)) {
      if (count(`SELECT count(*) AS n FROM sqlite_schema WHERE type = 'index' AND name = '${name}'`) === 0) {
        lines.push(`the index ${name} is missing`);
      }
    }
    return lines;
  }

  override deleteSplit(split: string): void {
    this.transaction(() => {
      this.#prepare("DELETE FROM images WHERE split = ?").run(split);
      this.#prepare("DELETE FROM imports WHERE split = ?").run(split);
      this.#log("split", "delete", { first: 0, last: 0 }, HUMAN, { split });
    });
  }

  override clear(): void {
    this.transaction(() => {
      for (const split of this.splits()) this.#log("split", "delete", { first: 0, last: 0 }, HUMAN, { split });
      for (const { id, name } of this.categories()) {
        this.#log("category", "delete", { first: id, last: id }, HUMAN, { name });
      }
      for (const table of ["annotations", "images", "imports", "categories"])
        this.#database().run(`DELETE FROM ${table}`);
    });
  }

  override counts(split: string): StoreCounts {
    const images = this.#all<{ images: number; usable: number }>(
      "SELECT count(*) AS images, count(*) FILTER (WHERE problem IS NULL) AS usable FROM images WHERE split = ?",
      split,
    )[0] as { images: number; usable: number };
    const rest = this.#all<Omit<StoreCounts, "images" | "usable">>(
      `SELECT coalesce(sum(total), 0) AS annotations, coalesce(sum(crowds), 0) AS crowds,
         count(*) FILTER (WHERE total = crowds) AS withoutBoxes, coalesce(max(total - crowds), 0) AS maxBoxes
       FROM (SELECT count(a.id) AS total, count(a.id) FILTER (WHERE a.is_crowd = 1) AS crowds
             FROM images i LEFT JOIN annotations a ON a.image_id = i.id
             WHERE i.split = ? AND i.problem IS NULL GROUP BY i.id)`,
      split,
    )[0] as Omit<StoreCounts, "images" | "usable">;
    return { ...images, ...rest };
  }

  override classCounts(split: string): number[] {
    return this.#all<{ n: number }>(
      `SELECT coalesce(b.n, 0) AS n FROM categories c LEFT JOIN
         (SELECT a.category_id AS id, count(*) AS n FROM images i CROSS JOIN annotations a ON a.image_id = i.id
          WHERE i.split = ? AND i.problem IS NULL AND a.is_crowd = 0 GROUP BY a.category_id) b ON b.id = c.id
       ORDER BY c.id`,
      split,
    ).map((row) => row.n);
  }

  override recordImport({ split, source, size, modified, importedAt, problems }: ImportRecord): void {
    this.#prepare(
      "INSERT INTO imports (split, source, size, modified, imported_at, problems) VALUES (?, ?, ?, ?, ?, ?)",
    ).run(split, source, size, modified, importedAt, JSON.stringify(problems));
  }

  override imports(): ImportRecord[] {
    return this.#all<Omit<ImportRecord, "problems"> & { problems: string }>(
      "SELECT split, source, size, modified, imported_at AS importedAt, problems FROM imports ORDER BY id",
    ).map((row) => ({ ...row, problems: JSON.parse(row.problems) }));
  }

  override fileFacts(key: string): FileFacts | null {
    return this.#all<FileFacts>("SELECT * FROM files WHERE key = ?", key)[0] ?? null;
  }

  override saveFileFacts(facts: Iterable<FileFacts>): void {
    this.transaction(() => {
      const replace = this.#prepare("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
      for (const f of facts) {
        const { key, size, modified, width, height, format, components, bits, process, orientation, problem } = f;
        replace.run(key, size, modified, width, height, format, components, bits, process, orientation, problem);
      }
    });
  }

  override getMetadata(name: string): string | null {
    return this.#all<{ value: string }>("SELECT value FROM metadata WHERE name = ?", name)[0]?.value ?? null;
  }

  override setMetadata(name: string, value: string): void {
    this.#prepare("INSERT OR REPLACE INTO metadata VALUES (?, ?)").run(name, value);
  }

  override transaction<T>(work: () => T): T {
    const db = this.#database();
    const guarded = db.transaction(() => {
      const result = work();
      check(!(result instanceof Promise), "transaction", () => "the work of a transaction must not be asynchronous");
      return result;
    });
    // Immediate: of two processes that both read and then write, the second waits instead of failing half-way.
    return this.#guard("transaction", () => (db.inTransaction ? guarded() : guarded.immediate()));
  }

  override bulk<T>(expected: number, work: () => T): T {
    const db = this.#database();
    if (expected <= LARGE || db.inTransaction) return this.transaction(work);
    const mode = (name: string): string =>
      (db.query(`PRAGMA journal_mode = ${name}`).get() as { journal_mode: string }).journal_mode;
    // Who adds to an empty file that nobody else has open writes every page once, not into the log first.
    let direct = false;
    if (this.path !== ":memory:" && this.#rows("images") === 0) {
      try {
        direct = mode("DELETE") === "delete";
      } catch {
        // Another process has it open: as always, then.
      }
    }
    // An index made anew goes through all of the file once, which needs not stay mapped after that.
    db.run("PRAGMA mmap_size = 0");
    db.run("PRAGMA foreign_keys = OFF");
    try {
      return this.transaction(work);
    } finally {
      if (this.path !== ":memory:") db.run(`PRAGMA mmap_size = ${MAPPED_BYTES}`);
      db.run("PRAGMA foreign_keys = ON");
      if (direct) mode("WAL");
    }
  }

  override close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#db.close();
  }

  override get scratchFolder(): string {
    return this.path === ":memory:" ? super.scratchFolder : dirname(resolve(this.path));
  }

  #database(): Database {
    check(this.#open, "SQLiteAnnStore", () => `${this.path} is closed`, ErrorCode.handle);
    return this.#db;
  }

  /** A statement out of the connection's cache. */
  #prepare(sql: string): Statement {
    return this.#database().query(sql);
  }

  #all<T>(sql: string, ...parameters: SQLQueryBindings[]): T[] {
    return this.#guard("query", () => this.#prepare(sql).all(...parameters) as T[]);
  }

  #annotation(id: number): AnnotationRecord | null {
    const rows = this.#prepare(`SELECT ${ANNOTATION_COLUMNS} FROM annotations a WHERE a.id = ?`).values(id);
    return rows.length === 0 ? null : this.#record(rows[0] as AnnotationRow);
  }

  #record(row: AnnotationRow): AnnotationRecord {
    const [id, sourceId, imageId, categoryId, x, y, width, height, area, isCrowd, score, origin, modified] = row;
    let from = this.#origins.get(origin);
    if (!from) {
      for (const { id, ...rest } of this.#all<{ id: number } & Required<Omit<Attribution, "time">>>(
        "SELECT id, source, author FROM origins",
      )) {
        this.#origins.set(id, rest);
      }
      from = this.#origins.get(origin) ?? { source: "imported", author: "" };
    }
    return {
      id,
      sourceId,
      imageId,
      categoryId,
      bbox: [x, y, width, height],
      area,
      isCrowd: isCrowd === 1,
      score,
      source: from.source,
      author: from.author,
      modified,
    };
  }

  #originId({ source, author = "" }: Attribution): number {
    const find = this.#prepare("SELECT id FROM origins WHERE source = ? AND author = ?");
    const present = find.get(source, author) as { id: number } | null;
    if (present) return present.id;
    this.#prepare("INSERT INTO origins (source, author) VALUES (?, ?)").run(source, author);
    return (find.get(source, author) as { id: number }).id;
  }

  #log(entity: Change["entity"], action: Change["action"], { first, last }: Range, by: Attribution, detail?: unknown) {
    this.#prepare(
      "INSERT INTO changes (time, origin, entity, action, first, last, detail) VALUES (?, ?, ?, ?, ?, ?, ?)",
    ).run(
      by.time ?? Date.now(),
      this.#originId(by),
      entity,
      action,
      first,
      last,
      detail === undefined ? null : JSON.stringify(detail),
    );
  }

  /** Keeps the ids of rows that were added from being given again, and logs them. */
  #added(entity: "image" | "annotation", range: Range, by: Attribution): void {
    if (range.last < range.first) return;
    this.#prepare("UPDATE counters SET value = ? WHERE name = ?").run(range.last, `${entity}s`);
    this.#log(entity, "add", range, by);
  }

  /** The last id that a table has given. */
  #counter(table: "images" | "annotations"): number {
    return this.#all<{ value: number }>("SELECT value FROM counters WHERE name = ?", table)[0]?.value ?? 0;
  }

  /** How many rows a table has at most: ids that were given, less than there may have been deleted. */
  #rows(table: "images" | "annotations"): number {
    const range = this.#all<{ n: number }>(`SELECT coalesce(max(id) - min(id) + 1, 0) AS n FROM ${table}`);
    return range[0]?.n ?? 0;
  }

  #changeTag(sql: string, detail: unknown, imageIds: Iterable<number>, by: Attribution): void {
    this.transaction(() => {
      const statement = this.#prepare(sql);
      const tag = Object.values(detail as Record<string, string>)[0] as string;
      let range: Range | null = null;
      for (const id of imageIds) {
        let changes: number;
        try {
          changes = statement.run(tag, id).changes;
        } catch (error) {
          throw storeError("changeTag", `tag "${tag}" of image ${id}`, error);
        }
        if (changes === 0) continue;
        if (range && id === range.last + 1) {
          range.last = id;
        } else {
          if (range) this.#log("image", "change", range, by, { tag: detail });
          range = { first: id, last: id };
        }
      }
      if (range) this.#log("image", "change", range, by, { tag: detail });
    });
  }

  #guard<T>(op: string, work: () => T): T {
    try {
      return work();
    } catch (error) {
      throw (error as Error | null)?.name === "SQLiteError" ? storeError(op, this.path, error) : error;
    }
  }
}

/** What follows SELECT for the images of a query, as `i` and by ascending id, and the parameters. */
function selectionOf(query: ImageQuery, after?: number): { from: string; parameters: SQLQueryBindings[] } {
  const { split, tag, categoryId, ids, usable, where, parameters: own = [] } = query;
  const terms: string[] = [];
  const parameters: SQLQueryBindings[] = [];
  const term = (sql: string, ...values: SQLQueryBindings[]): void => {
    terms.push(sql);
    parameters.push(...values);
  };
  if (categoryId !== undefined) {
    // Keys of one category are in the order of the images: one walk along the index, from where the page begins.
    const range = `BETWEEN ${categoryKey("?", "?")} AND ${categoryKey("?", String(2 ** 40 - 1))}`;
    const first = Math.max(0, (after ?? -1) + 1, ids?.[0] ?? 0);
    term(`${CATEGORY_KEY} ${range} AND a.category_id = ?`, categoryId, first, categoryId, categoryId);
  }
  if (split !== undefined) term("i.split = ?", split);
  if (tag !== undefined) term("i.id IN (SELECT image_id FROM tags WHERE tag = ?)", tag);
  if (ids) term("i.id BETWEEN ? AND ?", ...ids);
  if (after !== undefined) term("i.id > ?", after);
  if (usable !== undefined) term(`i.problem IS ${usable ? "" : "NOT "}NULL`);
  if (where !== undefined) term(`(${where})`, ...own);
  const tables = categoryId === undefined ? "images i" : "annotations a CROSS JOIN images i ON i.id = a.image_id";
  const order = categoryId === undefined ? "ORDER BY i.id" : `GROUP BY ${CATEGORY_KEY} ORDER BY ${CATEGORY_KEY}`;
  return { from: `FROM ${tables} WHERE ${terms.join(" AND ") || "1"} ${order}`, parameters };
}

function unknown(op: string, what: string, id: number, path: string): DlfsError {
  return new DlfsError(ErrorCode.argument, op, `no ${what} has id ${id} in ${path}`);
}

function storeError(op: string, what: string, error: unknown): DlfsError {
  const message = error instanceof Error ? error.message : String(error);
  return new DlfsError(ErrorCode.io, `SQLiteAnnStore.${op}`, `${what}: ${message}`, { cause: error });
}
