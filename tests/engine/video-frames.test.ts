/** Frames of videos: the pipe from ffmpeg, with a program that speaks as it does, and with ffmpeg itself where it is installed. */
import { afterAll, afterEach, describe, expect, test } from "bun:test";
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { isVideo, type VideoFrame, type VideoOptions, videoFrames } from "../../lib/engine";
import { ErrorCode } from "../../lib/native";
import { errorIn } from "../support/tiny-training";

const folder = mkdtempSync(join(tmpdir(), "dlfs-video-"));
const fake = join(folder, "fake-ffmpeg");
const script = fileURLToPath(new URL("../support/fake-ffmpeg.ts", import.meta.url));
writeFileSync(fake, `#!/bin/sh\nexec "${process.execPath}" run "${script}" "$@"\n`);
chmodSync(fake, 0o755);
const clip = join(folder, "clip.mp4");
writeFileSync(clip, "no video, but the program does not look at it");
const { DLFS_FFMPEG: before } = process.env;
afterEach(() => {
  for (const name of ["DLFS_FFMPEG", "FAKE_FFMPEG", "FAKE_FFMPEG_ARGUMENTS"]) delete process.env[name];
  if (before !== undefined) process.env.DLFS_FFMPEG = before;
});
afterAll(() => rmSync(folder, { recursive: true }));

async function collect(path: string, options: VideoOptions = {}) {
  const frames: VideoFrame[] = [];
  for await (const frame of videoFrames(path, options)) frames.push(frame);
  return frames;
}
const indices = (frames: readonly VideoFrame[]) => frames.map(({ index }) => index);
const all = Array.from({ length: 12 }, (_, i) => i);

describe("frames over a pipe", () => {
  const use = (...does: string[]) => Object.assign(process.env, { DLFS_FFMPEG: fake, FAKE_FFMPEG: does.join(",") });

  test("come whole, however they are cut, with their places and times, however late those are told", async () => {
    use("slow");
    let length = 0;
    const frames = await collect(clip, { onLength: (frames) => (length = frames) });
    expect(indices(frames)).toEqual(all);
    expect(length).toBe(12);
    for (const { index, time, pixels } of frames) {
      expect(time).toBeCloseTo(index / 10, 9);
      expect([pixels.width, pixels.height]).toEqual([40, 30]);
      expect(pixels.data).toEqual(new Uint8Array(3600).fill(20 * index + 10));
    }
  });

  test("are every Nth, so many a second, or a share of either", async () => {
    use();
    expect(indices(await collect(clip, { every: 5 }))).toEqual([0, 5, 10]);
    expect(indices(await collect(clip, { fps: 4 }))).toEqual([0, 3, 5, 8, 10]);
    const shares = await Promise.all([0, 1, 2].map((index) => collect(clip, { share: { index, count: 3 } })));
    expect(shares.map((frames) => indices(frames))).toEqual([0, 1, 2].map((rank) => all.filter((n) => n % 3 === rank)));
    expect(indices(await collect(clip, { every: 2, share: { index: 1, count: 2 } }))).toEqual([2, 6, 10]);
  });

  test("are asked for in words that old and new versions understand, by a name that is no option and no address", async () => {
    for (const [version, word] of [
      ["4.4.2-0ubuntu0.22.04.1", "-vsync"],
      ["5.0.1", "-vsync"],
      ["5.1.9-0+deb12u1", "-fps_mode"],
      ["n7.1", "-fps_mode"],
      ["N-12345-gabc", "-fps_mode"],
    ]) {
      use(`version ${version}`);
      process.env.FAKE_FFMPEG_ARGUMENTS = join(folder, "arguments");
      await collect(clip, { every: 6 });
      const words = readFileSync(join(folder, "arguments"), "utf8").split("\n");
      expect(words[words.indexOf(word as string) + 1]).toBe("passthrough");
      expect(words[words.indexOf("-i") + 1]).toBe(`file:${clip}`);
      expect(words).toContain("-nostdin");
    }
  });

  test("that stop early, or are nonsense, are errors that name the video, after the frames before", async () => {
    const cases: [string, number, string][] = [
      ["fail", 5, `${clip}: ffmpeg ended with 69: Invalid NAL unit size (0 > 100).; file:clip.mp4: Invalid data found`],
      ["cut", 2, `${clip}: ffmpeg: ended after `],
      ["noise", 0, `${clip}: ffmpeg: expected a frame's header, got "G`],
    ];
    for (const [does, whole, message] of cases) {
      use(does);
      const frames: VideoFrame[] = [];
      const error = await errorIn(
        (async () => {
          for await (const frame of videoFrames(clip)) frames.push(frame);
        })(),
      );
      expect(error.message).toStartWith(message);
      expect(error.code).toBe(ErrorCode.io);
      expect(frames.length).toBe(whole);
    }
  });

  test("end where nobody wants more, or a signal says so, and the program with them", async () => {
    use("slow");
    for await (const { index } of videoFrames(clip)) if (index === 1) break;
    const stop = new AbortController();
    const seen: number[] = [];
    for await (const { index } of videoFrames(clip, { signal: stop.signal })) {
      seen.push(index);
      if (index === 2) stop.abort();
    }
    expect(seen.length).toBeLessThan(12);
    expect(await collect(clip, { signal: AbortSignal.abort() })).toEqual([]);
  });

  test("need a program, a file, and a choice that makes sense", async () => {
    process.env.DLFS_FFMPEG = join(folder, "none");
    expect((await errorIn(collect(clip))).message).toBe(
      `${clip}: there is no program ${join(folder, "none")}, which DLFS_FFMPEG names for decoding videos`,
    );
    use();
    expect((await errorIn(collect(join(folder, "none.mp4")))).message).toBe(
      `${join(folder, "none.mp4")}: no such file`,
    );
    expect((await errorIn(collect(clip, { every: 0.5 }))).message).toContain("every: expected an integer from 1");
    expect((await errorIn(collect(clip, { fps: 0 }))).message).toContain("fps: expected a number above 0, got 0");
    expect((await errorIn(collect(clip, { fps: 1, every: 2 }))).message).toContain("expected either every or fps");
    // Without ffmpeg on PATH, how it is installed.
    const child = Bun.spawnSync(
      [
        process.execPath,
        "-e",
        `for await (const _ of (await import("${join(import.meta.dir, "../../lib/engine/index.ts")}")).videoFrames("${clip}"));`,
      ],
      { env: { PATH: folder, HOME: folder } },
    );
    expect(child.stderr.toString()).toContain(
      "ffmpeg is not installed, which decodes videos: apt install ffmpeg (Debian, Ubuntu)",
    );
  });
});

