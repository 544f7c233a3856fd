/** A disk that is soon full, for scripts that fill it. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/**
 * Runs a script with a folder of its own as its argument, a file system of so many KiB. What it prints, errors behind the rest; null,
 * with a warning, where this process may not mount one.
 */
export function runOnSmallDisk(script: string, below: string, kib: number): { folder: string; output: string } | null {
  const folder = mkdtempSync(join(below, "small-"));
  const mount = `mount -t tmpfs -o size=${kib}k none ${folder} && exec ${process.execPath} ${script} ${folder}`;
  const inside = Bun.spawnSync(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount]);
  const output = inside.stdout.toString() + inside.stderr.toString();
  if (inside.exitCode === 0 || !/unshare|mount:/.test(output)) return { folder, output };
  console.warn(`not tested, no file system of its own to be had: ${output.trim()}`);
  return null;
}

/** Fills the disk of a folder. The function that is returned makes room again. */
export function fillDisk(folder: string): () => void {
  for (let size = 1 << 16; size >= 512; size >>= 1) {
    try {
      for (let i = 0; ; i++) writeFileSync(join(folder, `ballast-${size}-${i}`), new Uint8Array(size));
    } catch {
      // Full for this size.
    }
  }
  return () => {
    for (const name of new Bun.Glob("ballast-*").scanSync(folder)) rmSync(join(folder, name));
  };
}
