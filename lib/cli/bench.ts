import { writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import {
  type BenchResult,
  type BenchRow,
  benchInference,
  benchLoaders,
  benchNms,
  benchPostprocess,
  benchResult,
  benchSizes,
  benchTraining,
  benchTrainingData,
  besideTable,
  type CallTiming,
  ceilings,
  chromeTrace,
  comparisonTable,
  DataPeer,
  type DataSettings,
  dataPeerTable,
  dataTable,
  dataTitle,
  layerBenches,
  layerLine,
  measureLayer,
  type NetworkSettings,
  networkName,
  nmsCases,
  openBenchData,
  type PeerResult,
  peerTable,
  profileSummary,
  profileTable,
  readBenchResult,
  resultTable,
  runOperationPeers,
  runPeers,
  type SizeCases,
  sizeCases,
  title,
  writeBenchResult,
} from "../bench";
import { Device } from "../tensor";
import { autotune, plansFolder } from "../train";
import { milliseconds, oneOf, positiveInteger, precisionOf, recomputeOf, sizeOf, UsageError } from "./arguments";
import { decodeSettingsOf, hardwareOf, runDecode } from "./bench-decode";
import type { Verb } from "./main";

const BENCHES = ["train", "infer", "layers", "postprocess", "nms", "sizes", "data", "decode"] as const;
type BenchName = (typeof BENCHES)[number];

/** Whose settings a bench uses. */
const WORKS: Record<BenchName, readonly ("train" | "infer")[]> = {
  train: ["train"],
  infer: ["infer"],
  layers: ["infer"],
  postprocess: ["infer"],
  nms: ["infer"],
  sizes: ["train", "infer"],
  data: ["train"],
  decode: ["train"],
};

/** Milliseconds of tuning for a convolution of the sizes bench, which has some two thousand. */
const QUICK_MS = 20;

const help = `dlfs bench: times training and inference of a detector on this machine, with synthetic batches that are on the device.

Usage: dlfs bench [train] [infer] [layers] [postprocess] [nms] [sizes] [data] [decode] [all] [options]
       default: train infer

  train               a training step: forward, targets, losses, backward, optimizer
  infer               the network alone, to the maps that post-processing reads, and the whole call from uint8 images on the
                      device to boxes on the host
  layers              single layers at the shapes of a RetinaNet at 640x640
  postprocess         everything after the last convolution, on maps with scores as a trained network's
  nms                 non-maximum suppression of up to 100,000 boxes of 80 classes, and of 20,000 of one
  sizes               train and the network alone at 512, 800 and 800x1344 (torchvision's 800x1333, padded) with batches of 1, 7
                      and 16; at --size or with --batch alone where they are given
  data                batches of 32 at 640x640 from JPEGs (read, decoded, augmented) and from records, and training on them
                      beside training on a synthetic batch (CPU: the compact model, 8 images of 192x192)
  decode              JPEGs alone, in batches of 64: decoded to their own pixels from memory and from files, and letterboxed to
                      network inputs

  --model NAME        default retinanet_resnet50_fpn
  --batch N           default 32 on a GPU, 1 on the CPU
  --size N or HxW     network input in pixels; default 640 on a GPU, 320 on the CPU
  --classes N         default 91
  --precision P       fp32, tf32, bf16 or fp16; default: train bf16 and infer fp16 where the device has them, else fp32
  --quantize DTYPE    infer with convolutions of 8 bits, f8 or i8, calibrated on the batch
  --norm KIND         of the backbone: batch (statistics of the batch) or frozen; default batch
  --trainable-layers N
                      stages of the backbone that train, from the deepest; default 3 with --norm frozen, else all
  --lanes N           streams that a program's graph is spread over, 1 to 8; default what is fastest on the device
  --recompute WHAT    of train: "all" that is cheap, or what it takes for activations of a size such as 10GiB; default none
  --repetitions N     default 15; the medians of fewer are not worth comparing
  --tune-ms N         time for choosing each convolution's algorithm where none is saved, 0 for heuristics; default 300 on a GPU,
                      ${QUICK_MS} for sizes, whose picks are kept apart
  --images FOLDER     of data and decode: JPEGs to load; default drawn ones of 640x480, kept in the cache folder
  --files N           of data and decode: how many of them, or how many to draw; default on a GPU 2048 and 1024, on the CPU 256
  --threads N         of data and decode: decoding threads, and workers of --peers; default: one for each core, of data's own on a
                      GPU what the decoder chooses, of decode with JPEG engines one for two cores
  --hardware N        of data and decode: the share of JPEGs, in per cent, that a GPU's JPEG engines decode; default 100
  --sweep             of decode: also other shares (0 to 100 %) and numbers of threads
  --backend NAME      cuda or cpu; default: DLFS_BACKEND, else cuda where it finds a device
  --profile           print the time of every call of train and infer, the longest first
  --trace FILE        write those as a trace for chrome://tracing or Perfetto (of train, if both are run)
  --deterministic     only algorithms that give the same bytes each run
  --peers PYTHON      run the same work in PyTorch and torchvision, by this Python: train and infer (retinanet_resnet50_fpn,
                      on a GPU), layers, nms, data, decode
  --out FILE          write the results as JSON
  --compare FILE      print what has changed since such a file, beyond the noise

What the columns mean: docs/performance.md.`;

const options = {
  model: { type: "string" },
  batch: { type: "string" },
  size: { type: "string" },
  classes: { type: "string" },
  precision: { type: "string" },
  quantize: { type: "string" },
  norm: { type: "string" },
  "trainable-layers": { type: "string" },
  lanes: { type: "string" },
  recompute: { type: "string" },
  images: { type: "string" },
  files: { type: "string" },
  threads: { type: "string" },
  hardware: { type: "string" },
  sweep: { type: "boolean" },
  repetitions: { type: "string" },
  "tune-ms": { type: "string" },
  backend: { type: "string" },
  profile: { type: "boolean" },
  trace: { type: "string" },
  deterministic: { type: "boolean" },
  peers: { type: "string" },
  out: { type: "string" },
  compare: { type: "string" },
} as const;

type Args = ReturnType<typeof parseArgs<{ options: typeof options }>>["values"];

const print = (lines: readonly string[]): void => {
  for (const line of lines) console.log(line);
};

function benchesOf(names: readonly string[]): BenchName[] {
  const wanted = names.map((name) => {
    if (name === "all" || BENCHES.includes(name as BenchName)) return name as BenchName | "all";
    throw new UsageError(`expected ${BENCHES.join(", ")} or all, got "${name}"`);
  });
  if (wanted.length === 0) return ["train", "infer"];
  return BENCHES.filter((name) => wanted.includes(name) || wanted.includes("all"));
}

/** Whether and how the model's backbone is normalised and trained; models by other names have no such choice. */
function backboneOf(args: Args, model: string): Pick<NetworkSettings, "norm" | "trainableLayers"> {
  const hasChoice = /^(retinanet|fcos)_/.test(model);
  if (!hasChoice) {
    for (const name of ["norm", "trainable-layers"] as const) {
      if (args[name] !== undefined) throw new UsageError(`--${name}: ${model} has no such choice`);
    }
    return {};
  }
  const norm = args.norm === undefined ? "batch" : oneOf("norm", args.norm, ["batch", "frozen"]);
  const layers = args["trainable-layers"];
  const all = model.includes("mobilenet") ? 6 : 5;
  const trainableLayers = layers === undefined ? (norm === "frozen" ? 3 : all) : Number(layers);
  if (!Number.isInteger(trainableLayers) || trainableLayers < 0 || trainableLayers > all) {
    throw new UsageError(`--trainable-layers: expected an integer from 0 to ${all}, got "${layers}"`);
  }
  return { norm, trainableLayers };
}

/** The settings of train and of the others, which differ in the precision. */
function settingsOf(args: Args, device: Device): Record<"train" | "infer", NetworkSettings> {
  const cuda = device.backend === "cuda";
  const model = args.model ?? "retinanet_resnet50_fpn";
  const given = args.precision === undefined ? undefined : precisionOf("precision", args.precision).dtype;
  const common = {
    model,
    batch: args.batch === undefined ? (cuda ? 32 : 1) : positiveInteger("batch", args.batch),
    size: args.size === undefined ? ([cuda ? 640 : 320, cuda ? 640 : 320] as const) : sizeOf("size", args.size),
    classes: args.classes === undefined ? 91 : positiveInteger("classes", args.classes),
    ...backboneOf(args, model),
    repetitions: args.repetitions === undefined ? 15 : positiveInteger("repetitions", args.repetitions),
    profileRuns: cuda ? 5 : 1,
    lanes: args.lanes === undefined ? undefined : positiveInteger("lanes", args.lanes),
    deterministic: device.deterministic,
    tf32: device.tf32,
  };
  const recompute = args.recompute === undefined ? undefined : recomputeOf("recompute", args.recompute);
  const quantize = args.quantize === undefined ? undefined : oneOf("quantize", args.quantize, ["f8", "i8"] as const);
  const fast = (dtype: "bf16" | "f16") => (cuda && device.supports(`conv.${dtype}`) ? dtype : "f32");
  return {
    train: { ...common, recompute, precision: given ?? fast("bf16") },
    infer: { ...common, precision: given ?? fast("f16"), quantize },
  };
}

/** The settings of the data path: those given, else a GPU's usual work, or what a CPU does in a minute. */
function dataSettingsOf(args: Args, device: Device, train: NetworkSettings): DataSettings {
  const cuda = device.backend === "cuda";
  const number = (name: "files" | "threads" | "repetitions", otherwise: number): number =>
    args[name] === undefined ? otherwise : positiveInteger(name, args[name]);
  const small = cuda ? {} : { model: args.model ?? "compact", size: args.size ? train.size : ([192, 192] as const) };
  return {
    images: args.images,
    files: number("files", cuda ? 2048 : 256),
    batch: args.batch === undefined ? 32 : train.batch,
    size: args.size === undefined ? [640, 640] : train.size,
    precision: train.precision,
    threads: number("threads", cuda ? 0 : availableParallelism()),
    hardware: hardwareOf(device, args.hardware),
    repetitions: number("repetitions", cuda ? 15 : 7),
    batches: cuda ? 30 : 3,
    training: {
      ...{ ...train, ...small },
      ...(!cuda && { batch: args.batch === undefined ? 8 : train.batch, norm: undefined, trainableLayers: undefined }),
    },
  };
}

/** The network inputs of the decode bench: those of data. */
const decodeInputs = (args: Args, { size, precision }: NetworkSettings) => ({
  size: args.size === undefined ? ([640, 640] as const) : size,
  precision,
});

/** Times the data path, beside the peer's where there is one. */
async function runData(device: Device, args: Args, settings: DataSettings) {
  const { size, batch, batches } = settings;
  const threads = settings.threads || availableParallelism();
  if (args.peers !== undefined && size[0] !== size[1]) {
    throw new UsageError(`--size: the peer of data takes square inputs, not ${size.join("x")}`);
  }
  using data = await openBenchData(device, settings);
  console.log(`data\n${dataTitle(data)}`);
  const peer =
    args.peers === undefined
      ? null
      : await DataPeer.start(args.peers, { images: data.folder, batch, size: size[0], threads, batches });
  const { rows, peerRows } = await benchLoaders(device, data, settings, peer, console.error);
  await peer?.[Symbol.asyncDispose]();
  const training = await benchTrainingData(device, data, settings, console.error);
  print(dataTable([...rows, ...training]));
  const peers: PeerResult[] = peer ? [{ versions: peer.versions, rows: peerRows, failed: peer.failed }] : [];
  for (const { versions, failed } of peers) {
    print(["", Object.values(versions).join(", "), ...dataPeerTable(rows, peerRows)]);
    print(failed.map((text) => `not measured: ${text}`));
  }
  return { rows: [...rows, ...training], peers };
}

/** Times the sizes that the options name, or the usual ones, and prints a table for each as soon as it is there. */
async function runSizes(
  device: Device,
  args: Args,
  settings: Record<"train" | "infer", NetworkSettings>,
  keep: (rows: readonly BenchRow[]) => void,
): Promise<void> {
  // What is measured in a hurry is not for others.
  const quick = { ms: QUICK_MS, folder: join(plansFolder(), "quick") };
  if (device.backend === "cuda" && args["tune-ms"] === undefined) autotune(device, quick);
  const cases: SizeCases = sizeCases(device);
  if (args.size !== undefined) cases.sizes = [settings.train.size];
  if (args.batch !== undefined) cases.batches = [settings.train.batch];
  let work = "";
  for await (const found of benchSizes(device, settings, cases)) {
    const { precision } = settings[found.work];
    if (found.work !== work) console.log(`${title(device, precision)}\nsizes, ${found.work}`);
    work = found.work;
    print(resultTable(found.rows, ceilings(device, precision)));
    keep(found.rows);
  }
}

const layerSuffix = (batch: number, precision: string): string => `, ${batch} images, ${precision}`;

function layerRows(device: Device, { batch, precision }: NetworkSettings): BenchRow[] {
  return layerBenches.flatMap((bench) =>
    measureLayer(device, bench, batch, precision).flatMap((timing) => {
      console.log(layerLine(device, precision, timing));
      const { name, pass, measured } = timing;
      if (!measured) return [];
      const row = { bench: "layers", name: `${name} ${pass}${layerSuffix(batch, precision)}`, warmUp: 2 };
      return [{ ...row, ...measured.timing, flops: measured.work.flops }];
    }),
  );
}

/** Runs the same work elsewhere and prints it: whole networks, and single operations beside our rows. */
async function peersOf(
  python: string,
  benches: readonly BenchName[],
  settings: Record<"train" | "infer", NetworkSettings>,
  rows: readonly BenchRow[],
): Promise<PeerResult[]> {
  const peers: PeerResult[] = [];
  for (const work of (["train", "infer"] as const).filter((name) => benches.includes(name))) {
    const found = await runPeers(python, settings[work], [work], console.error);
    peers.push(found);
    print(["", `peers, ${networkName(settings[work])}`, ...peerTable(found)]);
  }
  const { batch, precision } = settings.infer;
  const suffix = layerSuffix(batch, precision);
  const layers = benches.includes("layers") ? layerBenches : [];
  const nms = benches.includes("nms") ? nmsCases() : [];
  if (layers.length + nms.length === 0) return peers;
  const found = await runOperationPeers(python, { batch, precision, layers, nms }, console.error);
  for (const row of found.rows) if (!nms.some(({ name }) => name === row.name)) row.name += suffix;
  peers.push(found);
  print(["", "beside PyTorch and torchvision", ...besideTable(rows, found)]);
  return peers;
}

export const verb: Verb = {
  help,
  async run(argv) {
    const { values: args, positionals } = parseArgs({ args: argv, options, strict: true, allowPositionals: true });
    const benches = benchesOf(positionals);
    const profiled = benches.includes("train") || benches.includes("infer");
    for (const name of ["profile", "trace"] as const) {
      if (args[name] !== undefined && !profiled) throw new UsageError(`--${name} is for train and infer`);
    }
    if (args.peers !== undefined && benches.every((bench) => bench === "postprocess" || bench === "sizes")) {
      throw new UsageError("--peers is for train, infer, layers, nms, data and decode");
    }
    const decodes = benches.includes("decode");
    for (const name of ["images", "files", "threads", "hardware"] as const) {
      const used = decodes || benches.includes("data");
      if (args[name] !== undefined && !used) throw new UsageError(`--${name} is for data and decode`);
    }
    if (args.sweep !== undefined && !decodes) throw new UsageError("--sweep is for decode");
    if (args.quantize !== undefined && !benches.includes("infer")) throw new UsageError("--quantize is for infer");
    const before = args.compare === undefined ? null : readBenchResult(args.compare);
    const tuneMs = args["tune-ms"] === undefined ? undefined : milliseconds("tune-ms", args["tune-ms"]);
    const tf32 = args.precision !== undefined && precisionOf("precision", args.precision).tf32;
    using device = new Device({ backend: args.backend, deterministic: args.deterministic, tf32 }, console.log);
    autotune(device, { ms: tuneMs });
    const settings = settingsOf(args, device);
    const dataSettings = benches.includes("data") ? dataSettingsOf(args, device, settings.train) : undefined;
    const decodeSettings = decodes ? decodeSettingsOf(args, device, decodeInputs(args, settings.train)) : undefined;
    const rows: BenchRow[] = [];
    const dataPeers: PeerResult[] = [];
    const resultOf = (peers: PeerResult[] = []): BenchResult => {
      const precisions = new Set(benches.flatMap((bench) => WORKS[bench]).map((work) => settings[work].precision));
      return benchResult(device, {
        command: ["dlfs", "bench", ...argv].join(" "),
        settings: { benches, ...settings, ...(dataSettings && { data: dataSettings }), decode: decodeSettings },
        ceilings: Object.fromEntries([...precisions].map((precision) => [precision, ceilings(device, precision)])),
        rows,
        ...(peers.length > 0 && { peers }),
      });
    };
    let traced: { calls: CallTiming[]; name: string } | null = null;

    for (const bench of benches) {
      const used = settings[WORKS[bench][0]!];
      if (bench === "sizes") {
        // What was measured is in the file even if the rest, which takes a minute or two, is not waited for.
        await runSizes(device, args, settings, (found) => {
          rows.push(...found);
          if (args.out !== undefined) writeBenchResult(args.out, resultOf());
        });
        continue;
      }
      if (dataSettings && bench === "data") {
        const found = await runData(device, args, dataSettings);
        rows.push(...found.rows);
        dataPeers.push(...found.peers);
        continue;
      }
      if (decodeSettings && bench === "decode") {
        const found = await runDecode(device, decodeSettings, args.peers);
        rows.push(...found.rows);
        dataPeers.push(...found.peers);
        continue;
      }
      if (bench === "nms") console.log("\nnms");
      else console.log(`${title(device, used.precision)}\n${bench}`);
      const top = ceilings(device, used.precision);
      if (bench === "layers") {
        rows.push(...layerRows(device, used));
        continue;
      }
      if (bench === "train" || bench === "infer") {
        const { rows: found, profile } = await (bench === "train" ? benchTraining : benchInference)(device, used, top);
        rows.push(...found);
        print(resultTable(found, top));
        print(["", ...profileSummary(profile)]);
        if (args.profile) print(["", ...profileTable(profile)]);
        traced ??= { calls: profile, name: `${bench}, ${networkName(used)}` };
      } else {
        const found = bench === "nms" ? benchNms(device) : benchPostprocess(device, used);
        rows.push(...found);
        print(resultTable(found, top));
      }
    }

    const peers = args.peers === undefined ? [] : await peersOf(args.peers, benches, settings, rows);
    if (args.trace !== undefined && traced) {
      writeFileSync(args.trace, JSON.stringify(chromeTrace(traced.calls, traced.name)));
      console.log(`\nwritten: ${args.trace}`);
    }
    const result = resultOf([...peers, ...dataPeers]);
    if (args.out !== undefined) {
      writeBenchResult(args.out, result);
      console.log(`\nwritten: ${args.out}`);
    }
    if (before) print(["", ...comparisonTable(before, result)]);
    return 0;
  },
};
