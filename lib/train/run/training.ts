/** A training from its settings to its results. */
import { existsSync } from "node:fs";
import { homedir } from "node:os";
import { basename, join, resolve } from "node:path";
import {
  type CocoDataLoader,
  type Dataset,
  DeviceImageCodec,
  demoFolder,
  describeDataset,
  generateDemo,
  type ImageFailure,
  isRemoteLocation,
  loadDataset,
  Normalize,
  type PreprocessOp,
  parsePreprocessing,
  Resize,
  showProgress,
} from "../../data";
import { deviceOfRank, keepRestartNote, type ProcessGroup } from "../../distributed";
import { type Checkpoint, CheckpointStore, makeFolder, readCheckpoint } from "../../formats";
import { synchronizeBatchNorm } from "../../layers";
import { type DetectionModel, modelFromConfig } from "../../models";
import { RunFolder } from "../../monitor";
import { chooseBackend, DlfsError, ErrorCode } from "../../native";
import { Device, precisionPolicy, precisionText } from "../../tensor";
import type { CheckpointCopies } from "../checkpoint-copies";
import { describeConfig } from "../config/describe-config";
import { ConfigError } from "../config/kinds";
import type { ResumedRun, TrainArguments } from "../config/train-arguments";
import { checkContradictions, resolveConfig, type TrainConfig, type TrainFacts } from "../config/train-config";
import { autotune } from "../convolution-tuning";
import { summarizeDataset } from "../dataset-summary";
import { type DryRun, describeDryRun } from "../dry-run";
import type { Evaluator } from "../evaluator";
import type { TrainerObserver } from "../observers";
import { ratePicture } from "../rate-picture";
import { findRate, type RateRange, type RateRangeResult, rangeRates } from "../rate-range";
import { Reporter, statsLine } from "../reporter";
import { saveTorchWeights } from "../save-weights";
import { Trainer, type TrainingOutcome } from "../trainer";
import { checkRecords, type Feed, openRecords, resizeOf, shareOf } from "./data-feeds";
import { describeLeft, describePlan, describeRange, modelName } from "./descriptions";
import { findBatch } from "./find-batch";
import { loadInitialWeights } from "./initial-weights";
import { changesOf, enteredBefore, isLive, LiveTrainingParts, liveBoxesOf, openDashboard, tryPort } from "./live";
import { LiveFollower, shareEntries } from "./live-ranks";
import { checkReplay } from "./live-start";
import { openFeeds } from "./open-feeds";
import { openCopies } from "./remote-run";
import { checkFreeze, checkGroups, trainerOptions } from "./trainer-options";
import { MetricsEndpoint, watching } from "./watching";

export interface TrainingOptions {
  /** How the run is continued, without arguments: "dlfs train". */
  command: string;
  /** Hears what is said before and after the steps. Default: console.log. */
  log?: (line: string) => void;
  /** Called in their order, after those that show the training and write its run folder. */
  observers?: readonly TrainerObserver[];
  /** Ends the training after the step under way, with a checkpoint. */
  signal?: AbortSignal;
  /** Ranks that train together. Rank 0 alone writes and shows anything. */
  group?: ProcessGroup;
}

/** All that takes part in a training. */
interface Parts {
  config: TrainConfig;
  device: Device;
  dataset: Dataset;
  model: DetectionModel;
  feed: Feed;
  /** Null where nothing is evaluated. */
  evaluator: Evaluator | null;
  /** Null on ranks that write nothing. */
  run: RunFolder | null;
  reporter: Reporter | null;
  trainer: Trainer;
  /** What copies checkpoints to another place. */
  copies: CheckpointCopies | null;
  /** What hears the training and tells it things. */
  live: LiveTrainingParts | null;
}

/**
 * A training that is ready to begin: data read and checked, model made, run folder there.
 *
 * ```ts
 * await using training = await Training.prepare(parseTrainArguments(process.argv.slice(2)), { command: "dlfs train" });
 * const outcome = await training.run();
 * for (const line of training.describe(outcome)) console.log(line);
 * ```
 */
