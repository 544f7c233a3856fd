/** Names that were meant: for messages about those that are unknown. */

/**
 * How many letters differ: insertions, deletions, replacements and exchanges of neighbours (the restricted distance of Damerau and
 * Levenshtein).
 */
export function editDistance(a: string, b: string): number {
  let before: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = (last[j - 1] as number) + (a[i - 1] === b[j - 1] ? 0 : 1);
      let least = Math.min((last[j] as number) + 1, (row[j - 1] as number) + 1, replaced);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        least = Math.min(least, (before[j - 2] as number) + 1);
      }
      row.push(least);
    }
    [before, last] = [last, row];
  }
  return last[b.length] as number;
}

/** Names that `name` may be a mistake for, the likeliest first, at most three: spelt alike, or with it at their beginning or in them. */
export function nearest(name: string, known: readonly string[]): string[] {
  const plain = (text: string) => text.toLowerCase().replaceAll(/[-_.]/g, "");
  const wanted = plain(name);
  const scored = known.flatMap((candidate) => {
    const other = plain(candidate);
    const distance = editDistance(wanted, other);
    const near = distance <= Math.max(1, Math.floor(Math.max(wanted.length, other.length) / 3));
    const inside = wanted.length >= 3 && other.includes(wanted);
    return near || inside ? [{ candidate, score: near ? distance : 100 + other.length }] : [];
  });
  return scored
    .sort((a, b) => a.score - b.score)
    .slice(0, 3)
    .map(({ candidate }) => candidate);
}

/** "; did you mean a, b or c?", or, where nothing is near, `otherwise`. */
export function suggest(name: string, known: readonly string[], otherwise = ""): string {
  const names = nearest(name, known);
  if (names.length === 0) return otherwise;
  const last = names.pop() as string;
  return `; did you mean ${names.length === 0 ? last : `${names.join(", ")} or ${last}`}?`;
}
