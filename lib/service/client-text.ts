/** A text without the paths of this machine, for clients: logs have it as it is. */
export function withoutPaths(text: string): string {
  return text
    .split("\n", 1)
    .join("")
    .replaceAll(/(^|[\s"'`(=:])(?:file:\/\/)?\/[^\s"'`:,;()]+/g, "$1(path)");
}
