/**
 * Reads what a training has said in another language, and compares: a training on the demo writes its live file, examples/read_live.py
 * reads it with Python classes that flatc generates from schemas/, and each message must say what dlfs reads there itself.
 *
 *   bun run scripts/check-live-reader.ts --python PYTHON [--backend cpu|cuda]
 *
 * PYTHON needs flatbuffers, xxhash and numpy; flatc must be on the PATH. Exits with 1, and the first difference, where one differs.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { LiveFileReader } from "../lib/live";

const { values: args } = parseArgs({
  options: { python: { type: "string", default: "python3" }, backend: { type: "string" } },
});
const root = fileURLToPath(new URL("..", import.meta.url));
const folder = await mkdtemp(join(tmpdir(), "dlfs-live-reader-"));

function run(command: string[], env: Record<string, string> = {}): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync(command, { cwd: root, env: { ...process.env, ...env } });
  if (exitCode !== 0) throw new Error(`${command.join(" ")} ended with ${exitCode}:\n${stdout}${stderr}`);
  return stdout.toString();
}

/** A box of float32 as Python prints it, which is how JavaScript does. */
const rows = (boxes: Float32Array | Float64Array) =>
  Array.from({ length: boxes.length / 4 }, (_, i) => [...boxes.subarray(4 * i, 4 * i + 4)]);

try {
  const settings = ["--iterations", "30", "--size", "64", "--batch", "4", "evaluateEvery=15", "logEvery=1"];
  const backend = args.backend ? ["--backend", args.backend] : [];
  const train = [
    "run",
    "lib/cli/main.ts",
    "train",
    "--data",
    "demo",
    ...settings,
    ...backend,
    "--live",
    "--out",
    folder,
  ];
  const said = run([process.execPath, ...train]);
  const path = join(/^run folder: (.*)$/m.exec(said)?.[1] as string, "live/live.dlvs");
  run(["flatc", "--python", "-o", join(folder, "generated"), ...new Bun.Glob("schemas/*.fbs").scanSync(root)]);
  const output = run([args.python, "examples/read_live.py", path], { PYTHONPATH: join(folder, "generated") });
  const theirs = output
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line.replaceAll("NaN", '"NaN"')) as unknown);

  await using reader = await LiveFileReader.open(path);
  const counts: Record<string, number> = {};
  let at = 0;
  for await (const { type, value } of reader.messages()) {
    let expected: Record<string, unknown>;
    if (type === "metrics") {
      expected = { metrics: value.what, iteration: value.iteration, values: value.values };
    } else if (type === "event") {
      const event = value.kind[0]?.toUpperCase() + value.kind.slice(1);
      const text = "config" in value ? value.config : "id" in value ? value.id : "text" in value ? value.text : "";
      expected = { event, iteration: value.iteration, text, classes: "classes" in value ? value.classes : [] };
    } else if (type === "sample") {
      const { name, boxes, scores, labels } = value.predictions;
      const found = rows(boxes).map((box, i) => ({ label: labels[i], score: scores[i], box }));
      const thumbnail = value.thumbnail?.length ?? 0;
      const truth = rows(value.truth.boxes);
      expected = { sample: name, iteration: value.iteration, detections: found, truth, thumbnail };
    } else continue;
    if (!Bun.deepEquals(theirs[at], expected)) {
      throw new Error(`message ${at} is ${JSON.stringify(theirs[at])}, expected ${JSON.stringify(expected)}`);
    }
    counts[type] = (counts[type] ?? 0) + 1;
    at++;
  }
  if (at !== theirs.length) throw new Error(`Python has read ${theirs.length} messages, dlfs ${at}`);
  const all = Object.entries(counts).map(([type, count]) => `${count} ${type}`);
  console.log(`the same in Python: ${all.join(", ")}`);
} catch (error) {
  console.error(`check-live-reader: ${(error as Error).message}`);
  process.exitCode = 1;
} finally {
  await rm(folder, { recursive: true, force: true });
}
