/** dlfs predict in several processes, on images that failed before, and on the frames of a video. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { copyFile, cp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Normalize, Resize } from "../../lib/data";
import { listImages, PredictProcesses, runBatchInference } from "../../lib/engine";
import { type ImagePrediction, latestPredictions, PredictionsReader } from "../../lib/formats";
import { backend, mostRanks, testDevice } from "../support/device";
import { BUCKET, objectServer, S3_KEYS } from "../support/object-server";
import { runDlfs } from "../support/run-dlfs";
import { writeTinyDataset } from "../support/tiny-dataset";
import { errorIn } from "../support/tiny-training";
import { saveTrained } from "../support/trained-model";

const folder = mkdtempSync(join(tmpdir(), "dlfs-cli-predict-more-"));
const model = join(folder, "a.dlck");
const photos = join(folder, "photos");
let data: string;

beforeAll(async () => {
  data = await writeTinyDataset(testDevice(), 12);
  await cp(join(data, "val2017"), photos, { recursive: true });
  const network = {
    ...({ name: "compact", classes: 2, width: 4, headConvs: 1 } as const),
    postprocess: { scoreThreshold: 0, topK: 50, maxDetections: 10 },
  };
  const preprocessing = [new Resize().toJSON(), new Normalize().toJSON()];
  await saveTrained(model, network, 3, { model: network, classes: ["red", "green"], size: [64, 64], preprocessing });
});
afterAll(() => {
  for (const place of [folder, data]) rmSync(place, { recursive: true });
});

const predict = (...args: string[]) =>
  runDlfs(["predict", model, ...args, "--precision", "fp32"], { cwd: folder, env });
let env: Record<string, string> = {};

/** All messages of a predictions file, by the images' names. */
async function read(out: string): Promise<Map<string, ImagePrediction[]>> {
  await using reader = await PredictionsReader.open(join(out, "predictions.dlpr"));
  return Map.groupBy(await Array.fromAsync(reader.predictions()), ({ name }) => name);
}

/** The same images with the same objects, but for rounding. */
function expectAlike(found: Map<string, ImagePrediction[]>, expected: Map<string, ImagePrediction[]>): void {
  expect([...found.keys()].sort()).toEqual([...expected.keys()].sort());
  for (const [name, [one, ...more]] of found) {
    expect(more).toEqual([]);
    const [other] = expected.get(name) as [ImagePrediction];
    expect(one?.scores.length).toBe(other.scores.length);
    for (const [i, score] of other.scores.entries()) expect(Math.abs(score - (one?.scores[i] ?? 0))).toBeLessThan(2e-3);
  }
}

