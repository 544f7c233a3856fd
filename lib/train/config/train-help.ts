/** The help of the training's command line, and the JSON Schema of its files, from the table of settings. */
import { detectorNames } from "../../models";
import type { JsonSchema } from "./kinds";
import { type Setting, type Settings, settingSchema } from "./setting";
import { optionOf } from "./train-arguments";
import { trainSections } from "./train-settings";

const WIDTH = 124;
const INDENT = 26;

const COMMANDS: readonly (readonly [option: string, help: string])[] = [
  [
    "--config FILE",
    "settings from a file, by their names as in config.json: .json, .jsonc, .json5, .yaml or .toml; may be repeated",
  ],
  ["--resume RUN", "a run folder, or one of its checkpoints, to continue; its settings are used but for those given"],
  [
    "--dry-run",
    "builds everything, runs some steps with as many boxes as there may be and evaluates a batch, says what that takes and what would be done, and writes nothing but caches",
  ],
  ["--no-eval", "trains without evaluations: --val-split none"],
  ["--help", "this text"],
];

/** @param usage lines above the options */
export function trainHelp(usage: readonly string[]): string {
  const sections = Object.entries(trainSections).map(([title, settings]) => {
    const lines = Object.entries(settings as Settings).map(([name, setting]) =>
      entry(signature(name, setting), describe(setting)),
    );
    return [`${title}:`, ...lines].join("\n");
  });
  return [
    ...usage,
    "",
    ...COMMANDS.map(([option, help]) => entry(option, help)),
    "",
    sections.join("\n\n"),
    "",
    ...wrap(
      "SETTING=VALUE is another way to write --OPTION VALUE. Settings with fields take those one by one, schedule.kind=cosine schedule.least=0.001, or together, 'schedule={kind: cosine, least: 0.001}'.",
      0,
    ),
    ...wrap(`Models: ${detectorNames.join(", ")}`, 0),
  ].join("\n");
}

/** "--lr X"; a flag that is on by default is turned off by --no-. */
function signature(name: string, { kind, value }: Setting<unknown>): string {
  return kind.sign === "" && value === true ? `--no-${optionOf(name)}` : `--${optionOf(name)} ${kind.sign}`.trimEnd();
}

function describe({ help, otherwise, value, presence, kind }: Setting<unknown>): string {
  if (kind.sign === "" && value === true) return `turns off: ${help}`;
  const standard = otherwise ?? (presence === "default" && kind.sign !== "" ? String(value) : undefined);
  return standard === undefined || standard === "" ? help : `${help}; default: ${standard}`;
}

function entry(option: string, help: string): string {
  const lines = wrap(help, INDENT);
  const head = `  ${option}`;
  if (head.length > INDENT - 2) return [head, ...lines].join("\n");
  return [head.padEnd(INDENT) + (lines[0] as string).trimStart(), ...lines.slice(1)].join("\n");
}

/** Text in lines of at most WIDTH characters, each behind so many spaces. */
function wrap(text: string, indent: number): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    if (line !== "" && indent + line.length + 1 + word.length > WIDTH) {
      lines.push(line);
      line = "";
    }
    line += line === "" ? word : ` ${word}`;
  }
  return [...lines, line].map((each) => " ".repeat(indent) + each);
}

/** The JSON Schema of a training's configuration files: schemas/train.schema.json. */
export function trainSchema(): JsonSchema {
  const settings = Object.entries(Object.assign({}, ...Object.values(trainSections)) as Settings);
  return {
    $schema: "https://json-schema.org/draft/2020-12/schema",
    title: "dlfs train",
    description: "Settings of a training: a file for dlfs train --config",
    type: "object",
    properties: {
      $schema: { type: "string" },
      ...Object.fromEntries(settings.map(([name, setting]) => [name, settingSchema(setting)])),
    },
    additionalProperties: false,
  };
}
