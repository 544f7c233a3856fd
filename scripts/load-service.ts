/**
 * Loads a service with images over HTTP, and prints how many it answers and how long that takes:
 *
 *   bun run scripts/load-service.ts --url http://127.0.0.1:8000/predict --mode closed --clients 64 --seconds 20
 *   bun run scripts/load-service.ts --url http://127.0.0.1:8000/predict --mode open --rate 800 --seconds 20 --json load.json
 *
 * --images DIR (default: drawn ones, 640x480 of about 110 KB), --warm-up SECONDS (default 3), --processes N (default 2), --key KEY.
 * Latencies of an open load are counted from when a request was to be sent (no coordinated omission); see scripts/service/load.ts.
 */
import { parseArgs } from "node:util";
import { describeLoad, runLoad } from "./service/load";
import { loadImages } from "./service/start";

const { values: args } = parseArgs({
  options: {
    url: { type: "string", default: "http://127.0.0.1:8000/predict" },
    mode: { type: "string", default: "closed" },
    rate: { type: "string", default: "100" },
    clients: { type: "string", default: "16" },
    seconds: { type: "string", default: "10" },
    "warm-up": { type: "string", default: "3" },
    processes: { type: "string", default: "2" },
    images: { type: "string" },
    key: { type: "string" },
    json: { type: "string" },
  },
});
const { mode } = args;
if (mode !== "open" && mode !== "closed") throw new Error(`--mode: expected open or closed, got "${mode}"`);
const result = await runLoad({
  ...{ url: args.url, mode, files: loadImages(args.images) },
  ...(mode === "open" ? { rate: Number(args.rate) } : { clients: Number(args.clients) }),
  ...{ seconds: Number(args.seconds), warmUp: Number(args["warm-up"]), processes: Number(args.processes) },
  headers: args.key === undefined ? {} : { Authorization: `Bearer ${args.key}` },
});
console.log(describeLoad(result));
if (args.json !== undefined) await Bun.write(args.json, `${JSON.stringify(result, null, 2)}\n`);
process.exit(0);
