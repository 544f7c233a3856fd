/** Learning rates that were set in an earlier training, set again at their steps. */
import type { JournalEntry } from "./journal";

export class RateReplay {
  /** Factors that are still to come, by the step that they count from. */
  readonly #rates: { iteration: number; value: number }[];

  constructor(entries: readonly JournalEntry[]) {
    this.#rates = entries.flatMap(({ iteration, content }) =>
      "command" in content && content.command === "learningRate" ? [{ iteration, value: content.value as number }] : [],
    );
    this.#rates.sort((a, b) => a.iteration - b.iteration);
  }

  /** Gives `set` all factors that count from a step, or an earlier one, on. `iteration`: steps done. */
  before(iteration: number, set: (factor: number) => void): void {
    while (this.#rates.length > 0 && (this.#rates[0] as { iteration: number }).iteration <= iteration) {
      set((this.#rates.shift() as { value: number }).value);
    }
  }
}
