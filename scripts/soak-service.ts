/**
 * Serves a tiny model, sends it a million requests (valid ones by every way, damaged ones, some that are given up), and watches the
 * memory of the service and of its engine:
 *
 *   bun run scripts/soak-service.ts [--requests 1000000] [--clients 16] [--grow MIB] [--json FILE]
 *
 * Exits with 1 where an answer is not the expected one, or where the least memory of the last third of the run is more than --grow
 * MiB (default 16) above that of the second third.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { writeTinyModel } from "./service/bench-model";
import { floorsOf, soak } from "./service/soak";
import { loadImages, serveCommand, startServer } from "./service/start";

const { values: args } = parseArgs({
  options: {
    requests: { type: "string", default: "1000000" },
    clients: { type: "string", default: "16" },
    grow: { type: "string", default: "16" },
    json: { type: "string" },
  },
});
const mib = (bytes: number) => (bytes / 2 ** 20).toFixed(1);
const folder = await mkdtemp(join(tmpdir(), "dlfs-soak-"));
let failed = false;
try {
  const [photo] = loadImages(undefined) as [string];
  const sizes = [48, 64, 96, 128];
  const images = await Promise.all(
    sizes.map((side) => new Bun.Image(photo).resize(side, side).jpeg({ quality: 70 }).bytes()),
  );
  const model = await writeTinyModel(folder);
  await using server = await startServer(serveCommand(model, "--port", "0", "--tune-ms", "0", "--precision", "fp32"));
  const result = await soak({
    ...{ server, model: "tiny", images, requests: Number(args.requests), clients: Number(args.clients) },
    onSample: ({ requests, seconds, own, children }) =>
      console.log(
        `${requests} requests, ${(requests / seconds).toFixed(0)}/s, service ${mib(own)} MiB, engine ${mib(children)} MiB`,
      ),
  });
  const { requests, seconds, statuses, unexpected, samples } = result;
  console.log(`${requests} requests in ${seconds.toFixed(0)} s: ${JSON.stringify(statuses)}, ${unexpected} unexpected`);
  failed ||= unexpected > 0;
  for (const part of ["own", "children"] as const) {
    const floors = floorsOf(samples, part);
    const growth = (floors[2] - floors[1]) / 2 ** 20;
    const tooMuch = growth > Number(args.grow);
    console.log(`${part}: least memory of each third ${floors.map(mib).join(", ")} MiB${tooMuch ? ": it grows" : ""}`);
    failed ||= tooMuch;
  }
  if (args.json) await Bun.write(args.json, `${JSON.stringify(result, null, 2)}\n`);
  if ((await server.stop()) !== 0) failed = true;
} finally {
  await rm(folder, { recursive: true });
}
process.exit(failed ? 1 : 0);
