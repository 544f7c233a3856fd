/** The same work in PyTorch and torchvision, measured beside ours by the scripts of scripts/peers. */
import { fileURLToPath } from "node:url";
import { DlfsError, ErrorCode } from "../native";
import type { DecodeSettings } from "./decode";
import type { LayerBench } from "./layers";
import type { Precision } from "./measure";
import type { NetworkSettings } from "./network";
import type { NmsCase } from "./postprocess";
import { milliseconds, table } from "./table";

/** One measurement of the script. */
export interface PeerRow {
  name: string;
  ms: number;
  low: number;
  high: number;
  repetitions: number;
  /** Of whole networks. */
  images?: number;
  memoryBytes?: number;
  /** CPU time, of the data path. */
  cpuMs?: number;
}

export interface PeerResult {
  /** PyTorch, torchvision, cuDNN and the device. */
  versions: Record<string, string>;
  rows: PeerRow[];
  /** What could not be measured, and why. */
  failed: string[];
}

const script = (name: string): string => fileURLToPath(new URL(`../../scripts/peers/${name}`, import.meta.url));

/**
 * Runs torchvision's RetinaNet with these settings, eagerly and compiled.
 *
 * @param python the interpreter of an environment with PyTorch and torchvision
 * @param works "train" and "infer"
 * @throws DlfsError that says what is missing: the interpreter, a package, a GPU; or where the model is no RetinaNet with ResNet-50
 */
export async function runPeers(
  python: string,
  settings: NetworkSettings,
  works: readonly ("train" | "infer")[],
  log?: (line: string) => void,
): Promise<PeerResult> {
  if (settings.model !== "retinanet_resnet50_fpn") {
    fail(python, `measures retinanet_resnet50_fpn, not ${settings.model}`);
  }
  const { batch, size, classes, precision, norm = "batch", trainableLayers, repetitions } = settings;
  const layers = trainableLayers ?? (norm === "frozen" ? 3 : 5);
  const options = [
    ...["--work", works.join(","), "--batch", `${batch}`, "--size", size.join("x")],
    ...["--classes", `${classes}`, "--precision", precision, "--norm", norm],
    ...["--trainable-layers", `${layers}`, "--repetitions", `${repetitions}`],
  ];
  return runScript(python, [script("retinanet.py"), ...options], "", log);
}

/** What a peer is to run of `layers` and `nms`. */
export interface PeerOperations {
  precision: Precision;
  batch: number;
  layers: readonly Pick<LayerBench, "name" | "torch" | "inputs">[];
  nms: readonly NmsCase[];
}

/**
 * Runs single layers and suppressions in PyTorch and torchvision. Rows are named as ours: a layer's and its pass, a suppression's.
 *
 * @throws DlfsError that says what is missing: the interpreter, a package
 */
export function runOperationPeers(
  python: string,
  { precision, batch, layers, nms }: PeerOperations,
  log?: (line: string) => void,
): Promise<PeerResult> {
  const work = {
    precision,
    batch,
    layers: layers.map(({ name, torch, inputs }) => ({ name, torch, inputs })),
    nms: nms.map(({ name, boxes, scores, labels, threshold }) => ({
      ...{ name, threshold },
      ...{ boxes: Array.from(boxes), scores: Array.from(scores), labels: Array.from(labels) },
    })),
  };
  return runScript(python, [script("operations.py")], JSON.stringify(work), log);
}

/**
 * Decodes the same files by torchvision: on a GPU by decode_jpeg there, else by as many threads. Rows are named as DECODE_WORKS.
 *
 * @throws DlfsError that says what is missing: the interpreter, a package, a GPU
 */
export function runDecodePeers(
  python: string,
  device: string,
  { batch, size, precision, threads, repetitions }: DecodeSettings,
  files: readonly string[],
  log?: (line: string) => void,
): Promise<PeerResult> {
  const work = { files, batch, size, precision, threads, repetitions, warmUp: 2, device };
  return runScript(python, [script("decode.py")], JSON.stringify(work), log);
}

function fail(python: string, message: string): never {
  throw new DlfsError(ErrorCode.unsupported, `peers (${python})`, message);
}

/** The lines that a script prints, once it has ended well. */
async function runScript(
  python: string,
  args: readonly string[],
  input: string,
  log: (line: string) => void = () => {},
): Promise<PeerResult> {
  if (!Bun.which(python)) {
    fail(python, "no such program; --peers takes the Python of an environment with PyTorch and torchvision");
  }
  const child = Bun.spawn([python, ...args], { stdin: Buffer.from(input), stdout: "pipe", stderr: "pipe" });
  const errors = new Response(child.stderr).text();
  const result: PeerResult = { versions: {}, rows: [], failed: [] };
  let rest = "";
  const decoder = new TextDecoder();
  for await (const chunk of child.stdout) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) readLine(line, result, log);
  }
  await child.exited;
  if (child.exitCode !== 0) {
    fail(python, (await errors).trim().split("\n").slice(-3).join(" ") || `ended with ${child.exitCode}`);
  }
  return result;
}

function readLine(line: string, result: PeerResult, log: (line: string) => void): void {
  if (!line.startsWith("{")) return;
  const { versions, failed, ...row } = JSON.parse(line) as Partial<PeerRow> & {
    versions?: Record<string, string>;
    failed?: string;
  };
  if (versions) result.versions = versions;
  else if (failed !== undefined) result.failed.push(failed);
  else {
    result.rows.push(row as PeerRow);
    log(`peer: ${row.name}`);
  }
}

export function peerTable({ versions, rows, failed }: PeerResult): string[] {
  const names = Object.entries(versions).map(([name, version]) => `${name} ${version}`);
  const cells = rows.map(({ name, ms, low, high, images, memoryBytes, repetitions }) => [
    name,
    milliseconds(ms),
    `${milliseconds(low)} to ${milliseconds(high)}`,
    images === undefined ? "" : ((1000 * images) / ms).toFixed(1),
    memoryBytes === undefined ? "" : (memoryBytes / 2 ** 30).toFixed(2),
    String(repetitions),
  ]);
  return [
    names.join(", "),
    ...table(["", "ms", "quartiles", "img/s", "GiB", "median of"], cells),
    ...failed.map((text) => `not measured: ${text}`),
  ];
}

/** Our rows beside the peers' of the same names, and how many times as long those take. */
export function besideTable(
  rows: readonly { name: string; ms: number }[],
  { versions, ...peers }: PeerResult,
): string[] {
  const theirs = new Map(peers.rows.map(({ name, ms }) => [name, ms]));
  const cells = rows.flatMap(({ name, ms }) => {
    const other = theirs.get(name);
    return other === undefined ? [] : [[name, milliseconds(ms), milliseconds(other), (other / ms).toFixed(2)]];
  });
  const names = Object.entries(versions).map(([name, version]) => `${name} ${version}`);
  return [
    names.join(", "),
    ...table(["", "ms", "PyTorch ms", "times ours"], cells),
    ...peers.failed.map((text) => `not measured: ${text}`),
  ];
}
