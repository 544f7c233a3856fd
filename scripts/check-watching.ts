/**
 * Opens what a training writes and gives out to be watched in the programs that it is for: its event files in TensorBoard, read by
 * its own library and through its server, and its metrics in Prometheus' client.
 *
 *   bun run scripts/check-watching.ts --python PYTHON [--backend cpu|cuda]
 *
 * PYTHON needs tensorboard and prometheus-client. A training on the demo's images is killed and goes on, so that it has two event
 * files, of which the first has steps that are done again. Each figure must be the one of metrics.jsonl, once; exits with 1 where
 * something is missing or differs.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const { values: args } = parseArgs({
  options: { python: { type: "string", default: "python3" }, backend: { type: "string" } },
});

const root = fileURLToPath(new URL("..", import.meta.url));
const folder = await mkdtemp(join(tmpdir(), "dlfs-watching-"));
const settings = [
  "--size",
  "64",
  "--batch",
  "4",
  "--out",
  folder,
  "evaluateEvery=10",
  "checkpointEvery=10",
  "logEvery=1",
];
settings.push("--tensorboard", "--metrics-port", "0", ...(args.backend ? ["--backend", args.backend] : []));

function train(...more: string[]) {
  const command = [process.execPath, "run", "lib/cli/main.ts", "train", ...settings, ...more];
  return Bun.spawn(command, { cwd: root, stdout: "pipe", stderr: "inherit" });
}

/** The first line of a training's output that fits; its other output is thrown away. */
async function lineOf(child: ReturnType<typeof train>, pattern: RegExp): Promise<string> {
  const decoder = new TextDecoder();
  let text = "";
  for await (const part of child.stdout) {
    text += decoder.decode(part, { stream: true });
    const found = pattern.exec(text)?.[1];
    if (found !== undefined) return found;
  }
  throw new Error(`the training ended without ${pattern}:\n${text}`);
}

try {
  const first = train("--data", "demo", "--iterations", "100000");
  const url = await lineOf(first, /^metrics: (\S+)\n/m);
  let metrics = "";
  const deadline = performance.now() + 300_000;
  const iteration = () => Number(/^dlfs_train_iteration (\d+)$/m.exec(metrics)?.[1] ?? 0);
  while (iteration() < 26) {
    if (performance.now() > deadline) throw new Error(`no 25 iterations in 5 minutes:\n${metrics}`);
    await Bun.sleep(20);
    metrics = await (await fetch(url)).text();
  }
  first.kill("SIGKILL");
  await first.exited;
  await Bun.write(join(folder, "metrics.txt"), metrics);

  const run = join(folder, "demo-1");
  const second = train("--resume", run, "--iterations", String(iteration() + 20));
  for await (const _ of second.stdout);
  if ((await second.exited) !== 0) throw new Error("the training that went on failed");

  const script = join(root, "scripts", "read_watching.py");
  const reader = Bun.spawn([args.python, script, run, join(folder, "metrics.txt")], {
    stdout: "inherit",
    stderr: "inherit",
  });
  process.exitCode = (await reader.exited) === 0 ? 0 : 1;
} finally {
  await rm(folder, { recursive: true, force: true });
}
