import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { readdir, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type DatasetArchives,
  type DownloadOptions,
  downloadDataset,
  publishedDatasets,
  readDatasetArchives,
} from "../../lib/data/download";
import { type ObjectServer, objectServer } from "../support/object-server";
import { zipOf } from "../support/zip";
import { failure, inFolder, quiet } from "./fakes";

let server: ObjectServer;

beforeAll(async () => {
  server = await objectServer();
});

afterAll(async () => {
  await server[Symbol.asyncDispose]();
});

const images = zipOf(
  Object.fromEntries(
    Array.from({ length: 30 }, (_, i) => [`val2017/${i}.jpg`, new Uint8Array(5000).map((_, k) => i * 7 + k * k)]),
  ),
  { deflate: false },
);
const annotations = zipOf({
  "annotations/instances_val2017.json": '{"images": []}',
  "annotations/captions_val2017.json": "not wanted",
});

const describeArchive = (name: string, bytes: Uint8Array) => ({
  name,
  url: `${server.address}/zips/${name}`,
  size: bytes.length,
  unpacked: bytes.length,
  sha256: new Bun.CryptoHasher("sha256").update(bytes).digest("hex"),
});

let tiny: DatasetArchives;

beforeEach(() => {
  server.objects.clear();
  server.faults = [];
  server.log = [];
  server.without.clear();
  server.put("zips/annotations.zip", annotations);
  server.put("zips/images.zip", images);
  const first = { ...describeArchive("annotations.zip", annotations), only: "annotations/instances_" };
  tiny = { name: "tiny", archives: [first, describeArchive("images.zip", images)] };
});

function download(folder: string, options: DownloadOptions = {}, dataset: string | DatasetArchives = tiny) {
  return downloadDataset(dataset, { folder, progress: quiet, retry: { attempts: 3, firstDelay: 2 }, ...options });
}

/** Files below a folder, without those of the download itself. */
async function unpacked(folder: string): Promise<string[]> {
  const all = await readdir(folder, { recursive: true, withFileTypes: true });
  const files = all
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1));
  return files.filter((name) => !name.startsWith(".download")).sort();
}

