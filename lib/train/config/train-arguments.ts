/** A training's settings from where users give them: the run that is resumed, files, and the command line, in this order. */
import { existsSync, readFileSync, statSync } from "node:fs";
import { dirname, extname, join, resolve } from "node:path";
import type { ModelConfig } from "../../models";
import { ConfigError, describeValue, type Kind, parseStructure } from "./kinds";
import { suggest } from "./nearest";
import type { Settings } from "./setting";
import type { TrainConfig } from "./train-config";
import { type TrainSettings, trainSettings } from "./train-settings";

/** What config.json has beside settings, worked out from data and model. */
const DERIVED = new Set(["$schema", "classes", "preprocessing", "scaleJitter"]);

/** What a resumed run cannot change. */
const MODEL_SETTINGS = [
  ...["model", "backboneWeights", "weights", "partial", "trainableLayers", "norm", "boxLoss", "antialias"],
] as const;

/** A run that goes on. */
export interface ResumedRun {
  /** Its folder. */
  readonly run: string;
  /** Which of its checkpoints; null: the newest that is intact. */
  readonly checkpoint: string | null;
  /** What it was started with; runs of earlier versions lack some settings. */
  readonly config: Partial<TrainConfig> & { readonly model: ModelConfig };
}

/** What a user has said of a training. */
export interface TrainArguments {
  /** Settings from all places; those of a resumed run are among them. */
  readonly settings: TrainSettings;
  /** Where a setting was given, as messages name it: "--lr", "train.yaml: learningRate"; undefined: by nobody, or by the run. */
  givenBy(name: keyof TrainSettings): string | undefined;
  readonly resumed: ResumedRun | null;
  /** Whether only a dry run was asked for. */
  readonly dryRun: boolean;
  /** Whether the help was asked for; nothing else holds then. */
  readonly help: boolean;
}

/** Another way to say that there is no split to evaluate on. */
export const NO_EVALUATION = "--no-eval";

interface Assignment {
  /** The setting, and the fields within. */
  readonly path: readonly [string, ...string[]];
  /** As a file has it. */
  readonly value: unknown;
  /** As it was typed. */
  readonly text?: string;
  readonly at: string;
}

const table = trainSettings as unknown as Settings;
const kebab = (name: string) => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);

/** The option that gives a setting, without dashes. */
export function optionOf(name: string): string {
  return table[name]?.option ?? kebab(name);
}

const byOption = new Map(
  Object.keys(table).flatMap((name) => [
    [optionOf(name), name],
    [kebab(name), name],
    [name, name],
  ]),
);
const optionNames = [
  ...new Set([...byOption.keys()].filter((name) => !/[A-Z]/.test(name))),
  "config",
  "resume",
  "dry-run",
  "no-eval",
  "help",
];

/** How messages name a setting that nobody gave. */
export function labelOf(name: string): string {
  return `--${optionOf(name)}`;
}

/** Reads the command line's arguments, and the files that they name. Throws ConfigError. */
export function parseTrainArguments(argv: readonly string[]): TrainArguments {
  const { assignments, files, resume, dryRun, help } = scan(argv);
  if (help) return { settings: {}, givenBy: () => undefined, resumed: null, dryRun, help };
  const resumed = resume === undefined ? null : findRun(resume);
  const all = [...files.flatMap(readConfigFile), ...assignments];
  const earlier = resumed ? runAssignments(resumed) : [];
  const given = new Map(all.map(({ path: [name], at }) => [name, at]));
  for (const name of MODEL_SETTINGS) {
    const at = given.get(name);
    if (resumed && at !== undefined) throw new ConfigError(at, keptReason(name));
  }
  const settings = readAll([...earlier, ...all]);
  return { settings, resumed, dryRun, help: false, givenBy: (name) => given.get(name) };
}

function keptReason(name: (typeof MODEL_SETTINGS)[number]): string {
  return name === "antialias" ? "a resumed run keeps how its images are resized" : "a resumed run keeps its model";
}

