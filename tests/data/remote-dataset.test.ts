import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CachedDataSource } from "../../lib/data/cached-data-source";
import { CocoDataLoader } from "../../lib/data/coco-data-loader";
import { describeDataset, type LoadDatasetOptions, loadDataset } from "../../lib/data/dataset";
import { LocalDataSource } from "../../lib/data/local-data-source";
import { type DataSourceOptions, dataSource } from "../../lib/data/open-data-source";
import { Resize } from "../../lib/data/transforms";
import { type ObjectServer, objectServer, S3_KEYS } from "../support/object-server";
import { FakeCodec, FakeDecoder, failure, fakeJpeg, inFolder, quiet } from "./fakes";

/** The cache folder of these tests: nothing may be written to the user's. */
let cache = "";
let server: ObjectServer;
const before = process.env.DLFS_CACHE;

beforeAll(async () => {
  server = await objectServer();
});

beforeEach(async () => {
  cache = await mkdtemp(join(tmpdir(), "dlfs-cache-"));
  process.env.DLFS_CACHE = cache;
  server.objects.clear();
  server.faults = [];
  server.log = [];
});

afterEach(async () => {
  await rm(cache, { recursive: true, force: true });
});

afterAll(async () => {
  if (before === undefined) delete process.env.DLFS_CACHE;
  else process.env.DLFS_CACHE = before;
  await server[Symbol.asyncDispose]();
});

/** Puts a data set on the server, images 1 to `count` in both splits. */
function upload(count: number, prefix = "coco/"): void {
  for (const split of ["train2017", "val2017"]) {
    const ids = Array.from({ length: count }, (_, i) => i + 1);
    const file = {
      images: ids.map((id) => ({ id, file_name: `${id}.jpg`, width: 40, height: 30 })),
      annotations: ids.map((id) => ({ id, image_id: id, category_id: 1, bbox: [1, 2, 10, 10] })),
      categories: [{ id: 1, name: "cat" }],
    };
    server.put(`${prefix}annotations/instances_${split}.json`, JSON.stringify(file));
    for (const id of ids) server.put(`${prefix}${split}/${id}.jpg`, fakeJpeg(40, 30, { data: 40 + id }));
  }
}

const places: Record<string, () => [location: string, source: DataSourceOptions]> = {
  "gs://": () => ["gs://boxes/coco", { gcs: { endpoint: server.address } }],
  "s3://": () => ["s3://boxes/coco/", { s3: { endpoint: server.address, ...S3_KEYS } }],
  "http://": () => [`${server.address}/coco`, {}],
};

const common = { retry: { attempts: 3, firstDelay: 2 }, warn: () => {} };

function load(place: () => [string, DataSourceOptions], changes: Partial<LoadDatasetOptions> = {}, source = {}) {
  const [location, own] = place();
  const options = { codec: new FakeCodec(), progress: quiet, source: { ...common, ...own, ...source } };
  return loadDataset(location, { ...options, ...changes });
}

describe.each(Object.entries(places))("loadDataset from %s", (scheme, place) => {
  test("reads annotations and images through the cache, once", async () => {
    upload(5);
    const codec = new FakeCodec();
    const listed = [];
    {
      using dataset = await load(place, { codec });
      expect(describeDataset(dataset)).toEqual([
        "train2017: 5 images, 5 boxes, 1 class",
        "val2017: 5 images, 5 boxes, 1 class",
      ]);
      expect(dataset.source).toBeInstanceOf(CachedDataSource);
      expect(codec.calls).toBe(10);
      const decoder = new FakeDecoder(5, 32, 48);
      const options = { store: dataset.store, source: dataset.source, split: "train2017", shuffle: false };
      const preprocessing = [new Resize()];
      await using loader = new CocoDataLoader({ ...options, decoder, batchSize: 5, size: [32, 48], preprocessing });
      (await loader.getBatch()).release();
      expect(decoder.calls[0]?.images.map(({ length }) => length)).toEqual(
        [1, 2, 3, 4, 5].map((id) => fakeJpeg(40, 30, { data: 40 + id }).length),
      );
      await (dataset.source as CachedDataSource).settled();
    }
    const reads = server.log.filter((line) => /^GET .*\.jpg/.test(line) && !/(prefix|list-type)=/.test(line));
    // Checking fetched each image whole, and the loader none again.
    expect(reads.length).toBeGreaterThanOrEqual(10);
    expect(new Set(reads.map((line) => line.replace(/\?.*/, ""))).size).toBe(10);

    server.log = [];
    using again = await load(place, { codec });
    expect(again.train.usable).toBe(5);
    expect(codec.calls).toBe(10);
    listed.push(...server.log);
    // The second start asks what there is, and reads nothing; servers that list need no request for each image.
    expect(
      listed.filter((line) => line.startsWith("GET") && /\.jpg(\?|$)/.test(line) && !line.includes("prefix=")),
    ).toEqual([]);
    if (scheme !== "http://") expect(listed.length).toBeLessThan(10);
  });

  test("skips and counts what was deleted between listing and reading", async () => {
    upload(4);
    const match = scheme === "gs://" ? /train2017%2F2\.jpg\?alt=media/ : /GET .*\/train2017\/2\.jpg/;
    server.faults = [{ kind: 404, match, times: 100 }];
    using dataset = await load(place);
    expect(dataset.train).toMatchObject({ images: 4, usable: 3 });
    const [problem] = dataset.problems.lines();
    expect(problem).toContain("1 image skipped: cannot be read (2.jpg: ");
    expect(problem).toContain("train2017/2.jpg: no such object (HTTP 404)");
  });

  test("says that there is no permission, once and at once", async () => {
    upload(2);
    server.faults = [{ kind: 403, times: 1000 }];
    const error = await failure(() => load(place));
    expect(error.message).toContain("coco/annotations/instances_train2017.json: permission denied (HTTP 403)");
    expect(server.log.length).toBe(1);
  });

  test("goes on after failures that pass", async () => {
    upload(3);
    server.faults = [
      { kind: 500, match: /instances_train/ },
      { kind: "cut", match: /GET.*instances_train/ },
      { kind: 429, match: /GET.*1\.jpg/ },
      { kind: "cut", match: /GET.*2\.jpg/ },
      { kind: 503, match: /GET.*3\.jpg/, times: 2 },
    ];
    using dataset = await load(place);
    expect(describeDataset(dataset)).toEqual([
      "train2017: 3 images, 3 boxes, 1 class",
      "val2017: 3 images, 3 boxes, 1 class",
    ]);
  });

  test("names the object where annotations are missing or damaged", async () => {
    upload(1);
    const missing = await failure(() => load(place, { trainSplit: "train" }));
    expect(missing.message).toContain("coco/annotations/instances_train.json: no such object; ");
    if (scheme !== "http://") expect(missing.message).toEndWith("the splits there are: train2017, val2017");
    server.put("coco/annotations/instances_val2017.json", '{"images": [');
    const damaged = await failure(() => load(place));
    expect(damaged.message).toContain("coco/annotations/instances_val2017.json: ");
    expect(damaged.message).not.toContain(cache);
  });
});

