/** The settings of `dlfs serve`: those of a file, and those of a command line over them. */
import { DlfsError, ErrorCode } from "../native";
import { choice, flag, integer, type Kind, list, number, refuse, text } from "../train/config/kinds";
import { byDefault, optional, record, type Settings } from "../train/config/setting";
import { defaultLimits, type ServiceLimits } from "./limits";
import { logLevels } from "./log";
import { type GivenModelConfig, mergeConfigs, modelConfigSchema, readModelConfig } from "./model-config";

const port = integer(0, 65_535);

const urls = {
  hosts: byDefault(list(text("HOST"), 0), [], "hosts that may be named, such as *.example.org; none: any"),
  networks: byDefault(list(text("CIDR"), 0), [], "networks that may be asked although they are not public"),
  seconds: byDefault(number({ above: 0 }), 10, "time for an image, redirects included"),
  maxRedirects: byDefault(integer(0, 20), 3, "redirects that are followed"),
  maxBytes: optional(integer(1), "bytes of an image; default: limits.maxBodyBytes"),
} satisfies Settings;

const publish = {
  folder: optional(text("DIR"), "keep them there, to be labelled: images/, and what was found in live.dlvs"),
  maxFolderBytes: byDefault(integer(1), 2 ** 30, "bytes of that folder; what comes then is not kept"),
  post: optional(text("URL"), "post them there, with DLFS_LIVE_POST_TOKEN as a bearer token where that is set"),
  port: optional(port, "let who has DLFS_LIVE_TOKEN listen at this port, /live; 0: any free one"),
  hostname: byDefault(text("HOST"), "127.0.0.1", "the address of that port; 0.0.0.0: all"),
  share: byDefault(number({ from: 0, to: 1 }), 0.01, "share of the images that are published"),
  perSecond: byDefault(number({ above: 0 }), 1, "images a second at most"),
  maxImageBytes: byDefault(integer(0), 8 * 2 ** 20, "of larger files what was found is published alone"),
} satisfies Settings;

const whole = integer(1);
const seconds = number({ above: 0 });
const limits = {
  maxBodyBytes: byDefault(whole, defaultLimits.maxBodyBytes, "bytes of a body, before and after decompression"),
  maxJsonBytes: byDefault(whole, defaultLimits.maxJsonBytes, "bytes of JSON in a body"),
  maxPixels: byDefault(whole, defaultLimits.maxPixels, "pixels of an image"),
  maxImages: byDefault(whole, defaultLimits.maxImages, "images of a request to /predict"),
  maxConcurrent: byDefault(whole, defaultLimits.maxConcurrent, "requests that are answered at a time"),
  maxReceiving: byDefault(whole, defaultLimits.maxReceiving, "requests whose bodies are on their way at a time"),
  maxBufferedBytes: byDefault(whole, defaultLimits.maxBufferedBytes, "bytes of all bodies in memory"),
  bodySeconds: byDefault(seconds, defaultLimits.bodySeconds, "time for a body to come"),
  answerSeconds: byDefault(seconds, defaultLimits.answerSeconds, "time for an answer, behind the body"),
  idleSeconds: byDefault(integer(1, 255), defaultLimits.idleSeconds, "time of a connection without traffic"),
} satisfies Settings;

/** Settings of all models, read by the model side's own table. */
const model: Kind<GivenModelConfig> = {
  ...{
    expected: "an object with settings of models",
    sign: "{...}",
    schema: modelConfigSchema,
    parse: (value) => value,
  },
  read: (value, at) => {
    if (typeof value !== "object" || value === null) return refuse(at, "an object with settings of models", value);
    readModelConfig(value, at);
    return value as GivenModelConfig;
  },
};