/** Takes the arguments apart. */
function scan(argv: readonly string[]) {
  const assignments: Assignment[] = [];
  const files: string[] = [];
  let resume: string | undefined;
  let help = false;
  let dryRun = false;
  for (let i = 0; i < argv.length; i++) {
    const argument = argv[i] as string;
    const [, dashes, name, assigned] = /^(--?)?([^=]*)(?:=([\s\S]*))?$/.exec(argument) as RegExpExecArray;
    if (dashes === undefined) {
      if (assigned === undefined) {
        throw new ConfigError(`"${argument}"`, `expected --OPTION VALUE or SETTING=VALUE${suggestOption(argument)}`);
      }
      assignments.push(assignment(name as string, assigned, `${name}=`));
      continue;
    }
    const value = (sign: string): string => {
      const next = assigned ?? argv[i + 1];
      if (next === undefined || (assigned === undefined && next.startsWith("--"))) {
        throw new ConfigError(`--${name}`, `expected a value, ${sign}, after it`);
      }
      if (assigned === undefined) i++;
      return next;
    };
    if (argument === "-h" || name === "help") help = true;
    else if (name === "dry-run" && assigned === undefined) dryRun = true;
    else if (argument === NO_EVALUATION) assignments.push({ path: ["valSplit"], value: null, at: NO_EVALUATION });
    else if (name === "config") files.push(value("the path of a file"));
    else if (name === "resume") resume = value("a run folder or one of its checkpoints");
    else assignments.push(optionAssignment(name as string, assigned, value));
  }
  return { assignments, files, resume, dryRun, help };
}

function optionAssignment(name: string, assigned: string | undefined, value: (sign: string) => string): Assignment {
  const isFlag = (option: string) => table[byOption.get(option) ?? ""]?.kind.sign === "";
  const at = `--${name}`;
  if (name.startsWith("no-") && isFlag(name.slice(3)) && assigned === undefined) {
    return { path: [byOption.get(name.slice(3)) as string], value: false, at };
  }
  if (isFlag(name) && assigned === undefined) return { path: [byOption.get(name) as string], value: true, at };
  const { path, kind } = resolvePath(name, at);
  const text = value(path.length > 1 ? "a number, a text or a list" : kind.sign || "true or false");
  return assignment(name, text, at);
}

/** "schedule.gamma" as setting and fields; the setting's name may have dashes. */
function resolvePath(name: string, at: string): { path: [string, ...string[]]; kind: Kind<unknown> } {
  const [first = "", ...rest] = name.split(".");
  const top = byOption.get(first);
  const setting = table[top ?? ""];
  const isOption = at.startsWith("--");
  if (top === undefined || !setting) {
    const near = isOption ? suggestOption(first) : suggest(first, [...Object.keys(table)]);
    throw new ConfigError(at.replace(/=$/, ""), `unknown ${isOption ? "option" : "setting"}${near}`);
  }
  const { fieldNames } = setting.kind;
  const field = rest[0];
  if (field !== undefined && !fieldNames?.includes(field)) {
    const reason = fieldNames ? suggest(field, fieldNames, `; it has ${fieldNames.join(", ")}`) : "; it has no fields";
    throw new ConfigError(at.replace(/=$/, ""), `unknown field of ${first}${reason}`);
  }
  return { path: [top, ...rest], kind: setting.kind };
}

function suggestOption(name: string): string {
  return suggest(name, optionNames, "; --help lists them").replaceAll(
    /(did you mean |, | or )(?=[a-z])/g,
    (between) => `${between}--`,
  );
}

function assignment(name: string, text: string, at: string): Assignment {
  const { path, kind } = resolvePath(name, at);
  const value = path.length > 1 ? fieldValue(text) : kind.parse(text);
  return { path, value, text, at: at.replace(/=$/, "") };
}

