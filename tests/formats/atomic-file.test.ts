/** Texts that are written in parts: the same bytes whatever their length, and on an error the file as it was. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { writeTextAtomic } from "../../lib/formats";

const folder = mkdtempSync(join(tmpdir(), "dlfs-atomic-"));
afterAll(() => rmSync(folder, { recursive: true }));

async function* parts(count: number, failAt = Number.POSITIVE_INFINITY): AsyncGenerator<string> {
  for (let i = 0; i < count; i++) {
    if (i === failAt) throw new Error("no more");
    yield `${"ü".repeat(i % 7)}line ${i}\n`;
  }
}

test.each([0, 1, 200_000])("%d parts become one file", async (count) => {
  const path = join(folder, "text");
  await writeTextAtomic(path, parts(count));
  expect(readFileSync(path, "utf8")).toBe((await Array.fromAsync(parts(count))).join(""));
});

test("what fails on the way leaves what was there, and nothing beside it", async () => {
  const path = join(folder, "kept");
  writeFileSync(path, "as it was");
  await expect(writeTextAtomic(path, parts(300_000, 250_000))).rejects.toThrow("no more");
  expect(readFileSync(path, "utf8")).toBe("as it was");
  expect(readdirSync(folder).filter((name) => name.includes("kept"))).toEqual(["kept"]);
});
