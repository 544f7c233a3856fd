/** How a model is served: `config.json` or `config.yaml` in its folder, and what the command line says. */
import { backendNames } from "../native";
import { isObject } from "../native/json";
import { precisionNames } from "../tensor";
import { choice, flag, integer, type Kind, list, number, orNone, refuse, text } from "../train/config/kinds";
import { byDefault, optional, record, type Settings } from "../train/config/setting";

const side = integer(1);

/** Height and width. */
const size: Kind<[number, number]> = {
  expected: "height and width in pixels, such as [640, 640]",
  sign: "HxW",
  schema: { type: "array", items: { type: "integer", minimum: 1 }, minItems: 2, maxItems: 2 },
  parse: (value) => value,
  read(value, at) {
    if (!Array.isArray(value) || value.length !== 2) return refuse(at, this.expected, value);
    return [side.read(value[0], `${at}[0]`), side.read(value[1], `${at}[1]`)];
  },
};

/** Which versions of a model are loaded. */
export type VersionPolicy = { readonly latest: number } | { readonly specific: readonly number[] } | "all";

const versionPolicy: Kind<VersionPolicy> = {
  expected: '"all", {"latest": N} or {"specific": [N, ...]}',
  sign: "POLICY",
  schema: {
    anyOf: [
      { enum: ["all"] },
      { type: "object", properties: { latest: { type: "integer", minimum: 1 } }, required: ["latest"] },
      {
        type: "object",
        properties: { specific: { type: "array", items: { type: "integer", minimum: 1 }, minItems: 1 } },
        required: ["specific"],
      },
    ],
  },
  parse: (value) => value,
  read(value, at) {
    if (value === "all") return "all";
    const given = typeof value === "object" && value !== null ? Object.entries(value) : [];
    const [name, content] = given.length === 1 ? (given[0] as [string, unknown]) : ["", null];
    if (name === "latest") return { latest: integer(1).read(content, `${at}.latest`) };
    if (name === "specific") return { specific: list(integer(1)).read(content, `${at}.specific`) };
    return refuse(at, this.expected, value);
  },
};

/** The names in brackets are Triton's. */
const batching = {
  preferredSizes: byDefault(
    list(integer(1), 0),
    [],
    "images of batches that are preferred to others [preferred_batch_size]",
  ),
  maxDelayMs: byDefault(
    number({ from: 0 }),
    0,
    "how long a request waits for others to make a batch [max_queue_delay_microseconds]",
  ),
  priorityLevels: byDefault(integer(1, 100), 1, "levels of priority; 1 is served first [priority_levels]"),
  defaultPriority: optional(
    integer(1),
    "of requests that say none; default: the middle level [default_priority_level]",
  ),
  maxQueue: byDefault(integer(1), 1024, "requests that may wait, of each level of priority [max_queue_size]"),
  maxQueueBytes: byDefault(integer(1), 512 * 2 ** 20, "bytes of images that may wait"),
  timeoutAction: byDefault(
    choice(["reject", "delay"]),
    "reject",
    "what becomes of a request that has waited for its timeout: an answer of status 503, or a place behind the others of its level [timeout_action]",
  ),
  defaultTimeoutMs: byDefault(
    number({ from: 0 }),
    0,
    "the timeout in the queue; 0 for none [default_timeout_microseconds]",
  ),
  allowTimeoutOverride: byDefault(flag, true, "whether requests may say a shorter one [allow_timeout_override]"),
  preserveOrdering: byDefault(flag, false, "answers come in the order of the requests [preserve_ordering]"),
} satisfies Settings;

