/**
 * A data source of one's own: images and annotations that lie in a table of an SQLite database instead of in files. What reads
 * data in dlfs reads it through a class of four methods: read, list, stat, write.
 *
 *   bun run examples/05_data_source.ts                              the demo data set, which is made where it is missing
 *   bun run examples/05_data_source.ts DIR [TRAIN_SPLIT VAL_SPLIT]  a data set in COCO's layout: a folder, gs://, s3://, https://
 */
import { Database } from "bun:sqlite";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  CocoDataLoader,
  DataSource,
  Device,
  DeviceBatchDecoder,
  DeviceImageCodec,
  dataSource,
  demoFolder,
  describeDataset,
  generateDemo,
  loadDataset,
  Normalize,
  type ObjectInfo,
  type ReadOptions,
  Resize,
  SourceError,
} from "dlfs";

interface Row {
  key: string;
  size: number;
  modified: number;
}

class SQLiteSource extends DataSource implements Disposable {
  readonly #database: Database;

  constructor(readonly path: string) {
    super();
    this.#database = new Database(path, { create: true });
    this.#database.run(
      "CREATE TABLE IF NOT EXISTS objects (key TEXT PRIMARY KEY, bytes BLOB NOT NULL, modified INTEGER NOT NULL) WITHOUT ROWID",
    );
  }

  override async read(key: string, { range, signal }: ReadOptions = {}): Promise<Uint8Array<ArrayBuffer>> {
    signal?.throwIfAborted();
    // substr counts from 1; of a range that reaches past the end, it gives what is there.
    const [start, length] = range ? [range.start + 1, range.end - range.start] : [1, Number.MAX_SAFE_INTEGER];
    const row = this.#database
      .query<{ part: Uint8Array<ArrayBuffer> | null }, [number, number, string]>(
        "SELECT substr(bytes, ?, ?) AS part FROM objects WHERE key = ?",
      )
      .get(start, length, key);
    // The reason tells callers what they can do; "missing" is what checks of a data set count as a missing file.
    if (!row) throw new SourceError("SQLiteSource.read", this.locate(key), "missing", "no such row");
    return row.part ?? new Uint8Array(0);
  }

  override async *list(prefix: string): AsyncIterable<ObjectInfo> {
    yield* this.#database
      .query<Row, [string, string]>(
        "SELECT key, length(bytes) AS size, modified FROM objects WHERE substr(key, 1, length(?)) = ? ORDER BY key",
      )
      .all(prefix, prefix);
  }

  override async stat(key: string): Promise<ObjectInfo | null> {
    return this.#database
      .query<Row, [string]>("SELECT key, length(bytes) AS size, modified FROM objects WHERE key = ?")
      .get(key);
  }

  override async write(key: string, bytes: Uint8Array): Promise<void> {
    this.#database.run("INSERT OR REPLACE INTO objects VALUES (?, ?, ?)", [key, bytes, Date.now()]);
  }

  /** How messages name an object: optional, but needed behind a cache, which tells sources apart by it. */
  override locate(key: string): string {
    return `${this.path}:${key}`;
  }

  [Symbol.dispose](): void {
    this.#database.close();
  }
}

const [dir, trainSplit = "train2017", valSplit = "val2017"] = process.argv.slice(2);
using device = new Device({}, console.log);
const codec = new DeviceImageCodec(device);
if (dir === undefined) {
  await generateDemo(demoFolder(), {
    encode: (data, width, height, quality) => codec.encode({ data, width, height }, quality),
  });
}

const scratch = await mkdtemp(join(tmpdir(), "dlfs-source-"));
try {
  using source = new SQLiteSource(join(scratch, "objects.sqlite"));
  const from = dataSource(dir ?? demoFolder());
  let bytes = 0;
  let count = 0;
  for (const prefix of ["annotations/", `${trainSplit}/`, `${valSplit}/`]) {
    for await (const { key, size } of from.list(prefix)) {
      await source.write(key, await from.read(key));
      bytes += size;
      count++;
    }
  }
  console.log(`${count} objects, ${(bytes / 1e6).toFixed(1)} MB, from ${dir ?? demoFolder()} into ${source.path}`);

  // From here on, all is as with a folder.
  using dataset = await loadDataset(source, { codec, trainSplit, valSplit, store: ":memory:" });
  for (const line of describeDataset(dataset)) console.log(line);
  const [height, width] = [256, 256];
  const batchSize = 8;
  const preprocessing = [new Resize(), new Normalize()];
  using decoder = new DeviceBatchDecoder(device, { batchSize, height, width, preprocessing });
  const { store } = dataset;
  const options = { store, source, split: valSplit, batchSize, size: [height, width] as const, preprocessing, decoder };
  await using loader = new CocoDataLoader({ ...options, shuffle: false });
  let images = 0;
  for await (const batch of loader) {
    images += batch.n;
    batch.release();
  }
  console.log(`${images} images of ${valSplit} decoded, ${loader.failures.length} failed`);
} finally {
  await rm(scratch, { recursive: true, force: true });
}