export class Training implements AsyncDisposable {
  readonly #parts: Parts;
  readonly #options: Required<Pick<TrainingOptions, "command" | "log">>;
  readonly #owned: AsyncDisposableStack;
  #seconds = 0;

  private constructor(
    parts: Parts,
    options: Required<Pick<TrainingOptions, "command" | "log">>,
    owned: AsyncDisposableStack,
  ) {
    this.#parts = parts;
    this.#options = options;
    this.#owned = owned;
  }

  /**
   * Opens device, data, model and run folder. Throws ConfigError where settings cannot be had, DlfsError where data, weights or
   * checkpoint cannot be used.
   */
  static async prepare(args: TrainArguments, options: TrainingOptions): Promise<Training> {
    const { command, observers = [], signal, group } = options;
    const writes = group?.isRoot ?? true;
    const log = writes ? (options.log ?? console.log) : () => {};
    await using owned = new AsyncDisposableStack();
    let reporter: Reporter | null = null;
    const warn = (line: string) => (reporter ? reporter.print(line) : console.warn(line));
    const opened = await openAll(args, owned, { log, warn, group });
    const { config, device, data, dataset, codec, model, feed, evaluator, evaluated, checkpoint, lines } = opened;
    const { entries } = opened;
    const { iterations } = config;
    const { resumed } = args;
    const start = checkpoint?.metadata.iteration ?? 0;
    const openRun = () =>
      resumed
        ? RunFolder.open(resumed.run, { from: start, evaluated: checkpoint?.metadata.state.evaluation !== "due" })
        : RunFolder.create({
            name: data === "demo" ? "demo" : basename(data).replace(/[^A-Za-z0-9._-]/g, "-"),
            root: config.out,
            notes: (path) => [`Continue: ${command} --resume ${path}`],
          });
    // Before the folder: a port that cannot be had leaves none behind.
    const endpoint = writes ? owned.use(new MetricsEndpoint(config)) : null;
    if (writes) await tryPort(config);
    const run = writes ? await openRun() : null;
    const watchers: TrainerObserver[] = [];
    let copies: CheckpointCopies | null = null;
    let live: LiveTrainingParts | null = null;
    if (run && endpoint) {
      owned.defer(() => run.close());
      await run.writeConfig(config);
      await run.writeDataset(summarizeDataset(dataset));
      run.appendLog(lines.join("\n"));
      copies = await openCopies(
        config,
        { path: run.path, resumed: resumed !== null },
        { print: (line) => (reporter ? reporter.print(line) : log(line)), at: args.givenBy("copyTo") ?? "copyTo" },
      );
      const memory = () => device.memory().allocated;
      const skipped = () => skippedImages(feed);
      const watch = watching({ config, run, model, start, memory, skipped }, endpoint, log);
      const { logEvery } = config;
      const { tensorboard } = watch;
      const say = (line: string) => (reporter ? reporter.print(line) : log(line));
      if (config.dashboard && !config.live) owned.use(await openDashboard(config, run, say));
      if (isLive(config)) {
        live = owned.use(
          await LiveTrainingParts.open(
            { config, run, dataset, codec, device, model, feed, entries, start, tensorboard, group },
            say,
          ),
        );
      }
      reporter = new Reporter({
        run,
        dataset,
        codec,
        evaluated: evaluated ?? undefined,
        iterations,
        start,
        logEvery,
        tensorboard: tensorboard && live ? live.picturesOnly(tensorboard) : tensorboard,
        memory,
        also: live ?? undefined,
      });
      const further = [...(copies ? [copies] : []), ...(live ? [live.observer] : [])];
      watchers.push(reporter, ...further, ...watch.observers, ...observers);
    }
    const follows = group && !group.isRoot && isLive(config);
    const follower = follows ? new LiveFollower(group, feed.loader as CocoDataLoader, entries) : null;
    if (follower) watchers.push(follower.observer);
    if (group) {
      // A restart goes on from there; each machine's launcher keeps it.
      const [path] = await group.exchangeJson("run folder", run?.path ?? "");
      if (group.ranks.localRank === 0) keepRestartNote(path as string);
    } else if (run) keepRestartNote(run.path);
    const settings = trainerOptions(config);
    const keep = { ...settings.keep, warn: (line: string) => warn(`warning: ${line}`) };
    const trainer = owned.use(
      new Trainer({
        ...{ ...settings, keep },
        ...{ model, loader: feed.loader, decoder: feed.images, evaluator, group },
        observer: watchers,
        checkpointFolder: run?.checkpointFolder,
        signal: live ? AbortSignal.any([live.signal, ...(signal ? [signal] : [])]) : signal,
      }),
    );
    if (checkpoint) {
      await trainer.resume(checkpoint);
      await checkpoint.close();
      reporter?.print(`resumed ${checkpoint.path} at iteration ${trainer.iteration}`);
    }
    live?.attach(trainer);
    follower?.attach(trainer);
    const parts = { config, device, dataset, model, feed, evaluator, run, reporter, trainer, copies, live };
    return new Training(parts, { command, log }, owned.move());
  }

