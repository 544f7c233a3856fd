/** Where models are found: files, runs, and folders in the layout of Triton's model repositories. */
import { existsSync, type Stats } from "node:fs";
import { readdir, stat } from "node:fs/promises";
import { basename, extname, join, resolve } from "node:path";
import { check, DlfsError, ErrorCode } from "../native";
import { type ModelConfig, mergeConfigs, readModelConfig, type VersionPolicy } from "./model-config";

/** What the files of a model are called in the folder of a version. */
const MODEL_FILE = "model.dlfs";
const CONFIG_FILES = ["config.json", "config.yaml", "config.yml"];
/** Names go into URLs and labels of metrics. */
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;
const VERSION = /^[1-9]\d{0,8}$/;

/** A model, as it is on the disk at the moment. */
export interface FoundModel {
  readonly name: string;
  /** By version, ascending: the file to load. */
  readonly versions: ReadonlyMap<string, string>;
  /** Of its configuration: the file and what is in it, or why that cannot be read. */
  readonly configPath: string | null;
  readonly config: unknown;
  readonly problem: DlfsError | null;
}

/** A place that models were said to be in; it can be looked at again later. */
export interface ModelSource {
  /** As it was given. */
  readonly given: string;
  /** All models that are there, but for those whose folders cannot be models. @throws DlfsError naming the file */
  find(): Promise<FoundModel[]>;
  /** Throws DlfsError where a folder in it cannot be a model. */
  check(): Promise<void>;
}

async function statOf(path: string, given: string): Promise<Stats> {
  try {
    return await stat(path);
  } catch {
    throw new DlfsError(
      ErrorCode.io,
      given,
      "it does not exist: expected a model file, the folder of a run, or models",
    );
  }
}

function checkName(name: string, given: string): string {
  check(
    NAME.test(name),
    given,
    () => `"${name}" cannot be a model's name (letters, digits, ".", "_", "-"): give one, as NAME=PATH`,
  );
  return name;
}

async function readConfig(folder: string): Promise<Omit<FoundModel, "name" | "versions">> {
  const found = CONFIG_FILES.map((file) => join(folder, file)).filter((path) => existsSync(path));
  const [configPath = null] = found;
  if (configPath === null) return { configPath, config: {}, problem: null };
  const unusable = (problem: DlfsError) => ({ configPath, config: {}, problem });
  if (found.length > 1) {
    const names = found.map((path) => basename(path)).join(", ");
    return unusable(new DlfsError(ErrorCode.argument, folder, `expected one configuration, got ${names}`));
  }
  try {
    const text = await Bun.file(configPath).text();
    const config = configPath.endsWith(".json") ? JSON.parse(text) : Bun.YAML.parse(text);
    return { configPath, config: config ?? {}, problem: null };
  } catch (error) {
    return unusable(new DlfsError(ErrorCode.argument, configPath, `it cannot be read: ${(error as Error).message}`));
  }
}

async function versionsIn(folder: string): Promise<Map<string, string>> {
  const entries = await readdir(folder, { withFileTypes: true });
  const names = entries.filter((entry) => !entry.isFile() && VERSION.test(entry.name)).map(({ name }) => name);
  return new Map(names.sort((a, b) => Number(a) - Number(b)).map((name) => [name, join(folder, name, MODEL_FILE)]));
}

async function modelIn(folder: string, name: string): Promise<FoundModel> {
  return { name, versions: await versionsIn(folder), ...(await readConfig(folder)) };
}

/**
 * Where `given` says that models are: `[NAME=]PATH` of a model file, a checkpoint, the folder of a run, or the folder of a model in
 * versions (VERSION/model.dlfs); or PATH of a folder of such folders.
 *
 * @throws DlfsError where nothing is there, or the name cannot be one
 */
export async function modelSource(given: string): Promise<ModelSource> {
  const [, before, rest] = /^([^=/]+)=(.+)$/s.exec(given) ?? [null, null, given];
  const path = resolve(rest as string);
  const found = await statOf(path, given);
  const name = () => checkName(before ?? basename(path, extname(path)), given);
  if (!found.isDirectory() || existsSync(join(path, "checkpoints"))) {
    const model = { name: name(), versions: new Map([["1", path]]), configPath: null, config: {}, problem: null };
    const find = async () => {
      await statOf(path, given);
      return [model];
    };
    return { given, find, check: async () => {} };
  }
  if (before !== null || (await versionsIn(path)).size > 0) {
    const own = checkName(before ?? basename(path), given);
    return { given, find: async () => [await modelIn(path, own)], check: async () => {} };
  }
  const folders = async () => {
    const entries = await readdir(path, { withFileTypes: true });
    return entries.filter((entry) => !entry.isFile() && !entry.name.startsWith(".")).map((entry) => entry.name);
  };
  return {
    given,
    async find() {
      const names = (await folders()).filter((folder) => NAME.test(folder)).sort();
      return await Promise.all(names.map((folder) => modelIn(join(path, folder), folder)));
    },
    async check() {
      for (const folder of await folders()) checkName(folder, given);
    },
  };
}

/** The versions of a model that a policy chooses, ascending. @throws DlfsError where one that it names is not there */
export function chosenVersions(policy: VersionPolicy, found: ReadonlyMap<string, string>, name: string): string[] {
  const all = [...found.keys()];
  if (policy === "all") return all;
  if ("latest" in policy) return all.slice(-policy.latest);
  const named = policy.specific.map(String);
  const missing = named.filter((version) => !found.has(version));
  check(
    missing.length === 0,
    `model "${name}"`,
    () => `versionPolicy.specific: there is no version ${missing.join(", ")} among ${all.join(", ") || "none"}`,
    ErrorCode.io,
  );
  return all.filter((version) => named.includes(version));
}

/** The configuration of a model that was found, with what holds for all models over it. @throws DlfsError naming the field */
export function configOf(model: FoundModel, overrides: unknown): ModelConfig {
  if (model.problem) throw model.problem;
  return readModelConfig(mergeConfigs(model.config, overrides), "config");
}
