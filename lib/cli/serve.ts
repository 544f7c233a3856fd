import { parseArgs } from "node:util";
import { parseBytes } from "../data";
import { backendNames } from "../native";
import { type GivenServiceConfig, logLevels, readServiceFile, runService, serviceConfigOf } from "../service";
import { milliseconds, number, oneOf, positiveInteger, precisionOf, sizeOf, UsageError } from "./arguments";
import type { Verb } from "./main";

const help = `dlfs serve: answers HTTP requests for detections.

Usage: dlfs serve MODEL... [options]

  MODEL               [NAME=]PATH of a model file (dlfs export), a checkpoint, the folder of a run, a model in versions
                      (VERSION/model.dlfs, with config.json), or a folder of such models; NAME is the file's, unless given
  --config FILE       settings as YAML or JSON, of which options here are the most used; options go over the file's

Where it listens:
  --host ADDRESS      default 127.0.0.1: this machine alone; 0.0.0.0: every network
  --port N            default 8000; 0: any free one
  --metrics-port N    a port of its own for /metrics, without keys; default: on the same port
  --tls-cert FILE     certificate with its chain, as PEM, and
  --tls-key FILE      its key: HTTPS

Who may ask, and what:
  --api-keys FILE     keys, one in each line, of which requests need one; those in DLFS_API_KEYS count, too
  --cors ORIGIN       pages of this origin may ask, such as https://example.org; may be given several times; *: all
  --allow-urls        /predict fetches images that are named by URL, from public addresses alone
  --url-host HOST     and from no other host than this, or *.this; may be given several times
  --model-control     clients may load and unload models
  --no-page           no page at /

Models (all of them, over their own config.json):
  --default-model N   the model of /predict where a request names none; default: the only one
  --keep-going        serve the models that can be loaded, where others cannot; default: end with an error
  --backend NAME      cuda or cpu; default: DLFS_BACKEND, else cuda where it finds a device
  --devices N,...     GPUs, each with an engine of its own; default 0
  --instances N       engines of each device; default 1
  --precision P       fp32, tf32, bf16 or fp16; default fp16 where the device has it, else fp32
  --quantize DTYPE    f8 or i8: convolutions of 8 bits, for a model file with a calibration
  --size N or HxW     network input in pixels; default the model's
  --score X           leave out detections below it, where a request says no other
  --batch N           most images of a batch, and of a request to /v2; default 32 on a GPU, 8 on the CPU
  --delay MS          how long a request waits for others to make a batch; default 0
  --queue N           requests that may wait; more are answered with 503; default 1024
  --queue-timeout MS  requests that have waited so long are answered with 503; default 0: never
  --tune-ms N         time for choosing each convolution's algorithm where none is saved, 0 for heuristics

Limits:
  --max-body SIZE     a body's, before and after decompression; default 64MiB
  --max-pixels N      an image's; default 2^26
  --max-requests N    answered at a time; more are answered with 503; default 512
  --drain SECONDS     for requests under way when it is to end; default 30

Publishing of some of the images, with what was found on them, to be looked at and labelled (docs/service.md):
  --publish DIR       keep them in a folder: images/, live.dlvs
  --publish-post URL  post them to another system
  --publish-port N    let who has DLFS_LIVE_TOKEN listen at this port, /live; 0: any free one
  --publish-share X   share of the images, 0 to 1; default 0.01
  --publish-rate N    images a second at most; default 1

  --log-level LEVEL   ${logLevels.join(", ")}; default info: a JSON line on standard output for each request

GET /v2/health/ready answers 200 once all models have warmed up. SIGTERM and Ctrl-C end it behind the requests under way, a second
one at once; SIGHUP loads what has changed on the disk. docs/service.md has every endpoint, header, metric and setting.
Exit status: 0 ended as it was asked to, 1 it could not start.`;

