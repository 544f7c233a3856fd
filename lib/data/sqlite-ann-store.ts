import { Database, type SQLQueryBindings, type Statement } from "bun:sqlite";
import { check, DlfsError, ErrorCode } from "../native/error";
import {
  type AnnotationRecord,
  AnnotationStore,
  type Category,
  type FileFacts,
  type ImageRecord,
  type ImageUpdate,
  type ImportRecord,
  type NewAnnotation,
  type NewImage,
  type StoreCounts,
} from "./annotation-store";

const SCHEMA_VERSION = 1;

const SCHEMA = `
CREATE TABLE categories (id INTEGER PRIMARY KEY, name TEXT NOT NULL, supercategory TEXT) STRICT;

CREATE TABLE images (
  id INTEGER PRIMARY KEY,
  split TEXT NOT NULL,
  source_id INTEGER NOT NULL,
  file_name TEXT NOT NULL,
  key TEXT NOT NULL,
  width INTEGER,
  height INTEGER,
  problem TEXT,
  UNIQUE (split, source_id),
  UNIQUE (split, key)
) STRICT;

CREATE TABLE annotations (
  id INTEGER PRIMARY KEY,
  source_id INTEGER NOT NULL,
  image_id INTEGER NOT NULL REFERENCES images (id) ON DELETE CASCADE,
  category_id INTEGER NOT NULL REFERENCES categories (id),
  x REAL NOT NULL,
  y REAL NOT NULL,
  width REAL NOT NULL,
  height REAL NOT NULL,
  area REAL NOT NULL,
  is_crowd INTEGER NOT NULL
) STRICT;
CREATE INDEX annotations_by_image ON annotations (image_id);
CREATE INDEX annotations_by_category ON annotations (category_id, image_id);

CREATE TABLE imports (
  id INTEGER PRIMARY KEY,
  split TEXT NOT NULL,
  source TEXT NOT NULL,
  size INTEGER,
  modified INTEGER,
  imported_at INTEGER NOT NULL,
  problems TEXT NOT NULL
) STRICT;

CREATE TABLE files (
  key TEXT PRIMARY KEY,
  size INTEGER NOT NULL,
  modified INTEGER NOT NULL,
  width INTEGER NOT NULL,
  height INTEGER NOT NULL,
  components INTEGER NOT NULL,
  bits INTEGER NOT NULL,
  process INTEGER NOT NULL,
  problem TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE metadata (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
`;

const IMAGE_COLUMNS = `id, split, source_id AS sourceId, file_name AS fileName, key, width, height, problem`;

const ANNOTATION_COLUMNS = `a.id, a.source_id AS sourceId, a.image_id AS imageId, a.category_id AS categoryId,
  a.x, a.y, a.width, a.height, a.area, a.is_crowd AS isCrowd`;

interface AnnotationRow {
  id: number;
  sourceId: number;
  imageId: number;
  categoryId: number;
  x: number;
  y: number;
  width: number;
  height: number;
  area: number;
  isCrowd: number;
}

