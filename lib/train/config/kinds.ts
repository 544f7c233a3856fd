/**
 * What a setting's value may be: one definition gives its TypeScript type, the check of a file's value with an error that names
 * the place, the reading of a command line's text, and its JSON Schema.
 */
import { DlfsError, ErrorCode } from "../../native";
import { suggest } from "./nearest";

/** A part of a JSON Schema (draft 2020-12). */
export type JsonSchema = { readonly [name: string]: unknown };

/** A setting that is unknown, or whose value cannot be used. */
export class ConfigError extends DlfsError {
  /** @param at where: "--lr", "train.yaml: schedule.gamma" */
  constructor(
    readonly at: string,
    readonly reason: string,
  ) {
    super(ErrorCode.argument, at, reason);
  }
}

/** The set of values of a setting. */
export interface Kind<out T> {
  /** In words: "an integer from 1". */
  readonly expected: string;
  /** Stands for a value in the help: "N"; "" where the option's name alone says it. */
  readonly sign: string;
  readonly schema: JsonSchema;
  /** The value that is meant by one of a file. Throws ConfigError, which begins with `at`. */
  read(value: unknown, at: string): T;
  /** A command line's text as the value that a file would have; what it is no text of is left for `read` to refuse. */
  parse(text: string): unknown;
  /** Of values with fields: the short form of one written out, so that single fields can be replaced. */
  readonly expand?: (value: unknown) => unknown;
  /** Of values with fields: their names. */
  readonly fieldNames?: readonly string[];
}

/** The values of a kind. */
export type ValueOf<K> = K extends Kind<infer T> ? T : never;

/** A value as JSON, shortened. */
export function describeValue(value: unknown): string {
  const text = value === undefined ? "nothing" : (JSON.stringify(value) ?? String(value));
  return text.length > 80 ? `${text.slice(0, 80)}...` : text;
}

export function refuse(at: string, expected: string, value: unknown): never {
  throw new ConfigError(at, `expected ${expected}, got ${describeValue(value)}`);
}

const numeric = (text: string): unknown => (text.trim() === "" || Number.isNaN(Number(text)) ? text : Number(text));

/** Whole numbers, up to `most` where that is given. */
export function integer(least: number, most?: number): Kind<number> {
  const expected = `an integer from ${least}${most === undefined ? "" : ` to ${most}`}`;
  const schema = { type: "integer", minimum: least, ...(most !== undefined && { maximum: most }) };
  const range = { from: least, to: most };
  return {
    ...{ expected, sign: "N", schema, parse: numeric },
    read: (value, at) => (Number.isSafeInteger(value) && inRange(value, range) ? value : refuse(at, expected, value)),
  };
}

/** Ends of a range of numbers. */
export interface Range {
  from?: number;
  above?: number;
  to?: number;
  below?: number;
}

function inRange(value: unknown, { from, above, to, below }: Range): value is number {
  return (
    typeof value === "number" &&
    Number.isFinite(value) &&
    (from === undefined || value >= from) &&
    (above === undefined || value > above) &&
    (to === undefined || value <= to) &&
    (below === undefined || value < below)
  );
}

/** Finite numbers in a range. */
export function number(range: Range = {}, sign = "X", words?: string): Kind<number> {
  const { from, above, to, below } = range;
  const ends = [
    ...(from === undefined ? [] : [`from ${from}`]),
    ...(above === undefined ? [] : [`above ${above}`]),
    ...(to === undefined ? [] : [`up to ${to}`]),
    ...(below === undefined ? [] : [`below ${below}`]),
  ];
  const expected = words ?? ["a number", ...ends].join(" ");
  const schema = {
    type: "number",
    ...(from !== undefined && { minimum: from }),
    ...(above !== undefined && { exclusiveMinimum: above }),
    ...(to !== undefined && { maximum: to }),
    ...(below !== undefined && { exclusiveMaximum: below }),
  };
  const read = (value: unknown, at: string) => (inRange(value, range) ? value : refuse(at, expected, value));
  return { expected, sign, schema, parse: numeric, read };
}

