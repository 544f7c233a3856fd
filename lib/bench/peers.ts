/** The same work in PyTorch and torchvision, measured beside ours by the script scripts/peers/retinanet.py. */
import { fileURLToPath } from "node:url";
import { DlfsError, ErrorCode } from "../native";
import type { NetworkSettings } from "./network";
import { milliseconds, table } from "./table";

/** One measurement of the script. */
export interface PeerRow {
  name: string;
  ms: number;
  low: number;
  high: number;
  repetitions: number;
  images: number;
  memoryBytes: number;
}

export interface PeerResult {
  /** PyTorch, torchvision, cuDNN and the device. */
  versions: Record<string, string>;
  rows: PeerRow[];
  /** What could not be measured, and why. */
  failed: string[];
}

const script = fileURLToPath(new URL("../../scripts/peers/retinanet.py", import.meta.url));

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
  log: (line: string) => void = () => {},
): Promise<PeerResult> {
  const fail = (message: string): never => {
    throw new DlfsError(ErrorCode.unsupported, `peers (${python})`, message);
  };
  if (settings.model !== "retinanet_resnet50_fpn") fail(`measures retinanet_resnet50_fpn, not ${settings.model}`);
  if (!Bun.which(python))
    fail("no such program; --peers takes the Python of an environment with PyTorch and torchvision");
  const { batch, size, classes, precision, norm = "batch", trainableLayers, repetitions } = settings;
  const layers = trainableLayers ?? (norm === "frozen" ? 3 : 5);
  const child = Bun.spawn(
    [
      ...[python, script, "--work", works.join(","), "--batch", `${batch}`, "--size", size.join("x")],
      ...["--classes", `${classes}`, "--precision", precision, "--norm", norm],
      ...["--trainable-layers", `${layers}`, "--repetitions", `${repetitions}`],
    ],
    { stdout: "pipe", stderr: "pipe" },
  );
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
  if (child.exitCode !== 0)
    fail((await errors).trim().split("\n").slice(-3).join(" ") || `ended with ${child.exitCode}`);
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
    ((1000 * images) / ms).toFixed(1),
    (memoryBytes / 2 ** 30).toFixed(2),
    String(repetitions),
  ]);
  return [
    names.join(", "),
    ...table(["", "ms", "quartiles", "img/s", "GiB", "median of"], cells),
    ...failed.map((text) => `not measured: ${text}`),
  ];
}