/** An AnnotationStore in an SQLite file, or in memory. A file may be opened by several processes at a time. */
export class SQLiteAnnStore extends AnnotationStore {
  readonly path: string;
  readonly #db: Database;
  #open = true;

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
      }
      const created = db;
      const version = created.transaction(() => {
        const present = (created.query("PRAGMA user_version").get() as { user_version: number }).user_version;
        if (present !== 0) return present;
        created.run(SCHEMA);
        created.run(`PRAGMA user_version = ${SCHEMA_VERSION}`);
        return SCHEMA_VERSION;
      });
      const found = version.immediate();
      check(
        found === SCHEMA_VERSION,
        "SQLiteAnnStore",
        () => `${path} has schema version ${found}, this dlfs reads ${SCHEMA_VERSION}`,
        ErrorCode.io,
      );
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
        if (!other) insert.run(id, name, supercategory);
      }
    });
  }

  override splits(): string[] {
    return this.#all<{ split: string }>("SELECT DISTINCT split FROM images ORDER BY split").map((row) => row.split);
  }

  override images(split: string, { usable = false }: { usable?: boolean } = {}): ImageRecord[] {
    const filter = usable ? "AND problem IS NULL" : "";
    return this.#all<ImageRecord>(
      `SELECT ${IMAGE_COLUMNS} FROM images WHERE split = ? ${filter} ORDER BY source_id`,
      split,
    );
  }

  override image(id: number): ImageRecord | null {
    return this.#all<ImageRecord>(`SELECT ${IMAGE_COLUMNS} FROM images WHERE id = ?`, id)[0] ?? null;
  }

  override addImages(split: string, images: Iterable<NewImage>): number[] {
    return this.transaction(() => {
      const insert = this.#prepare(
        "INSERT INTO images (split, source_id, file_name, key, width, height) VALUES (?, ?, ?, ?, ?, ?)",
      );
      const ids: number[] = [];
      for (const image of images) {
        try {
          const { sourceId, fileName, key, width, height } = image;
          ids.push(Number(insert.run(split, sourceId, fileName, key, width, height).lastInsertRowid));
        } catch (error) {
          throw storeError("addImages", `image ${image.sourceId} (${image.key}) of split ${split}`, error);
        }
      }
      return ids;
    });
  }

  override updateImages(updates: Iterable<ImageUpdate>): void {
    this.transaction(() => {
      const size = this.#prepare(
        "UPDATE images SET width = coalesce(?, width), height = coalesce(?, height) WHERE id = ?",
      );
      const problem = this.#prepare("UPDATE images SET problem = ? WHERE id = ?");
      for (const update of updates) {
        const { id, width, height } = update;
        check(this.image(id) !== null, "updateImages", () => `no image has id ${id} in ${this.path}`);
        if (width !== undefined || height !== undefined) size.run(width ?? null, height ?? null, id);
        if (update.problem !== undefined) problem.run(update.problem, id);
      }
    });
  }

  override deleteImages(ids: Iterable<number>): void {
    this.#deleteEach("DELETE FROM images WHERE id = ?", ids);
  }

  override annotationsOf(imageId: number): AnnotationRecord[] {
    const sql = `SELECT ${ANNOTATION_COLUMNS} FROM annotations a WHERE a.image_id = ? ORDER BY a.id`;
    return this.#all<AnnotationRow>(sql, imageId).map(annotationRecord);
  }

  override *annotations(split: string): Iterable<AnnotationRecord> {
    // Not a cached statement: two walks may be under way at a time.
    using statement = this.#database().prepare(
      `SELECT ${ANNOTATION_COLUMNS} FROM images i CROSS JOIN annotations a ON a.image_id = i.id
       WHERE i.split = ? ORDER BY i.source_id, a.id`,
    ) as Statement<AnnotationRow> & Disposable;
    for (const row of statement.iterate(split)) yield annotationRecord(row as AnnotationRow);
  }

  override addAnnotations(annotations: Iterable<NewAnnotation>): number {
    return this.transaction(() => {
      const insert = this.#prepare(
        `INSERT INTO annotations (source_id, image_id, category_id, x, y, width, height, area, is_crowd)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
      );
      let count = 0;
      for (const { sourceId, imageId, categoryId, bbox, area, isCrowd } of annotations) {
        const [x, y, width, height] = bbox;
        try {
          insert.run(sourceId, imageId, categoryId, x, y, width, height, area, isCrowd ? 1 : 0);
        } catch (error) {
          const what = `annotation ${sourceId} of image ${imageId}, category ${categoryId}`;
          throw storeError("addAnnotations", what, error);
        }
        count++;
      }
      return count;
    });
  }

  override deleteAnnotations(ids: Iterable<number>): void {
    this.#deleteEach("DELETE FROM annotations WHERE id = ?", ids);
  }

  override deleteSplit(split: string): void {
    this.transaction(() => {
      this.#prepare("DELETE FROM images WHERE split = ?").run(split);
      this.#prepare("DELETE FROM imports WHERE split = ?").run(split);
    });
  }

  override clear(): void {
    this.transaction(() => {
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
      `SELECT (SELECT count(*) FROM annotations a JOIN images i ON i.id = a.image_id
               WHERE a.category_id = c.id AND a.is_crowd = 0 AND i.split = ? AND i.problem IS NULL) AS n
       FROM categories c ORDER BY c.id`,
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
      const replace = this.#prepare("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)");
      for (const f of facts) {
        replace.run(f.key, f.size, f.modified, f.width, f.height, f.components, f.bits, f.process, f.problem);
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

  override close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#db.close();
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
    const statement = this.#prepare(sql);
    return this.#guard("query", () => statement.all(...parameters) as T[]);
  }

  #deleteEach(sql: string, ids: Iterable<number>): void {
    this.transaction(() => {
      const statement = this.#prepare(sql);
      for (const id of ids) statement.run(id);
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

function annotationRecord(row: AnnotationRow): AnnotationRecord {
  const { id, sourceId, imageId, categoryId, x, y, width, height, area } = row;
  return { id, sourceId, imageId, categoryId, bbox: [x, y, width, height], area, isCrowd: row.isCrowd === 1 };
}

function storeError(op: string, what: string, error: unknown): DlfsError {
  const message = error instanceof Error ? error.message : String(error);
  return new DlfsError(ErrorCode.io, `SQLiteAnnStore.${op}`, `${what}: ${message}`, { cause: error });
}
