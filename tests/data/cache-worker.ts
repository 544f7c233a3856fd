/** Reads objects through a cache that other processes use, too, and checks every byte: FOLDER SEED. */
import { CachedDataSource } from "../../lib/data/cached-data-source";
import { DataSource, type ObjectInfo } from "../../lib/data/data-source";

const [folder = "", seed = "0"] = process.argv.slice(2);

/** Object i: bytes that follow from i, of 1 to 4000 bytes. */
function content(key: string): Uint8Array<ArrayBuffer> {
  const i = Number(key);
  return new Uint8Array(1 + ((i * 997) % 4000)).map((_, k) => i * 31 + k * 7);
}

class Computed extends DataSource {
  override async read(key: string): Promise<Uint8Array<ArrayBuffer>> {
    return content(key);
  }
  override async *list(): AsyncIterable<ObjectInfo> {}
  override async stat(key: string): Promise<ObjectInfo> {
    return { key, size: content(key).length, modified: 1_700_000_000_000 + Number(key) };
  }
  override async write(): Promise<void> {}
}

const options = { folder, limit: 200_000, reserve: 0, name: "computed" };
const cached = new CachedDataSource(new Computed(), options);
let state = Number(seed);
let reads = 0;
const worker = async (): Promise<void> => {
  while (reads < 3000) {
    reads++;
    state = (state * 1_103_515_245 + 12_345) & 0x7fffffff;
    // Some objects are asked for again and again, others once.
    const key = String((state >> 8) % (reads % 3 === 0 ? 200 : 30));
    const bytes = await cached.read(key);
    if (Buffer.compare(bytes, content(key)) !== 0) throw new Error(`object ${key}: ${bytes.length} bytes differ`);
  }
};
await Promise.all(Array.from({ length: 8 }, worker));
await cached.settled();
const { hits, storeFailures } = cached.stats;
if (storeFailures > 0) throw new Error(`${storeFailures} copies could not be stored`);
console.log(`ok: ${reads} reads, ${hits} hits, ${cached.cache.evicted.entries} evicted`);
