/** Frames of videos, decoded by ffmpeg, which runs as a program of its own and hands them over a pipe. */
import { existsSync } from "node:fs";
import { resolve } from "node:path";
import type { Pixels } from "../data";
import { check, DlfsError, ErrorCode } from "../native";

const VIDEO = /\.(mp4|m4v|mov|mkv|webm|avi|mpe?g|m2?ts|wmv|flv|ogv|3gp)$/i;

/** Whether a file's name is that of a video. */
export function isVideo(path: string): boolean {
  return VIDEO.test(path);
}

/** Which frames are taken. */
export interface FrameChoice {
  /** Every Nth frame, the first among them. Default 1: all. */
  every?: number;
  /** So many frames a second, at most those there are; not with `every`. */
  fps?: number;
  /** Of those the ones whose number, divided by `count`, leaves `index`: processes that share a video. */
  share?: { index: number; count: number };
}

export interface VideoOptions extends FrameChoice {
  /** Ends it, without an error. */
  signal?: AbortSignal;
  /** Hears about how many frames there will be, where the video says. */
  onLength?: (frames: number) => void;
}

/** A decoded frame, upright. */
export interface VideoFrame {
  /** Its place among all frames of the video, from 0. */
  index: number;
  /** Seconds from the video's start; NaN where the video does not say. */
  time: number;
  pixels: Pixels;
}

/** The program: DLFS_FFMPEG, or ffmpeg on PATH. */
function findFfmpeg(path: string): string {
  const named = process.env.DLFS_FFMPEG;
  const program = Bun.which(named ?? "ffmpeg");
  check(
    program !== null,
    path,
    () =>
      named === undefined
        ? "ffmpeg is not installed, which decodes videos: apt install ffmpeg (Debian, Ubuntu), dnf install ffmpeg-free (Fedora), " +
          "brew install ffmpeg (macOS), or set DLFS_FFMPEG to a program's path"
        : `there is no program ${named}, which DLFS_FFMPEG names for decoding videos`,
    ErrorCode.unsupported,
  );
  return program;
}

/** Whether this ffmpeg has -fps_mode, 5.1 and later, in place of -vsync. */
function hasFpsMode(program: string): boolean {
  const [, major, minor] =
    /^ffmpeg version n?(\d+)\.(\d+)/.exec(
      Bun.spawnSync([program, "-version"], { env: process.env }).stdout.toString(),
    ) ?? [];
  return major === undefined || Number(major) > 5 || (Number(major) === 5 && Number(minor) >= 1); // builds of a commit are new
}

/** The filters that choose frames. The first and the last tell of each frame that passes its number and its time. */
export function frameFilters({ every = 1, fps, share }: FrameChoice): string {
  const tell = "showinfo=checksum=0";
  const filters: string[] = [];
  if (every > 1) filters.push(`select=not(mod(n\\,${every}))`);
  if (fps !== undefined) {
    const slot = (time: string) => `floor(${time}*${fps}+0.000001)`;
    filters.push(`select=isnan(prev_selected_t)+gt(${slot("t")}\\,${slot("prev_selected_t")})`);
  }
  if (share && share.count > 1) filters.push(`select=eq(mod(n\\,${share.count})\\,${share.index})`);
  return filters.length === 0 ? tell : [tell, ...filters, tell].join(",");
}

function checkChoice(path: string, { every, fps }: FrameChoice): void {
  check(
    every === undefined || (Number.isSafeInteger(every) && every >= 1),
    path,
    () => `every: expected an integer from 1, got ${every}`,
  );
  check(
    fps === undefined || (Number.isFinite(fps) && fps > 0),
    path,
    () => `fps: expected a number above 0, got ${fps}`,
  );
  check(every === undefined || fps === undefined, path, () => "expected either every or fps, got both");
}

/** Bytes of a pipe, as many at a time as are asked for. */
class PipeReader {
  readonly #parts: AsyncIterator<Uint8Array>;
  #left: Uint8Array = new Uint8Array(0);

  constructor(stream: ReadableStream<Uint8Array>) {
    this.#parts = stream[Symbol.asyncIterator]();
  }

