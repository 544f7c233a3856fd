import { describe, expect, test } from "bun:test";
import { mkdir, readdir, symlink } from "node:fs/promises";
import { join } from "node:path";
import { keyProblem, LocalDataSource } from "../../lib/data/local-data-source";
import { failure, inFolder } from "./fakes";

const text = (value: string): Uint8Array => new TextEncoder().encode(value);

async function keys(source: LocalDataSource, prefix: string): Promise<string[]> {
  const found: string[] = [];
  for await (const { key } of source.list(prefix)) found.push(key);
  return found;
}

describe("LocalDataSource", () => {
  test("reads whole objects and ranges", async () => {
    await inFolder(async (folder) => {
      const source = new LocalDataSource(folder);
      await source.write("a/b.bin", text("0123456789"));
      expect(new TextDecoder().decode(await source.read("a/b.bin"))).toBe("0123456789");
      const range = async (start: number, end: number) =>
        new TextDecoder().decode(await source.read("a/b.bin", { range: { start, end } }));
      expect(await range(2, 5)).toBe("234");
      expect(await range(8, 100)).toBe("89");
      expect(await range(10, 12)).toBe("");
      expect(await range(3, 3)).toBe("");
      const error = await failure(() => range(5, 2));
      expect(error.message).toContain("bad range [5, 2)");
      await source.write("empty", new Uint8Array(0));
      expect((await source.read("empty")).length).toBe(0);
    });
  });

  test("replaces objects and leaves nothing else behind", async () => {
    await inFolder(async (folder) => {
      const source = new LocalDataSource(folder);
      await source.write("x", text("old"));
      await source.write("x", text("newer"));
      expect(await source.stat("x")).toMatchObject({ key: "x", size: 5 });
      expect(await readdir(folder)).toEqual(["x"]);
      await mkdir(join(folder, "folder"));
      const error = await failure(() => source.write("folder", text("y")));
      expect(error.message).toContain(`${folder}/folder: `);
      expect((await readdir(folder)).sort()).toEqual(["folder", "x"]);
    });
  });

  test("lists by prefix, in order of key", async () => {
    await inFolder(async (folder) => {
      const source = new LocalDataSource(folder);
      const all = ["a-b/1", "a/2", "a/10", "a.txt", "ab/c/d", "b"];
      for (const key of all) await source.write(key, text(key));
      expect(await keys(source, "")).toEqual([...all].sort());
      expect(await keys(source, "a/")).toEqual(["a/10", "a/2"]);
      expect(await keys(source, "a/1")).toEqual(["a/10"]);
      expect(await keys(source, "ab")).toEqual(["ab/c/d"]);
      expect(await keys(source, "a")).toEqual(["a-b/1", "a.txt", "a/10", "a/2", "ab/c/d"]);
      expect(await keys(source, "none/")).toEqual([]);
      for await (const info of source.list("b")) expect(info).toMatchObject({ key: "b", size: 1 });
    });
  });

  test("names what is not there, and what is a folder", async () => {
    await inFolder(async (folder) => {
      const source = new LocalDataSource(folder);
      await mkdir(join(folder, "sub"));
      expect(await source.stat("none")).toBeNull();
      expect(await source.stat("sub")).toBeNull();
      expect((await failure(() => source.read("none"))).message).toBe(
        `LocalDataSource.read: ${folder}/none: no such file`,
      );
      expect((await failure(() => source.read("none", { range: { start: 0, end: 1 } }))).message).toContain(
        "no such file",
      );
      expect((await failure(() => source.read("sub"))).message).toBe(
        `LocalDataSource.read: ${folder}/sub: is a folder, not a file`,
      );
    });
  });

  test("names what the file system refuses", async () => {
    await inFolder(async (folder) => {
      await symlink("loop", join(folder, "loop"));
      const source = new LocalDataSource(folder);
      expect((await failure(() => source.read("loop"))).message).toContain(`${folder}/loop: too many symbolic links`);
      expect((await failure(() => source.stat("loop"))).message).toContain("too many symbolic links");
    });
  });

  test.each([
    ["../x", "leaves the folder"],
    ["a/../../x", "leaves the folder"],
    ["a\\..\\..\\x", "leaves the folder"],
    ["/etc/passwd", "is an absolute path"],
    ["C:\\x", "is an absolute path"],
    ["", "is empty"],
    ["a\0b", "contains a NUL character"],
    ["a/", "ends with a slash"],
  ])("refuses the key %p", async (key, problem) => {
    const source = new LocalDataSource("/nowhere");
    expect((await failure(() => source.read(key))).message).toContain(problem);
    expect((await failure(() => source.stat(key))).message).toContain(problem);
    expect((await failure(() => source.write(key, text("x")))).message).toContain(problem);
    expect(keyProblem("a..b/...c")).toBeNull();
  });

  test("follows links, as data sets use them", async () => {
    await inFolder(async (folder) => {
      await mkdir(join(folder, "real"));
      await Bun.write(join(folder, "real/x"), "linked");
      await mkdir(join(folder, "root"));
      await symlink(join(folder, "real"), join(folder, "root/images"));
      const source = new LocalDataSource(join(folder, "root"));
      expect(new TextDecoder().decode(await source.read("images/x"))).toBe("linked");
    });
  });

  test("stops when it is told to", async () => {
    await inFolder(async (folder) => {
      const source = new LocalDataSource(folder);
      await source.write("x", text("x"));
      const reason = new Error("enough");
      const signal = AbortSignal.abort(reason);
      await expect(source.read("x", { signal })).rejects.toBe(reason);
      await expect(source.read("x", { signal, range: { start: 0, end: 1 } })).rejects.toBe(reason);
    });
  });
});
