/** How many items a message lists. */
const LISTED = 4;

/** Where two plain values differ: "lr: 0.1 and 0.2". */
export function differences(a: unknown, b: unknown, path = ""): string[] {
  const isObject = (x: unknown): x is Readonly<Record<string, unknown>> => typeof x === "object" && x !== null;
  if (isObject(a) && isObject(b)) {
    const names = new Set([...Object.keys(a), ...Object.keys(b)]);
    return [...names].flatMap((name) => differences(a[name], b[name], path === "" ? name : `${path}.${name}`));
  }
  const [first, second] = [JSON.stringify(a), JSON.stringify(b)];
  return first === second ? [] : [`${path}: rank 0 has ${first ?? "nothing"}, it ${second ?? "nothing"}`];
}

/** The first items, and how many more there are. */
export function listed(items: readonly string[]): string {
  const rest = items.length - LISTED;
  return items.slice(0, LISTED).join(", ") + (rest > 0 ? ` and ${rest} more` : "");
}
