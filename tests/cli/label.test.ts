/** dlfs label serve: Label Studio's requests to the end, corrections into a data set and into a training's address. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadDataset, SQLiteAnnStore } from "../../lib/data";
import type { Message } from "../../lib/formats";
import { intoDataset, intoTraining } from "../../lib/label";
import { LiveBus, LiveServer } from "../../lib/live";
import { FakeCodec } from "../data/fakes";
import { runDlfs } from "../support/run-dlfs";
import { saveTinyModel, tinyJpeg } from "../support/tiny-model";

const folder = mkdtempSync(join(tmpdir(), "dlfs-cli-label-"));
afterAll(() => rmSync(folder, { recursive: true }));
const model = await saveTinyModel(folder);

async function makeData(): Promise<string> {
  const data = join(folder, "data");
  for (const split of ["train", "val"]) {
    const images = [{ id: 1, file_name: "1.jpg", width: 120, height: 80 }];
    const categories = [{ id: 1, name: "cell" }];
    const annotations = [{ id: 1, image_id: 1, category_id: 1, bbox: [1, 2, 30, 40], area: 1200, iscrowd: 0 }];
    const content = JSON.stringify({ images, annotations, categories });
    await Bun.write(join(data, "annotations", `instances_${split}.json`), content);
    await Bun.write(join(data, split, "1.jpg"), tinyJpeg(120, 80, 3));
  }
  return data;
}

const xml = `<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image"><Label value="cell"/></RectangleLabels></View>`;
const result = {
  ...{
    id: "r",
    from_name: "label",
    to_name: "image",
    type: "rectanglelabels",
    original_width: 120,
    original_height: 80,
  },
  value: { x: 50, y: 50, width: 25, height: 25, rotation: 0, rectanglelabels: ["cell"] },
};

test("answers Label Studio, writes what is corrected to the data set, and ends when it is asked to", async () => {
  const data = await makeData();
  const env = { DLFS_CACHE: join(folder, "cache") };
  const image = `data:image/jpeg;base64,${Buffer.from(tinyJpeg(120, 80, 3)).toString("base64")}`;
  const answers: unknown[] = [];
  const talk = async (url: string) => {
    const post = async (path: string, body: unknown) => {
      const answer = await fetch(new URL(path, url), { method: "POST", body: JSON.stringify(body) });
      answers.push({ status: answer.status, body: await answer.json() });
    };
    const project = { id: 1, label_config: xml };
    await post("setup", { project: "1.2", schema: xml });
    await post("predict", {
      tasks: [
        { id: 4, data: { image } },
        { id: 5, data: { image: "train/1.jpg" } },
      ],
      project: "1.2",
    });
    const annotation = { id: 9, completed_by: 1, updated_at: "2026-01-02T03:04:05Z", result: [result] };
    const task = { id: 5, data: { image: "/data/local-files/?d=set/train/1.jpg" } };
    await post("webhook", { action: "ANNOTATION_CREATED", project, task, annotation });
    const elsewhere = { id: 6, data: { image: "gs://bucket/other/7.jpg" } };
    await post("webhook", { action: "ANNOTATION_CREATED", project, task: elsewhere, annotation });
  };
  const port = 20_000 + Math.floor(Math.random() * 20_000);
  const splits = ["--train-split", "train", "--val-split", "val"];
  const run = await runDlfs(["label", "serve", model, "--port", `${port}`, "--data", data, ...splits, "--score", "0"], {
    env,
    after: "label studio backend: ",
    act: (pid) => void talk(`http://127.0.0.1:${port}/`).finally(() => process.kill(pid, "SIGINT")),
  });
  expect([run.exitCode, run.stdout.includes(`label studio backend: http://127.0.0.1:${port}/`)]).toEqual([0, true]);
  const empty = { result: {}, status: "ok" };
  expect(answers).toEqual([
    { status: 200, body: { model_version: expect.stringContaining("@") } },
    { status: 200, body: { results: [expect.objectContaining({ score: expect.any(Number) }), expect.anything()] } },
    { status: 201, body: empty },
    { status: 400, body: { error: 'webhook: image: the data set has no "gs://bucket/other/7.jpg"' } },
  ]);
  const before = process.env.DLFS_CACHE;
  process.env.DLFS_CACHE = env.DLFS_CACHE;
  try {
    using dataset = await loadDataset(data, { codec: new FakeCodec(), trainSplit: "train", valSplit: "val" });
    const [first] = dataset.store.images("train");
    expect(dataset.store.annotationsOf(first!.id)).toMatchObject([
      { bbox: [60, 40, 30, 20], author: "1", source: "human" },
    ]);
  } finally {
    if (before === undefined) delete process.env.DLFS_CACHE;
    else process.env.DLFS_CACHE = before;
  }
}, 60_000);

test("passes labels on to a training's address, and says what that refuses", async () => {
  const heard: Message[] = [];
  await using server = new LiveServer({
    ...{ port: 0, token: "secret", bus: new LiveBus() },
    submit: async (message) => {
      heard.push(message);
      return heard.length === 1
        ? { accepted: true, from: 1 }
        : { accepted: false, reason: 'image: "x" is none of "train"' };
    },
  });
  const value = { id: "m", author: "ada", time: 1, image: "x", edits: [], replace: true, atOnce: false, weight: 1 };
  const target = intoTraining(`${server.url}live?token=secret`);
  await target(value);
  expect(heard).toEqual([{ type: "labels", value }]);
  await expect(target(value)).rejects.toThrow('live: image: "x" is none of "train"');
  await expect(intoTraining(`${server.url}live?token=no`)(value)).rejects.toThrow("wants another token");
  await expect(intoTraining("http://127.0.0.1:1/live")(value)).rejects.toThrow("cannot be reached");
  expect(() => intoTraining("nowhere")).toThrow('live: "nowhere" is no address');
});

test("is called wrongly", async () => {
  for (const [args, expected] of [
    [["label"], "expected serve, rank, audit, pull, push, export, import, got nothing"],
    [["label", "serve"], "expected one MODEL"],
    [["label", "serve", model, "--user", "x"], "--user: expected NAME:PASSWORD"],
  ] as const) {
    const { exitCode, stderr } = await runDlfs(args);
    expect([exitCode, stderr.includes(expected)]).toEqual([2, true]);
  }
});

test("labels of an image that several splits have go to none of them unless it is said to which", async () => {
  using store = new SQLiteAnnStore();
  store.addCategories([{ id: 1, name: "cell", supercategory: null }]);
  const image = { sourceId: 1, fileName: "1.jpg", key: "1.jpg", width: 10, height: 10 };
  const [train] = ["train", "val"].map((split) => store.addImages(split, [image])[0] as number);
  const target = intoDataset({ store, classes: store.classes() });
  const edits = [{ action: "add", category: "cell", box: [1, 1, 5, 5] }] as const;
  const message = { id: "m", author: "ada", time: 1, image: "1.jpg", edits };
  await expect(target(message)).rejects.toThrow('split: "1.jpg" is in train and val: say which is meant');
  await target({ ...message, split: "train" });
  expect(store.annotationsOf(train as number).length).toBe(1);
});
