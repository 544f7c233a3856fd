/** Runs risky code in a process of its own: a native crash there is a failed assertion here, and no more. */
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../", import.meta.url));

export interface ChildResult {
  exitCode: number | null;
  /** Name of the signal that ended it. */
  signal: string | null;
  stdout: string;
  stderr: string;
}

/** Runs TypeScript in a child, from the repository's root; a variable of `env` that is undefined is removed. */
export async function runChild(code: string, env: Record<string, string | undefined> = {}): Promise<ChildResult> {
  const child = Bun.spawn([process.execPath, "--eval", code], {
    cwd: root,
    env: { ...process.env, DLFS_BACKEND: process.env.DLFS_BACKEND ?? "cpu", ...env },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  await child.exited;
  return {
    exitCode: child.exitCode,
    signal: child.signalCode === null ? null : String(child.signalCode),
    stdout,
    stderr,
  };
}
