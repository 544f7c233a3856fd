/** Forms with files (RFC 7578), as browsers and `curl -F` send them. */
import { ServiceError } from "./types";

export interface FormPart {
  readonly name: string;
  /** null: a field, whose value is text. */
  readonly filename: string | null;
  /** A view of the body. */
  readonly data: Uint8Array;
}

const bad = (message: string): ServiceError => new ServiceError(400, `multipart: ${message}`);

/** The most bytes of a part's head. */
const MAX_HEAD = 8192;

/**
 * The parts of a form.
 *
 * @param type the Content-Type, with its boundary
 * @param most parts
 * @throws ServiceError 400
 */
export function parseMultipart(body: Uint8Array, type: string, most: number): FormPart[] {
  const boundary = parameterOf(type, "boundary");
  if (boundary === null || boundary === "" || boundary.length > 70) {
    throw bad("expected a boundary of 1 to 70 characters in Content-Type");
  }
  const bytes = Buffer.from(body.buffer, body.byteOffset, body.byteLength);
  const delimiter = Buffer.from(`\r\n--${boundary}`);
  // The first one may be at the very beginning.
  let at = bytes.indexOf(delimiter.subarray(2)) === 0 ? delimiter.length - 2 : bytes.indexOf(delimiter);
  if (at < 0) throw bad("the boundary is not in the body");
  if (at !== delimiter.length - 2) at += delimiter.length;
  const parts: FormPart[] = [];
  for (;;) {
    if (bytes[at] === 0x2d && bytes[at + 1] === 0x2d) return parts;
    const line = bytes.indexOf("\r\n", at);
    if (line < 0 || bytes.subarray(at, line).some((byte) => byte !== 0x20 && byte !== 0x09)) {
      throw bad("the body ends, or goes on wrongly, behind a boundary");
    }
    const end = bytes.indexOf(delimiter, line);
    if (end < 0) throw bad("the last part has no end");
    if (parts.length === most) throw bad(`expected at most ${most} parts`);
    parts.push(partOf(bytes.subarray(line, end)));
    at = end + delimiter.length;
  }
}

/** @param part from the line's end behind its boundary on */
function partOf(part: Buffer): FormPart {
  const split = part.subarray(0, MAX_HEAD).indexOf("\r\n\r\n");
  if (split < 0) throw bad("a part has no head, or a long one");
  const head = part.subarray(0, split).toString("utf8");
  const disposition = /\r\ncontent-disposition:[ \t]*(form-data\b.*)/i.exec(head)?.[1];
  const name = disposition === undefined ? null : parameterOf(disposition, "name");
  if (name === null) throw bad("expected Content-Disposition: form-data with a name in each part");
  return { name, filename: parameterOf(disposition as string, "filename"), data: part.subarray(split + 4) };
}

function parameterOf(header: string, name: string): string | null {
  const found = new RegExp(`;[ \\t]*${name}=(?:"((?:[^"\\\\]|\\\\.)*)"|([^\\s;"]+))`, "i").exec(header);
  return found ? (found[1]?.replace(/\\(.)/g, "$1") ?? (found[2] as string)) : null;
}