/** A field's value from a text: what YAML takes it for, or several between commas. */
function fieldValue(text: string): unknown {
  return /^\s*[[{"']/.test(text) || !text.includes(",") ? parseStructure(text) : text.split(",").map(parseStructure);
}

/** Puts the assignments into one tree, later ones over earlier ones, and reads it. */
function readAll(assignments: readonly Assignment[]): TrainSettings {
  const values = new Map<string, { value: unknown; last: Assignment }>();
  for (const one of assignments) {
    const [name, ...fields] = one.path;
    const known = values.get(name)?.value ?? table[name]?.value;
    const { expand = (value: unknown) => value } = (table[name] as Settings[string]).kind;
    values.set(name, {
      value: fields.length === 0 ? one.value : replaced(expand(known), fields, one.value),
      last: one,
    });
  }
  const read = [...values].map(([name, { value, last }]) => [name, readOne(name, value, last)]);
  return Object.fromEntries(read) as TrainSettings;
}

/** An object with one field, or a field of a field, replaced. Another kind of a value begins without the fields of the last. */
function replaced(object: unknown, [field = "", ...rest]: readonly string[], value: unknown): object {
  const isObject = typeof object === "object" && object !== null && !Array.isArray(object);
  const fields = (isObject ? object : {}) as Record<string, unknown>;
  if (field === "kind" && rest.length === 0 && fields.kind !== value) return { kind: value };
  return { ...fields, [field]: rest.length === 0 ? value : replaced(fields[field], rest, value) };
}

function readOne(name: string, value: unknown, { at, path, text }: Assignment): unknown {
  const { kind } = table[name] as Settings[string];
  const label = path.length > 1 ? name : at;
  try {
    return kind.read(value, label);
  } catch (error) {
    if (!(error instanceof ConfigError) || text === undefined || error.at !== label) throw error;
    throw new ConfigError(label, error.reason.replace(`got ${describeValue(value)}`, `got ${JSON.stringify(text)}`));
  }
}

const PARSERS: Readonly<Record<string, (text: string) => unknown>> = {
  ".json": (text) => JSON.parse(text),
  ".jsonc": (text) => Bun.JSONC.parse(text),
  ".json5": (text) => Bun.JSON5.parse(text),
  ".yaml": (text) => Bun.YAML.parse(text),
  ".yml": (text) => Bun.YAML.parse(text),
  ".toml": (text) => Bun.TOML.parse(text),
};

/** The settings of a file: an object, in the format that the file's name ends with. */
function readConfigFile(path: string): Assignment[] {
  const parse = PARSERS[extname(path).toLowerCase()];
  if (!parse)
    throw new ConfigError("--config", `expected a file that ends with ${Object.keys(PARSERS).join(", ")}, got ${path}`);
  return objectEntries(readText("--config", path), parse, path).flatMap(([name, value]): Assignment[] => {
    if (DERIVED.has(name)) return [];
    if (!Object.hasOwn(table, name)) {
      throw new ConfigError(`${path}: ${name}`, `unknown setting${suggest(name, Object.keys(table))}`);
    }
    return [{ path: [name], value, at: `${path}: ${name}` }];
  });
}

function readText(at: string, path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new ConfigError(at, `${path} cannot be read: ${(error as Error).message}`);
  }
}

function objectEntries(text: string, parse: (text: string) => unknown, path: string): [string, unknown][] {
  let value: unknown;
  try {
    value = parse(text);
  } catch (error) {
    throw new ConfigError(path, error instanceof Error ? error.message : String(error));
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new ConfigError(path, `expected settings by name, got ${describeValue(value)}`);
  }
  return Object.entries(value);
}

/** The run folder and checkpoint file that --resume names, and what the run was started with. */
function findRun(path: string): ResumedRun {
  if (!existsSync(path)) throw new ConfigError("--resume", `${resolve(path)} does not exist`);
  const isFolder = statSync(path).isDirectory();
  const run = isFolder ? resolve(path) : dirname(dirname(resolve(path)));
  const file = join(run, "config.json");
  if (!existsSync(file)) throw new ConfigError("--resume", `${run} is no run folder: it has no config.json`);
  const config = Object.fromEntries(
    objectEntries(readText("--resume", file), (text) => JSON.parse(text), `--resume: ${file}`),
  );
  if (typeof config.model !== "object" || config.model === null) {
    throw new ConfigError("--resume", `${file}: model: expected an object, got ${describeValue(config.model)}`);
  }
  return { run, checkpoint: isFolder ? null : resolve(path), config: config as ResumedRun["config"] };
}

/** A run's settings; what a later or an extended version of dlfs has added is left alone. */
function runAssignments({ run, config }: ResumedRun): Assignment[] {
  return Object.entries(config).flatMap(([name, value]) =>
    Object.hasOwn(table, name) && name !== "model" && value !== undefined
      ? [{ path: [name] as const, value, at: `${join(run, "config.json")}: ${name}` }]
      : [],
  );
}
