/** Settles answers in the order in which they were asked for, whatever order they come in. */
export class InOrder {
  #waiting: { settle: (() => void) | null }[] = [];

  /** A place in the order. The function that it gives is called with what settles the answer, once. */
  place(): (settle: () => void) => void {
    const place: { settle: (() => void) | null } = { settle: null };
    this.#waiting.push(place);
    return (settle) => {
      place.settle = settle;
      while (this.#waiting[0]?.settle) this.#waiting.shift()?.settle?.();
    };
  }
}

/** In any order: each at once. */
export const atOnce = { place: () => (settle: () => void) => settle() };
