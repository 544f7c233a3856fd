/**
 * Uses Triton's own HTTP client, tritonclient.http of PyPI, on `dlfs serve`:
 *
 *   bun run scripts/check-triton-client.ts --python PYTHON [--backend cpu|cuda]
 *
 * PYTHON needs tritonclient[http] and numpy. A model of random weights is served; live, ready, metadata, configuration, inference in
 * every combination of binary and JSON, gzip and deflate, pixels and files, asynchronous calls and errors must be what the protocol
 * says (scripts/triton_client.py). Exits with 1 where something is not.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { writeTinyModel } from "./service/bench-model";
import { loadImages, serveCommand, startServer } from "./service/start";

const { values: args } = parseArgs({
  options: { python: { type: "string", default: "python3" }, backend: { type: "string" } },
});
const folder = await mkdtemp(join(tmpdir(), "dlfs-triton-"));
try {
  const model = await writeTinyModel(folder);
  const backend = args.backend === undefined ? [] : ["--backend", args.backend];
  await using server = await startServer(
    serveCommand(model, "--port", "0", "--tune-ms", "0", "--precision", "fp32", ...backend),
  );
  const { host } = new URL(server.url);
  const script = join(import.meta.dir, "triton_client.py");
  const images = loadImages(undefined).slice(0, 3);
  const child = Bun.spawn([args.python, script, host, "tiny", ...images], { stdout: "inherit", stderr: "inherit" });
  process.exitCode = (await child.exited) === 0 ? 0 : 1;
} finally {
  await rm(folder, { recursive: true });
}