test("videos are told by their names", () => {
  for (const name of ["a.mp4", "A.MOV", "b/c.webm", "x.m2ts", "y.mpeg"]) expect(isVideo(name)).toBe(true);
  for (const name of ["a.jpg", "mp4", "a.mp4.txt", "a.ts"]) expect(isVideo(name)).toBe(false);
});

const ffmpeg = Bun.which("ffmpeg");
describe.skipIf(ffmpeg === null)(
  `ffmpeg itself${ffmpeg === null ? " (it is not installed: apt install ffmpeg)" : ""}`,
  () => {
    const made = (name: string, ...options: string[]): string => {
      const path = join(folder, name);
      const source = ["-f", "lavfi", "-i", "testsrc=size=96x64:rate=10:duration=3"];
      const { exitCode, stderr } = Bun.spawnSync([
        ffmpeg as string,
        ...["-hide_banner", "-loglevel", "error", "-y", ...source, "-c:v", "mpeg4", "-q:v", "3", ...options, path],
      ]);
      expect([exitCode, stderr.toString()]).toEqual([0, ""]);
      return path;
    };

    test("gives all frames, every Nth, so many a second, and shares of them", async () => {
      const path = made("real.mp4");
      const whole = await collect(path);
      expect(indices(whole)).toEqual(Array.from({ length: 30 }, (_, i) => i));
      for (const { index, time, pixels } of whole) {
        expect(time).toBeCloseTo(index / 10, 3);
        expect([pixels.width, pixels.height, pixels.data.length]).toEqual([96, 64, 3 * 96 * 64]);
      }
      // A picture of the test's has many colours.
      expect(new Set(whole[0]!.pixels.data).size).toBeGreaterThan(20);
      expect(whole[0]!.pixels.data).not.toEqual(whole[20]!.pixels.data);
      const seventh = await collect(path, { every: 7 });
      expect(indices(seventh)).toEqual([0, 7, 14, 21, 28]);
      for (const { index, pixels } of seventh) expect(pixels.data).toEqual(whole[index]!.pixels.data);
      const sampled = await collect(path, { fps: 2 });
      expect(sampled.map(({ time }) => Math.round(10 * time))).toEqual([0, 5, 10, 15, 20, 25]);
      const halves = await Promise.all([0, 1].map((index) => collect(path, { fps: 4, share: { index, count: 2 } })));
      const together = halves.flatMap(indices).sort((a, b) => a - b);
      expect(together).toEqual(indices(await collect(path, { fps: 4 })));
    });

    test("refuses what is no video, and tells of one that is cut off", async () => {
      const text = join(folder, "text.mp4");
      writeFileSync(text, "no video at all");
      const error = await errorIn(collect(text));
      expect(error.message).toMatch(/text\.mp4: ffmpeg ended with \d+: .*(Invalid data|moov)/);
      const cut = made("cut.avi");
      truncateSync(cut, Math.floor(readFileSync(cut).length / 2));
      const found = await collect(cut).catch((thrown: Error) => thrown);
      // Of a file that can be read from its start, the frames that are there.
      if (Array.isArray(found)) expect(found.length).toBeWithin(3, 29);
      else expect(found.message).toContain("cut.avi: ffmpeg");
      expect(existsSync(cut)).toBe(true);
    });
  },
);