const reason = mostRanks < 2 ? " (one GPU has one process)" : "";
describe.skipIf(reason !== "")(`several processes${reason}`, () => {
  test("share the images, write one file, and do what is left", async () => {
    const [one, two] = [join(folder, "one"), join(folder, "two")];
    expect((await predict(photos, "--out", one, "--batch", "4")).exitCode).toBe(0);
    const first = await predict(photos, "--out", two, "--batch", "2", "--gpus", "2", "--format", "jsonl", "--pictures");
    expect([first.exitCode, first.stderr]).toEqual([0, ""]);
    expect(first.stdout).toMatch(/^model: .*a\.dlck, 7 iterations, input 64x64, f32; 2 x /m);
    expect(first.stdout).toMatch(/^12 images, \d+ detections in /m);
    expectAlike(await read(two), await read(one));
    expect(readdirSync(join(two, "pictures")).length).toBe(12);
    expect(readFileSync(join(two, "predictions.jsonl"), "utf8").trim().split("\n").length).toBe(12);
    const again = await predict(photos, "--out", two, "--gpus", "2");
    expect(again.stdout).toContain("12 images were done before\n0 images, 0 detections");
    await copyFile(join(photos, "1.jpg"), join(photos, "new.jpg"));
    const third = await predict(photos, "--out", two, "--gpus", "2");
    expect(third.stdout).toContain("12 images were done before\n1 images, ");
    rmSync(join(photos, "new.jpg"));
  }, 60_000);

  test("go on without one that is killed, whose images are left for the next call", async () => {
    const out = join(folder, "killed");
    const device = backend === "cpu" ? { backend, threads: 1 } : { backend };
    const devices = [0, 1].map((index) => ({ ...device, ...(backend === "cuda" && { index }) })) as object[];
    const list = await listImages(photos);
    const options = { model, devices, location: photos, batchSizes: [1], precision: "fp32" as const };
    {
      await using processes = await PredictProcesses.start(options);
      const [, victim] = childrenOf(process.pid).filter((pid) => commandOf(pid).includes("predict-process"));
      let killed = false;
      const progress = () => {
        if (!killed) process.kill(victim as number, "SIGKILL");
        killed = true;
      };
      const error = await errorIn(runBatchInference({ engine: processes, list, out, progress }));
      expect(error.message).toMatch(
        /: its process ended with SIGKILL; what it had not done is left, and the same call goes on with it$/,
      );
    }
    const kept = (await read(out)).size;
    expect(kept).toBeWithin(6, 12); // the other's share
    await using processes = await PredictProcesses.start(options);
    const result = await runBatchInference({ engine: processes, list, out, progress: () => {} });
    expect(result).toMatchObject({ before: kept, images: 12 - kept, interrupted: false, failures: [] });
    expect((await read(out)).size).toBe(12);
  }, 60_000);

  test("stop with what is done, and are none of a model that cannot be loaded", async () => {
    const out = join(folder, "stopped");
    const stop = new AbortController();
    const list = await listImages(photos);
    const devices = [
      { backend: backend as "cpu" },
      { backend: backend as "cpu", ...(backend === "cuda" && { index: 1 }) },
    ];
    const options = { model, devices, location: photos, batchSizes: [1], precision: "fp32" as const };
    await using processes = await PredictProcesses.start(options);
    const progress = (_: string, done: number) => void (done >= 1 && stop.abort());
    const { images, interrupted } = await runBatchInference({
      ...{ engine: processes, list, out, progress, signal: stop.signal, readAhead: 1, batchesAhead: 1 },
    });
    expect(interrupted).toBe(true);
    expect((await read(out)).size).toBe(images);
    const error = await errorIn(PredictProcesses.start({ ...options, model: join(folder, "none.dlfs") }));
    expect(error.message).toContain("none.dlfs: it does not exist");
  }, 60_000);
});

test.skipIf(reason !== "")(
  "processes know a user's own architecture by the files that they import",
  async () => {
    const own = join(folder, "own.ts");
    const models = fileURLToPath(new URL("../../lib/models", import.meta.url));
    const lines = [
      `import { modelFromConfig, registerModel } from ${JSON.stringify(models)};`,
      `registerModel("of-my-own", ({ classes }) => modelFromConfig({ name: "compact", classes, width: 4, headConvs: 1 }));`,
    ];
    writeFileSync(own, lines.join("\n"));
    const path = join(folder, "own.dlck");
    const plain = { name: "compact", classes: 2, width: 4, headConvs: 1 } as const;
    const preprocessing = [new Resize().toJSON(), new Normalize().toJSON()];
    const config = {
      model: { name: "of-my-own", classes: 2 },
      classes: ["red", "green"],
      size: [64, 64],
      preprocessing,
    };
    await saveTrained(path, plain, 3, config);
    const devices = [0, 1].map((index) => ({
      backend,
      ...(backend === "cuda" ? { index } : { threads: 1 }),
    })) as object[];
    const options = { model: path, devices, location: photos, batchSizes: [2] };
    const error = await errorIn(PredictProcesses.start(options));
    expect(error.message).toContain("of-my-own");
    await using processes = await PredictProcesses.start({ ...options, modules: [own] });
    expect(processes.about.classes).toEqual(["red", "green"]);
  },
  60_000,
);

describe.each(["gs", "s3"])("a bucket's prefix, %s", (scheme) => {
  test("gives its images; what its server does not give is tried again", async () => {
    await using server = await objectServer();
    for (const name of readdirSync(photos)) server.put(`shots/${name}`, readFileSync(join(photos, name)));
    server.put("shots/notes.txt", "no image");
    // Not the user's cache of objects, which may have them.
    const cache = { XDG_CACHE_HOME: join(folder, `cache-${scheme}`) };
    const credentials = { AWS_ACCESS_KEY_ID: S3_KEYS.accessKeyId, AWS_SECRET_ACCESS_KEY: S3_KEYS.secretAccessKey };
    env =
      scheme === "gs"
        ? { ...cache, STORAGE_EMULATOR_HOST: server.address }
        : { ...cache, S3_ENDPOINT: server.address, AWS_REGION: "us-east-1", ...credentials };
    const out = join(folder, `bucket-${scheme}`);
    const place = `${scheme}://${BUCKET}/shots`;
    // Gone between the list and the reading of it.
    server.faults.push({ kind: 404, times: 1, match: /3\.jpg/ });
    const first = await predict(place, "--out", out);
    const second = await predict(place, "--out", out);
    env = {};
    expect(first.stdout).toContain(`12 images in ${place}\n`);
    expect(first.stdout).toContain("1 images could not be used:\n  3.jpg: ");
    expect([...(await read(out)).keys()].sort()).toEqual(readdirSync(photos).sort());
    expect(second.stdout).toContain(
      "11 images were done before\n1 images that had failed were tried again\n1 images, ",
    );
    expect((await read(out)).get("3.jpg")?.map(({ unreadable = false }) => unreadable)).toEqual([true, false]);
  }, 60_000);
});