const settings = {
  models: optional(list(text("MODEL"), 0), "the models, as on the command line, [NAME=]PATH"),
  model: optional(model, "settings of all models, over those of their own files"),
  hostname: byDefault(text("HOST"), "127.0.0.1", "the address to listen on; 0.0.0.0: all"),
  port: byDefault(port, 8000, "the port to listen on; 0: any free one"),
  metricsHostname: optional(text("HOST"), "the address of metricsPort; default: hostname"),
  metricsPort: optional(port, "a port of its own for /metrics, without API keys"),
  tlsCert: optional(text("FILE"), "certificate, with its chain, as PEM"),
  tlsKey: optional(text("FILE"), "the certificate's key, as PEM"),
  apiKeyFile: optional(text("FILE"), "API keys, one in each line; those of DLFS_API_KEYS count, too"),
  corsOrigins: byDefault(list(text("ORIGIN"), 0), [], "origins whose pages may ask, such as https://example.org"),
  modelControl: byDefault(flag, false, "whether clients may load and unload models"),
  defaultModel: optional(text("NAME"), "the model of /predict where a request names none; default: the only one"),
  page: byDefault(flag, true, "whether there is a page at /"),
  urls: optional(
    record("an object with settings of fetching", urls),
    "fetch images that are named by URL; default: no",
  ),
  publish: optional(
    record("an object with settings of publishing", publish),
    "publish a part of the images with what was found on them; default: none",
  ),
  limits: optional(record("an object with limits", limits), "what is taken of a client at most"),
  logLevel: byDefault(choice(logLevels), "info", "the least level of lines in the log"),
  drainSeconds: byDefault(
    number({ from: 0, to: 86_400 }),
    30,
    "time for requests under way when the service is to end",
  ),
  keepGoing: byDefault(flag, false, "serve the models that can be loaded, where others cannot; ready with one of them"),
} satisfies Settings;

const config = record("an object with settings", settings);

type Read = typeof config extends Kind<infer T> ? T : never;

/** All settings, with their defaults. */
export type ServiceConfig = Omit<Read, "limits" | "models"> & {
  readonly models: readonly string[];
  readonly limits: ServiceLimits;
};

/** What is published, and where. */
export type PublishConfig = NonNullable<Read["publish"]>;

/** What may be said of it. */
export type GivenServiceConfig = Omit<{ [N in keyof Read]?: Read[N] }, "limits" | "urls" | "publish"> & {
  limits?: Partial<ServiceLimits>;
  urls?: Partial<NonNullable<Read["urls"]>>;
  publish?: Partial<PublishConfig>;
};

/** JSON Schema of the settings. */
export const serviceConfigSchema = {
  $schema: "https://json-schema.org/draft/2020-12/schema",
  title: "Settings of dlfs serve",
  ...config.schema,
};

/** Reads a file of settings: YAML, of which JSON is a part. @throws DlfsError that names the file */
export async function readServiceFile(path: string): Promise<unknown> {
  let content: string;
  try {
    content = await Bun.file(path).text();
  } catch (error) {
    throw new DlfsError(ErrorCode.io, path, `it cannot be read: ${(error as Error).message}`);
  }
  try {
    return Bun.YAML.parse(content) ?? {};
  } catch (error) {
    throw new DlfsError(ErrorCode.argument, path, `it is no YAML: ${(error as Error).message}`);
  }
}

/**
 * Settings with their defaults.
 *
 * @param file what a file has, and its name for errors
 * @param over what goes over it, a command line's; undefined where nothing was said
 * @throws ConfigError naming the field, what was expected and what came
 */
export function serviceConfigOf(
  file: { value: unknown; at: string } | null,
  over: GivenServiceConfig = {},
): ServiceConfig {
  const below = file ? config.read(file.value, file.at) : config.read({}, "settings");
  const given = (file?.value ?? {}) as GivenServiceConfig;
  const plain = Object.fromEntries(Object.entries(over).filter(([, value]) => value !== undefined));
  const merged = config.read(
    {
      ...given,
      ...plain,
      ...((given.model || over.model) && { model: mergeConfigs(given.model, over.model) }),
      ...((given.limits || over.limits) && { limits: { ...given.limits, ...defined(over.limits) } }),
      ...((given.urls || over.urls) && { urls: { ...given.urls, ...defined(over.urls) } }),
      ...((given.publish || over.publish) && { publish: { ...given.publish, ...defined(over.publish) } }),
    },
    file?.at ?? "settings",
  );
  const { tlsCert, tlsKey, publish: published } = merged;
  if (published && published.folder === undefined && published.post === undefined && published.port === undefined) {
    refuse(`${file?.at ?? "settings"}.publish`, "one of folder, post and port at least", given.publish ?? over.publish);
  }
  if ((tlsCert === undefined) !== (tlsKey === undefined)) {
    refuse(
      `${file?.at ?? "settings"}.${tlsCert === undefined ? "tlsCert" : "tlsKey"}`,
      "both or none of tlsCert and tlsKey",
      undefined,
    );
  }
  return {
    ...merged,
    models: over.models && over.models.length > 0 ? over.models : (below.models ?? []),
    limits: { ...defaultLimits, ...merged.limits },
  };
}

const defined = (value: object | undefined): object =>
  Object.fromEntries(Object.entries(value ?? {}).filter(([, entry]) => entry !== undefined));
