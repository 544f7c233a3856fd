import { Database } from "bun:sqlite";
import { describe, expect, test } from "bun:test";
import { cp } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { SQLiteAnnStore } from "../../lib/data/sqlite-ann-store";
import { SCHEMA_VERSION } from "../../lib/data/sqlite-schema";
import { inFolder } from "./fakes";

/** Made by the release that wrote schema version 1: importCoco of three images and three boxes. */
const VERSION_1 = fileURLToPath(new URL("stores/version-1.sqlite", import.meta.url));

const schemaOf = (path: string): unknown => {
  using db = new Database(path, { readonly: true });
  // What ALTER TABLE adds stands in the statement as it was written; columns tell more.
  const tables = db.query("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").all() as {
    name: string;
  }[];
  return tables.map(({ name }) => [name, db.query(`PRAGMA table_info(${name})`).all()]);
};

describe("a store of schema version 1", () => {
  test("is brought up to date with all it holds", async () => {
    await inFolder(async (folder) => {
      const path = join(folder, "store.sqlite");
      await cp(VERSION_1, path);
      using store = new SQLiteAnnStore(path);
      expect(store.images("train").map(({ sourceId, key, problem }) => [sourceId, key, problem])).toEqual([
        [10, "images/1.jpg", null],
        [20, "images/2.jpg", null],
        [30, "images/3.jpg", "empty file"],
      ]);
      const unknown = { source: "imported", author: "", modified: 0, score: null } as const;
      expect([...store.annotations("train")]).toEqual([
        { id: 1, sourceId: 8, imageId: 1, categoryId: 5, bbox: [0, 0, 5, 5], area: 25, isCrowd: true, ...unknown },
        {
          id: 2,
          sourceId: 7,
          imageId: 2,
          categoryId: 3,
          bbox: [1, 2, 30.5, 20],
          area: 500,
          isCrowd: false,
          ...unknown,
        },
        {
          id: 3,
          sourceId: 9,
          imageId: 2,
          categoryId: 5,
          bbox: [60, 40, 20, 20],
          area: 400,
          isCrowd: false,
          ...unknown,
        },
      ]);
      expect(store.imports()[0]?.source).toBe("instances_train.json");
      expect(store.getMetadata("note")).toBe("kept");
      // They were found out without a look at EXIF data.
      expect(store.fileFacts("images/1.jpg")).toBeNull();
      expect(store.lastChange()).toBe(0);
      expect(store.checkIntegrity()).toEqual([]);
      // Ids go on behind those that were given.
      const box = { sourceId: 1, imageId: 1, categoryId: 3, bbox: [1, 1, 2, 2] as const, area: 4, isCrowd: false };
      store.deleteAnnotations([3]);
      store.addAnnotations([box]);
      expect(store.annotationsOf(1).map((a) => a.id)).toEqual([1, 4]);
      store.close();
      using again = new SQLiteAnnStore(path);
      expect(again.counts("train").annotations).toBe(3);
    });
  });

  test("has the schema of a new one then", async () => {
    await inFolder(async (folder) => {
      const [old, fresh] = [join(folder, "old.sqlite"), join(folder, "fresh.sqlite")];
      await cp(VERSION_1, old);
      for (const path of [old, fresh]) new SQLiteAnnStore(path).close();
      expect(schemaOf(old)).toEqual(schemaOf(fresh));
      using db = new Database(old, { readonly: true });
      expect(db.query("PRAGMA user_version").get()).toEqual({ user_version: SCHEMA_VERSION });
    });
  });

  test("is brought up to date once when several processes open it at a time", async () => {
    await inFolder(async (folder) => {
      const path = join(folder, "store.sqlite");
      await cp(VERSION_1, path);
      const module = JSON.stringify(fileURLToPath(new URL("../../lib/data/sqlite-ann-store.ts", import.meta.url)));
      const script = `import { SQLiteAnnStore } from ${module};
        using store = new SQLiteAnnStore(${JSON.stringify(path)});
        console.log(store.counts("train").annotations);`;
      const children = Array.from({ length: 4 }, () => Bun.spawn([process.execPath, "-e", script], { stdout: "pipe" }));
      const outputs = await Promise.all(children.map((child) => new Response(child.stdout).text()));
      expect(outputs.map((text) => text.trim())).toEqual(["3", "3", "3", "3"]);
    });
  });
});
