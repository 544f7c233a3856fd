/**
 * Reports native objects that the garbage collector found without dispose() having been called. The collector does not
 * see native memory, so nothing relies on it for freeing: this is only to tell the user what leaked and where.
 */
interface Held {
  what: string;
  stack: string;
}

const registry = new FinalizationRegistry<Held>(({ what, stack }) => {
  console.error(
    `dlfs: ${what} was not disposed of; it was created${stack ? `\n${stack}` : " (set DLFS_LEAKS=1 to see where)"}`,
  );
});

/** Watches an object; `what` names it in the report. */
export function watchLeak(owner: object, what: string): void {
  const stack = process.env.DLFS_LEAKS === "1" ? (new Error().stack ?? "").split("\n").slice(2).join("\n") : "";
  registry.register(owner, { what, stack }, owner);
}

export function unwatchLeak(owner: object): void {
  registry.unregister(owner);
}
