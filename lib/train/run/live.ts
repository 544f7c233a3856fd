/** A training that is heard and told things while it goes on: docs/live.md. */
import { existsSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { DashboardServer, DashboardWorker } from "../../dashboard";
import {
  type CocoDataLoader,
  type Dataset,
  type DeviceImageCodec,
  parsePreprocessing,
  type TargetChange,
} from "../../data";
import type { ProcessGroup } from "../../distributed";
import { type EventContent, type EventMessage, type MetricsMessage, makeFolder } from "../../formats";
import {
  FileSink,
  type FoundBoxes,
  HttpSink,
  Journal,
  type JournalEntry,
  LiveBus,
  LiveServer,
  LiveSession,
  removeLiveAddress,
  TensorBoardSink,
  writeLiveAddress,
} from "../../live";
import type { CocoResult } from "../../metrics";
import type { DetectionModel } from "../../models";
import type { MetricsLine, RunFolder, TensorBoardWriter } from "../../monitor";
import { check, DlfsError, ErrorCode } from "../../native";
import type { Device } from "../../tensor";
import { ConfigError } from "../config/kinds";
import type { TrainConfig } from "../config/train-config";
import { evaluatedImage } from "../evaluation-files";
import type { EvaluatedClasses } from "../evaluation-report";
import type { ImageDetections } from "../evaluator";
import type { TrainerObserver } from "../observers";
import { Thumbnails } from "../thumbnails";
import type { Trainer } from "../trainer";
import { versionsOf } from "../versions";
import type { Feed } from "./data-feeds";
import { LivePredictor } from "./live-predictor";
import { LiveLeader } from "./live-ranks";
import { findAgain, keepStart } from "./live-start";

/** Images of an evaluation that are sent along. */
const SAMPLES = 8;

const journalOf = (run: string): string => join(run, "live", "journal.dlvs");

/** Whether a training's boxes and images may change while it goes on. */
export const isLive = ({ live, replay }: TrainConfig): boolean => live || replay !== undefined;

/** What entered a training before: that is resumed, or that is to be done again. */
export async function enteredBefore(config: TrainConfig, resumed: string | null): Promise<readonly JournalEntry[]> {
  const own = resumed === null ? null : journalOf(resumed);
  if (own !== null && existsSync(own)) return await Journal.read(own);
  if (config.replay === undefined) return [];
  const path = existsSync(journalOf(config.replay)) ? journalOf(config.replay) : config.replay;
  if (!existsSync(path))
    throw new ConfigError("replay", `${config.replay} is no run that has a journal, and no journal`);
  return await Journal.read(path);
}

/** What a loader must be told of what entered. */
export function changesOf(entries: readonly JournalEntry[]): TargetChange[] {
  return entries.flatMap(({ content }) => ("change" in content ? [content.change] : []));
}

/** Boxes that an image may come to have. */
export const liveBoxesOf = ({ liveBoxes }: TrainConfig, { train }: Dataset): number =>
  liveBoxes ?? Math.max(64, 2 * train.maxBoxes);

const addressOf = ({ livePort: port = 0, liveHost: hostname }: TrainConfig) => ({ port, hostname });

/**
 * Tries the port that a training asks for, before it writes anything: one that is taken leaves no run folder behind.
 *
 * @throws DlfsError where the port cannot be had
 */
export async function tryPort(config: TrainConfig): Promise<void> {
  const { port, hostname } = addressOf(config);
  if (port === 0 || !(config.live || config.dashboard)) return;
  try {
    await Bun.serve({ port, hostname, fetch: () => new Response() }).stop(true);
  } catch (error) {
    throw new DlfsError(ErrorCode.io, "live", `cannot listen on ${hostname}:${port}: ${(error as Error).message}`);
  }
}

/** The token, and what is printed of it: one of the user's own is for neither the log nor a file. */
function tokenOf(): { token: string; shown: string; own: boolean } {
  const own = process.env.DLFS_LIVE_TOKEN;
  if (own) return { token: own, shown: "$DLFS_LIVE_TOKEN", own: true };
  const token = crypto.randomUUID().replaceAll("-", "");
  return { token, shown: token, own: false };
}

/**
 * The dashboard of a training that cannot be told things, with its run and those beside it. Of one that can, it is at the live
 * address.
 *
 * @throws DlfsError where the port cannot be had
 */
export async function openDashboard(
  config: TrainConfig,
  run: RunFolder,
  log: (line: string) => void,
): Promise<AsyncDisposable> {
  const { token, shown } = tokenOf();
  const { edit } = config;
  const server = await DashboardServer.open({
    ...addressOf(config),
    folders: [dirname(run.path)],
    token,
    edit,
    thread: true,
  });
  log(`dashboard: ${server.url}#token=${shown}`);
  return server;
}

interface LiveParts {
  readonly config: TrainConfig;
  readonly run: RunFolder;
  readonly dataset: Dataset;
  readonly codec: DeviceImageCodec;
  readonly device: Device;
  readonly model: DetectionModel;
  readonly feed: Feed;
  readonly entries: readonly JournalEntry[];
  /** Hears the figures; closed at the end. */
  readonly tensorboard?: TensorBoardWriter;
  /** Ranks that train together; this is the first of them. */
  readonly group?: ProcessGroup;
  /** Iterations done before. */
  readonly start: number;
}

/** Opens what hears a training and what tells it things. Dispose of it when the training has ended. */
export class LiveTrainingParts implements AsyncDisposable {
  readonly bus = new LiveBus();
  /** Ends the training, its state saved. */
  readonly #stop = new AbortController();
  readonly #owned: AsyncDisposableStack;
  readonly #parts: LiveParts;
  readonly #session: LiveSession;
  readonly #thumbnails: Thumbnails;
  readonly #leader: LiveLeader | null;
  #trainer: Trainer | null = null;
  #ended = "the training has ended";

  private constructor(parts: LiveParts, journal: Journal, owned: AsyncDisposableStack) {
    this.#parts = parts;
    this.#owned = owned;
    const { dataset, codec, entries, group } = parts;
    const { store, source, classes, trainSplit } = dataset;
    this.#thumbnails = new Thumbnails(source, codec);
    const leader = group ? new LiveLeader(group) : null;
    this.#leader = leader;
    const loader = parts.feed.loader as CocoDataLoader;
    const trainer = () => this.#trainer as Trainer;
    this.#session = new LiveSession({
      data: { store, source, codec, classes, split: trainSplit, boxesPerImage: loader.boxesPerImage },
      training: {
        change: (change) => loader.change(change),
        setRateFactor: (factor) => {
          trainer().rateFactor = factor;
        },
        evaluate: () => trainer().requestEvaluation(),
        save: () => trainer().requestCheckpoint(),
        stop: () => this.#stop.abort(),
      },
      ...{ journal, entries, bus: this.bus, resumed: parts.start > 0 && parts.config.replay === undefined },
      ...(leader && { onWaiting: () => leader.onWaiting(), onTaken: (entry) => leader.onTaken(entry) }),
    });
  }

  /** @throws DlfsError where an address or a file cannot be had */
  static async open(parts: LiveParts, log: (line: string) => void): Promise<LiveTrainingParts> {
    const { config, run, entries, dataset, feed, start } = parts;
    const loader = feed.loader as CocoDataLoader;
    await using owned = new AsyncDisposableStack();
    const folder = join(run.path, "live");
    await makeFolder(folder);
    const journal = owned.use(await Journal.open(journalOf(run.path)));
    // A training that does another one's again can be resumed, and done again, itself.
    if (journal.entries.length === 0 && entries.length > 0) await journal.append(entries);
    if (start === 0) await keepStart(run.path, loader.start, dataset.store);
    else if (config.live && config.replay === undefined) {
      for (const line of await findAgain(run.path, loader.start, dataset, entries)) log(line);
    }
    const live = new LiveTrainingParts(parts, journal, owned.move());
    try {
      await live.#openSinks(folder, log);
      if (config.live) await live.#serve(log);
      return live;
    } catch (error) {
      await live[Symbol.asyncDispose]();
      throw error;
    }
  }

  get signal(): AbortSignal {
    return this.#stop.signal;
  }

  /** Hears what happens in a training, and lets what waits in before each step. */
  get observer(): TrainerObserver {
    return {
      onStepStart: (iteration) => this.#beforeStep(iteration),
      onCheckpoint: (path, iteration) => this.#event({ kind: "checkpoint", text: basename(path) }, iteration),
      onEvaluation: (iteration, result, detections) => this.#showSamples(iteration, result, detections),
    };
  }

  #beforeStep(iteration: number): Promise<void> | undefined {
    const session = this.#session;
    if (!this.#leader) return session.beforeStep(iteration);
    const takeIn = (at: number, takes: boolean) => session.beforeStep(at, takes);
    return this.#leader.beforeStep(iteration, takeIn, () => session.isAsked);
  }

  /** Begins: the trainer is there. */
  attach(trainer: Trainer): void {
    const { config, run, dataset, device, start } = this.#parts;
    this.#trainer = trainer;
    const classes = dataset.classes.names;
    const about = { run: basename(run.path), config: JSON.stringify(config), classes, versions: versionsOf(device) };
    this.#event({ kind: "started", ...about }, start);
  }

  /** For who writes figures and pictures to TensorBoard: the figures come from the bus, and the file ends with it. */
  picturesOnly(writer: TensorBoardWriter): Pick<TensorBoardWriter, "scalars" | "image" | "close"> {
    return { image: (...picture) => writer.image(...picture), scalars() {}, close() {} };
  }

  /** A line of metrics.jsonl, one about an evaluation with what was found of each class. */
  line({ kind, iteration, epoch, time = Date.now(), ...rest }: MetricsLine, classes?: EvaluatedClasses): void {
    const numbers = Object.entries(rest).filter((entry): entry is [string, number] => typeof entry[1] === "number");
    const done = kind === "train" ? iteration + 1 : iteration;
    const place = { iteration: done, epoch: typeof epoch === "number" ? epoch : 0, time };
    const value: MetricsMessage = { what: kind, ...place, values: Object.fromEntries(numbers), ...classes };
    this.bus.publish({ type: "metrics", value });
  }

  /** A line of the log. */
  text(text: string): void {
    const level = text.startsWith("warning: ") ? "warning" : "info";
    this.#event({ kind: "log", level, text }, this.#trainer?.iteration ?? this.#parts.start);
  }

  /** Why the training ends, for those who listen. */
  end(text: string): void {
    this.#ended = text;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#session.close();
    this.#event({ kind: "ended", text: this.#ended }, this.#trainer?.iteration ?? this.#parts.start);
    await this.bus.close();
    await this.#owned.disposeAsync();
  }

  async #openSinks(folder: string, log: (line: string) => void): Promise<void> {
    const { config, tensorboard } = this.#parts;
    const { livePost } = config;
    const report = (error: Error) => log(`warning: ${error.message}; training goes on`);
    if (tensorboard) this.bus.attach(new TensorBoardSink(tensorboard, report));
    this.bus.attach(await FileSink.open(join(folder, "live.dlvs"), { onError: report }));
    if (livePost === undefined) return;
    const token = process.env.DLFS_LIVE_POST_TOKEN;
    const headers: Record<string, string> = token ? { Authorization: `Bearer ${token}` } : {};
    this.bus.attach(await HttpSink.open({ url: livePost, headers, spool: join(folder, "spool.dlvs"), log }));
  }

  async #serve(log: (line: string) => void): Promise<void> {
    const { config, run, dataset } = this.#parts;
    const { token, shown, own } = tokenOf();
    const submit = this.#session.submit.bind(this.#session);
    const open = () => DashboardWorker.open({ folders: [dirname(run.path)], edit: config.edit, token });
    const dashboard = config.dashboard ? this.#owned.use(await open()) : null;
    const also = dashboard ? { also: (request: Request) => dashboard.handle(request) } : {};
    const predict = this.#predictor();
    const heard = { bus: this.bus, submit, predict };
    const server = this.#owned.use(new LiveServer({ ...addressOf(config), token, ...heard, ...also }));
    // Dashboards of other processes write labels there.
    const address = { url: server.url, split: dataset.trainSplit, ...(!own && { token }) };
    await writeLiveAddress(run.path, address);
    this.#owned.defer(() => removeLiveAddress(run.path));
    log(`live: ${server.url}live?token=${shown}`);
    if (dashboard) log(`dashboard: ${server.url}#token=${shown}`);
  }

  /** What the training makes of an image of its data set, between two steps. */
  #predictor() {
    const { config, model, codec, dataset } = this.#parts;
    const preprocessing = parsePreprocessing(config.preprocessing);
    const predictor = this.#owned.use(new LivePredictor({ model, codec, size: config.size, preprocessing }));
    return async (key: string, split: string): Promise<FoundBoxes> => {
      const { store, source } = dataset;
      const [image] = store.findImages({ split, where: "i.key = ?", parameters: [key] }, { limit: 1 });
      check(image !== undefined, "image", () => `the data set has no "${key}" in "${split}"`, ErrorCode.io);
      const bytes = await source.read(key);
      return await this.#session.between(async () => {
        const trainer = this.#trainer as Trainer;
        const boxes = await trainer.withAverages(() => predictor.predict(bytes));
        return { iteration: trainer.iteration, boxes };
      });
    };
  }

  /** What was found on some images, the same ones each time, beside what is known of them. */
  async #showSamples(iteration: number, _: CocoResult, detections: readonly ImageDetections[]): Promise<void> {
    const { dataset } = this.#parts;
    const count = Math.min(SAMPLES, detections.length);
    for (let i = 0; i < count; i++) {
      const { imageId, detections: found } = detections[Math.floor((i * detections.length) / count)] as ImageDetections;
      const record = dataset.store.image(imageId);
      if (!record) continue;
      const thumbnail = await this.#thumbnails.of(record.key);
      this.bus.publish({
        type: "sample",
        value: { ...evaluatedImage(dataset, iteration, record, found), ...(thumbnail && { thumbnail }) },
      });
    }
  }

  #event(event: EventContent, iteration: number): void {
    this.bus.publish({ type: "event", value: { ...event, iteration, time: Date.now() } as EventMessage });
  }
}