/** A place in a training: an iteration, or, below 1, a share of all of them. */
export function place(least: 0 | 1): Kind<number> {
  const expected = `an iteration from ${least}, or a share of all below 1`;
  const fits = (value: unknown) =>
    inRange(value, { from: 0 }) && (value < 1 ? value > 0 || least === 0 : value % 1 === 0);
  const range = least === 0 ? { minimum: 0, exclusiveMaximum: 1 } : { exclusiveMinimum: 0, exclusiveMaximum: 1 };
  return {
    ...{ expected, sign: "N", parse: numeric },
    schema: {
      anyOf: [
        { type: "integer", minimum: 1 },
        { type: "number", ...range },
      ],
    },
    read: (value, at) => (fits(value) ? (value as number) : refuse(at, expected, value)),
  };
}

/** One of some names. */
export function choice<const T extends string>(allowed: readonly T[], sign = "NAME"): Kind<T> {
  const expected = `one of ${allowed.join(", ")}`;
  return {
    ...{ expected, sign, schema: { enum: [...allowed] }, parse: (text: string) => text },
    read(value, at) {
      const found = allowed.find((name) => name === value);
      if (found !== undefined) return found;
      const near = typeof value === "string" ? suggest(value, allowed) : "";
      throw new ConfigError(at, `expected ${expected}, got ${describeValue(value)}${near}`);
    },
  };
}

/** Any text that is not empty. */
export function text(sign: string, expected = "a text"): Kind<string> {
  return {
    ...{ expected, sign, schema: { type: "string", minLength: 1 }, parse: (value: string) => value },
    read: (value, at) => (typeof value === "string" && value !== "" ? value : refuse(at, expected, value)),
  };
}

/** True or false; an option without a value says true, one with --no- in front false. */
export const flag: Kind<boolean> = {
  expected: "true or false",
  sign: "",
  schema: { type: "boolean" },
  parse: (value) => (value === "true" || value === "false" ? value === "true" : value),
  read: (value, at) => (typeof value === "boolean" ? value : refuse(at, "true or false", value)),
};

/** Structured values on a command line are YAML's flow style, which JSON is a part of. */
export function parseStructure(value: string): unknown {
  try {
    return Bun.YAML.parse(value);
  } catch {
    return value;
  }
}

/** Several values; on a command line between commas, or as JSON. */
export function list<T>(item: Kind<T>, least = 1): Kind<T[]> {
  const expected = `a list${least > 0 ? ` of at least ${least}` : ""}, each ${item.expected}`;
  return {
    expected,
    sign: `${item.sign},...`,
    schema: { type: "array", items: item.schema, ...(least > 0 && { minItems: least }) },
    parse: (value) => (/^\s*\[/.test(value) ? parseStructure(value) : value.split(",").map((part) => item.parse(part))),
    read: (value, at) =>
      Array.isArray(value) && value.length >= least
        ? value.map((entry, i) => item.read(entry, `${at}[${i}]`))
        : refuse(at, expected, value),
  };
}

/**
 * A kind's values, or none at all: null, "none" on a command line.
 *
 * @param zero whether 0 means none, too
 */
export function orNone<T>(kind: Kind<T>, { zero = false, expected }: { zero?: boolean; expected?: string } = {}) {
  const words = expected ?? `${kind.expected}, or "none"`;
  const isNone = (value: unknown) => value === null || value === "none" || (zero && value === 0);
  const made: Kind<T | null> = {
    expected: words,
    sign: kind.sign,
    schema: { anyOf: [kind.schema, { enum: [null, "none", ...(zero ? [0] : [])] }] },
    parse: (value) => (value === "none" ? null : kind.parse(value)),
    read: (value, at) => {
      if (isNone(value)) return null;
      try {
        return kind.read(value, at);
      } catch (error) {
        throw error instanceof ConfigError && error.at === at && error.reason.startsWith(`expected ${kind.expected},`)
          ? new ConfigError(at, `expected ${words}, got ${describeValue(value)}`)
          : error;
      }
    },
    ...(kind.expand && { expand: (value: unknown) => (isNone(value) ? {} : kind.expand?.(value)) }),
    ...(kind.fieldNames && { fieldNames: kind.fieldNames }),
  };
  return made;
}
