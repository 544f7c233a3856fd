/** That loading holds on to nothing: what a batch takes is free again when it is released. */
import { heapStats } from "bun:jsc";
import { expect, test } from "bun:test";
import { join } from "node:path";
import { AspectRatioBatches } from "../../lib/data/batch-sampler";
import { CocoDataLoader } from "../../lib/data/coco-data-loader";
import type { BatchDecoder } from "../../lib/data/codec";
import { LocalDataSource } from "../../lib/data/local-data-source";
import { RepeatFactorSampler } from "../../lib/data/sampler";
import { SQLiteAnnStore } from "../../lib/data/sqlite-ann-store";
import { HorizontalFlip, Normalize, Resize, ScaleJitter } from "../../lib/data/transforms";
import { inFolder } from "./fakes";

test("the heap is as large after 1,800 batches as after 800, with passes of all lengths and images that fail", async () => {
  await inFolder(async (folder) => {
    using store = new SQLiteAnnStore();
    store.addCategories([
      { id: 1, name: "a", supercategory: null },
      { id: 2, name: "b", supercategory: null },
    ]);
    const ids = store.addImages(
      "train",
      Array.from({ length: 40 }, (_, i) => {
        return { sourceId: i, fileName: `${i}.jpg`, key: `${i}.jpg`, width: 40 + i, height: 60 };
      }),
    );
    store.addAnnotations(
      ids.map((imageId, i) => {
        const bbox = [1, 1, 20, 20] as const;
        return { sourceId: i, imageId, categoryId: i % 9 === 0 ? 2 : 1, bbox, area: 400, isCrowd: false };
      }),
    );
    // One file is missing, another is not decoded.
    for (let i = 1; i < 40; i++) await Bun.write(join(folder, `${i}.jpg`), new Uint8Array(4096).fill(i));
    let most = 0;
    let busy = 0;
    const decoder: BatchDecoder = {
      ...{ slots: 3, batchSize: 4, height: 32, width: 32 },
      async decode(_slot, images) {
        most = Math.max(most, ++busy);
        await Bun.sleep(0);
        busy--;
        const bad = images.findIndex((bytes) => bytes.length === 0 || bytes[0] === 7);
        return { failures: bad < 0 ? [] : [{ index: bad, message: "bad Huffman code" }] };
      },
    };
    await using loader = new CocoDataLoader({
      ...{ store, decoder, split: "train", batchSize: 4, size: [32, 32] },
      source: new LocalDataSource(folder),
      preprocessing: [new ScaleJitter(), new HorizontalFlip(), new Resize(), new Normalize()],
      sampler: new RepeatFactorSampler({ threshold: 0.5 }),
      batchSampler: new AspectRatioBatches(),
      maxFailureShare: 1,
      onFailure: () => {},
    });
    const load = async (batches: number) => {
      for (let i = 0; i < batches; i++) (await loader.getBatch()).release();
      // What was prepared ahead is complete, so that the heap holds the same each time.
      await Bun.sleep(20);
      Bun.gc(true);
      Bun.gc(true);
      const { heapSize, extraMemorySize, objectCount } = heapStats();
      return { bytes: heapSize + extraMemorySize, objectCount };
    };
    const before = await load(800);
    const after = await load(1000);
    // A leak of one object each third batch, or of a fifteenth of a batch's files, would be more than this.
    expect(after.objectCount - before.objectCount).toBeLessThan(300);
    expect(after.bytes - before.bytes).toBeLessThan(1_000_000);
    expect(most).toBeLessThanOrEqual(3);
    expect(loader.failures.length).toBe(2);
  });
});
