/** Starts servers for checks and benches, and waits until they are ready. */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { benchImages } from "../../lib/bench";
import { DeviceImageCodec } from "../../lib/data";
import { Device } from "../../lib/tensor";

const root = fileURLToPath(new URL("../../", import.meta.url));

export interface StartedServer extends AsyncDisposable {
  /** Ends with a slash. */
  readonly url: string;
  readonly pid: number;
  /** The process and its children: resident bytes. */
  memory(): { readonly own: number; readonly children: number };
  /** How it ended, where it has. */
  readonly exitCode: number | null;
  /** Asks it to end, and waits. */
  stop(): Promise<number>;
}

/**
 * Starts a command that prints JSON lines, one of which has `msg` "ready" and its `url`.
 *
 * @param log a file for its log; default: none is kept. What it prints as errors is shown, its first 40 lines
 */
export async function startServer(command: readonly string[], log?: string, seconds = 900): Promise<StartedServer> {
  const child = Bun.spawn([...command], { cwd: root, stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  void (async () => {
    let lines = 0;
    for await (const chunk of child.stderr.pipeThrough(new TextDecoderStream())) {
      if (lines < 40) process.stderr.write(chunk);
      lines += chunk.split("\n").length - 1;
    }
  })();
  const sink = log === undefined ? null : Bun.file(log).writer();
  const url = await new Promise<string>((done, fail) => {
    const timer = setTimeout(() => fail(new Error(`${command.join(" ")}: not ready in ${seconds} s`)), seconds * 1000);
    void (async () => {
      let text = "";
      let found = false;
      for await (const chunk of child.stdout.pipeThrough(new TextDecoderStream())) {
        sink?.write(chunk);
        if (found) continue;
        text += chunk;
        const line = text.split("\n").find((part) => part.includes('"msg":"ready"') && part.endsWith("}"));
        if (line === undefined) continue;
        found = true;
        clearTimeout(timer);
        done((JSON.parse(line) as { url: string }).url);
      }
      await sink?.end();
      clearTimeout(timer);
      fail(new Error(`${command.join(" ")} ended with ${await child.exited} before it was ready`));
    })();
  });
  const stop = async () => {
    if (child.exitCode === null) child.kill("SIGTERM");
    return await child.exited;
  };
  return {
    ...{ url, pid: child.pid, stop },
    memory: () => ({
      own: residentBytes(child.pid),
      children: childrenOf(child.pid).reduce((sum, pid) => sum + residentBytes(pid), 0),
    }),
    get exitCode() {
      return child.exitCode;
    },
    async [Symbol.asyncDispose]() {
      await stop();
    },
  };
}

/** `dlfs serve` of this tree. */
export const serveCommand = (...args: string[]): string[] => [
  process.execPath,
  "run",
  "lib/cli/main.ts",
  "serve",
  ...args,
];

function readProc(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}

/** Memory that a process has for itself; pages that it shares with others by mapping the same file or segment are not counted. */
function residentBytes(pid: number): number {
  const text = readProc(`/proc/${pid}/status`);
  const kib = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(text)?.[1] ?? 0);
  return kib("RssAnon") * 1024;
}

function childrenOf(pid: number): number[] {
  const direct = readProc(`/proc/${pid}/task/${pid}/children`).trim().split(" ").filter(Boolean).map(Number);
  return direct.flatMap((child) => [child, ...childrenOf(child)]);
}

/** Paths of the images of a folder, or of drawn ones: 640x480 of about 110 KB. */
export function loadImages(folder: string | undefined, most = 64): string[] {
  let from = folder;
  if (from === undefined) {
    using device = new Device();
    from = benchImages(new DeviceImageCodec(device), most);
  }
  const path = from;
  if (!statSync(path).isDirectory()) return [path];
  const names = readdirSync(path)
    .filter((name) => /\.(jpe?g|png|webp)$/i.test(name))
    .sort();
  if (names.length === 0) throw new Error(`${path}: it has no images`);
  return names.slice(0, most).map((name) => join(path, name));
}
