import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { LocalDataSource } from "../../lib/data/local-data-source";
import { SQLiteAnnStore } from "../../lib/data/sqlite-ann-store";
import { serveDataset } from "../../lib/data/view-server";
import { bytesOf, imageCases } from "../support/image-cases";

const PIXEL = Buffer.from(
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII=",
  "base64",
);

let folder = "";
let store: SQLiteAnnStore;
let server: ReturnType<typeof serveDataset>;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "dlfs-view-"));
  await Bun.write(join(folder, "0.png"), PIXEL);
  await Bun.write(join(folder, "1.png"), "no picture");
  await Bun.write(join(folder, "secret.txt"), "secret");
  for (const golden of imageCases()) {
    if (golden.name === "orientation 6") await Bun.write(join(folder, "10.png"), bytesOf(golden));
    if (golden.name === "WebP animation") await Bun.write(join(folder, "11.png"), bytesOf(golden));
  }
  store = new SQLiteAnnStore();
  store.addCategories([
    { id: 1, name: "<cat>", supercategory: null },
    { id: 2, name: "dog", supercategory: null },
  ]);
  const images = Array.from({ length: 150 }, (_, i) => {
    return { sourceId: i, fileName: `${i}.png`, key: `${i}.png`, width: 10, height: 10 };
  });
  const ids = store.addImages("train", images);
  store.addImages("val", [{ sourceId: 0, fileName: "0.png", key: "0.png", width: null, height: null }]);
  const box = { sourceId: 1, bbox: [1, 2, 3, 4] as const, area: 12, isCrowd: false };
  store.addAnnotations(ids.map((imageId, i) => ({ ...box, imageId, categoryId: i % 10 === 0 ? 2 : 1 })));
  store.addTag("night", ids.slice(0, 3));
  store.updateImages([{ id: 5, problem: "empty file" }]);
  server = serveDataset(store, new LocalDataSource(folder), { port: 0 });
});

afterAll(async () => {
  await server.stop(true);
  store.close();
  await rm(folder, { recursive: true, force: true });
});

const get = (path: string) => fetch(new URL(path, server.url));
// biome-ignore lint/suspicious/noExplicitAny: answers are looked at field by field
const json = async (path: string): Promise<any> => (await get(path)).json();

describe("serveDataset", () => {
  test("gives a page that loads nothing from elsewhere", async () => {
    const answer = await get("/");
    const html = await answer.text();
    expect(answer.headers.get("content-type")).toContain("text/html");
    expect(answer.headers.get("content-security-policy")).toContain("default-src 'none'");
    expect(html.replaceAll("http://www.w3.org/2000/svg", "")).not.toMatch(/https?:\/\//);
    // The script is one that can be run.
    const script = /<script>([\s\S]*)<\/script>/.exec(html)?.[1] as string;
    expect(() => new Function(script)).not.toThrow();
  });

  test("tells what there is", async () => {
    expect(await json("/api/overview")).toMatchObject({
      splits: [
        { name: "train", images: 150 },
        { name: "val", images: 1 },
      ],
      categories: [{ id: 1, name: "<cat>" }, { id: 2 }],
      tags: [{ tag: "night", images: 3 }],
    });
  });

  test("counts boxes by class, anew when the store has changed", async () => {
    const counts = async (split: string) =>
      (await json(`/api/classes?split=${split}`)).map((c: { boxes: number }) => c.boxes);
    expect(await counts("train")).toEqual([134, 15]);
    expect(await counts("")).toEqual([134, 15]);
    const id = store.annotationsOf(2)[0]?.id as number;
    store.updateAnnotations([{ id, categoryId: 2 }]);
    expect(await counts("train")).toEqual([133, 16]);
    store.updateAnnotations([{ id, categoryId: 1 }]);
  });

  test("gives images page by page, filtered", async () => {
    const seen: number[] = [];
    let after: number | null = 0;
    while (after !== null) {
      const page: { images: { id: number }[]; next: number | null; total: number } = await json(
        `/api/images?split=train&limit=60&after=${after}`,
      );
      expect(page.total).toBe(150);
      seen.push(...page.images.map(({ id }) => id));
      after = page.next;
    }
    expect(seen).toEqual(Array.from({ length: 150 }, (_, i) => i + 1));
    expect((await json("/api/images?category=2")).total).toBe(15);
    expect((await json("/api/images?tag=night&category=2")).images.map((i: { id: number }) => i.id)).toEqual([1]);
    expect((await json("/api/images?problem=only")).images).toMatchObject([{ id: 5, problem: "empty file" }]);
    expect((await json("/api/images?problem=none")).total).toBe(150);
    const [image] = (await json("/api/images?limit=1")).images;
    expect(image).toMatchObject({ key: "0.png", split: "train", width: 10, tags: ["night"] });
    expect(image.boxes).toMatchObject([{ categoryId: 2, bbox: [1, 2, 3, 4], source: "imported", score: null }]);
  });

  test("gives pictures and thumbnails by id, and nothing else", async () => {
    const whole = await get("/image/1");
    expect(whole.headers.get("content-type")).toBe("image/png");
    expect(Buffer.from(await whole.arrayBuffer()).equals(PIXEL)).toBe(true);
    const small = await get("/image/1?w=64");
    expect(small.headers.get("content-type")).toBe("image/jpeg");
    expect((await small.bytes()).subarray(0, 2)).toEqual(new Uint8Array([0xff, 0xd8]));
    // Upright, as it is trained; an animation as it is.
    expect(await new Bun.Image(await (await get("/image/11?w=64")).bytes()).metadata()).toMatchObject({
      width: 13,
      height: 21,
    });
    expect((await get("/image/12?w=64")).headers.get("content-type")).toBe("image/webp");
    const statuses: [string, number, string][] = [
      ["/image/2?w=64", 422, "1.png: "],
      ["/image/3", 404, "no such file"],
      ["/image/999", 404, "no image has id 999"],
      ["/image/secret.txt", 400, "expected the number of an image"],
      ["/image/1?w=100000", 400, "w: expected an integer from 32 to 2048"],
      ["/api/images?limit=5000", 400, "limit: expected an integer from 0 to 200"],
      ["/api/images?problem=some", 400, "problem: expected any, none, only"],
    ];
    for (const [path, status, message] of statuses) {
      const answer = await get(path);
      expect([path, answer.status]).toEqual([path, status]);
      expect(((await answer.json()) as { error: string }).error).toContain(message);
    }
    expect((await get("/../secret.txt")).status).toBe(404);
  });
});