  /**
   * Opens everything and tries it, without a run folder: what some steps and an evaluation of a batch take, and what the training
   * would do. Throws as prepare() does.
   */
  static async dryRun(
    args: TrainArguments,
    { group, ...options }: Pick<TrainingOptions, "log" | "group">,
  ): Promise<DryRun> {
    const log = (group?.isRoot ?? true) ? (options.log ?? console.log) : () => {};
    await using owned = new AsyncDisposableStack();
    const opened = await openAll(args, owned, { log, warn: console.warn, group });
    const { config, dataset, model, feed, evaluator, checkpoint } = opened;
    const parts = { model, loader: feed.loader, decoder: feed.images, evaluator, group };
    const trainer = owned.use(new Trainer({ ...trainerOptions(config), ...parts }));
    if (checkpoint) {
      await trainer.resume(checkpoint);
      await checkpoint.close();
    }
    const found = await trainer.dryRun();
    for (const line of describeDryRun(found)) log(line);
    // All of them take part, also those that say nothing.
    for (const line of (await group?.exchangeJson("memory left", found.memory.left).then(describeLeft)) ?? [])
      log(line);
    for (const line of describePlan(config, trainer.iteration, dataset, found)) log(line);
    return found;
  }

  /**
   * A learning-rate range test of what the settings say, but for the schedule: see findRate. Writes lr-find.svg and lr-find.json to
   * `folder`, and no weights. Several ranks take each step together, as they train.
   */
  static async findRate(
    args: TrainArguments,
    {
      signal,
      folder,
      group,
      ...options
    }: Pick<TrainingOptions, "log" | "signal" | "group"> & RateRange & { folder: string },
  ): Promise<{ result: RateRangeResult; picture: string }> {
    const { log: say = console.log, ...range } = options;
    const writes = group?.isRoot ?? true;
    const log = writes ? say : () => {};
    rangeRates(range); // what is wrong with it is said before anything is opened
    await using owned = new AsyncDisposableStack();
    const { config, model, feed } = await openAll(args, owned, { log, warn: console.warn, group });
    const { optimizer, freeze, accumulate, recompute } = trainerOptions(config);
    const progress = writes ? showProgress() : () => {};
    let done = 0;
    const result = await findRate({
      ...{ model, loader: feed.loader, decoder: feed.images, optimizer, freeze, accumulate, recompute, signal, group },
      ...range,
      onStep: (_, steps) => progress("steps with growing rates", ++done, steps),
    });
    const picture = join(folder, "lr-find.svg");
    if (!writes) return { result, picture };
    await makeFolder(folder);
    await Bun.write(
      picture,
      ratePicture(result, `learning rates for ${modelName(config)}, batches of ${config.batch}`),
    );
    await Bun.write(join(folder, "lr-find.json"), `${JSON.stringify({ config, range, ...result }, null, 1)}\n`);
    for (const line of describeRange(result)) log(line);
    log(`plot:       ${picture}`);
    return { result, picture };
  }

