/**
 * Uses Label Studio itself, PyPI's label-studio, on what dlfs says to it:
 *
 *   bun run scripts/check-label-studio.ts --python PYTHON
 *
 * PYTHON needs label-studio. It is started on a free port with a data folder of its own. Images are pushed and uploaded with boxes and
 * predictions, pushed again, connected to a backend that finds boxes, predicted, annotated, moved, turned, deleted and pulled, with a
 * legacy and a personal access token. Exits with 1 where something is not as it must be.
 */
import { strict as assert } from "node:assert";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { parseArgs } from "node:util";
import { LocalDataSource, SQLiteAnnStore } from "../lib/data";
import { sleep } from "../lib/data/retry";
import {
  intoDataset,
  labelConfigOf,
  mergeLabels,
  pullLabels,
  pushLabels,
  StudioBackend,
  StudioClient,
  TaskImages,
} from "../lib/label";
import { tinyJpeg } from "../tests/support/tiny-model";

const { values: args } = parseArgs({ options: { python: { type: "string", default: "python3" } } });
const folder = await mkdtemp(join(tmpdir(), "dlfs-label-studio-"));
const TOKEN = "0123456789abcdef0123456789abcdef01234567";
const USER = "ada@example.org";

/** Waits until it is so. */
async function until(what: string, isSo: () => Promise<boolean> | boolean, seconds = 60): Promise<void> {
  for (let left = 2 * seconds; left > 0; left--) {
    if (await isSo()) return;
    await sleep(500);
  }
  throw new Error(`${what}: not within ${seconds} seconds`);
}

function startStudio(port: number) {
  const settings = { LABEL_STUDIO_BASE_DATA_DIR: folder, ML_BLOCK_LOCAL_IP: "false", SSRF_PROTECTION_ENABLED: "false" };
  const tokens = { LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN: "true" };
  const quiet = { COLLECT_ANALYTICS: "false", SENTRY_DSN: "", FRONTEND_SENTRY_DSN: "" };
  const account = ["--username", USER, "--password", "a secret of ours", "--user-token", TOKEN];
  const command = [join(dirname(args.python), "label-studio"), "start", "--no-browser", "--port", `${port}`];
  return Bun.spawn([...command, "--internal-host", "127.0.0.1", ...account], {
    env: { ...process.env, ...settings, ...tokens, ...quiet },
    stdout: Bun.file(join(folder, "log")),
    stderr: Bun.file(join(folder, "log")),
  });
}

/** A data set of four images: boxes of a file, of a model, a crowd, none. */
async function makeStore(): Promise<SQLiteAnnStore> {
  const store = new SQLiteAnnStore();
  store.addCategories([
    { id: 1, name: "cell", supercategory: null },
    { id: 2, name: "a & b", supercategory: null },
  ]);
  const names = ["1.jpg", "sub/2 ü.jpg", "3.jpg", "4.jpg"];
  for (const [i, name] of names.entries()) await Bun.write(join(folder, "images", name), tinyJpeg(120, 80, i));
  const images = names.map((name, i) => ({ sourceId: i, fileName: name, key: name, width: 120, height: 80 }));
  const ids = store.addImages("train", images);
  const box = (place: number, categoryId: number, changes: object) => ({
    ...{ sourceId: 50 + place, imageId: ids[place] as number, categoryId, area: 700, isCrowd: false },
    ...{ bbox: [10.123456789, 20, 30, 25.5] as const, ...changes },
  });
  store.addAnnotations([
    box(0, 1, { by: { source: "imported", author: "x.json", time: 5 } }),
    box(1, 2, { isCrowd: true, by: { source: "human", author: USER, time: 6 } }),
    box(2, 1, { score: 0.5, by: { source: "model", author: "m1", time: 7 } }),
  ]);
  return store;
}

