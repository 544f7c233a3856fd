import { afterAll, describe, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CheckpointStore, readCheckpoint, writeCheckpoint } from "../../lib/formats/index";
import { type DlfsError, ErrorCode } from "../../lib/native/error";
import { sampleTensors, smallMetadata } from "./sample";

const folder = mkdtempSync(join(tmpdir(), "dlfs-store-"));
afterAll(() => rmSync(folder, { recursive: true }));
const fresh = (name: string) => mkdtempSync(join(folder, `${name}-`));

const script = join(import.meta.dir, "write-checkpoints.ts");

async function iterations(store: CheckpointStore): Promise<number[]> {
  return (await store.list()).map(({ iteration }) => iteration);
}

describe("CheckpointStore", () => {
  test("keeps the newest and the best", async () => {
    const store = new CheckpointStore(join(fresh("retention"), "not", "there", "yet"), { keepLast: 2 });
    expect(await store.list()).toEqual([]);
    const best = { name: "AP", value: 0.5, iteration: 200 };
    const removed: string[][] = [];
    for (const iteration of [100, 200, 300, 400, 500]) {
      const metadata = { ...smallMetadata(iteration), best: iteration < 200 ? { ...best, iteration } : best };
      removed.push((await store.save(metadata, sampleTensors())).removed);
    }
    expect(await iterations(store)).toEqual([200, 400, 500]);
    expect(removed).toEqual([[], [], [store.pathOf(100)], [], [store.pathOf(300)]]);
    // A new best releases the old one.
    await store.save({ ...smallMetadata(600), best: { ...best, iteration: 600 } }, []);
    expect(await iterations(store)).toEqual([500, 600]);
  });

  test("the newest is that of the highest iteration, also beyond the digits of the name", async () => {
    const store = new CheckpointStore(fresh("digits"));
    for (const iteration of [99_999_999, 100_000_000]) await store.save(smallMetadata(iteration), []);
    const found = await store.latest();
    expect(found?.checkpoint.metadata.iteration).toBe(100_000_000);
    expect(found?.damaged).toEqual([]);
    await found?.checkpoint.close();
  });

  test("keeps those of iterations that a number divides", async () => {
    const store = new CheckpointStore(fresh("every"), { keepLast: 1, keepEvery: 20 });
    for (const iteration of [10, 20, 30, 40, 50]) await store.save(smallMetadata(iteration), []);
    expect(await iterations(store)).toEqual([20, 40, 50]);
    expect(() => new CheckpointStore(store.folder, { keepEvery: 0.5 })).toThrow("keepEvery must be a whole number");
  });

  test("saving an iteration again replaces it", async () => {
    const store = new CheckpointStore(fresh("again"));
    await store.save(smallMetadata(5), []);
    await store.save({ ...smallMetadata(5), epoch: 7 }, []);
    await using checkpoint = await readCheckpoint(store.pathOf(5));
    expect(checkpoint.metadata.epoch).toBe(7);
    expect(await iterations(store)).toEqual([5]);
  });

  test("leaves checkpoints of an abandoned run's higher iterations, and foreign files, alone", async () => {
    const store = new CheckpointStore(fresh("abandoned"), { keepLast: 1 });
    for (const iteration of [10, 20]) await store.save(smallMetadata(iteration), []);
    writeFileSync(join(store.folder, "notes.txt"), "");
    await store.save(smallMetadata(15), []);
    expect(await iterations(store)).toEqual([15, 20]);
    expect(existsSync(join(store.folder, "notes.txt"))).toBe(true);
  });

  test("falls back to the newest intact one and names those that are damaged", async () => {
    const store = new CheckpointStore(fresh("damaged"));
    for (const iteration of [1, 2, 3]) await store.save(smallMetadata(iteration), sampleTensors());
    truncateSync(store.pathOf(3), 1000);
    const bytes = await Bun.file(store.pathOf(2)).bytes();
    bytes[70]! ^= 1;
    await Bun.write(store.pathOf(2), bytes);
    const found = await store.latest();
    expect(found?.checkpoint.metadata.iteration).toBe(1);
    await found?.checkpoint.close();
    expect(found?.damaged.map((error) => error.message)).toEqual([
      expect.stringContaining(`${store.pathOf(3)}: damaged: file length`),
      expect.stringContaining(`${store.pathOf(2)}: damaged: tensor "model.conv1.weight"`),
    ]);
    truncateSync(store.pathOf(1), 0);
    const error = (await store.latest().catch((e: unknown) => e)) as DlfsError;
    expect(error.message).toContain(`${store.folder}: none of its 3 checkpoints is intact:`);
    expect(error.message).toContain(store.pathOf(1));
  });

  test("does not fall back over a checkpoint of a newer dlfs", async () => {
    const store = new CheckpointStore(fresh("newer"));
    for (const iteration of [1, 2]) await store.save(smallMetadata(iteration), []);
    const bytes = await Bun.file(store.pathOf(2)).bytes();
    const view = new DataView(bytes.buffer);
    view.setUint32(8, 9, true);
    view.setBigUint64(56, Bun.hash.xxHash64(bytes.subarray(0, 56), 0n), true);
    await Bun.write(store.pathOf(2), bytes);
    const error = (await store.latest().catch((e: unknown) => e)) as DlfsError;
    expect(error.code).toBe(ErrorCode.unsupported);
  });

  test("none at all", async () => {
    expect(await new CheckpointStore(join(folder, "nowhere")).latest()).toBeUndefined();
    const file = join(fresh("file"), "file");
    writeFileSync(file, "");
    await expect(new CheckpointStore(file).list()).rejects.toThrow(`${file}: cannot list the checkpoints`);
    await expect(new CheckpointStore(file).save(smallMetadata(1), [])).rejects.toThrow(
      `${file}: cannot create the folder`,
    );
    expect(() => new CheckpointStore(folder, { keepLast: 0 })).toThrow("keepLast must be a whole number from 1, got 0");
  });
});

