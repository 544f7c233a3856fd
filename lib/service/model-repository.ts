/** All models of a service, in versions: they are loaded and unloaded while it runs. */
import { stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { check, DlfsError, ErrorCode } from "../native";
import { powersOfTwo } from "../train";
import { withoutPaths } from "./client-text";
import type { EngineSpec } from "./engine-messages";
import { EngineLostError } from "./engine-process";
import { type Backoff, EngineSupervisor } from "./engine-supervisor";
import type { GivenModelConfig, ModelConfig } from "./model-config";
import { chosenVersions, configOf, type FoundModel, type ModelSource, modelSource } from "./model-sources";
import { ServedModel } from "./served-model";
import { type ServiceLog, silentLog, withFields } from "./service-log";
import { StatisticsRecorder } from "./statistics";
import {
  type InferenceBackend,
  type InferenceReply,
  type InferenceRequest,
  type ModelDescription,
  type ModelStatistics,
  ServiceError,
} from "./types";

export interface ModelRepositoryOptions {
  /** `[NAME=]PATH` of model files, checkpoints, runs, models in versions, or folders of those: see docs/service.md. */
  readonly models: readonly string[];
  /** Settings of all models, over those of their own files: a command line's. */
  readonly config?: GivenModelConfig;
  readonly log?: ServiceLog;
  /** How an engine's process is started again. */
  readonly backoff?: Backoff;
  /** The program of engines' processes; see EngineProcessOptions. */
  readonly program?: string;
}

/** A version of a model: what serves it, or did. */
interface VersionEntry {
  readonly recorder: StatisticsRecorder;
  served: ServedModel;
  /** Of its file and its configuration: where it is the same, there is nothing to load again. */
  identity: string;
}

/** A model that was loaded, or is being loaded, for the first time. */
interface ModelEntry {
  readonly versions: Map<string, VersionEntry>;
  config: ModelConfig;
}

/** Seconds after which loading may be tried again where it failed for a reason that may pass. */
const RETRY_LOAD = 5;

const byNumber = ([a]: readonly [string, unknown], [b]: readonly [string, unknown]) => Number(a) - Number(b);

export class ModelRepository implements InferenceBackend {
  readonly #options: ModelRepositoryOptions;
  readonly #sources: readonly ModelSource[];
  readonly #log: ServiceLog;
  readonly #models = new Map<string, ModelEntry>();
  /** Models that were found when they were looked for last. */
  #known: readonly FoundModel[] = [];
  /** Loads and unloads of a model come one after the other: the last of each. */
  readonly #changes = new Map<string, Promise<void>>();
  /** Versions that are being loaded. */
  readonly #loading = new Set<ServedModel>();
  #closing: Promise<void> | null = null;

  private constructor(options: ModelRepositoryOptions, sources: readonly ModelSource[]) {
    this.#options = options;
    this.#sources = sources;
    this.#log = options.log ?? silentLog;
  }

  /**
   * Looks for the models, and loads none.
   *
   * @throws DlfsError that names the file where there are none, two have the same name, or a configuration cannot be used
   */
  static async open(options: ModelRepositoryOptions): Promise<ModelRepository> {
    const sources = await Promise.all(options.models.map(modelSource));
    const repository = new ModelRepository(options, sources);
    for (const source of sources) await source.check();
    const found = (await Promise.all(sources.map((source) => source.find()))).flat();
    repository.#known = found;
    const names = found.map(({ name }) => name);
    const twice = names.find((name, i) => names.indexOf(name) !== i);
    if (twice !== undefined)
      throw new DlfsError(ErrorCode.argument, "models", `two are named "${twice}": give others, as NAME=PATH`);
    for (const model of found) {
      try {
        configOf(model, options.config);
      } catch (error) {
        throw repository.#inFile(model, error);
      }
    }
    return repository;
  }

  /** Names of all models that are there, loaded or not. */
  get names(): string[] {
    return [...new Set([...this.#models.keys(), ...this.#known.map(({ name }) => name)])].sort();
  }

  /**
   * Looks for models again and loads all that are there, one after the other. Those that are there no more go on serving.
   *
   * @returns the errors of those that cannot be loaded, by name
   */
  async loadAll(): Promise<Map<string, ServiceError>> {
    const errors = new Map<string, ServiceError>();
    const names = (await this.#find()).map(({ name }) => name).sort();
    for (const name of this.#models.keys()) {
      if (!names.includes(name)) this.#log.warn(`model "${name}" is not on the disk any more`, { model: name });
    }
    for (const name of names) {
      try {
        await this.load(name);
      } catch (error) {
        errors.set(name, error as ServiceError);
      }
    }
    return errors;
  }

  models(): readonly ModelDescription[] {
    return this.names.flatMap((name) => {
      const loaded = this.#models.get(name)?.versions ?? new Map<string, VersionEntry>();
      const known = this.#known.find((model) => model.name === name)?.versions ?? new Map<string, string>();
      const versions = [...new Set([...loaded.keys(), ...known.keys()])].sort((a, b) => Number(a) - Number(b));
      return versions.map((version) => loaded.get(version)?.served.description ?? neverLoaded(name, version));
    });
  }

  describe(name: string, version?: string): ModelDescription {
    const entry = this.#models.get(name);
    const found = entry && this.#version(entry, version);
    if (found) return found.served.description;
    const known = this.#known.find((model) => model.name === name)?.versions;
    const versions = [...(known?.keys() ?? [])];
    if (!known && !entry) throw new ServiceError(404, `there is no model "${name}"`);
    const other = version ?? versions.at(-1);
    if (other !== undefined && versions.includes(other)) return neverLoaded(name, other);
    throw new ServiceError(
      404,
      `there is no version${version === undefined ? "" : ` "${version}"`} of model "${name}"`,
    );
  }

  infer(name: string, version: string | undefined, request: InferenceRequest): Promise<InferenceReply> {
    const entry = this.#models.get(name);
    const found = entry && this.#version(entry, version);
    if (found) return found.served.infer(request);
    try {
      const { reason } = this.describe(name, version);
      const which = version === undefined ? `model "${name}"` : `model "${name}" version "${version}"`;
      return Promise.reject(new ServiceError(503, `${which} is not ready: ${reason}`));
    } catch (error) {
      return Promise.reject(error);
    }
  }

  load(name: string): Promise<void> {
    return this.#change(name, () => this.#load(name));
  }

  unload(name: string): Promise<void> {
    return this.#change(name, async () => {
      this.describe(name); // it is there
      const versions = [...(this.#models.get(name)?.versions.values() ?? [])];
      await Promise.all(versions.map(({ served }) => served.close()));
      this.#log.info(`model "${name}" is unloaded`, { model: name });
    });
  }

  statistics(): readonly ModelStatistics[] {
    return [...this.#models.values()].flatMap(({ versions }) =>
      [...versions].sort(byNumber).map(([, { served }]) => served.statistics()),
    );
  }

  close(withinMs?: number): Promise<void> {
    this.#closing ??= this.#close(withinMs);
    return this.#closing;
  }

  async #close(withinMs: number | undefined): Promise<void> {
    const served = () => [...this.#models.values()].flatMap(({ versions }) => [...versions.values()]);
    await Promise.all([...this.#loading].map((one) => one.close(0)));
    await Promise.all(served().map((one) => one.served.close(withinMs)));
    await Promise.allSettled(this.#changes.values());
    await Promise.all(served().map((one) => one.served.close(withinMs)));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** A version that was loaded; without a number the one that is meant: the default, the newest ready, the newest. */
  #version({ versions, config }: ModelEntry, version: string | undefined): VersionEntry | undefined {
    if (version !== undefined) return versions.get(version);
    const standard = versions.get(String(config.defaultVersion));
    if (standard) return standard;
    const ascending = [...versions].sort(byNumber).map(([, found]) => found);
    return ascending.findLast(({ served }) => served.description.state === "ready") ?? ascending.at(-1);
  }

  #change(name: string, change: () => Promise<void>): Promise<void> {
    if (this.#closing) return Promise.reject(new ServiceError(503, "the service is being shut down"));
    const before = this.#changes.get(name)?.catch(() => {});
    const changed = Promise.resolve(before).then(change);
    this.#changes.set(name, changed);
    const forget = () => this.#changes.get(name) === changed && this.#changes.delete(name);
    changed.then(forget, forget);
    return changed;
  }

  /** Looks at all places again; one that cannot be read is a matter of its own models. */
  async #find(): Promise<FoundModel[]> {
    const found = await Promise.allSettled(this.#sources.map((source) => source.find()));
    for (const one of found) if (one.status === "rejected") this.#log.warn((one.reason as Error).message);
    this.#known = found.flatMap((one) => (one.status === "fulfilled" ? one.value : []));
    return [...this.#known];
  }

  /** An error about a model's configuration, with the file that it is in. */
  #inFile({ name, configPath, problem }: FoundModel, error: unknown): DlfsError {
    if (problem) return problem;
    const { code = ErrorCode.argument, message } = error as DlfsError;
    return new DlfsError(code, configPath ?? `model "${name}"`, message);
  }

  /** What a client hears of an error that is logged with everything. */
  #refused(name: string, status: number, error: Error, path = ""): ServiceError {
    const printed = error instanceof EngineLostError && error.printed.length > 0 ? { printed: error.printed } : {};
    this.#log.error(`model "${name}" cannot be loaded: ${error.message}`, { model: name, ...printed });
    const text = path === "" ? error.message : error.message.replaceAll(path, basename(path));
    const retryAfter = status === 503 ? RETRY_LOAD : undefined;
    return new ServiceError(status, `model "${name}" cannot be loaded: ${withoutPaths(text)}`, retryAfter);
  }

  async #load(name: string): Promise<void> {
    const model = (await this.#find()).find((found) => found.name === name);
    if (!model) throw new ServiceError(404, `there is no model "${name}"`);
    let config: ModelConfig;
    let wanted: string[];
    try {
      config = configOf(model, this.#options.config);
      wanted = chosenVersions(config.versionPolicy, model.versions, name);
      check(wanted.length > 0, `model "${name}"`, () => "there is no version of it", ErrorCode.io);
    } catch (error) {
      throw this.#refused(name, 400, this.#inFile(model, error));
    }
    const entry = this.#models.get(name) ?? { versions: new Map(), config };
    this.#models.set(name, entry);
    const failures: unknown[] = [];
    for (const version of wanted) {
      try {
        await this.#loadVersion(name, entry, version, model.versions.get(version) as string, config);
      } catch (error) {
        failures.push(error);
      }
    }
    // What serves goes on where something that was to take its place does not.
    if (failures.length > 0) throw failures[0];
    entry.config = config;
    const others = [...entry.versions].filter(([version]) => !wanted.includes(version));
    await Promise.all(others.map(([, { served }]) => served.close()));
  }

  async #loadVersion(
    name: string,
    entry: ModelEntry,
    version: string,
    path: string,
    config: ModelConfig,
  ): Promise<void> {
    const { versionPolicy: _, defaultVersion: __, ...rest } = config;
    const identity = JSON.stringify([path, await stateOf(path), rest]);
    const before = entry.versions.get(version);
    if (before?.served.serving && before.identity === identity) return;
    const started = performance.now();
    const recorder = before?.recorder ?? new StatisticsRecorder(name, version);
    const served = this.#serve(name, version, path, config, recorder);
    // One that serves stays in its place until the new one is ready.
    if (!before?.served.serving) entry.versions.set(version, { recorder, served, identity });
    this.#loading.add(served);
    try {
      await served.loaded;
    } catch (error) {
      const permanent = error instanceof EngineLostError && error.permanent;
      throw this.#refused(name, permanent ? 400 : 503, error as Error, path);
    } finally {
      this.#loading.delete(served);
    }
    entry.versions.set(version, { recorder, served, identity });
    const seconds = Number(((performance.now() - started) / 1000).toFixed(2));
    const { backend, device, precision } = served.description;
    const fields = { model: name, version, path, backend, device, precision, seconds };
    this.#log.info(`model "${name}" version "${version}" is ready`, fields);
    if (before?.served.serving) await before.served.close();
  }

  #serve(name: string, version: string, path: string, config: ModelConfig, recorder: StatisticsRecorder): ServedModel {
    const { devices, instances, sharedMemory, maxBatch, batching, scoreThreshold, inFlight } = config;
    const { loadTimeoutMs, answerTimeoutMs } = config;
    const log = withFields(this.#log, { model: name, version });
    const { batchSizes = maxBatch === undefined ? undefined : powersOfTwo(maxBatch) } = config;
    const { backend, precision, quantize, size, tuneMs, decodeThreads, computeThreads } = config;
    const { memoryLimit, niceness, modules } = config;
    const spec = (device: number): EngineSpec => ({
      ...{ path, device, batchSizes, backend, precision, quantize, size, tuneMs, inFlight },
      ...{ decodeThreads, computeThreads, memoryLimit, niceness, modules },
    });
    const places = devices.flatMap((device) => Array.from({ length: instances }, () => device));
    return new ServedModel({
      ...{ name, version, batching, scoreThreshold, inFlight, statistics: recorder },
      engines: (onChange) =>
        places.map(
          (device, index) =>
            new EngineSupervisor({
              ...{ spec: spec(device), sharedBytes: sharedMemory * 2 ** 20, loadTimeoutMs, answerTimeoutMs, onChange },
              ...{ backoff: this.#options.backoff, program: this.#options.program },
              serviceLog: withFields(log, { engine: index }),
              log: (line) => log.info(line, { engine: index }),
            }),
        ),
    });
  }
}

/** What changes when a file is replaced. */
async function stateOf(path: string): Promise<unknown> {
  try {
    const found = await stat(path);
    const { size, mtimeMs, ino } = found.isDirectory() ? await stat(join(path, "checkpoints")) : found;
    return [size, mtimeMs, ino];
  } catch {
    return null;
  }
}

function neverLoaded(name: string, version: string): ModelDescription {
  return {
    ...{ name, version, state: "unloaded", reason: "it is not loaded", classes: [], size: null },
    ...{ precision: "", backend: "", device: "", maxBatch: 0, priorityLevels: 1 },
  };
}
