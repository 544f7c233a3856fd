/** JSON whose objects name each of their keys once. `JSON.parse` alone would keep the last of several silently. */

/**
 * The value of a JSON text.
 *
 * @throws SyntaxError for text that is no JSON, and for an object that names a key twice, saying which
 */
export function parseUniqueJson(text: string): unknown {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    // Nesting that overflows the parser's stack is a RangeError.
    throw new SyntaxError(error instanceof Error ? error.message : String(error), { cause: error });
  }
  const key = findDuplicateKey(text);
  if (key !== undefined) {
    throw new SyntaxError(`the key ${JSON.stringify(key.length > 200 ? `${key.slice(0, 200)}...` : key)} occurs twice`);
  }
  return value;
}

/** The first key that an object of this valid JSON text repeats. */
function findDuplicateKey(text: string): string | undefined {
  /** Keys seen in each open object; undefined stands for an open array. */
  const open: (Set<string> | undefined)[] = [];
  let keys: Set<string> | undefined;
  let expectKey = false;
  for (let at = 0; at < text.length; at++) {
    switch (text[at]) {
      case "{":
      case "[":
        keys = text[at] === "{" ? new Set() : undefined;
        open.push(keys);
        expectKey = keys !== undefined;
        break;
      case "}":
      case "]":
        open.pop();
        keys = open.at(-1);
        expectKey = false;
        break;
      case ",":
        expectKey = keys !== undefined;
        break;
      case '"': {
        const end = endOfString(text, at);
        if (expectKey && keys) {
          // Through the parser, since "\u0061" and "a" are the same key.
          const key = JSON.parse(text.slice(at, end + 1)) as string;
          if (keys.has(key)) return key;
          keys.add(key);
          expectKey = false;
        }
        at = end;
        break;
      }
    }
  }
  return undefined;
}

/** Index of the quote that ends the string whose opening quote is at `start`. */
function endOfString(text: string, start: number): number {
  for (let end = text.indexOf('"', start + 1); ; end = text.indexOf('"', end + 1)) {
    let backslashes = 0;
    while (text[end - 1 - backslashes] === "\\") backslashes++;
    if (backslashes % 2 === 0) return end;
  }
}
