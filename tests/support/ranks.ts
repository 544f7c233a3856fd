/** Runs a script in several processes that train together: ranks, each told its own by messages. */
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../", import.meta.url));

export interface RankResult {
  exitCode: number | null;
  signal: string | null;
  stdout: string;
  stderr: string;
}

/**
 * Runs a test's script, which is given its rank, their number and further arguments, as so many ranks. What a rank sends is
 * passed on to all, in the order of the ranks, once each has sent something: enough to exchange addresses.
 */
export async function runRanks(script: string, world: number, args: string[] = []): Promise<RankResult[]> {
  const sent: unknown[][] = Array.from({ length: world }, () => []);
  const children = Array.from({ length: world }, (_, rank) =>
    Bun.spawn([process.execPath, "run", script, String(rank), String(world), ...args], {
      cwd: root,
      env: { ...process.env, DLFS_BACKEND: process.env.DLFS_BACKEND ?? "cpu", OMP_NUM_THREADS: "1" },
      stdout: "pipe",
      stderr: "pipe",
      ipc(message) {
        sent[rank]!.push(message);
        while (sent.every((queue) => queue.length > 0)) {
          const round = sent.map((queue) => queue.shift());
          for (const child of children) if (child.exitCode === null) child.send(round);
        }
      },
    }),
  );
  return await Promise.all(
    children.map(async (child) => {
      const [stdout, stderr] = await Promise.all([
        new Response(child.stdout).text(),
        new Response(child.stderr).text(),
      ]);
      await child.exited;
      const signal = child.signalCode === null ? null : String(child.signalCode);
      return { exitCode: child.exitCode, signal, stdout, stderr };
    }),
  );
}

/** In a rank: sends a value, and gives all ranks' values. */
export function exchange<T>(value: T): Promise<T[]> {
  return new Promise((resolve) => {
    process.once("message", (round) => resolve(round as T[]));
    process.send!(value);
  });
}
