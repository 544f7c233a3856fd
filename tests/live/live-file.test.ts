/** Live files: read while they grow, gone on with after a kill, whole on a disk that was full. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, statSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { encodeMessage } from "../../lib/formats";
import { FileSink, LiveBus, LiveFileReader } from "../../lib/live";
import { sampleMessages } from "../formats/sample-messages";
import { runOnSmallDisk } from "../support/small-disk";

const folder = mkdtempSync(join(tmpdir(), "dlfs-live-"));
afterAll(() => rmSync(folder, { recursive: true }));

test("all that a bus says is read, also while it is being said", async () => {
  const path = join(folder, "all.dlvs");
  const bus = new LiveBus();
  bus.attach(await FileSink.open(path));
  await using reader = await LiveFileReader.open(path);
  const found = [];
  for (const message of sampleMessages) {
    bus.publish(message);
    await Bun.sleep(2);
    found.push(...(await Array.fromAsync(reader.messages())));
  }
  await bus.close();
  found.push(...(await Array.fromAsync(reader.messages())));
  expect(found).toEqual([...sampleMessages]);
});

test("a file whose writer was killed is gone on with behind its last whole message", async () => {
  const path = join(folder, "killed.dlvs");
  const frames = sampleMessages.map(encodeMessage);
  const first = await FileSink.open(path);
  await first.send(frames.slice(0, 5));
  const whole = statSync(path).size;
  await first.send(frames.slice(5, 6));
  await first.close();
  truncateSync(path, whole + 9);
  const second = await FileSink.open(path);
  await second.send(frames.slice(6));
  await second.close();
  await using reader = await LiveFileReader.open(path);
  const expected = [...sampleMessages.slice(0, 5), ...sampleMessages.slice(6)];
  expect(await Array.fromAsync(reader.messages())).toEqual(expected);
});

test("a file of another kind, or a damaged one, is left as it is, and named", async () => {
  const path = join(folder, "other.dlvs");
  await Bun.write(path, "something else entirely");
  expect(FileSink.open(path)).rejects.toThrow(`${path}: damaged: magic: a live file starts with "DLFSLIVE"`);
  expect(await Bun.file(path).text()).toBe("something else entirely");
});

test("on a full disk messages wait, are told of once, and come when there is room", () => {
  const ran = runOnSmallDisk(join(import.meta.dir, "full-live-file.ts"), folder, 256);
  if (!ran) return;
  const said = `${join(ran.folder, "live.dlvs")}: cannot write the live file: no space left on the disk (ENOSPC)`;
  expect(ran.output).toBe(`${said}\n${Array.from({ length: 21 }, (_, i) => i + 1).join(" ")}\n`);
});
