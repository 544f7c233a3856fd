/** Boxes as comma-separated values (RFC 4180), a row for each. */
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { basename } from "node:path";
import { DlfsError, ErrorCode } from "../../native/error";
import type { AnnotationSource, AnnotationStore, CocoBox } from "../annotation-store";
import type { ImportReport } from "../import-content";
import { fileError } from "../local-data-source";
import { NamedContent, type NamedImportOptions } from "./named-content";
import { TextWriter } from "./text-writer";
import { type ExportOptions, type ExportReport, walkImages } from "./walk";

const COLUMNS = [
  "file_name",
  "image_width",
  "image_height",
  "category",
  "x",
  "y",
  "width",
  "height",
  "area",
  "is_crowd",
  "score",
  "source",
  "author",
  "time",
] as const;

/** Corners, which stand for x, y, width and height where a file has them. */
const CORNERS = ["xmin", "ymin", "xmax", "ymax"] as const;

type Column = (typeof COLUMNS)[number] | (typeof CORNERS)[number];

/** A record of a file and the number of the line that it starts in. */
interface CsvRecord {
  line: number;
  fields: string[];
}

/**
 * Imports a CSV file. Its first line names the columns, in any order; others are passed over:
 *
 * - file_name, category, and x, y, width, height in pixels, or xmin, ymin, xmax, ymax
 * - where known: image_width, image_height, area, is_crowd (0 or 1), score, source (human, imported or model), author, time
 *   (ISO 8601)
 *
 * A row with an empty category is an image without boxes. Rows of an image need not follow one another.
 *
 * @throws DlfsError naming the file, the line and the column
 */
export async function importCsv(
  store: AnnotationStore,
  path: string,
  options: NamedImportOptions,
): Promise<ImportReport> {
  using content = new NamedContent("importCsv", store, path, options);
  const info = await stat(path).catch((error) => {
    throw fileError("importCsv", path, error);
  });
  const images = new Map<string, number>();
  const label = `reading ${basename(path)}`;
  let header: Map<Column, number> | null = null;
  let corners = false;
  content.progress(label, 0, info.size);
  const progress = (done: number): void => content.progress(label, Math.min(done, info.size), info.size);
  for await (const { line, fields } of records(path, progress)) {
    if (fields.length === 1 && fields[0] === "") continue;
    if (header === null) {
      header = readHeader(fields, path);
      corners = header.has("xmin");
      continue;
    }
    const row = new Row(header, fields, path, line);
    const fileName = row.text("file_name");
    let image = images.get(fileName);
    if (image === undefined) {
      const [width, height] = [row.number("image_width"), row.number("image_height")];
      const known = width !== null && height !== null && width > 0 && height > 0;
      image = content.image(fileName, known ? width : null, known ? height : null);
      images.set(fileName, image);
    }
    const category = row.optional("category");
    if (category === "") continue;
    const need = (column: Column): number => row.number(column) ?? row.fail(column, "a number");
    let bbox: CocoBox;
    if (corners) {
      const [x, y] = [need("xmin"), need("ymin")];
      bbox = [x, y, need("xmax") - x, need("ymax") - y];
    } else {
      bbox = [need("x"), need("y"), need("width"), need("height")];
    }
    const crowd = row.optional("is_crowd");
    if (!["", "0", "1"].includes(crowd)) row.fail("is_crowd", "0 or 1");
    content.box(image, {
      category,
      bbox,
      area: row.number("area") ?? undefined,
      isCrowd: crowd === "1",
      score: row.number("score"),
      by: attribution(row),
      where: () => `${path}, line ${line}`,
    });
  }
  if (header === null)
    throw new DlfsError(ErrorCode.io, path, "the file is empty, expected a line with names of columns");
  if (images.size === 0) throw new DlfsError(ErrorCode.io, path, "no rows after the names of columns");
  return content.finish({ size: info.size, modified: Math.floor(info.mtimeMs) });
}

function attribution(row: Row): { source: AnnotationSource; author: string; time?: number } | undefined {
  const source = row.optional("source");
  if (source === "") return undefined;
  if (source !== "human" && source !== "imported" && source !== "model") {
    return row.fail("source", "human, imported or model");
  }
  const text = row.optional("time");
  const time = text === "" ? 0 : Date.parse(text);
  if (Number.isNaN(time)) row.fail("time", "a time as 2026-01-31T12:00:00Z");
  return { source, author: row.optional("author"), time };
}

function readHeader(fields: readonly string[], path: string): Map<Column, number> {
  const known = new Set<string>([...COLUMNS, ...CORNERS]);
  const names = fields.map((name) => name.trim());
  const header = new Map<Column, number>();
  for (const [i, name] of names.entries()) {
    if (!known.has(name)) continue;
    if (header.has(name as Column))
      throw new DlfsError(ErrorCode.io, `${path}, line 1`, `column ${name} is there twice`);
    header.set(name as Column, i);
  }
  const box: readonly Column[] = header.has("xmin") ? CORNERS : ["x", "y", "width", "height"];
  for (const column of ["file_name", "category", ...box] as const) {
    if (header.has(column)) continue;
    throw new DlfsError(ErrorCode.io, `${path}, line 1`, `column ${column}: missing; got ${names.join(", ")}`);
  }
  return header;
}

