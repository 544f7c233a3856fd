/** The `dlfs` command in a process of its own, as a user runs it. */
import { fileURLToPath } from "node:url";
import { backend } from "./device";

const program = fileURLToPath(new URL("../../lib/cli/main.ts", import.meta.url));

export interface DlfsRun {
  exitCode: number;
  stdout: string;
  stderr: string;
}

export interface RunDlfsOptions {
  cwd?: string;
  /** Besides this process' own. */
  env?: Record<string, string>;
  /** `act` is called with the process' id once standard output has the text. */
  after?: string;
  act?: (pid: number) => void;
}

export async function runDlfs(args: readonly string[], options: RunDlfsOptions = {}): Promise<DlfsRun> {
  const { cwd, env, act } = options;
  let { after } = options;
  const child = Bun.spawn([process.execPath, "run", program, ...args], {
    cwd,
    env: { ...process.env, DLFS_BACKEND: backend, ...env },
    stdout: "pipe",
    stderr: "pipe",
  });
  let stdout = "";
  const reading = (async () => {
    const decoder = new TextDecoder();
    for await (const chunk of child.stdout) {
      stdout += decoder.decode(chunk, { stream: true });
      if (after === undefined || !stdout.includes(after)) continue;
      after = undefined;
      act?.(child.pid);
    }
  })();
  const stderr = await new Response(child.stderr).text();
  await reading;
  return { exitCode: await child.exited, stdout, stderr };
}
