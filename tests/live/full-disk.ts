/** What a training is told, and what it says to another system, on a disk that is full, then has room again: FOLDER. */
import { join } from "node:path";
import { SQLiteAnnStore } from "../../lib/data";
import { decodeFrame, encodeMessage, messageOf } from "../../lib/formats";
import { HttpSink, Journal } from "../../lib/live";
import { fillDisk } from "../support/small-disk";
import { add, cleanUp, control, labels, makeStore, setUp } from "./session-fixture";

const [folder = ""] = process.argv.slice(2);
const print = (line: string) => console.log(line.replaceAll(folder, "FOLDER"));

const path = join(folder, "journal.dlvs");
const store = new SQLiteAnnStore(join(folder, "store.sqlite"));
makeStore(store);
const { session, bus, events } = await setUp({ path, store });
const tell = async (name: string, message: Parameters<typeof session.submit>[0]) => {
  const answer = await session.submit(message, "test");
  print(`${name}: ${answer.accepted ? "accepted" : `refused: ${answer.reason}`}`);
};

let makeRoom = fillDisk(folder);
const refused = tell("labels", labels("m", [add]));
await session.beforeStep(0);
await refused;
// Longer than the room that its last page has.
const long = control("c", "evaluate");
const command = tell("command", { ...long, value: { ...long.value, author: "x".repeat(5000) } } as typeof long);
await session.beforeStep(1);
const another = tell("another", control("d", "evaluate"));
await session.beforeStep(2);
await another;
makeRoom();
await session.beforeStep(3);
await command;
const again = tell("labels", labels("m", [add]));
await session.beforeStep(4);
await again;
await bus.close();
for (const event of events) if (event.kind === "log") print(`log: ${event.text}`);
print(`journal: ${(await Journal.read(path)).map(({ message }) => message).join(" ")}`);
print(`boxes: ${store.annotationsOf(1).length}`);

const came: number[] = [];
let takes = false;
await using server = Bun.serve({
  ...{ port: 0, hostname: "127.0.0.1" },
  async fetch(request) {
    const bytes = await request.bytes();
    if (!takes) return new Response("", { status: 503 });
    for (let at = 0; at < bytes.length; ) {
      const { frame, next } = decodeFrame(bytes, at, "post")!;
      came.push((messageOf(frame, "post")!.value as { iteration: number }).iteration);
      at = next;
    }
    return new Response("");
  },
});
const frame = (iteration: number) =>
  encodeMessage({ type: "event", value: { kind: "log", iteration, time: 0, level: "info", text: "x".repeat(8000) } });
const log = (line: string) => print(`spool: ${line}`);
const sink = await HttpSink.open({ url: server.url.href, spool: join(folder, "spool"), firstDelay: 5, log });
for (let i = 1; i <= 2; i++) await sink.send([frame(i)]);
makeRoom = fillDisk(folder);
for (let i = 3; i <= 42; i++) await sink.send([frame(i)]);
makeRoom();
takes = true;
while (sink.status.spooled > 0) await Bun.sleep(1);
await Bun.sleep(1);
await sink.send([frame(43)]);
while (came.length < 3) await Bun.sleep(1);
const { dropped, refused: unwanted, spooled } = sink.status;
print(`spool: ${dropped} dropped, ${unwanted} refused, ${spooled} wait; came: ${came.join(" ")}`);
await sink.close();
await cleanUp();
