/**
 * The live loop from end to end, as users have it: trainings in processes of their own, and an annotator who knows the labels that
 * they lack and streams them over the WebSocket.
 */
import { mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import {
  type ControlCommand,
  decodeMessage,
  type EventMessage,
  encodeMessage,
  type Message,
  readCheckpoint,
} from "../../lib/formats";
import { readMetrics } from "../../lib/monitor";

const program = fileURLToPath(new URL("../../lib/cli/main.ts", import.meta.url));
const TOKEN = "live-loop";

interface Coco {
  images: { id: number; file_name: string }[];
  annotations: { image_id: number; category_id: number; bbox: number[] }[];
  categories: { id: number; name: string }[];
}

/**
 * Writes a copy of a data set to `folder` whose training images have their labels in one of three cases: of the others, one half is
 * there without its boxes, and the other half is not there at all, some of it not even as files.
 *
 * @returns the messages that make up for it, in an order that mixes both
 */
export function withholdLabels(whole: string, folder: string, split = "train2017"): Message[] {
  const content = (name: string) => readFileSync(join(whole, "annotations", `instances_${name}.json`), "utf8");
  const { images, annotations, categories } = JSON.parse(content(split)) as Coco;
  const names = new Map(categories.map(({ id, name }) => [id, name]));
  mkdirSync(join(folder, "annotations"), { recursive: true });
  mkdirSync(join(folder, split));
  const kept: Coco = { images: [], annotations: [], categories };
  const messages: Message[] = [];
  for (const [i, image] of images.entries()) {
    const own = annotations.filter(({ image_id }) => image_id === image.id);
    const file = join(whole, split, image.file_name);
    if (i % 3 !== 2) kept.images.push(image);
    if (i % 3 === 0) kept.annotations.push(...own);
    const there = i % 3 !== 2 || i % 2 === 0;
    if (there) symlinkSync(file, join(folder, split, image.file_name));
    if (i % 3 === 0) continue;
    const edits = own.map(({ category_id, bbox }) => {
      const [x, y, w, h] = bbox as [number, number, number, number];
      const box = [x, y, x + w, y + h] as const;
      return { action: "add", category: names.get(category_id) as string, box } as const;
    });
    const bytes = there ? {} : { bytes: new Uint8Array(readFileSync(file)) };
    const added = i % 3 === 2 ? { newImage: { width: 0, height: 0, ...bytes } } : {};
    const common = { id: `label-${image.id}`, author: "annotator", time: 1_700_000_000_000 + i };
    const value = { ...common, image: `${split}/${image.file_name}`, edits, replace: true, ...added };
    messages.push({ type: "labels", value });
  }
  writeFileSync(join(folder, "annotations", `instances_${split}.json`), JSON.stringify(kept));
  for (const name of ["annotations/instances_val2017.json", "val2017"])
    symlinkSync(join(whole, name), join(folder, name));
  return messages;
}

export interface Trained {
  /** The run's folder. */
  run: string;
  /** Of the last evaluation; NaN before the first. */
  ap: number;
  /** A hash of each tensor of the last checkpoint, by name. */
  tensors: Record<string, string>;
  /** Of each step: its number, losses and learning rate. */
  steps: string[];
}

/** `dlfs train` in a process of its own. */
export class TrainingProcess {
  readonly #child: Bun.Subprocess<"ignore", "pipe", "pipe">;
  readonly #output: Promise<void>;
  readonly #errors: Promise<string>;
  readonly #address = Promise.withResolvers<URL>();
  #said = "";

  /** @param cache where annotations are kept between runs */
  constructor(argv: readonly string[], cache: string) {
    this.#child = Bun.spawn([process.execPath, program, "train", ...argv], {
      env: { ...process.env, DLFS_LIVE_TOKEN: TOKEN, DLFS_CACHE: cache, OMP_NUM_THREADS: "1" },
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    });
    this.#errors = new Response(this.#child.stderr).text();
    this.#output = this.#read();
    this.#address.promise.catch(() => {}); // of trainings that are not live, nobody asks
  }

  async #read(): Promise<void> {
    const decoder = new TextDecoder();
    for await (const chunk of this.#child.stdout) {
      this.#said += decoder.decode(chunk, { stream: true });
      const url = /^live: (\S+?)live\?token=.*$/m.exec(this.#said)?.[1];
      if (url) this.#address.resolve(new URL(url));
    }
    this.#address.reject(new Error(`the training has no address:\n${this.#said}${await this.#errors}`));
  }

  /** Where it is served, once it is. */
  get address(): Promise<URL> {
    return this.#address.promise;
  }

  /** Asks the dashboard. */
  async ask<T>(path: string): Promise<T> {
    const answer = await fetch(new URL(path, await this.address), { headers: { Authorization: `Bearer ${TOKEN}` } });
    return (await answer.json()) as T;
  }

  /** All that it has said, when it has ended. */
  async said(): Promise<string> {
    await this.#output;
    return this.#said + (await this.#errors);
  }

  /** Kills it, and its ranks where it has launched some. */
  async kill(): Promise<void> {
    const { pid } = this.#child;
    const ranks = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").filter(Boolean);
    for (const each of [pid, ...ranks.map(Number)]) process.kill(each, "SIGKILL");
    await this.#child.exited;
    await this.#output;
  }

  /** What it has come to, when it has ended. */
  async result(): Promise<Trained> {
    const said = await this.said();
    const status = await this.#child.exited;
    const run = (/^run folder: (.+)$/m.exec(said) ?? /^continue with: .* --resume (.+)$/m.exec(said))?.[1];
    if (status !== 0 || run === undefined) throw new Error(`ended with ${status}:\n${said}`);
    const lines = readMetrics(join(run, "metrics.jsonl"));
    const ap = lines.findLast(({ kind }) => kind === "evaluation")?.AP;
    const last = [...new Bun.Glob("checkpoints/checkpoint-*.dlck").scanSync(run)].sort().at(-1) as string;
    await using checkpoint = await readCheckpoint(join(run, last));
    const tensors: Trained["tensors"] = {};
    for (const name of checkpoint.tensors.keys()) tensors[name] = Bun.hash(await checkpoint.read(name)).toString(16);
    const steps = lines.flatMap(({ kind, iteration, classification, boxRegression, learningRate }) =>
      kind === "train" ? [[iteration, classification, boxRegression, learningRate].join(" ")] : [],
    );
    return { run, ap: typeof ap === "number" ? ap : Number.NaN, tensors, steps };
  }
}

