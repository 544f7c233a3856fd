import { describe, expect, test } from "bun:test";
import { readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { ZipArchive } from "../../lib/data/zip-archive";
import { type ZipOptions, zipOf } from "../support/zip";
import { failure, inFolder } from "./fakes";

/** set/a.txt ("hello " 20 times, deflated), set/sub/, set/sub/ü.bin (0 to 39, stored), a comment; by Python's zipfile with force_zip64. */
const PYTHON =
  "UEsDBC0AAAAIAIMYIlgv+vhI//////////8JABQAc2V0L2EudHh0AQAQAHgAAAAAAAAACwAAAAAAAADLSM3JyVfIoDsJAFBLAwQUAAAAAAAAACEAAAAAAAAAAAAAAAAACAAAAHNldC9zdWIvUEsDBC0AAAgAAAAAIQA8LqYN//////////8OABQAc2V0L3N1Yi/DvC5iaW4BABAAKAAAAAAAAAAoAAAAAAAAAAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEiIyQlJidQSwECLQMtAAAACACDGCJYL/r4SAsAAAB4AAAACQAAAAAAAAAAAAAAgAEAAAAAc2V0L2EudHh0UEsBAhQDFAAAAAAAAAAhAAAAAAAAAAAAAAAAAAgAAAAAAAAAAAAAAIABRgAAAHNldC9zdWIvUEsBAi0DLQAACAAAAAAhADwupg0oAAAAKAAAAA4AAAAAAAAAAAAAAIABbAAAAHNldC9zdWIvw7wuYmluUEsFBgAAAAADAAMAqQAAANQAAAAOAG1hZGUgYnkgUHl0aG9u";

async function withArchive(bytes: Uint8Array, work: (archive: ZipArchive, folder: string) => Promise<void>) {
  await inFolder(async (folder) => {
    await writeFile(join(folder, "x.zip"), bytes);
    await using archive = await ZipArchive.open(join(folder, "x.zip"));
    await work(archive, folder);
  });
}

/** What opening and unpacking all of an archive fails with. */
async function problemOf(bytes: Uint8Array): Promise<string> {
  let left: string[] = [];
  const error = await failure(() =>
    withArchive(bytes, async (archive, folder) => {
      try {
        for (const entry of archive.entries) await archive.extract(entry, join(folder, "out", "file"));
      } finally {
        left = await readdir(join(folder, "out"));
      }
    }),
  );
  expect(left).toEqual([]);
  return error.message;
}

describe("ZipArchive", () => {
  test("unpacks what Python packed", async () => {
    await withArchive(Buffer.from(PYTHON, "base64"), async (archive, folder) => {
      expect(archive.entries.map(({ name, size, method }) => [name, size, method])).toEqual([
        ["set/a.txt", 120, 8],
        ["set/sub/ü.bin", 40, 0],
      ]);
      for (const entry of archive.entries) await archive.extract(entry, join(folder, entry.name));
      expect(await Bun.file(join(folder, "set/a.txt")).text()).toBe("hello ".repeat(20));
      expect(await Bun.file(join(folder, "set/sub/ü.bin")).bytes()).toEqual(
        Uint8Array.from({ length: 40 }, (_, i) => i),
      );
      expect((await readdir(folder, { recursive: true })).sort()).toEqual([
        "set",
        "set/a.txt",
        "set/sub",
        "set/sub/ü.bin",
        "x.zip",
      ]);
    });
  });

  test.each<[string, ZipOptions]>([
    ["stored", { deflate: false }],
    ["deflated", {}],
    ["stored, 64-bit", { deflate: false, zip64: true }],
    ["deflated, 64-bit", { zip64: true }],
  ])("unpacks small, empty and large files, %s", async (_, options) => {
    const large = new Uint8Array(20 << 20).map((_, i) => (i * 2_654_435_761) >> 19);
    const files = { "a/small": "small", empty: "", "large.bin": large };
    await withArchive(zipOf(files, options), async (archive, folder) => {
      for (const entry of archive.entries) {
        const path = join(folder, "out", entry.name);
        await archive.extract(entry, path);
        expect(Buffer.compare(await Bun.file(path).bytes(), Buffer.from(files[entry.name as keyof typeof files]))).toBe(
          0,
        );
      }
      expect(archive.entries).toHaveLength(3);
    });
  });

  test("names what is damaged, and leaves no file behind", async () => {
    const files = { x: "some content that is long enough to be packed, packed, packed" };
    const whole = zipOf(files);
    expect(await problemOf(new Uint8Array(0))).toContain("not a ZIP archive, or cut off");
    expect(await problemOf(whole.subarray(0, whole.length - 30))).toContain("not a ZIP archive, or cut off");
    expect(await problemOf(whole.subarray(40))).toMatch(/its directory ends at byte \d+ of \d+/);
    expect(await problemOf(zipOf(files, { spoil: (_, header) => header.setUint32(0, 1, true) }))).toContain(
      "0 of 1 entries",
    );
    expect(await problemOf(zipOf(files, { spoil: (_, header) => header.setUint16(8, 1, true) }))).toContain(
      "x: is encrypted",
    );
    expect(await problemOf(zipOf(files, { spoil: (_, header) => header.setUint16(10, 12, true) }))).toContain(
      "x: compression method 12 is not supported",
    );
    expect(await problemOf(zipOf(files, { spoil: (_, header) => header.setUint32(16, 7, true) }))).toMatch(
      /x: checksum [0-9a-f]{8} and 61 bytes, expected 00000007 and 61/,
    );
    expect(await problemOf(zipOf(files, { spoil: (_, header) => header.setUint32(42, 5, true) }))).toContain(
      "x: no header at byte 5",
    );
    // Announced as smaller than it is: unpacking stops there, however much would come.
    for (const content of ["0".repeat(100_000), new Uint8Array(100 << 20)]) {
      const bomb = zipOf({ x: content }, { spoil: (_, header) => header.setUint32(24, 10, true) });
      expect(await problemOf(bomb)).toMatch(/x: (more than 10 bytes|.*larger than 11 bytes|.*output)/i);
    }
    const broken = zipOf(files);
    broken.fill(0xff, 40, 60);
    expect(await problemOf(broken)).toContain("x.zip: x: ");
    const large = zipOf({ x: new Uint8Array(20 << 20).map((_, i) => (i * 2_654_435_761) >> 19) });
    large.fill(0xff, large.length >> 1, (large.length >> 1) + 1000);
    expect(await problemOf(large)).toContain("x.zip: x: ");
  });

  test("stops when it is told to", async () => {
    await withArchive(zipOf({ x: "1" }), async (archive, folder) => {
      const reason = new Error("enough");
      const [entry] = archive.entries;
      await expect(archive.extract(entry!, join(folder, "y"), AbortSignal.abort(reason))).rejects.toBe(reason);
      expect(await readdir(folder)).toEqual(["x.zip"]);
    });
  });
});
