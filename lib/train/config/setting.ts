/** Settings, and values that are made of several of them. */
import { ConfigError, type JsonSchema, type Kind, parseStructure, refuse } from "./kinds";
import { suggest } from "./nearest";

/**
 * Whether a resolved configuration has a setting: always, by a default of its own or one that is worked out from the data and the
 * device; only where it was given; or, within a value, always, since it must be given.
 */
export type Presence = "default" | "computed" | "optional" | "required";

/** One setting: its values, its default, and what it is for. */
export interface Setting<out T, out P extends Presence = Presence> {
  readonly kind: Kind<T>;
  readonly presence: P;
  /** Where the presence is "default". */
  readonly value?: T;
  /** The default in words, where a value does not say it. */
  readonly otherwise?: string;
  /** What it does, without the default. */
  readonly help: string;
  /** Its option, without dashes, where that is not its name with dashes. */
  readonly option?: string;
}

interface More {
  readonly option?: string;
  readonly otherwise?: string;
}

/** A setting with a default that holds for all trainings. */
export function byDefault<T>(kind: Kind<T>, value: NoInfer<T>, help: string, more: More = {}): Setting<T, "default"> {
  return { kind, presence: "default", value, help, ...more };
}

/** A setting whose default follows from the data, the device or other settings. */
export function computed<T>(kind: Kind<T>, otherwise: string, help: string, more: More = {}): Setting<T, "computed"> {
  return { kind, presence: "computed", otherwise, help, ...more };
}

/** A setting that a training may lack. */
export function optional<T>(kind: Kind<T>, help: string, more: More = {}): Setting<T, "optional"> {
  return { kind, presence: "optional", help, ...more };
}

/** A field without which its value says nothing. */
export function required<T>(kind: Kind<T>, help: string): Setting<T, "required"> {
  return { kind, presence: "required", help };
}

export type Settings = Readonly<Record<string, Setting<unknown>>>;

type Named<S extends Settings, P extends Presence> = {
  [N in keyof S]: S[N] extends Setting<unknown, infer Q> ? (Q extends P ? N : never) : never;
}[keyof S];
type Value<S> = S extends Setting<infer T> ? T : never;
type Plain<T> = { [N in keyof T]: T[N] };

/** What is given of settings. */
export type Given<S extends Settings> = { [N in keyof S]?: Value<S[N]> };

/** Settings with their defaults, the computed ones among them. */
export type Resolved<S extends Settings> = Plain<
  { [N in Named<S, "default" | "computed" | "required">]: Value<S[N]> } & { [N in Named<S, "optional">]?: Value<S[N]> }
>;

/** A value with fields, as it is read: those whose default is worked out later may be missing. */
export type Fields<S extends Settings> = Plain<
  { [N in Named<S, "default" | "required">]: Value<S[N]> } & {
    [N in Named<S, "optional" | "computed">]?: Value<S[N]>;
  }
>;

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** JSON Schema of a setting: its kind's, with help and default. */
export function settingSchema({ kind, help, value, otherwise }: Setting<unknown>): JsonSchema {
  const description = otherwise === undefined ? help : `${help}; default: ${otherwise}`;
  return { description, ...kind.schema, ...(value !== undefined && { default: value }) };
}

function fieldsSchema(fields: Settings): { properties: JsonSchema; required: string[] } {
  const entries = Object.entries(fields);
  return {
    properties: Object.fromEntries(entries.map(([name, setting]) => [name, settingSchema(setting)])),
    required: entries.filter(([, { presence }]) => presence === "required").map(([name]) => name),
  };
}