/** Who tells a training things over its WebSocket, and hears all that it says. */
export class Annotator implements Disposable {
  readonly events: EventMessage[] = [];
  /** The last step that a figure was heard of. */
  iteration = 0;
  readonly #socket: WebSocket;
  /** All that the training has said, once it has ended. */
  #ended: string | null = null;
  readonly #waiting = new Set<{ what: string; holds: () => boolean; done: () => void; fail: (error: Error) => void }>();

  private constructor(socket: WebSocket, training: TrainingProcess) {
    this.#socket = socket;
    socket.onmessage = ({ data }) => this.#hear(new Uint8Array(data as ArrayBuffer));
    socket.onclose = async () => {
      this.#ended = await training.said();
      for (const { fail, what } of this.#waiting) fail(this.#failure(what));
    };
  }

  static async connect(training: TrainingProcess): Promise<Annotator> {
    const url = new URL(`live?token=${TOKEN}`, await training.address);
    url.protocol = "ws:";
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    const annotator = new Annotator(socket, training);
    await new Promise((resolve, reject) => {
      socket.onopen = resolve;
      socket.onerror = () => reject(new Error(`cannot open ${url}`));
    });
    return annotator;
  }

  #hear(frame: Uint8Array): void {
    const message = decodeMessage(frame, "training");
    if (message?.type === "event") this.events.push(message.value);
    if (message?.type === "metrics") this.iteration = message.value.iteration;
    for (const waiting of this.#waiting) {
      if (!waiting.holds()) continue;
      this.#waiting.delete(waiting);
      waiting.done();
    }
  }