  /** Fills a buffer; false where the pipe ends before its first byte. */
  async fill(out: Uint8Array): Promise<boolean> {
    for (let at = 0; at < out.length; ) {
      if (this.#left.length === 0) {
        const { done, value } = await this.#parts.next();
        if (done) {
          if (at === 0) return false;
          throw new RangeError(`ended after ${at} of ${out.length} bytes of a frame`);
        }
        this.#left = value;
      }
      const part = this.#left.subarray(0, out.length - at);
      out.set(part, at);
      at += part.length;
      this.#left = this.#left.subarray(part.length);
    }
    return true;
  }

  async cancel(): Promise<void> {
    await this.#parts.return?.().catch(() => {});
  }
}

/** A frame as PPM: "P6", width and height, the largest value, then RGB; null at the end. */
async function readPpm(pipe: PipeReader): Promise<Pixels | null> {
  const byte = new Uint8Array(1);
  let header = "";
  while (!/^P6\s+\d+\s+\d+\s+\d+\s$/.test(header)) {
    if (!(await pipe.fill(byte))) {
      if (header === "") return null;
      throw new RangeError("ended within the header of a frame");
    }
    header += String.fromCharCode(byte[0] as number);
    if (header.length > 64 || !"P6".startsWith(header.slice(0, 2))) {
      throw new RangeError(`expected a frame's header, got ${JSON.stringify(header.slice(0, 16))}`);
    }
  }
  const [, width, height, most] = header.split(/\s+/).map(Number) as [number, number, number, number];
  if (most !== 255 || width < 1 || height < 1)
    throw new RangeError(`expected 8 bits a colour, got a largest value of ${most}`);
  const data = new Uint8Array(3 * width * height);
  if (!(await pipe.fill(data))) throw new RangeError("ended behind the header of a frame");
  return { width, height, data };
}

interface FrameNote {
  index: number;
  time: number;
}

/** What ffmpeg says on standard error: which frames were chosen, how long the video is, and what went wrong. */
class Notes {
  /** Frames by their time stamps, of those that were decoded and not yet chosen or passed over. */
  readonly #decoded = new Map<string, FrameNote>();
  readonly #chosen: FrameNote[] = [];
  readonly #waiting: ((note: FrameNote | null) => void)[] = [];
  readonly #messages: string[] = [];
  readonly #oneFilter: boolean;
  readonly #onLength: (frames: number, seconds: number) => void;
  #seconds = Number.NaN;
  #done = false;
  readonly ended: Promise<void>;

  constructor(
    stream: ReadableStream<Uint8Array>,
    oneFilter: boolean,
    onLength: (frames: number, seconds: number) => void,
  ) {
    this.#oneFilter = oneFilter;
    this.#onLength = onLength;
    this.ended = this.#read(stream);
  }

  /** The next chosen frame; null where there will be none. */
  next(): Promise<FrameNote | null> {
    const note = this.#chosen.shift();
    if (note) return Promise.resolve(note);
    return this.#done ? Promise.resolve(null) : new Promise((resolve) => this.#waiting.push(resolve));
  }

  /** The last that it said besides, in a line. */
  get message(): string {
    return this.#messages.join("; ");
  }

  async #read(stream: ReadableStream<Uint8Array>): Promise<void> {
    const decoder = new TextDecoder();
    let rest = "";
    for await (const part of stream) {
      const lines = (rest + decoder.decode(part, { stream: true })).split(/\r?\n|\r/);
      rest = lines.pop() as string;
      for (const line of lines) this.#take(line);
    }
    this.#take(rest);
    this.#done = true;
    for (const resolve of this.#waiting.splice(0)) resolve(null);
  }

