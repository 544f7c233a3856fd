/** torchvision's ways to load images, measured in turns with ours by scripts/peers/data.py. */
import { fileURLToPath } from "node:url";
import { DlfsError, ErrorCode } from "../native";

export interface DataPeerSettings {
  /** A folder of JPEGs. */
  images: string;
  batch: number;
  /** Height and width of the network input. */
  size: number;
  /** Workers, or threads. */
  threads: number;
  /** Batches that are timed at a time. */
  batches: number;
}

/** A process that measures one of its pipelines whenever it is asked to, and sleeps in between. */
export class DataPeer implements AsyncDisposable {
  pipelines: readonly string[] = [];
  versions: Record<string, string> = {};
  /** What could not be measured, and why. */
  readonly failed: string[] = [];
  readonly #python: string;
  readonly #child: Bun.Subprocess<"pipe", "pipe", "pipe">;
  readonly #errors: Promise<string>;
  readonly #lines: AsyncGenerator<Record<string, unknown>>;

  private constructor(python: string, args: readonly string[]) {
    const script = fileURLToPath(new URL("../../scripts/peers/data.py", import.meta.url));
    this.#python = python;
    this.#child = Bun.spawn([python, script, ...args], { stdin: "pipe", stdout: "pipe", stderr: "pipe" });
    this.#errors = new Response(this.#child.stderr).text();
    this.#lines = jsonLines(this.#child.stdout);
  }

  /** @throws DlfsError that says what is missing: the interpreter, or a package */
  static async start(python: string, settings: DataPeerSettings): Promise<DataPeer> {
    if (!Bun.which(python)) {
      const message = "no such program; --peers takes the Python of an environment with PyTorch and torchvision";
      throw new DlfsError(ErrorCode.unsupported, `peers (${python})`, message);
    }
    const options = Object.entries(settings).flatMap(([name, value]) => [`--${name}`, String(value)]);
    const peer = new DataPeer(python, options);
    const { versions, pipelines } = await peer.#next();
    peer.versions = versions as Record<string, string>;
    peer.pipelines = pipelines as string[];
    return peer;
  }

  /** Milliseconds of wall and of CPU time for a batch; null, with the reason in `failed`, where it cannot be measured. */
  async measure(pipeline: string): Promise<{ ms: number; cpuMs: number } | null> {
    this.#child.stdin.write(`${pipeline}\n`);
    this.#child.stdin.flush();
    const { failed, ms, cpuMs } = await this.#next();
    if (failed === undefined) return { ms: ms as number, cpuMs: cpuMs as number };
    this.failed.push(failed as string);
    return null;
  }

  async #next(): Promise<Record<string, unknown>> {
    const { value, done } = await this.#lines.next();
    if (!done) return value;
    await this.#child.exited;
    const last = (await this.#errors).trim().split("\n").slice(-3).join(" ");
    const message = last || `ended with ${this.#child.exitCode}`;
    throw new DlfsError(ErrorCode.unsupported, `peers (${this.#python})`, message);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // Threads of a pool make batches ahead, which nobody will take.
    this.#child.kill();
    await this.#child.exited;
  }
}

async function* jsonLines(stream: ReadableStream<Uint8Array>): AsyncGenerator<Record<string, unknown>> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of stream) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) if (line.startsWith("{")) yield JSON.parse(line);
  }
}
