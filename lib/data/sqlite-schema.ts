/** The tables of an SQLiteAnnStore and how files of earlier versions become files of this one. */
import type { Database } from "bun:sqlite";
import { check, ErrorCode } from "../native/error";

export const SCHEMA_VERSION = 3;

/**
 * Category and image of an annotation as one integer: an index of it is built in half the time that one of both columns takes,
 * because the first number decides every comparison. Where a category's id has more than 23 bits different pairs may have the
 * same key, so a query asks for both columns too.
 */
export const categoryKey = (category: string, image: string): string => `((${category} << 40) | ${image})`;

/** The indices that queries by image and by category use. */
export const ANNOTATION_INDICES = {
  annotations_by_image: "annotations (image_id)",
  annotations_by_category: `annotations (${categoryKey("category_id", "image_id")})`,
} as const;

const VERSION_1 = `
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

/**
 * Who made a box and when, tags, the log of changes, and ids that are never given twice. Added columns need no rewriting of
 * rows: what was there before counts as imported, at a time that is not known.
 */
const VERSION_2 = `
CREATE TABLE origins (
  id INTEGER PRIMARY KEY,
  source TEXT NOT NULL CHECK (source IN ('human', 'imported', 'model')),
  author TEXT NOT NULL,
  UNIQUE (source, author)
) STRICT;
INSERT INTO origins (id, source, author) VALUES (1, 'imported', '');

ALTER TABLE annotations ADD COLUMN origin INTEGER NOT NULL DEFAULT 1;
ALTER TABLE annotations ADD COLUMN modified INTEGER NOT NULL DEFAULT 0;
ALTER TABLE annotations ADD COLUMN score REAL;
DROP INDEX annotations_by_category;
CREATE INDEX annotations_by_category ON ${ANNOTATION_INDICES.annotations_by_category};

CREATE TABLE tags (
  tag TEXT NOT NULL,
  image_id INTEGER NOT NULL REFERENCES images (id) ON DELETE CASCADE,
  PRIMARY KEY (tag, image_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX tags_by_image ON tags (image_id);

-- Of a split by id: the row's id is the index's last column.
CREATE INDEX images_by_split ON images (split);

CREATE TABLE changes (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  time INTEGER NOT NULL,
  origin INTEGER NOT NULL REFERENCES origins (id),
  entity TEXT NOT NULL,
  action TEXT NOT NULL,
  first INTEGER NOT NULL,
  last INTEGER NOT NULL,
  detail TEXT
) STRICT;

CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO counters SELECT 'images', coalesce(max(id), 0) FROM images;
INSERT INTO counters SELECT 'annotations', coalesce(max(id), 0) FROM annotations;
`;

/**
 * Formats of files and how their pictures are to be turned. What was found out about files before is forgotten: it did not look
 * at that, so sizes may be those of pictures that lie on their side.
 */
const VERSION_3 = `
DROP TABLE files;
CREATE TABLE files (
  key TEXT PRIMARY KEY,
  size INTEGER NOT NULL,
  modified INTEGER NOT NULL,
  width INTEGER NOT NULL,
  height INTEGER NOT NULL,
  format TEXT NOT NULL,
  components INTEGER NOT NULL,
  bits INTEGER NOT NULL,
  process INTEGER NOT NULL,
  orientation INTEGER NOT NULL,
  problem TEXT
) STRICT, WITHOUT ROWID;
`;

const STEPS = [VERSION_1, VERSION_2, VERSION_3];

/**
 * Brings an open database to SCHEMA_VERSION, an empty one included, in one transaction: another process sees the file as it
 * was or as it will be.
 *
 * @throws DlfsError for a file of a later version
 */
export function migrate(db: Database, path: string): void {
  const versionOf = (): number => (db.query("PRAGMA user_version").get() as { user_version: number }).user_version;
  const found = versionOf();
  check(
    found >= 0 && found <= SCHEMA_VERSION,
    "SQLiteAnnStore",
    () => `${path} has schema version ${found}, this dlfs reads up to ${SCHEMA_VERSION}`,
    ErrorCode.io,
  );
  if (found === SCHEMA_VERSION) return;
  db.transaction(() => {
    // Another process may have been faster.
    for (const step of STEPS.slice(versionOf())) db.run(step);
    db.run(`PRAGMA user_version = ${SCHEMA_VERSION}`);
  }).immediate();
}