const stop = new AsyncDisposableStack();
try {
  const free = Bun.serve({ port: 0, fetch: () => new Response() });
  const port = free.port as number;
  await free.stop(true);
  const studio = startStudio(port);
  stop.defer(async () => {
    studio.kill();
    await studio.exited;
  });
  const url = `http://127.0.0.1:${port}`;
  const answers = () =>
    fetch(`${url}/health`).then(
      ({ ok }) => ok,
      () => false,
    );
  await until("label-studio start", () => studio.exitCode !== null || answers(), 300);
  assert.equal(studio.exitCode, null, `label-studio ended with ${studio.exitCode}`);
  const call = async (method: string, path: string, body?: unknown) => {
    const headers = { Authorization: `Token ${TOKEN}`, "Content-Type": "application/json" };
    const answer = await fetch(`${url}/${path}`, { method, headers, body: JSON.stringify(body) });
    const text = await answer.text();
    assert(answer.ok, `${method} ${path}: HTTP ${answer.status}: ${text.slice(0, 500)}`);
    return text === "" ? null : JSON.parse(text);
  };
  const { token: personal } = await call("POST", "api/token/");
  const client = new StudioClient({ url, token: personal });

  const store = await makeStore();
  const source = new LocalDataSource(join(folder, "images"));
  const project = await client.createProject("cells", labelConfigOf(store.classes().names));
  assert.deepEqual(project.config.labels, ["cell", "a & b"]);
  const push = () => pushLabels(client, project, store, { split: "train", upload: source });
  assert.deepEqual(await push(), { tasks: 4, present: 0, annotations: 2, predictions: 1, annotated: 0 });
  assert.equal((await push()).present, 4);
  const pull = async () => {
    using pulled = await pullLabels(client, project, { progress: () => {} });
    const target = intoDataset({ store, classes: store.classes() });
    return await mergeLabels(store, pulled.store, pulled.inexact, { target, negatives: true, exact: true });
  };
  const changes = store.lastChange();
  assert.equal((await pull()).same, 2);
  assert.equal(store.lastChange(), changes);
  console.log("pushed, uploaded, pulled: nothing is different");

  const detections = [{ box: [12, 8, 60, 40] as const, score: 0.75, label: 0 }];
  const dataset = { store, source, classes: store.classes() };
  const users = new Map<number, string>(await client.users());
  const said: string[] = [];
  await using backend = new StudioBackend({
    ...{ port: 0, log: (line) => said.push(line), labels: intoDataset(dataset) },
    detector: () => ({
      ...{ version: "m2@1", classes: ["cell"] },
      detect: async (files) => files.map(() => ({ width: 120, height: 80, detections, error: null })),
    }),
    images: new TaskImages({ dataset }),
    userAddress: async (id) => users.get(id),
  });
  await call("POST", "api/ml/", { url: backend.url, project: project.id, title: "dlfs" });
  const hook = { url: new URL("webhook", backend.url).href, project: project.id };
  await call("POST", "api/webhooks/", { ...hook, send_payload: true, send_for_all_actions: true });
  const listed: {
    id: number;
    data: { image: string };
    annotations: { id: number; result: { value: { x: number } }[] }[];
  }[] = [];
  for await (const page of client.tasks(project.id)) listed.push(...(page as never[]));
  const [first, second, third, fourth] = listed.map(({ id }) => id);
  const selectedItems = { all: false, included: [fourth] };
  await call("POST", `api/dm/actions/?id=retrieve_tasks_predictions&project=${project.id}`, { selectedItems });
  const { predictions } = await call("GET", `api/tasks/${fourth}/`);
  assert.deepEqual([predictions.length, predictions[0].model_version, said], [1, "m2@1", []]);
  const [region] = predictions[0].result;
  assert.deepEqual(region.value, { x: 10, y: 10, width: 40, height: 40, rotation: 0, rectanglelabels: ["cell"] });
  const uploaded = await new TaskImages({ labelStudio: { url, token: personal } }).read(listed[3]!.data.image);
  assert.equal(Buffer.compare(uploaded, await source.read("4.jpg")), 0, "an image that was uploaded is another now");
  console.log("connected as a backend, which predicted; an image that was uploaded is what it was");

  const boxesOf = (place: number) => {
    const rows = store.annotationsOf(store.images("train")[place]!.id);
    return rows.map(({ bbox, author }) => [...bbox.map((x) => Math.round(10 * x) / 10), author]);
  };
  const soon = (place: number, expected: unknown[]) =>
    until(`boxes of image ${place}: ${JSON.stringify(expected)}`, () => {
      return JSON.stringify(boxesOf(place)) === JSON.stringify(expected);
    });
  await call("POST", `api/dm/actions/?id=predictions_to_annotations&project=${project.id}`, { selectedItems });
  await soon(3, [[12, 8, 48, 32, USER]]);
  const { id: empty } = await call("POST", `api/tasks/${fourth}/annotations/`, { result: [] });
  await soon(3, []);
  await call("DELETE", `api/annotations/${empty}/`);
  await soon(3, [[12, 8, 48, 32, USER]]);
  console.log("annotated, from predictions and by hand, and deleted: webhooks said so each time");

  const annotation = listed[0]!.annotations[0]!;
  annotation.result[0]!.value.x = 50;
  await call("PATCH", `api/annotations/${annotation.id}/`, { result: annotation.result });
  const turned = { ...region, value: { ...region.value, rotation: 30 } };
  await call("POST", `api/tasks/${third}/annotations/`, { result: [turned] });
  const report = await pull();
  const reason = "annotations[0].result[0].value.rotation: expected 0, got 30: boxes are upright";
  assert.deepEqual(report.refused, [{ image: "3.jpg", reason: `task ${third}.${reason}` }]);
  assert.deepEqual(boxesOf(0), [[60, 20, 30, 25.5, USER]]);
  assert.deepEqual([store.annotationsOf(2)[0]?.isCrowd, boxesOf(1)], [true, [[10.1, 20, 30, 25.5, USER]]]);
  assert.equal((await pull()).changedImages, 0);
  console.log(`moved, and pulled; a turned box of task ${third} was refused, tasks ${first} and ${second} were taken`);
} catch (error) {
  const log = await Bun.file(join(folder, "log"))
    .text()
    .catch(() => "");
  console.error(
    `${error instanceof Error ? error.stack : error}\n\nLabel Studio's log ends with:\n${log.slice(-2000)}`,
  );
  process.exitCode = 1;
} finally {
  await stop.disposeAsync();
  await rm(folder, { recursive: true, force: true });
}