const settings = {
  backend: optional(choice(backendNames), "what it runs on; default: DLFS_BACKEND, else cuda where it finds a device"),
  devices: byDefault(list(integer(0)), [0], "devices of the backend, each with engines of its own"),
  instances: byDefault(integer(1, 64), 1, "engines of each device, each in a process of its own [instance_group]"),
  precision: optional(choice(precisionNames), "default: fp16 where the device computes in it, else fp32"),
  quantize: optional(choice(["f8", "i8"]), "convolutions of 8 bits, for a model file with a calibration"),
  maxBatch: optional(
    integer(1, 1024),
    "images of a batch, and so of a request; default: 32 on a GPU, 8 on the CPU [max_batch_size]",
  ),
  batchSizes: optional(
    list(integer(1, 1024)),
    "sizes of batches that have programs of their own; default: 1, 2, 4, ... maxBatch",
  ),
  size: optional(size, "network input; default: the model's"),
  scoreThreshold: optional(
    number({ from: 0, to: 1 }),
    "detections below it are left out where a request says no other; default: what the model's post-processing keeps",
  ),
  inFlight: byDefault(
    integer(1, 16),
    2,
    "batches that an engine has at a time: one is decoded while another is detected on",
  ),
  decodeThreads: byDefault(integer(0, 1024), 0, "threads for decoding; 0 chooses"),
  computeThreads: byDefault(integer(0, 1024), 0, "threads for computing on the CPU; 0: as many as it has cores"),
  tuneMs: optional(number({ from: 0 }), "milliseconds for choosing each convolution's algorithm, 0 for heuristics"),
  memoryLimit: byDefault(orNone(integer(1)), null, "bytes of device memory of an engine"),
  niceness: byDefault(
    orNone(integer(0, 19)),
    null,
    "how far an engine's process steps back behind others for a processor; none: 5 on the CPU, 0 on a GPU",
  ),
  sharedMemory: byDefault(
    integer(1, 65_536),
    64,
    "MiB of memory that an engine's process shares with the server, for the images of its batches and their results",
  ),
  loadTimeoutMs: byDefault(integer(1), 600_000, "how long loading may take"),
  answerTimeoutMs: byDefault(integer(1), 60_000, "how long an engine may take for a batch before it is started again"),
  modules: byDefault(
    list(text("FILE"), 0),
    [],
    "files that are imported before the model, with architectures of your own",
  ),
  versionPolicy: byDefault(versionPolicy, { latest: 1 }, "which versions are loaded [version_policy]"),
  defaultVersion: optional(integer(1), "the version of requests that name none; default: the newest that is ready"),
  batching: optional(record("the settings of its queue", batching), "the queue [dynamic_batching]"),
} satisfies Settings;

const config = record("an object with settings", settings);

/** JSON Schema of a model's configuration. */
export const modelConfigSchema = {
  $schema: "https://json-schema.org/draft/2020-12/schema",
  title: "How dlfs serves a model",
  ...config.schema,
};

type Read = typeof config extends Kind<infer T> ? T : never;
type BatchingConfig = Required<NonNullable<Read["batching"]>>;

/** All settings, with their defaults. */
export type ModelConfig = Omit<Read, "batching"> & { readonly batching: BatchingConfig };

/** What may be said of it. */
export type GivenModelConfig = { [N in keyof Omit<Read, "batching">]?: Read[N] } & {
  batching?: { [N in keyof BatchingConfig]?: BatchingConfig[N] };
};

/** One configuration over another, whose settings it replaces. */
export function mergeConfigs(below: unknown, above: unknown): unknown {
  if (!isObject(below) || !isObject(above)) return above ?? below;
  const batchings = isObject(below.batching) && isObject(above.batching);
  const defined = Object.fromEntries(Object.entries(above).filter(([, value]) => value !== undefined));
  const merged = { ...below, ...defined };
  return batchings ? { ...merged, batching: { ...(below.batching as object), ...(above.batching as object) } } : merged;
}

/**
 * Reads a configuration.
 *
 * @param at what it is called in messages, which go on with the field: "config.json"
 * @throws ConfigError that names the field
 */
export function readModelConfig(value: unknown, at: string): ModelConfig {
  const read = config.read(value, at);
  const queue = record("the settings of its queue", batching).read(read.batching ?? {}, `${at}.batching`);
  const { priorityLevels, defaultPriority = Math.ceil(priorityLevels / 2), preserveOrdering, preferredSizes } = queue;
  const field = (name: string, good: boolean, expected: string, found: unknown) =>
    good || refuse(`${at}.${name}`, expected, found);
  field(
    "batching.defaultPriority",
    defaultPriority <= priorityLevels,
    `at most priorityLevels, ${priorityLevels}`,
    defaultPriority,
  );
  field(
    "batching.preserveOrdering",
    !preserveOrdering || priorityLevels === 1,
    `false where there are ${priorityLevels} levels of priority`,
    preserveOrdering,
  );
  const largest = read.maxBatch ?? (read.batchSizes && Math.max(...read.batchSizes));
  if (read.maxBatch !== undefined && read.batchSizes !== undefined) {
    const most = Math.max(...read.batchSizes);
    field("batchSizes", most === read.maxBatch, `sizes up to maxBatch, ${read.maxBatch}`, read.batchSizes);
  }
  field(
    "batching.preferredSizes",
    largest === undefined || preferredSizes.every((size) => size <= largest),
    `sizes up to maxBatch, ${largest}`,
    preferredSizes,
  );
  return { ...read, batching: { ...queue, defaultPriority } };
}