  get config(): TrainConfig {
    return this.#parts.config;
  }

  get model(): DetectionModel {
    return this.#parts.model;
  }

  get dataset(): Dataset {
    return this.#parts.dataset;
  }

  get trainer(): Trainer {
    return this.#parts.trainer;
  }

  /** Of rank 0, where several train together. */
  get runFolder(): RunFolder {
    const { run } = this.#parts;
    if (!run) throw new DlfsError(ErrorCode.argument, "Training", "rank 0 has the run folder");
    return run;
  }

  /** Trains to the end, or until the signal, and writes the run's summary and the weights that were asked for. */
  async run(): Promise<TrainingOutcome> {
    const { trainer, reporter, run, model, config, copies, live } = this.#parts;
    const started = performance.now();
    try {
      const outcome = await trainer.train().catch((error: Error) => {
        live?.end(error.message);
        throw error;
      });
      live?.end(outcome.interrupted ? "stopped" : "done");
      this.#seconds = (performance.now() - started) / 1000;
      reporter?.finish();
      await this.#settleCopies();
      if (outcome.interrupted || !run) return outcome;
      this.#tellFailures();
      const stats = outcome.evaluation?.result.stats;
      await run.writeSummary({ ...stats, iterations: outcome.iteration, seconds: this.#seconds });
      if (config.exportWeights !== undefined) await saveTorchWeights(config.exportWeights, model);
      return outcome;
    } finally {
      reporter?.finish();
      await copies?.settled();
    }
  }

  /** Waits for the copy of the last checkpoint; one that could not be made is tried once more, and then an error. */
  async #settleCopies(): Promise<void> {
    const { copies, reporter } = this.#parts;
    if (!copies) return;
    if ((await copies.settled()) === null) return;
    reporter?.print("trying once more to copy the last checkpoint");
    const failure = await copies.again();
    if (failure === null) return;
    const { copyTo } = this.#parts.config;
    const code = failure instanceof DlfsError ? failure.code : ErrorCode.io;
    throw new DlfsError(code, `${copyTo}`, `the last checkpoint was not copied there: ${failure.message}`, {
      cause: failure,
    });
  }

  /** What became of it, in lines for a terminal; the last says how to go on. */
  describe({ interrupted, settled, iteration, checkpoint, evaluation, givenUp }: TrainingOutcome): string[] {
    const { config, device } = this.#parts;
    const run = this.runFolder;
    const { iterations, precision, exportWeights } = config;
    const resume = `${this.#options.command} --resume ${run.path}`;
    if (interrupted) {
      return [
        `stopped at iteration ${iteration} of ${iterations}`,
        ...(givenUp === undefined ? [] : [`the evaluation of iteration ${givenUp} was given up`]),
        `checkpoint ${checkpoint}`,
        `continue with: ${resume}`,
      ];
    }
    const result = evaluation?.result;
    const where = `${device.info.name} (${device.backend}, ${precision})`;
    return [
      ...(result ? [`\n${result.summarize()}\n`] : []),
      `trained ${iteration} iterations in ${this.#seconds.toFixed(0)} s on ${where}`,
      ...(settled ? [`ended before ${iterations}: ${config.patience} evaluations were no better than the best`] : []),
      result ? statsLine(result) : "not evaluated: --val-split names the images to evaluate on",
      ...(exportWeights === undefined ? [] : [`weights:    ${exportWeights}`]),
      `run folder: ${run.path}`,
      ...(result ? [`pictures:   ${run.picturePath(iteration)}`] : []),
      `go on:      ${resume} --iterations ${2 * iterations}`,
    ];
  }

  #tellFailures(): void {
    const { feed, reporter } = this.#parts;
    const unreadable = feed.loader.failures;
    if (unreadable.length === 0 || !reporter) return;
    const times = skippedImages(feed);
    reporter.print(`${unreadable.length} images could not be read or decoded, and were skipped ${times} times:`);
    for (const { message } of unreadable.slice(0, 5)) reporter.print(`  ${message}`);
  }

