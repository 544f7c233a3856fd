/** Reads objects of more bytes than the disk of the cache's folder has: FOLDER. */
import { CachedDataSource } from "../../lib/data/cached-data-source";
import { DataSource, type ObjectInfo } from "../../lib/data/data-source";

const [folder = ""] = process.argv.slice(2);
const SIZE = 20_000;
const COUNT = 40;

class Computed extends DataSource {
  override async read(key: string): Promise<Uint8Array<ArrayBuffer>> {
    return new Uint8Array(SIZE).fill(Number(key));
  }
  override async *list(): AsyncIterable<ObjectInfo> {}
  override async stat(key: string): Promise<ObjectInfo> {
    return { key, size: SIZE, modified: 1_700_000_000_000 };
  }
  override async write(): Promise<void> {}
}

const warnings: string[] = [];
const warn = (message: string): void => {
  warnings.push(message);
};
const cached = new CachedDataSource(new Computed(), { folder, limit: 1e9, reserve: 0, name: "computed", warn });
for (let pass = 0; pass < 2; pass++) {
  for (let i = 0; i < COUNT; i++) {
    const bytes = await cached.read(String(i));
    if (bytes.length !== SIZE || bytes.some((byte) => byte !== i)) throw new Error(`object ${i} differs`);
    await cached.settled();
  }
}
const { hits, storeFailures } = cached.stats;
if (hits === 0 || storeFailures === 0) throw new Error(`${hits} hits, ${storeFailures} copies not stored`);
if (!warnings[0]?.includes("no space left on the device")) throw new Error(`warnings: ${warnings.join("\n")}`);
const { bytes } = await cached.cache.usage();
if (bytes % SIZE !== 0) throw new Error(`${bytes} bytes are no whole number of objects`);
console.log(`ok: ${COUNT} objects read, some from the disk`);
