/** What an audit found, for programs and for people. */
import { writeFileAtomic } from "../../formats";
import type { Box } from "../rank/boxes";
import { type LabelFinding, labelProblems } from "./audit-labels";

const rounded = (box: Box) => box.map((x) => Math.round(10 * x) / 10);

/** An object a line: rank from 1, image, problem, value, what is given and what was found, boxes as x1, y1, x2, y2 in pixels. */
export function findingLines(findings: readonly LabelFinding[], classes: readonly string[]): string {
  const rows = findings.map(({ image, problem, value, given, found, iou }, i) => ({
    ...{ rank: i + 1, image, problem, value, iou },
    given: given && { ...(given.id !== undefined && { id: given.id }), class: classes[given.label], box: given.box },
    found: { class: classes[found.label], score: found.score, box: rounded(found.box) },
  }));
  return rows.map((row) => `${JSON.stringify(row)}\n`).join("");
}

/** Writes findingLines' text; the file appears complete or not at all. */
export async function writeFindings(path: string, ...args: Parameters<typeof findingLines>): Promise<void> {
  await writeFileAtomic(path, findingLines(...args));
}

/** A table, a line each, with a heading; and how many of which kind there are. */
export function findingTable(
  findings: readonly LabelFinding[],
  classes: readonly string[],
  count = findings.length,
): string[] {
  const cells = findings.slice(0, count).map(({ image, problem, value, given, found }) => {
    const [was, is] = [given && (classes[given.label] as string), classes[found.label] as string];
    const what = problem === "wrong" ? `${was} -> ${is}` : is;
    const at = (box: Box) => `[${rounded(box).join(" ")}]`;
    const where = problem === "loose" && given ? `${at(given.box)} -> ${at(found.box)}` : at(given?.box ?? found.box);
    return [value.toFixed(3), problem, image, what, found.score.toFixed(2), where];
  });
  const rows = [["value", "problem", "image", "class", "score", "box"], ...cells];
  const widths = (rows[0] as string[]).map((_, k) => Math.max(...rows.map((row) => (row[k] as string).length)));
  const lines = rows.map((row) =>
    row
      .map((cell, k) => cell.padEnd(widths[k] as number))
      .join("  ")
      .trimEnd(),
  );
  const kinds = labelProblems.map((kind) => `${findings.filter(({ problem }) => problem === kind).length} ${kind}`);
  return [...(findings.length > 0 ? lines : []), `${findings.length} boxes in question: ${kinds.join(", ")}`];
}