describe("a save that does not end", () => {
  test("killed: the previous one is intact, and the next save removes the rest", async () => {
    const store = new CheckpointStore(fresh("kill"), { keepLast: 2 });
    const child = Bun.spawn([process.execPath, script, store.folder, "4", "1", "3", "3"], {
      stdout: "pipe",
      stderr: "inherit",
    });
    let seen = "";
    for await (const chunk of child.stdout) {
      seen += new TextDecoder().decode(chunk);
      if (seen.includes("stopped")) break;
    }
    child.kill("SIGKILL");
    await child.exited;
    expect(seen).toBe("saved 1\nsaved 2\nstopped\n");
    const temporaries = () => readdirSync(store.folder).filter((name) => name.endsWith(".dlfs-tmp"));
    expect(temporaries()).toHaveLength(1);

    const found = (await store.latest())!;
    expect(found.damaged).toEqual([]);
    expect(found.checkpoint.metadata.iteration).toBe(2);
    expect((await found.checkpoint.read("tensor3"))[0]).toBe(5);
    await found.checkpoint.close();

    await store.save(smallMetadata(3), []);
    expect(temporaries()).toEqual([]);
    expect(await iterations(store)).toEqual([2, 3]);
  });

  test("out of space: an error that says so, the previous one is intact, nothing stays behind", async () => {
    const store = new CheckpointStore(fresh("full"));
    await store.save(smallMetadata(1), sampleTensors());
    // A limit on the size of files stands for a full disk: write() fails in the same way.
    const command = `trap '' XFSZ; ulimit -f 2048; exec "$0" "$1" "$2" 8 2 1`;
    const child = Bun.spawnSync(["bash", "-c", command, process.execPath, script, store.folder]);
    expect(child.stdout.toString()).toContain(
      `failed ${ErrorCode.io} ${store.pathOf(2)}: cannot write: the file would exceed the largest size allowed (EFBIG)`,
    );
    expect(child.exitCode).toBe(3);
    expect(readdirSync(store.folder)).toEqual(["checkpoint-00000001.dlck"]);
    const found = (await store.latest())!;
    expect(found.checkpoint.metadata.iteration).toBe(1);
    await found.checkpoint.close();
  });

  test("a full disk: older ones go before their time, the best and the newest stay", () => {
    const folder = fresh("small");
    const store = join(import.meta.dir, "full-store.ts");
    const mount = `mount -t tmpfs -o size=256k none ${folder} && exec ${process.execPath} ${store} ${folder}`;
    const inside = Bun.spawnSync(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount]);
    const output = inside.stdout.toString() + inside.stderr.toString();
    if (inside.exitCode !== 0 && /unshare|mount:/.test(output)) {
      console.warn(`not tested, no file system of its own to be had: ${output.trim()}`);
      return;
    }
    const lines = output.split("\n");
    expect(lines.slice(0, 6)).toEqual(["1", "1 2", "1 2 3", "1 2 3 4", "1 3 4 5", "1 4 5 6"]);
    const path = (iteration: number) => join(folder, `checkpoint-0000000${iteration}.dlck`);
    expect(lines.slice(6)).toEqual([
      `${path(5)}: cannot write: no space left on the disk (ENOSPC); ${path(2)} had to go`,
      `${path(6)}: cannot write: no space left on the disk (ENOSPC); ${path(3)} had to go`,
      `DlfsError: ${path(7)}: cannot write: no space left on the disk (ENOSPC)`,
      "latest 6: 6",
      "",
    ]);
  });

  test("temporary files of living processes stay until nobody has written to them for long", async () => {
    const own = fresh("temporary");
    const parent = process.ppid;
    const active = join(own, `.checkpoint-00000001.dlck.${parent}.00ff00ff00ff.dlfs-tmp`);
    const idle = join(own, `.checkpoint-00000002.dlck.${parent}.00ff00ff00ff.dlfs-tmp`);
    const foreign = join(own, ".something.tmp");
    mkdirSync(join(own, "folder"));
    for (const path of [active, idle, foreign]) writeFileSync(path, "x");
    const hourAgo = Date.now() / 1000 - 3600;
    utimesSync(idle, hourAgo, hourAgo);
    utimesSync(foreign, hourAgo, hourAgo);
    await writeCheckpoint(join(own, "run.dlck"), smallMetadata(1), []);
    expect([active, idle, foreign].map((path) => existsSync(path))).toEqual([true, false, true]);
  });
});
