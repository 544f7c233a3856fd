import type { TrainConfig } from "./train-config";

const WIDTH = 120;

/** What is shown elsewhere, or is too long. */
const HIDDEN = new Set(["model", "classes", "preprocessing"]);

/** Every setting as SETTING=VALUE, as a command line takes it, in lines of about 120 characters. */
export function describeConfig(config: TrainConfig): string[] {
  const entries = Object.entries(config).flatMap(([name, value]) =>
    value === undefined || HIDDEN.has(name) ? [] : [`${name}=${valueText(name, value)}`],
  );
  const lines: string[] = [];
  let line = "settings:";
  for (const entry of entries) {
    if (line.length + 1 + entry.length > WIDTH) {
      lines.push(line);
      line = " ";
    }
    line += ` ${entry}`;
  }
  return [...lines, line];
}

function valueText(name: string, value: unknown): string {
  if (name === "size") return (value as number[]).join("x");
  if (value === null) return "none";
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return /[\s"'$&()*;<>?[\\\]`{|}]/.test(text) ? `'${text.replaceAll("'", "'\\''")}'` : text;
}