/** Reads an object's fields, with defaults for those that are not there. */
function readFields(fields: Settings, value: Record<string, unknown>, at: string, skip: readonly string[] = []) {
  const known = Object.keys(fields);
  for (const name of Object.keys(value)) {
    if (known.includes(name) || skip.includes(name)) continue;
    throw new ConfigError(
      `${at}.${name}`,
      `unknown setting${suggest(name, known)}${known.length > 0 ? ` (known: ${known.join(", ")})` : ""}`,
    );
  }
  const read: Record<string, unknown> = {};
  for (const [name, { kind, presence, value: standard }] of Object.entries(fields)) {
    const entry = value[name];
    if (entry !== undefined) read[name] = kind.read(entry, `${at}.${name}`);
    else if (presence === "default") read[name] = standard;
    else if (presence === "required") throw new ConfigError(`${at}.${name}`, `expected ${kind.expected}, got nothing`);
  }
  return read;
}

/** A short form of a value with fields: what one is written as, and what it means. */
export interface ShortForm {
  readonly kind: Kind<unknown>;
  readonly expand: (value: never) => object;
}

/**
 * Values with fields.
 *
 * @param short other values that stand for one: "cosine" for { kind: "cosine" }
 */
export function record<const S extends Settings>(expected: string, fields: S, short?: ShortForm): Kind<Fields<S>> {
  const { properties, required: must } = fieldsSchema(fields);
  const object = { type: "object", properties, required: must, additionalProperties: false };
  const expand = (value: unknown) => (isObject(value) || !short ? value : short.expand(value as never));
  return {
    expected,
    sign: short?.kind.sign ?? "{...}",
    schema: short ? { anyOf: [object, short.kind.schema] } : object,
    parse: (text) => (/^\s*\{/.test(text) || !short ? parseStructure(text) : short.kind.parse(text)),
    expand,
    fieldNames: Object.keys(fields),
    read: (value, at) => {
      if (isObject(value)) return readFields(fields, value, at) as Fields<S>;
      if (!short) return refuse(at, expected, value);
      let meant: unknown;
      try {
        meant = short.kind.read(value, at);
      } catch {
        return refuse(at, expected, value);
      }
      return readFields(fields, short.expand(meant as never) as Record<string, unknown>, at) as Fields<S>;
    },
  };
}

/** The values of `variants`: by their kind, the fields of that kind. */
export type Variant<V extends Readonly<Record<string, Settings>>> = {
  [N in keyof V & string]: Plain<{ kind: N } & Fields<V[N]>>;
}[keyof V & string];

/**
 * Values with a `kind`, which says what other fields they have; the kind's name alone stands for one without them.
 *
 * @param standard the kind of an object that names none
 */
export function variants<const V extends Readonly<Record<string, Settings>>>(
  kinds: V,
  standard: NoInfer<keyof V & string>,
): Kind<Variant<V>> {
  const names = Object.keys(kinds);
  const expected = `one of ${names.join(", ")}, by itself or as kind among its settings`;
  const schemas = names.map((name) => {
    const { properties, required: must } = fieldsSchema(kinds[name] as Settings);
    const tagged = { kind: { const: name }, ...properties };
    const needed = name === standard ? must : ["kind", ...must];
    return { type: "object", properties: tagged, required: needed, additionalProperties: false };
  });
  const expand = (value: unknown) => (typeof value === "string" ? { kind: value } : value);
  return {
    expected,
    sign: "KIND",
    schema: { anyOf: [{ enum: names }, ...schemas] },
    parse: (text) => (/^\s*\{/.test(text) ? parseStructure(text) : text),
    expand,
    fieldNames: [...new Set(["kind", ...names.flatMap((name) => Object.keys(kinds[name] as Settings))])],
    read: (value, at) => {
      const object = expand(value);
      if (!isObject(object)) return refuse(at, expected, value);
      const { kind = standard } = object;
      if (typeof kind !== "string" || !Object.hasOwn(kinds, kind)) {
        const near = typeof kind === "string" ? suggest(kind, names) : "";
        throw new ConfigError(at, `expected one of ${names.join(", ")}, got ${JSON.stringify(kind)}${near}`);
      }
      return { kind, ...readFields(kinds[kind] as Settings, object, `${at}`, ["kind"]) } as Variant<V>;
    },
  };
}