class Row {
  constructor(
    readonly header: ReadonlyMap<Column, number>,
    readonly fields: readonly string[],
    readonly path: string,
    readonly line: number,
  ) {
    const last = Math.max(...header.values());
    if (fields.length > last) return;
    throw new DlfsError(
      ErrorCode.io,
      `${path}, line ${line}`,
      `expected at least ${last + 1} fields, got ${fields.length}`,
    );
  }

  /** A field, or "" where there is no such column. */
  optional(column: Column): string {
    const place = this.header.get(column);
    return place === undefined ? "" : (this.fields[place] as string).trim();
  }

  text(column: Column): string {
    return this.optional(column) || this.fail(column, "a text");
  }

  number(column: Column): number | null {
    const text = this.optional(column);
    if (text === "") return null;
    const value = Number(text);
    return Number.isFinite(value) ? value : this.fail(column, "a number");
  }

  fail(column: Column, expected: string): never {
    const got = JSON.stringify(this.optional(column));
    throw new DlfsError(ErrorCode.io, `${this.path}, line ${this.line}`, `${column}: expected ${expected}, got ${got}`);
  }
}

/** The records of a file: fields between commas, or in quotes, where a quote is written twice and a line may end. */
async function* records(path: string, progress: (bytes: number) => void): AsyncGenerator<CsvRecord> {
  let fields: string[] = [];
  let field = "";
  let quoted = false;
  /** The quoted field has ended; or it has not, where another quote follows. */
  let closed = false;
  let line = 1;
  let start = 1;
  let first = true;
  let bytes = 0;
  let quoteLine = 0;
  const stream = createReadStream(path, { encoding: "utf8", highWaterMark: 1 << 20 });
  try {
    for await (const piece of stream) {
      let text = piece as string;
      bytes += Buffer.byteLength(text);
      progress(bytes);
      if (first && text.startsWith("\ufeff")) text = text.slice(1);
      first = false;
      for (let i = 0; i < text.length; i++) {
        const c = text[i] as string;
        if (c === "\n") line++;
        if (quoted && !closed) {
          if (c === '"') closed = true;
          else field += c;
        } else if (c === '"' && closed) {
          field += '"';
          closed = false;
        } else if (c === '"' && field === "" && !quoted) {
          quoted = true;
          quoteLine = line;
        } else if (c === ",") {
          fields.push(field);
          [field, quoted, closed] = ["", false, false];
        } else if (c === "\n") {
          fields.push(field.endsWith("\r") ? field.slice(0, -1) : field);
          yield { line: start, fields };
          [fields, field, quoted, closed, start] = [[], "", false, false, line];
        } else if (closed && c !== "\r") {
          throw new DlfsError(
            ErrorCode.io,
            `${path}, line ${line}`,
            `expected a comma after the closing quote, got ${JSON.stringify(c)}`,
          );
        } else if (!(closed && c === "\r")) {
          field += c;
        }
      }
    }
  } catch (error) {
    throw fileError("importCsv", path, error);
  }
  if (quoted && !closed) {
    throw new DlfsError(ErrorCode.io, `${path}, line ${quoteLine}`, "the file ends before the closing quote of a text");
  }
  if (field !== "" || fields.length > 0) yield { line: start, fields: [...fields, field] };
}

/** Writes a split as a CSV file that importCsv reads; images without boxes have a row with no category. */
export function exportCsv(store: AnnotationStore, path: string, options: ExportOptions): ExportReport {
  const report = { images: 0, annotations: 0, leftOut: 0, paths: [path] };
  const names = new Map(store.categories().map(({ id, name }) => [id, name]));
  using writer = new TextWriter(path);
  const write = (values: readonly (string | number | null)[]): void => {
    const texts = values.map((value) => {
      const text = value === null ? "" : String(value);
      return /[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    });
    writer.write(`${texts.join(",")}\n`);
  };
  write(COLUMNS);
  for (const { image, boxes } of walkImages(store, options, "writing rows")) {
    const head = [image.fileName, image.width, image.height];
    report.images++;
    if (boxes.length === 0) write([...head, ...COLUMNS.slice(head.length).map(() => null)]);
    for (const { categoryId, bbox, area, isCrowd, score, source, author, modified } of boxes) {
      const time = modified === 0 ? null : new Date(modified).toISOString();
      const category = names.get(categoryId) as string;
      write([...head, category, ...bbox, area, isCrowd ? 1 : 0, score, source, author, time]);
      report.annotations++;
    }
  }
  writer.finish();
  return report;
}
