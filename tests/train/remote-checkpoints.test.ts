/** Checkpoints in a bucket: whole or not there, checked, kept and removed as in a folder, behind a training's back. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { GcsDataSource, LocalDataSource, S3DataSource } from "../../lib/data";
import { CheckpointStore } from "../../lib/formats";
import { CheckpointCopies, RemoteCheckpoints, type RemoteCheckpointsOptions } from "../../lib/train";
import { testDevice } from "../support/device";
import { BUCKET, type ObjectServer, objectServer, S3_KEYS } from "../support/object-server";
import { writeTinyDataset } from "../support/tiny-dataset";
import { errorIn, trainTiny } from "../support/tiny-training";

const device = testDevice({ deterministic: true });
let folder = "";
let server: ObjectServer;
/** Checkpoints of iterations 1 to 6 of a training, all kept. */
let paths: string[] = [];

beforeAll(async () => {
  server = await objectServer();
  folder = await writeTinyDataset(device);
  const checkpointFolder = join(folder, "checkpoints");
  const more = { checkpointFolder, checkpointEvery: 1, keep: { keepLast: 9 } };
  await trainTiny(device, folder, { iterations: 6, more });
  paths = (await new CheckpointStore(checkpointFolder).list()).map(({ path }) => path);
});
afterAll(async () => {
  await server[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
});
beforeEach(() => {
  server.objects.clear();
  server.faults = [];
});

const quick = { retry: { attempts: 3, firstDelay: 5 }, timeout: 5000, warn: () => {} };
const sources = {
  GCS: () => new GcsDataSource({ ...quick, bucket: BUCKET, prefix: "runs/a", endpoint: server.address }),
  S3: () => new S3DataSource({ ...quick, bucket: BUCKET, prefix: "runs/a", endpoint: server.address, ...S3_KEYS }),
};
/** Small parts: a checkpoint is several of them. */
const remoteOf = (name: keyof typeof sources, options: RemoteCheckpointsOptions = {}) =>
  new RemoteCheckpoints(sources[name](), { partBytes: 20_000, ...options });
const keys = () => [...server.objects.keys()].filter((key) => key.startsWith("runs/a/")).sort();
const partsOf = (iteration: number) => keys().filter((key) => key.includes(`/checkpoint-0000000${iteration}/`));

test("the test's checkpoints are several parts long", () => {
  expect(paths).toHaveLength(6);
  expect(readFileSync(paths[0]!).length).toBeGreaterThan(60_000);
});

describe.each(Object.keys(sources) as (keyof typeof sources)[])("%s", (name) => {
  test("a checkpoint comes back byte by byte, the newest first", async () => {
    const remote = remoteOf(name);
    expect(await remote.fetchLatest(join(folder, "none"))).toBeNull();
    expect(await remote.save(paths[0]!)).toBe(remote.locate(1));
    await remote.save(paths[1]!);
    expect(await remote.list()).toEqual([1, 2]);
    const into = await mkdtemp(join(tmpdir(), "dlfs-remote-"));
    const fetched = await remote.fetchLatest(into);
    expect(fetched).toEqual({ path: join(into, "checkpoint-00000002.dlck"), iteration: 2, damaged: [] });
    expect(readFileSync(fetched!.path).equals(readFileSync(paths[1]!))).toBe(true);
    await rm(into, { recursive: true });
  });

  test("those stay that would stay in a folder, and nothing of the others", async () => {
    const remote = remoteOf(name, { keepLast: 2, keepEvery: 2 });
    for (const path of paths) await remote.save(path);
    expect(await remote.list()).toEqual([2, 4, 5, 6]);
    for (const [iteration, there] of [1, 2, 3, 4, 5, 6].map((i) => [i, ![1, 3].includes(i)] as const)) {
      expect(partsOf(iteration).length > 0).toBe(there);
    }
    // Going back to an earlier one leaves those of the way that was abandoned alone, but for its own older parts.
    const before = partsOf(4);
    await remote.save(paths[3]!);
    expect(await remote.list()).toEqual([2, 4, 5, 6]);
    expect(partsOf(4)).toHaveLength(before.length);
    expect(partsOf(4)).not.toEqual(before);
  });

  test("an upload that is cut is not there, and its parts go with the next", async () => {
    const remote = remoteOf(name);
    await remote.save(paths[0]!);
    server.faults = [{ kind: 403, match: /^(PUT|POST).*(part-00002|upload)/, times: 99 }];
    expect((await errorIn(remote.save(paths[1]!))).message).toContain("HTTP 403");
    server.faults = [];
    expect(await remote.list()).toEqual([1]);
    expect((await remote.fetchLatest(join(folder, `cut-${name}`)))?.iteration).toBe(1);
    server.put("runs/a/checkpoint-00000002/0123456789ab/part-00000", "left by a machine that is gone");
    await remote.save(paths[2]!);
    expect(partsOf(2)).toEqual([]);
    expect(await remote.list()).toEqual([1, 3]);
  });

  test("one that is damaged is named, and the one before is used", async () => {
    const remote = remoteOf(name);
    for (const path of paths.slice(0, 3)) await remote.save(path);
    const [first] = partsOf(3);
    const bytes = server.objects.get(first!)!.bytes.slice();
    bytes[777]! ^= 1;
    server.put(first!, bytes);
    server.objects.delete(partsOf(2).at(-1)!);
    const fetched = await remote.fetchLatest(join(folder, `damaged-${name}`));
    expect(fetched?.iteration).toBe(1);
    expect(fetched?.damaged.map(({ message }) => message)).toEqual([
      expect.stringMatching(/checkpoint-00000003.json: .*part-00000: its bytes are not those that were written/),
      expect.stringMatching(/checkpoint-00000002.json: .*part-\d+ is missing/),
    ]);
    server.put(partsOf(1)[0]!, "short");
    const none = await errorIn(remote.fetchLatest(join(folder, `damaged-${name}`)));
    expect(none.message).toContain("none of its 3 checkpoints is intact");
    expect(none.message).toContain("bytes, got 5");
    // A service that cannot be reached says nothing about what it has.
    server.faults = [{ kind: 503, match: /part-/, times: 99 }];
    expect((await errorIn(remote.fetchLatest(join(folder, `away-${name}`)))).message).toContain("HTTP 503");
  });

  test("a busy service is tried again", async () => {
    server.faults = [{ kind: 503, match: /^(PUT|POST)/, times: 2 }];
    const remote = remoteOf(name);
    await remote.save(paths[4]!);
    expect(await remote.list()).toEqual([5]);
  });
});

describe("behind a training", () => {
  test("the newest checkpoint is copied, those that it overtakes are left out, and what fails is told", async () => {
    server.delay = 5;
    const copied: number[] = [];
    const failed: string[] = [];
    const copies = new CheckpointCopies(remoteOf("S3"), {
      files: [join(folder, "annotations/instances_val2017.json"), join(folder, "not-there")],
      onCopied: (_, iteration) => void copied.push(iteration),
      onError: ({ message }, iteration) => void failed.push(`${iteration}: ${message}`),
    });
    for (const [i, path] of paths.entries()) copies.onCheckpoint(path, i + 1);
    expect(await copies.settled()).toBeNull();
    expect(copied).toEqual([1, 6]);
    expect(keys()).toContain("runs/a/instances_val2017.json");
    server.faults = [{ kind: 403, match: /^PUT/, times: 99 }];
    copies.onCheckpoint(paths[5]!, 6);
    expect((await copies.settled())?.message).toContain("HTTP 403");
    expect(failed).toEqual([expect.stringContaining("6: S3DataSource.write")]);
    server.faults = [];
    expect(await copies.again()).toBeNull();
    expect(copied).toEqual([1, 6, 6]);
    server.delay = 0;
  });

  test("a training goes on while its destination is away, and is copied when that is back", async () => {
    const checkpointFolder = join(folder, "copied");
    const errors: number[] = [];
    const copies = new CheckpointCopies(remoteOf("GCS"), { onError: (_, iteration) => void errors.push(iteration) });
    const lost = {
      onCheckpointStart: (iteration: number) => {
        server.faults = iteration < 5 ? [{ kind: "reset" as const, times: 999 }] : [];
      },
    };
    const more = { checkpointFolder, checkpointEvery: 2, observer: [lost, copies] };
    const { outcome } = await trainTiny(device, folder, { iterations: 6, more });
    expect([outcome.iteration, await copies.settled()]).toEqual([6, null]);
    expect(await remoteOf("GCS").list()).toContain(6);
    expect(errors.every((iteration) => iteration < 5)).toBe(true);
  });

  test("a checkpoint that is removed while it is copied is copied all the same, and a folder will do", async () => {
    const place = await mkdtemp(join(tmpdir(), "dlfs-mirror-"));
    const remote = new RemoteCheckpoints(new LocalDataSource(place), { partBytes: 20_000, keepLast: 1 });
    const path = join(folder, "checkpoint-00000003.dlck");
    await Bun.write(path, Bun.file(paths[2]!));
    const saving = remote.save(path);
    await Bun.sleep(1);
    await rm(path);
    await saving;
    await remote.save(paths[3]!);
    expect(await remote.list()).toEqual([4]);
    const fetched = await remote.fetch(4, join(place, "back"));
    expect(readFileSync(fetched).equals(readFileSync(paths[3]!))).toBe(true);
    await rm(place, { recursive: true });
  });
});
