/** Writes messages to a live file on a disk that is full, then has room again: FOLDER. Prints what was said and what is there. */
import { join } from "node:path";
import { encodeMessage } from "../../lib/formats";
import { FileSink, LiveFileReader } from "../../lib/live";
import { fillDisk } from "../support/small-disk";

const [folder = ""] = process.argv.slice(2);
const path = join(folder, "live.dlvs");
const said: string[] = [];
const sink = await FileSink.open(path, { retryMs: 20, onError: ({ message }) => said.push(message) });
const frame = (iteration: number) =>
  encodeMessage({ type: "event", value: { kind: "log", iteration, time: 0, level: "info", text: "x".repeat(1000) } });
await sink.send([frame(1)]);
const makeRoom = fillDisk(folder);
const waiting = sink.send(Array.from({ length: 20 }, (_, i) => frame(2 + i)));
await Bun.sleep(70);
console.log(said.join("|"));
makeRoom();
await waiting;
await sink.close();
await using reader = await LiveFileReader.open(path);
const found = await Array.fromAsync(reader.messages());
console.log(found.map(({ value }) => ("iteration" in value ? value.iteration : "")).join(" "));