  #failure(what: string): Error {
    return new Error(`the training has ended before ${what}:\n${this.#ended}`);
  }

  tell(...messages: readonly Message[]): void {
    for (const message of messages) this.#socket.send(encodeMessage(message));
  }

  /** Waits until something holds of what was heard. */
  until(what: string, holds: () => boolean): Promise<void> {
    if (holds()) return Promise.resolve();
    if (this.#ended !== null) return Promise.reject(this.#failure(what));
    return new Promise((done, fail) => this.#waiting.add({ what, holds, done, fail }));
  }

  async started(): Promise<EventMessage & { kind: "started" }> {
    await this.until("its start", () => this.events.some(({ kind }) => kind === "started"));
    return this.events.find((event) => event.kind === "started") as EventMessage & { kind: "started" };
  }

  /** Tells a training things, and waits until each is answered: its ids that were refused, with their reasons. */
  async told(...messages: readonly Message[]): Promise<string[]> {
    const ids = messages.map(({ value }) => ("id" in value ? value.id : ""));
    const answerOf = (id: string) => this.events.find((event) => "id" in event && event.id === id);
    this.tell(...messages);
    await this.until("all is answered", () => ids.every((id) => answerOf(id) !== undefined));
    return ids.flatMap((id) => {
      const answer = answerOf(id) as EventMessage;
      return answer.kind === "refused" ? `${id}: ${answer.reason}` : [];
    });
  }

  [Symbol.dispose](): void {
    this.#socket.onclose = null;
    this.#socket.close();
  }
}

let commands = 0;
const command = (what: ControlCommand, value?: number): Message => {
  const about = { id: `${what} ${commands++}`, author: "annotator", time: 1, command: what };
  return { type: "control", value: { ...about, ...(value !== undefined && { value }) } };
};

export interface LiveLoopOptions {
  /** How trainings are launched: "--gpus 2". */
  launch?: readonly string[];
  /**
   * The live training has more steps than it will do, and is told to stop: however busy the machine is, it does not end before it was
   * told all. There is none that is told nothing then. Default false.
   */
  endless?: boolean;
}

export interface LiveLoop {
  frozen: Trained | null;
  /** Corrected while it goes on, killed, and gone on with. */
  live: Trained;
  /** The live training, done again by its journal where nothing else is left of it but the data. */
  again: Trained;
  /** Of the live training, what was refused. */
  refused: string[];
  /** Steps done when it was killed, and those that were done before. */
  killedAt: number;
  resumedFrom: number;
  /** Runs that its dashboard has, before its end. */
  shown: string[];
}

/**
 * Trains on a third of a data set: without more, and with the rest streamed to it by an annotator. That training is killed when half
 * of the rest is in, and some of what it was told since its last checkpoint, and is gone on with. Then it is done again.
 *
 * @param whole a data set in COCO's layout, train2017 and val2017
 * @param work a folder that is there, for all that comes about
 * @param settings of `dlfs train`; checkpoints come often enough for some to be there in the middle
 */
export async function playLiveLoop(
  whole: string,
  work: string,
  settings: readonly string[],
  { launch = [], endless = false }: LiveLoopOptions = {},
): Promise<LiveLoop> {
  const data = join(work, "data");
  const messages = withholdLabels(whole, data);
  const common = [...launch, "--data", data, "--out", join(work, "runs"), "--deterministic", ...settings];
  const caches = ["frozen", "live", "again"].map((name) => join(work, `cache-${name}`)) as [string, string, string];
  const frozen = endless ? Promise.resolve(null) : new TrainingProcess(common, caches[0]).result();
  frozen.catch(() => {}); // told below, where it is waited for

  const start = [...common, "--live", "--dashboard"];
  const quarter = Math.ceil(messages.length / 4);
  const portion = (i: number) => messages.slice(i * quarter, (i + 1) * quarter);
  const refused: string[] = [];
  const first = new TrainingProcess(start, caches[1]);
  let path: string;
  let killedAt: number;
  {
    using annotator = await Annotator.connect(first);
    path = join(work, "runs", (await annotator.started()).run);
    refused.push(...(await annotator.told(...portion(0))));
    await annotator.until("its first checkpoint", () => annotator.events.some(({ kind }) => kind === "checkpoint"));
    // What is in hand counts before anything else does, however slow the annotator is.
    refused.push(...(await annotator.told(command("pause"), ...portion(1))));
    annotator.tell(command("resume"));
    const paused = annotator.iteration;
    await annotator.until("some steps later", () => annotator.iteration > paused + 3);
    // Nobody knows what becomes of these: they are told again.
    annotator.tell(...portion(2));
    await first.kill();
    killedAt = annotator.iteration;
  }

  // As on another machine: the run folder and the data are all that is left.
  rmSync(caches[1], { recursive: true });
  const second = new TrainingProcess([...launch, "--resume", path, "--live", "--dashboard"], caches[1]);
  let resumedFrom: number;
  let shown: string[];
  {
    using annotator = await Annotator.connect(second);
    resumedFrom = (await annotator.started()).iteration;
    const more = [...portion(2), ...portion(3), command("learningRate", 0.9), command("evaluate")];
    refused.push(...(await annotator.told(command("pause"), ...more)));
    shown = (await second.ask<{ runs: { name: string }[] }>("api/runs")).runs.map(({ name }) => name);
    annotator.tell(command("resume"));
    if (endless) {
      const paused = annotator.iteration;
      await annotator.until("some steps later", () => annotator.iteration > paused + 5);
      refused.push(...(await annotator.told(command("stop"))));
    }
  }
  const live = await second.result();
  const length = endless ? ["--iterations", String(live.steps.length)] : [];
  const again = await new TrainingProcess([...common, ...length, "--replay", path], caches[2]).result();
  return { frozen: await frozen, live, again, refused, killedAt, resumedFrom, shown };
}