describe("downloadDataset", () => {
  test("fetches, verifies and unpacks, and does nothing the second time", async () => {
    await inFolder(async (folder) => {
      const labels = new Set<string>();
      const report = await download(folder, { progress: (label) => labels.add(label) });
      expect(report).toEqual({ folder, bytes: annotations.length + images.length, files: 31, present: 0 });
      const files = await unpacked(folder);
      expect(files).toHaveLength(31);
      expect(files[0]).toBe("annotations/instances_val2017.json");
      expect(await Bun.file(join(folder, "val2017/3.jpg")).bytes()).toEqual(
        new Uint8Array(5000).map((_, k) => 21 + k * k),
      );
      expect(await readdir(join(folder, ".download"))).toEqual(["done.json"]);
      expect([...labels].slice(0, 3)).toEqual([
        "fetching annotations.zip (MB)",
        "verifying annotations.zip (MB)",
        "unpacking annotations.zip",
      ]);
      server.log = [];
      expect(await download(folder)).toEqual({ folder, bytes: 0, files: 0, present: 0 });
      expect(server.log).toEqual([]);
    });
  });

  test("goes on where connections are cut, within a call and in the next", async () => {
    await inFolder(async (folder) => {
      server.faults = [
        { kind: 503, match: /images/ },
        { kind: "cut", match: /images/, times: 3 },
      ];
      const report = await download(folder);
      expect(report).toMatchObject({ bytes: annotations.length + images.length, files: 31 });
      // Every request but the first began where the one before ended.
      expect(server.log.filter((line) => line.includes("images"))).toHaveLength(5);
      await rm(folder, { recursive: true });

      server.faults = [
        { kind: "cut", match: /images/ },
        { kind: 500, match: /images/, times: 3 },
      ];
      const error = await failure(() => download(folder));
      expect(error).toMatchObject({ reason: "unavailable" });
      expect(error.message).toContain(`${server.address}/zips/images.zip: the server answered HTTP 500`);
      const { size } = await stat(join(folder, ".download", "images.zip"));
      expect(error.message).toContain(`${size} of ${images.length} bytes are there, the next call goes on`);
      expect(size).toBeGreaterThan(images.length / 4);
      expect(await download(folder)).toMatchObject({ bytes: images.length - size, files: 30 });
    });
  });

  test("begins again with servers that know no ranges", async () => {
    await inFolder(async (folder) => {
      server.without = new Set(["ranges"]);
      server.faults = [{ kind: "cut", match: /images/, times: 2 }];
      const report = await download(folder);
      expect(report.files).toBe(31);
      expect(report.bytes).toBeGreaterThan(annotations.length + images.length);
    });
  });

  test("goes on unpacking, and replaces files that differ", async () => {
    await inFolder(async (folder) => {
      await download(folder, { keepArchives: true });
      expect((await readdir(join(folder, ".download"))).sort()).toEqual(["annotations.zip", "done.json", "images.zip"]);
      await rm(join(folder, ".download", "done.json"));
      await rm(join(folder, "val2017", "1.jpg"));
      await writeFile(join(folder, "val2017", "2.jpg"), "cut off");
      await writeFile(join(folder, "val2017", "3.jpg"), new Uint8Array(5000));
      expect(await download(folder)).toEqual({ folder, bytes: 0, files: 3, present: 28 });
      expect((await Bun.file(join(folder, "val2017", "3.jpg")).bytes())[1]).toBe(22);
    });
  });

  test("fetches only the archives that are wanted", async () => {
    await inFolder(async (folder) => {
      expect(await download(folder, { only: ["annotations.zip"] })).toMatchObject({ files: 1 });
      expect(await unpacked(folder)).toEqual(["annotations/instances_val2017.json"]);
      const error = await failure(() => download(folder, { only: ["test.zip"] }));
      expect(error.message).toContain('tiny has no archive "test.zip", expected annotations.zip, images.zip');
    });
  });

  test("refuses archives that are others than expected, and keeps nothing of them", async () => {
    await inFolder(async (folder) => {
      server.put("zips/images.zip", images.slice().fill(1, 100, 110));
      const checksum = await failure(() => download(folder));
      expect(checksum.message).toMatch(
        /images\.zip: \d+ bytes with SHA-256 [0-9a-f]{64}, expected \d+ with [0-9a-f]{64}; removed/,
      );
      expect((await readdir(join(folder, ".download"))).sort()).toEqual(["done.json"]);
      expect(await unpacked(folder)).toHaveLength(1);
      server.put("zips/images.zip", "a page that says sorry");
      const size = await failure(() => download(folder));
      expect(size.message).toContain(
        `images.zip: the file there has 22 bytes, expected ${images.length}: it is another one`,
      );
      server.objects.delete("zips/images.zip");
      expect(await failure(() => download(folder))).toMatchObject({ reason: "missing" });
      server.put("zips/images.zip", images);
      expect(await download(folder)).toMatchObject({ files: 30 });
    });
  });

  test("unpacks nothing outside its folder", async () => {
    await inFolder(async (folder) => {
      const evil = zipOf({ good: "1", "../evil": "2" });
      server.put("zips/evil.zip", evil);
      const error = await failure(() =>
        download(folder, {}, { name: "evil", archives: [describeArchive("evil.zip", evil)] }),
      );
      expect(error.message).toContain('entry "../evil" leaves the folder');
      expect(await unpacked(folder)).toEqual([]);
    });
  });

  test("stops when it is told to, and goes on from there", async () => {
    await inFolder(async (folder) => {
      const reason = new Error("enough");
      const stop = new AbortController();
      server.faults = [{ kind: "hang", match: /images/ }];
      const running = download(folder, { signal: stop.signal });
      while (!server.log.some((line) => line.includes("images"))) await Bun.sleep(5);
      const second = await failure(() => download(folder));
      expect(second.message).toContain(`.download/lock: process ${process.pid} is downloading to this folder`);
      stop.abort(reason);
      await expect(running).rejects.toBe(reason);
      // A lock that a process left which was killed does not count.
      await writeFile(join(folder, ".download", "lock"), "999999999");
      server.faults = [{ kind: "hang", match: /images/ }];
      expect(await download(folder, { timeout: 100 })).toMatchObject({ files: 30 });
    });
  });

  test("says what is wrong before anything is fetched", async () => {
    await inFolder(async (folder) => {
      const unknown = await failure(() => download(folder, {}, "coco2077"));
      expect(unknown.message).toBe('downloadDataset: there is no data set "coco2077", expected one of coco2017');
      const huge = { ...describeArchive("huge.zip", images), size: 1e18 };
      const full = await failure(() => download(folder, {}, { name: "huge", archives: [huge] }));
      expect(full.message).toMatch(/\.download: 1000000000\.0 GB are needed, \d+\.\d GB are free/);
      await writeFile(join(folder, "file"), "");
      expect((await failure(() => download(join(folder, "file")))).message).toContain("file/.download: ");
      expect(server.log).toEqual([]);
    });
  });

  test("reads descriptions of archives, and names the field that is wrong", async () => {
    await inFolder(async (folder) => {
      const path = join(folder, "tiny.json");
      await writeFile(path, JSON.stringify(tiny));
      expect(await readDatasetArchives(path)).toEqual(tiny);
      const [archive] = tiny.archives;
      for (const [value, words] of [
        ["{", "expected JSON"],
        [null, "name: expected a text"],
        [{ name: "x" }, "archives: expected a list of archives"],
        [{ name: "x", archives: [{ ...archive, name: "../x" }] }, 'archives[0].name: expected a file name, got "../x"'],
        [
          { name: "x", archives: [archive, { ...archive, url: "x" }] },
          'archives[1].url: expected an http(s) address, got "x"',
        ],
        [{ name: "x", archives: [{ ...archive, size: -1 }] }, "archives[0].size: expected a number of bytes, got -1"],
        [{ name: "x", archives: [{ ...archive, sha256: "0" }] }, "archives[0].sha256: expected 64 hexadecimal digits"],
      ] as const) {
        await writeFile(path, typeof value === "string" ? value : JSON.stringify(value));
        const error = await failure(() => readDatasetArchives(path));
        expect(error.message).toStartWith(`downloadDataset: ${path}: ${words}`);
      }
      expect((await failure(() => readDatasetArchives(join(folder, "none")))).message).toContain("no such file");
    });
  });

  test("knows COCO 2017 with sizes and checksums", () => {
    const [coco] = publishedDatasets;
    expect(coco?.archives.map(({ url }) => url.replace(/.*\//, ""))).toEqual(
      coco?.archives.map(({ name }) => name) as string[],
    );
    for (const { sha256, size, unpacked: bytes } of coco?.archives ?? []) {
      expect(sha256).toMatch(/^[0-9a-f]{64}$/);
      expect(bytes).toBeGreaterThan(size);
    }
  });
});