  async dispose(): Promise<void> {
    await this.#owned.disposeAsync();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose();
  }
}

/** Opens and checks all that a training needs but its run folder; `owned` gets what is to be released. */
async function openAll(
  args: TrainArguments,
  owned: AsyncDisposableStack,
  { log, warn, group }: Record<"log" | "warn", (line: string) => void> & { group?: ProcessGroup },
) {
  checkContradictions(args);
  const { settings, resumed } = args;
  const { backend, deterministic } = settings;
  const tf32 = settings.precision !== undefined && precisionPolicy(settings.precision).tf32;
  const place = group && deviceOfRank(group.ranks, chooseBackend(backend).name);
  const device = owned.use(new Device({ backend, deterministic, tf32, ...place }, log));
  if (settings.tuneMs !== undefined) autotune(device, { ms: settings.tuneMs });
  const codec = new DeviceImageCodec(device);
  const opening = () => openData(args, codec, log);
  const { data, dataset } = await (group?.rootFirst("data", opening) ?? opening());
  owned.use(dataset);
  const records = settings.records === undefined ? null : await openRecords(resolve(settings.records), dataset, log);
  const packed = records?.train.description.size;
  const facts: TrainFacts = {
    data,
    backend: device.backend,
    bf16: device.supports("conv.bf16"),
    images: dataset.train.usable,
    classes: dataset.classes.names,
    packedSize: packed && [packed[0], packed[1]],
  };
  let config = resolveConfig(args, facts);
  const model = owned.use(modelFromConfig(config.model, resumed ? `${resumed.run}/config.json: model` : undefined));
  checkGroups(model, config, args.givenBy("groups") ?? "groups");
  checkFreeze(model, config, args.givenBy("freeze") ?? "freeze");
  const evaluation: PreprocessOp[] = resumed
    ? parsePreprocessing(config.preprocessing)
    : [
        records ? resizeOf(records.train) : new Resize({ antialias: config.antialias }),
        new Normalize(model.normalization),
      ];
  if (records) checkRecords(records, config.size, evaluation);
  const { precision, seed, size, iterations } = config;
  if (group) {
    await group.agreeOn({ config: { ...config, out: null }, data: fingerprint(dataset) });
    await group.connect(device);
    owned.defer(() => group.disconnect());
  }
  model.to(device, { precision, seed });
  const parameters = model.parameters().reduce((sum, { size: n }) => sum + n, 0);
  const millions = (parameters / 1e6).toFixed(2);
  const how = precisionText(precisionPolicy(precision), device);
  log(`model: ${model.constructor.name}, ${millions} M parameters, input ${size.join("x")}, ${how}`);
  const onFailure = ({ message }: ImageFailure) => warn(`warning: ${message}`);
  const sources = { model, dataset, evaluation, device, onFailure, records, group };
  if (settings.batch === "auto") {
    const batchOf = (autoBatch: number) => resolveConfig(args, { ...facts, autoBatch });
    config = batchOf(await findBatch(config, sources, batchOf, log));
  }
  if (group) {
    const share = shareOf({ config, group });
    log(`ranks: ${group.world}, started by ${group.ranks.launcher}; ${share} images of each batch on each`);
    // From here on programs wait for all ranks; each has tried its batches by itself.
    if (config.syncBn) synchronizeBatchNorm(model, group.communicator);
  }
  config.preprocessing = evaluation.map((op) => op.toJSON());
  for (const name of ["records", "exportWeights", "copyTo", "replay"] as const) {
    if (config[name] !== undefined && !isRemoteLocation(config[name])) config[name] = resolve(config[name]);
  }
  const lines = describeConfig(config);
  for (const line of lines) log(line);
  if (!resumed) await loadInitialWeights(model, config, log);
  const read = () => enteredBefore(config, resumed?.run ?? null);
  const entries = isLive(config) ? await shareEntries(group, read) : [];
  if (isLive(config)) {
    if (records) throw new ConfigError(config.live ? "live" : "replay", "needs images, not records");
    config.liveBoxes = liveBoxesOf(config, dataset);
  }
  const live = isLive(config) && { live: { changes: changesOf(entries), boxesPerImage: config.liveBoxes as number } };
  const { feed, evaluator, evaluated } = openFeeds(config, { ...sources, ...live }, owned);
  if (config.replay !== undefined && !resumed) await checkReplay(config.replay, (feed.loader as CocoDataLoader).start);

  const checkpoint = resumed && (await openCheckpoint(resumed));
  const start = checkpoint?.metadata.iteration ?? 0;
  if (start >= iterations) {
    await checkpoint?.close();
    const more = "--iterations with a larger number goes on";
    throw new ConfigError("--resume", `${start} of ${iterations} iterations are done, ${more}`);
  }
  return { config, device, data, dataset, codec, model, feed, evaluator, evaluated, checkpoint, lines, entries };
}

