/** Writes messages to a live file on a disk that is full, then has room again: FOLDER. Prints what was said and what is there. */
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { encodeMessage } from "../../lib/formats";
import { FileSink, LiveFileReader } from "../../lib/live";

const [folder = ""] = process.argv.slice(2);
const path = join(folder, "live.dlvs");
const said: string[] = [];
const sink = await FileSink.open(path, { retryMs: 20, onError: ({ message }) => said.push(message) });
const frame = (iteration: number) =>
  encodeMessage({ type: "event", value: { kind: "log", iteration, time: 0, level: "info", text: "x".repeat(1000) } });
await sink.send([frame(1)]);
const ballast = join(folder, "ballast");
for (let size = 1 << 16; size >= 512; size >>= 1) {
  try {
    for (let i = 0; ; i++) writeFileSync(`${ballast}-${size}-${i}`, new Uint8Array(size));
  } catch {}
}
const waiting = sink.send(Array.from({ length: 20 }, (_, i) => frame(2 + i)));
await Bun.sleep(70);
console.log(said.join("|"));
for (const name of new Bun.Glob("ballast-*").scanSync(folder)) rmSync(join(folder, name));
await waiting;
await sink.close();
await using reader = await LiveFileReader.open(path);
const found = await Array.fromAsync(reader.messages());
console.log(found.map(({ value }) => ("iteration" in value ? value.iteration : "")).join(" "));
