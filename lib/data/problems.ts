/** What became of an entry with a problem: left out, corrected, or used as it is. */
export type ProblemAction = "skipped" | "clipped" | "kept";

/** Entries of one kind that share a problem. */
export interface Problem {
  /** What they are, in the singular: "image", "box". */
  noun: string;
  action: ProblemAction;
  reason: string;
  count: number;
  /** Names of the first few. */
  examples: string[];
}

const NAMED = 5;

/** Counts the problems found in a data set, by kind and reason, and names the first few of each. */
export class ProblemList {
  readonly #problems = new Map<string, Problem>();

  add(noun: string, action: ProblemAction, reason: string, example: string): void {
    const key = `${noun}\n${action}\n${reason}`;
    let problem = this.#problems.get(key);
    if (!problem) {
      problem = { noun, action, reason, count: 0, examples: [] };
      this.#problems.set(key, problem);
    }
    problem.count++;
    if (problem.examples.length < NAMED) problem.examples.push(example);
  }

  /** Takes over another list's problems. */
  merge(other: ProblemList | readonly Problem[]): void {
    for (const from of other instanceof ProblemList ? other.entries() : other) {
      const key = `${from.noun}\n${from.action}\n${from.reason}`;
      const problem = this.#problems.get(key);
      if (problem) {
        problem.count += from.count;
        problem.examples.push(...from.examples.slice(0, NAMED - problem.examples.length));
      } else {
        this.#problems.set(key, { ...from, examples: [...from.examples] });
      }
    }
  }

  /** How many entries were found with a problem; `noun` and `action` narrow it down. */
  count(noun?: string, action?: ProblemAction): number {
    let sum = 0;
    for (const problem of this.#problems.values()) {
      if ((noun ?? problem.noun) === problem.noun && (action ?? problem.action) === problem.action)
        sum += problem.count;
    }
    return sum;
  }

  /** All problems, the order of their first finding. */
  entries(): Problem[] {
    return [...this.#problems.values()];
  }

  /** One line a problem: `3 images skipped: empty file (a.jpg, b.jpg, c.jpg)`. */
  lines(): string[] {
    return this.entries().map(({ noun, action, reason, count, examples }) => {
      const rest = count > examples.length ? `, and ${count - examples.length} more` : "";
      return `${counted(count, noun)} ${action}: ${reason} (${examples.join(", ")}${rest})`;
    });
  }
}

/** "1 image", "3 boxes". */
export function counted(count: number, noun: string): string {
  if (count === 1) return `1 ${noun}`;
  return `${count} ${noun}${/(x|s|ch|sh)$/.test(noun) ? "es" : "s"}`;
}