/** What data are, in short: the same on ranks that train on the same. */
function fingerprint({ store, trainSplit, valSplit }: Dataset): Record<string, string | number> {
  const splits = [trainSplit, ...(valSplit === null ? [] : [valSplit])] as string[];
  return Object.fromEntries(
    splits.map((split) => {
      const hash = new Bun.CryptoHasher("sha256");
      for (const { id, fileName, width, height } of store.images(split))
        hash.update(`${id} ${fileName} ${width} ${height}\n`);
      for (const row of store.annotations(split)) hash.update(`${row.imageId} ${row.categoryId} ${row.bbox}\n`);
      return [split, hash.digest("hex").slice(0, 16)];
    }),
  );
}

/** How often an image could not be read or decoded. */
function skippedImages({ loader }: Feed): number {
  return loader.failures.reduce((sum, { count }) => sum + count, 0);
}

/** Finds and reads the data; draws the demo's where those are asked for. */
async function openData({ settings }: TrainArguments, codec: DeviceImageCodec, log: (line: string) => void) {
  const coco = join(homedir(), "datasets", "coco");
  const named = settings.data ?? (existsSync(coco) ? coco : "demo");
  const isDemo = named === "demo";
  const folder = isDemo ? demoFolder() : isRemoteLocation(named) ? named : resolve(named);
  log(isDemo ? `data: the demo, in ${folder}` : `data: ${folder}`);
  const progress = showProgress();
  if (isDemo) {
    const encode = (data: Uint8Array, width: number, height: number, quality: number) =>
      codec.encode({ data, width, height }, quality);
    await generateDemo(folder, { encode, progress });
  }
  const { trainSplit, valSplit } = settings;
  const dataset = await loadDataset(folder, { codec, trainSplit, valSplit, progress });
  for (const line of describeDataset(dataset)) log(`  ${line}`);
  return { data: isDemo ? "demo" : folder, dataset };
}

async function openCheckpoint({ run, checkpoint }: ResumedRun): Promise<Checkpoint> {
  if (checkpoint !== null) return await readCheckpoint(checkpoint);
  const latest = await new CheckpointStore(join(run, "checkpoints")).latest();
  for (const error of latest?.damaged ?? []) console.error(`warning: ${error.message}; using the one before`);
  if (!latest) throw new ConfigError("--resume", `${run} has no checkpoint`);
  return latest.checkpoint;
}