describe("images that failed", () => {
  test("are tried again where they could not be read; damaged ones on request", async () => {
    const out = join(folder, "again");
    const names = join(folder, "names.txt");
    const [missing, damaged] = [join(folder, "missing.jpg"), join(folder, "damaged.jpg")];
    writeFileSync(names, `photos/1.jpg\nmissing.jpg\ndamaged.jpg\n`);
    writeFileSync(damaged, readFileSync(join(photos, "2.jpg")).subarray(0, 200));
    const run = (...more: string[]) => predict(names, "--out", out, "--format", "jsonl", ...more);
    const linesOf = () => {
      const lines = readFileSync(join(out, "predictions.jsonl"), "utf8").trim().split("\n");
      return Object.fromEntries(
        lines
          .map((line) => JSON.parse(line))
          .map(({ image, error, detections }) => [image, error ?? detections.length > 0]),
      );
    };
    const first = await run();
    expect(first.stdout).toContain("2 images could not be used:");
    expect(linesOf()["missing.jpg"]).toContain("no such file");
    const [one] = (await read(out)).get("missing.jpg") as [ImagePrediction];
    expect([one.unreadable, (await read(out)).get("damaged.jpg")?.[0]?.unreadable]).toEqual([true, undefined]);

    // Still missing: tried, and told of.
    const second = await run();
    expect(second.stdout).toContain("2 images were done before\n1 images that had failed were tried again\n1 images, ");
    expect(second.stdout).toContain("2 images could not be used:");

    for (const path of [missing, damaged]) await copyFile(join(photos, "3.jpg"), path);
    const third = await run();
    expect(third.stdout).toContain("1 images that had failed were tried again\n1 images, ");
    expect(third.stdout).toContain("1 images could not be used:\n  damaged.jpg: ");
    expect(linesOf()).toEqual({ "photos/1.jpg": true, "missing.jpg": true, "damaged.jpg": expect.any(String) });

    const fourth = await run("--retry-failed");
    expect(fourth.stdout).toContain("2 images were done before\n1 images that had failed were tried again\n1 images, ");
    expect(fourth.stdout).not.toContain("could not be used");
    expect(linesOf()).toEqual({ "photos/1.jpg": true, "missing.jpg": true, "damaged.jpg": true });
    expect((await read(out)).get("missing.jpg")?.length).toBe(3);
    const latest = await Array.fromAsync(latestPredictions(join(out, "predictions.dlpr")));
    expect(latest.map(({ name }) => name).sort()).toEqual(["damaged.jpg", "missing.jpg", "photos/1.jpg"]);
    const fifth = await run("--retry-failed");
    expect(fifth.stdout).toContain("3 images were done before\n0 images, ");
  }, 60_000);
});