describe("loadDataset", () => {
  test("finds images in other folders of a bucket, and says where it looked", async () => {
    upload(2, "");
    for (const [key, object] of [...server.objects]) {
      if (key.includes("2017/")) server.objects.set(`images/${key}`, object);
      if (key.includes("2017/")) server.objects.delete(key);
    }
    const place = (): [string, DataSourceOptions] => ["gs://boxes", { gcs: { endpoint: server.address } }];
    using dataset = await load(place);
    expect(dataset.train.usable).toBe(2);
    for (const key of [...server.objects.keys()]) if (key.startsWith("images/val")) server.objects.delete(key);
    const error = await failure(() => load(place, { trainSplit: "val2017" }));
    // images/ holds the other split's: what is missing there is each image.
    expect(error.message).toContain("gs://boxes/annotations/instances_val2017.json: none of its images can be used");
    for (const key of [...server.objects.keys()]) if (key.startsWith("images/")) server.objects.delete(key);
    const none = await failure(() => load(place));
    expect(none.message).toContain("looked for gs://boxes/train2017, gs://boxes/images/train2017, gs://boxes/images");
  });

  test("works without a cache, and where the cache's disk fails", async () => {
    upload(2);
    using direct = await load(places["s3://"]!, {}, { cache: false });
    expect(direct.train.usable).toBe(2);
    await Bun.write(join(cache, "objects", "partial"), "a file where a folder belongs");
    const warnings: string[] = [];
    using failing = await load(places["gs://"]!, {}, { warn: (message: string) => warnings.push(message) });
    expect(failing.val?.usable).toBe(2);
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toStartWith("the cache is passed by for 30 s: ");
  });
});

describe("dataSource", () => {
  test("opens what a location names", async () => {
    await inFolder(async (folder) => {
      expect(dataSource(folder).locate("x")).toBe(join(folder, "x"));
      expect(dataSource(`file://${folder}`).locate("x")).toBe(join(folder, "x"));
      expect(dataSource("data")).toBeInstanceOf(LocalDataSource);
    });
    const keys = { s3: { ...S3_KEYS } };
    for (const [location, located] of [
      ["gs://bucket", "gs://bucket/a/b"],
      ["GS://bucket/pre/fix/", "gs://bucket/pre/fix/a/b"],
      ["s3://bucket/p", "s3://bucket/p/a/b"],
      ["https://example.org", "https://example.org/a/b"],
      ["https://example.org/data/?key=1", "https://example.org/data/a/b"],
    ] as const) {
      expect(dataSource(location, keys)).toBeInstanceOf(CachedDataSource);
      expect(dataSource(location, { ...keys, cache: false })).not.toBeInstanceOf(CachedDataSource);
      expect(dataSource(location, keys).locate("a/b")).toBe(located);
    }
    expect((await failure(() => dataSource("ftp://host/x"))).message).toContain("got ftp://");
    for (const location of ["gs://", "s3:///x"]) {
      expect((await failure(() => dataSource(location))).message).toContain("names no bucket");
    }
    process.env.DLFS_CACHE_LIMIT = "many";
    try {
      expect((await failure(() => dataSource("gs://b"))).message).toContain('got "many"');
      process.env.DLFS_CACHE_LIMIT = "2GiB";
      expect((dataSource("gs://b") as CachedDataSource).cache.limit).toBe(2 ** 31);
    } finally {
      delete process.env.DLFS_CACHE_LIMIT;
    }
  });
});
