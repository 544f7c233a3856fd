import { DlfsError, ErrorCode } from "../native";

/** What a field of a configuration may hold: in words, and as a check. */
export interface Rule {
  readonly expected: string;
  readonly fits: (value: unknown) => boolean;
  /** Rules of the fields of an object, by name. */
  readonly fields?: Readonly<Record<string, Rule>>;
}

export function integer(least: number): Rule {
  return {
    expected: `a whole number from ${least}`,
    fits: (value) => Number.isSafeInteger(value) && (value as number) >= least,
  };
}

export function number(least = Number.NEGATIVE_INFINITY, most = Number.POSITIVE_INFINITY): Rule {
  const bounded = Number.isFinite(least) || Number.isFinite(most);
  const upper = Number.isFinite(most) ? `to ${most}` : "up";
  return {
    expected: bounded ? `a number from ${least} ${upper}` : "a number",
    fits: (value) => Number.isFinite(value) && (value as number) >= least && (value as number) <= most,
  };
}

export const boolean: Rule = { expected: "true or false", fits: (value) => typeof value === "boolean" };

export function oneOf(...allowed: readonly string[]): Rule {
  return { expected: `one of ${allowed.join(", ")}`, fits: (value) => allowed.includes(value as string) };
}

/** A list of values that fit a rule; of any length from 1 where none is given. */
export function list(rule: Rule, length?: number): Rule {
  const fits = (value: unknown) =>
    Array.isArray(value) &&
    (length === undefined ? value.length > 0 : value.length === length) &&
    value.every(rule.fits);
  return { expected: `a list${length === undefined ? "" : ` of ${length}`}, each ${rule.expected}`, fits };
}

export function object(fields: Readonly<Record<string, Rule>>): Rule {
  return { expected: "an object", fits: isObject, fields };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * Checks what was read from a file against rules. Fields may be missing; those that no rule knows, such as a misspelt one, are
 * errors: the model would be another without a word.
 *
 * @param source the file and the field, for messages: "runs/a-1/config.json: model"
 * @throws DlfsError naming source and field
 */
export function checkFields(value: unknown, fields: Readonly<Record<string, Rule>>, source: string): void {
  const fail = (message: string) => new DlfsError(ErrorCode.argument, source, message);
  if (!isObject(value)) throw fail(`expected an object, got ${describe(value)}`);
  for (const [name, entry] of Object.entries(value)) {
    const rule = Object.hasOwn(fields, name) ? fields[name]! : undefined;
    if (!rule) throw fail(`unknown field ${JSON.stringify(name)}; known are ${Object.keys(fields).join(", ")}`);
    if (entry === undefined) continue;
    if (!rule.fits(entry)) throw fail(`${name}: expected ${rule.expected}, got ${describe(entry)}`);
    if (rule.fields) checkFields(entry, rule.fields, `${source}.${name}`);
  }
}

/** A value as JSON, shortened. */
export function describe(value: unknown): string {
  const text = value === undefined ? "nothing" : JSON.stringify(value);
  return text.length > 100 ? `${text.slice(0, 100)}...` : text;
}
