/**
 * What it costs a training to be listened to: steps of `dlfs train` by itself, and of the same with --live, three clients that read
 * all that is said and one that is connected and never reads, in turns.
 *
 *   bun run scripts/bench-live.ts [--model NAME] [--size N] [--batch N] [--iterations 300] [--repetitions 3] [--backend cuda]
 *
 * The demo's images; the network's name, "compact" by default, is any of dlfs train's. Prints the median milliseconds of a step of
 * each training, without its first quarter, and by how much they differ.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { timingOf } from "../lib/bench/measure";

const { values: args } = parseArgs({
  options: {
    model: { type: "string", default: "compact" },
    size: { type: "string" },
    batch: { type: "string", default: "8" },
    iterations: { type: "string", default: "300" },
    repetitions: { type: "string", default: "3" },
    backend: { type: "string" },
  },
});
const root = fileURLToPath(new URL("..", import.meta.url));
const folder = await mkdtemp(join(tmpdir(), "dlfs-bench-live-"));
const TOKEN = "bench";
const READERS = 3;

/** A client that reads all it is sent, in a process of its own; it prints how much that was when the training ends. */
const reader = `
const socket = new WebSocket(process.argv[1]);
socket.binaryType = "arraybuffer";
let bytes = 0, messages = 0;
socket.onmessage = ({ data }) => { bytes += data.byteLength; messages++; };
socket.onclose = () => { console.log(messages + " " + bytes); process.exit(0); };
`;

/** Opens a WebSocket, and reads nothing of it. */
function stall(url: URL): Socket {
  const socket = connect(Number(url.port), url.hostname);
  const head = ["Host: bench", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"];
  const key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
  socket.write([`GET ${url.pathname}${url.search} HTTP/1.1`, ...head, key, "", ""].join("\r\n"));
  socket.pause();
  socket.on("error", () => {}); // the training has ended
  return socket;
}

interface Trained {
  /** Median milliseconds of a step. */
  ms: number;
  /** Messages that each reader has got. */
  read: string[];
}

async function train(live: boolean): Promise<Trained> {
  const settings = ["--model", args.model, "--batch", args.batch, "--iterations", args.iterations, "logEvery=1"];
  const more = [...(args.size ? ["--size", args.size] : []), ...(args.backend ? ["--backend", args.backend] : [])];
  const every = ["evaluateEvery=100", "checkpointEvery=1000000", "--out", folder];
  const command = ["run", "lib/cli/main.ts", "train", "--data", "demo", ...settings, ...every, ...more];
  const child = Bun.spawn([process.execPath, ...command, ...(live ? ["--live"] : [])], {
    ...{ cwd: root, stdout: "pipe", stderr: "inherit" },
    env: { ...process.env, DLFS_LIVE_TOKEN: TOKEN },
  });
  let text = "";
  const clients: Bun.Subprocess<"ignore", "pipe", "inherit">[] = [];
  let stalled: Socket | null = null;
  const decoder = new TextDecoder();
  for await (const part of child.stdout) {
    text += decoder.decode(part, { stream: true });
    const address = stalled === null ? /^live: (\S+?)\?/m.exec(text)?.[1] : undefined;
    if (address === undefined) continue;
    const url = new URL(`${address}?token=${TOKEN}`);
    stalled = stall(url);
    for (let i = 0; i < READERS; i++) {
      const options = { stdin: "ignore", stdout: "pipe", stderr: "inherit" } as const;
      clients.push(Bun.spawn([process.execPath, "-e", reader, url.href.replace(/^http/, "ws")], options));
    }
  }
  if ((await child.exited) !== 0) throw new Error(`the training ended with ${child.exitCode}`);
  stalled?.destroy();
  const read = await Promise.all(clients.map(async ({ stdout }) => (await new Response(stdout).text()).trim()));
  const run = /^run folder: (.*)$/m.exec(text)?.[1] as string;
  const lines = (await Bun.file(join(run, "metrics.jsonl")).text()).trimEnd().split("\n");
  const rates = lines.flatMap((line) => {
    const { kind, imagesPerSecond } = JSON.parse(line) as { kind: string; imagesPerSecond?: number };
    return kind === "train" && imagesPerSecond !== undefined ? [imagesPerSecond] : [];
  });
  const steps = rates.slice(rates.length >> 2).map((rate) => (1000 * Number(args.batch)) / rate);
  return { ms: timingOf(steps).ms, read };
}

try {
  const times: Record<"alone" | "live", number[]> = { alone: [], live: [] };
  for (let i = 0; i < Number(args.repetitions); i++) {
    times.alone.push((await train(false)).ms);
    const { ms, read } = await train(true);
    times.live.push(ms);
    console.log(`readers got ${read.map((text) => text.replace(" ", " messages, ")).join(" bytes; ")} bytes`);
  }
  for (const [name, list] of Object.entries(times)) {
    const all = list.map((ms) => ms.toFixed(2)).join(", ");
    console.log(`${name.padEnd(5)} ${timingOf(list).ms.toFixed(2)} ms a step (${all})`);
  }
  const more = 100 * (timingOf(times.live).ms / timingOf(times.alone).ms - 1);
  console.log(`a step takes ${more.toFixed(2)} % more`);
} finally {
  await rm(folder, { recursive: true, force: true });
}