  #take(line: string): void {
    const frame = /showinfo_(\d+) @ [^\]]*\]\s*n:\s*(\d+)\s+pts:\s*(\S+)\s+pts_time:\s*(\S+)/.exec(line);
    if (frame) {
      const [, filter, n, pts, seconds] = frame as unknown as [string, string, string, string, string];
      const note = { index: Number(n), time: Number.parseFloat(seconds) };
      if (filter === "0") this.#decoded.set(pts, note);
      if (filter === "0" && !this.#oneFilter) return;
      const chosen = this.#decoded.get(pts) ?? note;
      // Frames come in their order: those before it were passed over.
      for (const [key, { index }] of this.#decoded) if (index <= chosen.index) this.#decoded.delete(key);
      const waiting = this.#waiting.shift();
      if (waiting) waiting(chosen);
      else this.#chosen.push(chosen);
      return;
    }
    if (/showinfo_\d+ @/.test(line)) return; // more of a frame, or of the stream
    const [, hours, minutes, seconds] = /^\s*Duration: (\d+):(\d+):(\d+\.\d+)/.exec(line) ?? [];
    if (seconds !== undefined) this.#seconds = 3600 * Number(hours) + 60 * Number(minutes) + Number(seconds);
    const rate = /Stream #0:.*: Video: .*?([\d.]+) fps/.exec(line)?.[1];
    if (rate !== undefined && this.#seconds > 0) {
      this.#onLength(this.#seconds * Number(rate), this.#seconds);
      this.#seconds = Number.NaN; // once: the output has a stream like it
    }
    if (/error|invalid|no such|matches no|does not contain|could not|cannot|moov/i.test(line)) {
      this.#messages.push(line.replace(/^\[[^\]]*\]\s*/, "").trim());
      if (this.#messages.length > 3) this.#messages.shift();
    }
  }
}

/**
 * The frames of a video, in their order, as fast as they are taken. Whoever stops taking them early ends ffmpeg.
 *
 * @throws DlfsError where ffmpeg is not installed, or a choice makes no sense; of code `io` naming the file where it is missing, holds
 *   no video, or is damaged so that ffmpeg gives up, after the frames before
 */
export async function* videoFrames(path: string, options: VideoOptions = {}): AsyncGenerator<VideoFrame> {
  const { signal, onLength = () => {} } = options;
  checkChoice(path, options);
  const program = findFfmpeg(path);
  const file = resolve(path);
  check(existsSync(file), path, () => "no such file", ErrorCode.io);
  if (signal?.aborted) return;
  const filters = frameFilters(options);
  const { every = 1, fps = Number.POSITIVE_INFINITY, share } = options;
  const tell = (frames: number, seconds: number) =>
    onLength(Math.ceil(Math.min(frames / every, seconds * fps) / (share?.count ?? 1)));
  const command = [
    ...[program, "-hide_banner", "-nostdin", "-nostats", "-loglevel", "info", "-i", `file:${file}`, "-map", "0:v:0"],
    ...["-vf", filters, hasFpsMode(program) ? "-fps_mode" : "-vsync", "passthrough", "-pix_fmt", "rgb24"],
    ...["-c:v", "ppm", "-f", "image2pipe", "pipe:1"],
  ];
  const child = Bun.spawn(command, { env: process.env, stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  const stop = () => child.kill();
  signal?.addEventListener("abort", stop, { once: true });
  const pipe = new PipeReader(child.stdout);
  const notes = new Notes(child.stderr, !filters.includes(","), tell);
  let ended = false;
  try {
    for (;;) {
      const pixels = await readPpm(pipe);
      if (!pixels) break;
      const note = await notes.next();
      if (!note) throw new RangeError("a frame that it said nothing of");
      yield { ...note, pixels };
    }
    ended = true;
  } catch (error) {
    if (signal?.aborted) return;
    throw error instanceof RangeError ? new DlfsError(ErrorCode.io, path, `ffmpeg: ${error.message}`) : error;
  } finally {
    signal?.removeEventListener("abort", stop);
    if (!ended) child.kill();
    await pipe.cancel();
    await Promise.all([child.exited, notes.ended]);
  }
  if (signal?.aborted || child.exitCode === 0) return;
  const how = child.signalCode === null ? `ended with ${child.exitCode}` : `was ended by ${child.signalCode}`;
  throw new DlfsError(ErrorCode.io, path, `ffmpeg ${how}${notes.message === "" ? "" : `: ${notes.message}`}`);
}
