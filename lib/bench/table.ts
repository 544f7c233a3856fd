/** Rows of text under a header, the first columns to the left, those of numbers to the right. */
export function table(header: readonly string[], rows: readonly (readonly string[])[], textColumns = 1): string[] {
  const all = [header, ...rows];
  const widths = header.map((_, column) => Math.max(...all.map((row) => Bun.stringWidth(row[column] ?? ""))));
  const pad = (text: string, column: number) => {
    const space = " ".repeat(widths[column]! - Bun.stringWidth(text));
    return column < textColumns ? text + space : space + text;
  };
  return all.map((row) =>
    header
      .map((_, column) => pad(row[column] ?? "", column))
      .join("  ")
      .trimEnd(),
  );
}

/** A share in per cent; empty where there is none. */
export function share(part: number | undefined, whole: number | undefined): string {
  return part === undefined || !whole ? "" : `${((100 * part) / whole).toFixed(0)} %`;
}

/** Milliseconds with as many places as a median of them can mean. */
export function milliseconds(ms: number): string {
  return ms.toFixed(ms < 1 ? 4 : ms < 100 ? 3 : 1);
}

/** Operations a second, in units of 1e12. */
export function teraflops(flops: number | undefined, ms: number): string {
  if (!flops) return "";
  const rate = flops / ms / 1e9;
  return rate < 10 ? rate.toPrecision(3) : rate.toFixed(1);
}