describe("a video", () => {
  const clip = join(folder, "clip.mp4");
  beforeAll(() => {
    const fake = join(folder, "fake-ffmpeg");
    const script = fileURLToPath(new URL("../support/fake-ffmpeg.ts", import.meta.url));
    writeFileSync(fake, `#!/bin/sh\nexec "${process.execPath}" run "${script}" "$@"\n`);
    chmodSync(fake, 0o755);
    writeFileSync(clip, "no video, but the program does not look at it");
    env = { DLFS_FFMPEG: fake };
  });
  afterAll(() => {
    env = {};
  });
  const frameNames = (frames: number[]) => frames.map((frame) => `clip.mp4/${String(frame).padStart(8, "0")}`);
  const places = (found: Map<string, ImagePrediction[]>) =>
    [...found.values()].flat().map(({ frame, time }) => [frame, Math.round(10 * (time ?? Number.NaN))]);

  test("has results of its frames, with their places and times, and pictures", async () => {
    const out = join(folder, "video");
    const first = await predict(
      clip,
      "--out",
      out,
      "--every",
      "3",
      "--format",
      "jsonl,yolo",
      "--pictures",
      "--batch",
      "2",
    );
    expect([first.exitCode, first.stderr]).toEqual([0, ""]);
    expect(first.stdout).toContain(`one of 3 frames of ${clip}`);
    expect(first.stdout).toMatch(/^4 images, \d+ detections in /m);
    const found = await read(out);
    expect([...found.keys()]).toEqual(frameNames([0, 3, 6, 9]));
    expect(places(found)).toEqual([0, 3, 6, 9].map((n) => [n, n]));
    const lines = readFileSync(join(out, "predictions.jsonl"), "utf8").trim().split("\n");
    expect(JSON.parse(lines[1] as string)).toMatchObject({
      image: "clip.mp4/00000003",
      frame: 3,
      time: 0.3,
      width: 40,
      height: 30,
    });
    expect(readdirSync(join(out, "pictures", "clip.mp4")).sort()).toEqual([
      "00000000.jpg",
      "00000003.jpg",
      "00000006.jpg",
      "00000009.jpg",
    ]);
    expect(readdirSync(join(out, "labels", "clip.mp4")).length).toBe(4);

    // More frames of it into the same file: those that are there are passed over.
    const second = await predict(clip, "--out", out);
    expect(second.stdout).toContain("4 images were done before\n8 images, ");
    expect((await read(out)).size).toBe(12);
  }, 60_000);

  test("that breaks off keeps the frames before, and the error; a second run does the rest", async () => {
    const out = join(folder, "broken");
    const { DLFS_FFMPEG } = env as { DLFS_FFMPEG: string };
    env = { DLFS_FFMPEG, FAKE_FFMPEG: "fail" };
    const first = await predict(clip, "--out", out, "--batch", "2");
    env = { DLFS_FFMPEG };
    expect(first.exitCode).toBe(1);
    expect(first.stderr).toContain("clip.mp4: ffmpeg ended with 69: ");
    expect([...(await read(out)).keys()]).toEqual(frameNames([0, 1, 2, 3, 4]));
    const second = await predict(clip, "--out", out);
    expect(second.stdout).toContain("5 images were done before\n7 images, ");
  }, 60_000);

  test.skipIf(mostRanks < 2)(
    "is shared by several processes",
    async () => {
      const out = join(folder, "shared");
      const { exitCode, stdout, stderr } = await predict(
        clip,
        "--out",
        out,
        "--gpus",
        "2",
        "--fps",
        "5",
        "--batch",
        "2",
      );
      expect([exitCode, stderr]).toEqual([0, ""]);
      expect(stdout).toContain(`5 frames a second of ${clip}`);
      expect(places(await read(out)).sort((a, b) => (a[0] as number) - (b[0] as number))).toEqual(
        [0, 2, 4, 6, 8, 10].map((n) => [n, n]),
      );
    },
    60_000,
  );

  test("options that choose frames are of videos alone, and one of them", async () => {
    const wrong = await predict(photos, "--out", join(folder, "wrong"), "--every", "2");
    expect([wrong.exitCode, wrong.stderr]).toEqual([
      1,
      `dlfs predict: ${photos}: every and fps choose frames of a video, and this is none\n`,
    ]);
    const both = await predict(clip, "--out", join(folder, "wrong"), "--every", "2", "--fps", "1");
    expect([both.exitCode, both.stderr]).toEqual([2, expect.stringContaining("--fps: say either this or --every")]);
    const devices = await predict(clip, "--out", join(folder, "wrong"), "--gpus", "2", "--devices", "0");
    expect([devices.exitCode, devices.stderr]).toEqual([
      2,
      expect.stringContaining("--devices: say either this or --gpus"),
    ]);
  }, 60_000);
});

function childrenOf(pid: number): number[] {
  return readdirSync(`/proc/${pid}/task`).flatMap((thread) =>
    readFileSync(`/proc/${pid}/task/${thread}/children`, "utf8").trim().split(" ").filter(Boolean).map(Number),
  );
}

function commandOf(pid: number): string {
  return readFileSync(`/proc/${pid}/cmdline`, "utf8");
}
