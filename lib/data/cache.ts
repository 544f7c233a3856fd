import { homedir } from "node:os";
import { join, resolve } from "node:path";

/** The folder for what can be made again: $DLFS_CACHE, $XDG_CACHE_HOME/dlfs, or ~/.cache/dlfs. It need not exist. */
export function cacheFolder(): string {
  if (process.env.DLFS_CACHE) return resolve(process.env.DLFS_CACHE);
  // An empty or relative XDG_CACHE_HOME counts as unset (XDG Base Directory Specification 0.8).
  const set = process.env.XDG_CACHE_HOME;
  return join(set?.startsWith("/") ? set : join(homedir(), ".cache"), "dlfs");
}