const options = {
  config: { type: "string" },
  host: { type: "string" },
  port: { type: "string" },
  "metrics-port": { type: "string" },
  "tls-cert": { type: "string" },
  "tls-key": { type: "string" },
  "api-keys": { type: "string" },
  cors: { type: "string", multiple: true },
  "allow-urls": { type: "boolean" },
  "url-host": { type: "string", multiple: true },
  "model-control": { type: "boolean" },
  "no-page": { type: "boolean" },
  "default-model": { type: "string" },
  "keep-going": { type: "boolean" },
  backend: { type: "string" },
  devices: { type: "string" },
  instances: { type: "string" },
  precision: { type: "string" },
  quantize: { type: "string" },
  size: { type: "string" },
  score: { type: "string" },
  batch: { type: "string" },
  delay: { type: "string" },
  queue: { type: "string" },
  "queue-timeout": { type: "string" },
  "tune-ms": { type: "string" },
  "max-body": { type: "string" },
  "max-pixels": { type: "string" },
  "max-requests": { type: "string" },
  drain: { type: "string" },
  publish: { type: "string" },
  "publish-post": { type: "string" },
  "publish-port": { type: "string" },
  "publish-share": { type: "string" },
  "publish-rate": { type: "string" },
  "log-level": { type: "string" },
} as const;

function port(name: string, text: string): number {
  const value = Number(text);
  if (/^\d+$/.test(text) && value <= 65_535) return value;
  throw new UsageError(`--${name}: expected a port from 0 to 65535, got "${text}"`);
}

function bytes(name: string, text: string): number {
  const value = parseBytes(text);
  if (value !== null && value > 0) return value;
  throw new UsageError(`--${name}: expected a size such as 64MiB, got "${text}"`);
}

function devices(name: string, text: string): number[] {
  if (/^\d+(,\d+)*$/.test(text)) return text.split(",").map(Number);
  throw new UsageError(`--${name}: expected numbers of devices, such as 0,1, got "${text}"`);
}

export const verb: Verb = {
  help,
  async run(argv) {
    const { values: args, positionals } = parseArgs({ args: argv, options, strict: true, allowPositionals: true });
    type Name = keyof typeof args;
    const given = <T>(name: Name, parse: (name: string, text: string) => T): T | undefined =>
      args[name] === undefined ? undefined : parse(name, args[name] as string);
    const model = {
      backend: given("backend", (name, text) => oneOf(name, text, backendNames)),
      devices: given("devices", devices),
      instances: given("instances", positiveInteger),
      precision: given("precision", precisionOf)?.name,
      quantize: given("quantize", (name, text) => oneOf(name, text, ["f8", "i8"] as const)),
      size: given("size", sizeOf),
      scoreThreshold: given("score", number),
      maxBatch: given("batch", positiveInteger),
      tuneMs: given("tune-ms", milliseconds),
      batching: {
        maxDelayMs: given("delay", milliseconds),
        maxQueue: given("queue", positiveInteger),
        defaultTimeoutMs: given("queue-timeout", milliseconds),
      },
    };
    const publish = withoutUndefined({
      folder: args.publish,
      post: args["publish-post"],
      port: given("publish-port", port),
      share: given("publish-share", number),
      perSecond: given("publish-rate", number),
    });
    const over: GivenServiceConfig = {
      models: positionals,
      model: withoutUndefined(model),
      hostname: args.host,
      port: given("port", port),
      metricsPort: given("metrics-port", port),
      tlsCert: args["tls-cert"],
      tlsKey: args["tls-key"],
      apiKeyFile: args["api-keys"],
      corsOrigins: args.cors,
      urls: args["allow-urls"] || args["url-host"] ? { hosts: args["url-host"] } : undefined,
      modelControl: args["model-control"],
      page: args["no-page"] ? false : undefined,
      defaultModel: args["default-model"],
      keepGoing: args["keep-going"],
      publish: Object.keys(publish).length > 0 ? publish : undefined,
      limits: {
        maxBodyBytes: given("max-body", bytes),
        maxPixels: given("max-pixels", positiveInteger),
        maxConcurrent: given("max-requests", positiveInteger),
      },
      drainSeconds: given("drain", number),
      logLevel: given("log-level", (name, text) => oneOf(name, text, logLevels)),
    };
    const file = args.config === undefined ? null : { value: await readServiceFile(args.config), at: args.config };
    const config = serviceConfigOf(file, over);
    if (config.models.length === 0) throw new UsageError("expected MODEL, or models in the file of --config");
    return await runService(config);
  },
};

function withoutUndefined<T extends object>(value: T): T {
  const entries = Object.entries(value).filter(([, entry]) => entry !== undefined);
  const deep = entries.map(([name, entry]) => [name, name === "batching" ? withoutUndefined(entry as object) : entry]);
  return Object.fromEntries(deep) as T;
}
