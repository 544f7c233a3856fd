/** Convolution picks on disk: what tuning found on one kind of device, for the processes that come after. */
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { headerHash, loadLibrary } from "../native";
import type { Device } from "../tensor";

const FORMAT = "dlfs convolution plans 1";

/** "key=pick": the numbers of a ConvKey, and a text of dlfs_conv_pick. */
const LINE = /^(-?\d+(?:,-?\d+)+)=([\x20-\x7e]{1,255})$/;

/** Libraries whose version changes what a pick means or which is the fastest. */
const LIBRARIES = /^(cudnn|cublaslt|onednn|isa|threads)=/;

/**
 * A text file of picks for one device name, compute capability, set of library versions, ABI of the native library, and set of
 * options that limit the choice. Its first lines say which; where they say something else, or a line is no pick, those lines
 * are left out with a warning, once. Nothing depends on the file: what is not in it is tuned again.
 */
export class PlanCache {
  /** The file; it need not exist. */
  readonly path: string;
  readonly #folder: string;
  readonly #header: readonly string[];
  readonly #warn: (message: string) => void;
  readonly #picks: Map<string, string>;
  /** Since the last save(). */
  readonly #fresh = new Map<string, string>();
  #warned = false;

  /** Reads the picks for a device. */
  constructor(
    device: Device,
    folder: string,
    warn: (message: string) => void = (message) => console.warn(`warning: ${message}`),
  ) {
    const { name, computeCapability } = device.info;
    const capability = computeCapability > 0 ? `, compute capability ${(computeCapability / 10).toFixed(1)}` : "";
    const versions = loadLibrary(device.backend).versions.split(", ");
    this.#header = [
      `# ${FORMAT}`,
      `# device: ${device.backend}, ${name}${capability}`,
      `# libraries: ${versions.filter((version) => LIBRARIES.test(version)).join(", ")}, dlfs.h ${headerHash}`,
      `# options: deterministic ${Number(device.deterministic)}, tf32 ${Number(device.tf32)}`,
    ];
    const slug = name.toLowerCase().replace(/[^a-z0-9]+/g, "-");
    const hash = Bun.hash(this.#header.join("\n")).toString(16).padStart(16, "0");
    this.#folder = folder;
    this.path = join(folder, `${slug.replace(/^-|-$/g, "")}-${hash}.txt`);
    this.#warn = warn;
    this.#picks = this.#read();
  }

  /** Number of picks known. */
  get size(): number {
    return this.#picks.size;
  }

  get(key: string): string | undefined {
    return this.#picks.get(key);
  }

  /** Remembers a pick; save() writes it. */
  set(key: string, pick: string): void {
    this.#picks.set(key, pick);
    this.#fresh.set(key, pick);
  }

  /** Forgets a pick that turned out to be of no use; the file loses it when another takes its place. */
  delete(key: string): void {
    this.#picks.delete(key);
    this.#fresh.delete(key);
  }

  /**
   * Writes the picks of set() beside those that other processes have written meanwhile: the file is read again, and replaced as
   * a whole by a rename, so that a reader never sees half of it. Where that fails, a warning says so, once.
   */
  save(): void {
    if (this.#fresh.size === 0) return;
    const lines = [...new Map([...this.#read(), ...this.#fresh])].map(([key, pick]) => `${key}=${pick}`);
    const temporary = `${this.path}.${process.pid}.tmp`;
    try {
      mkdirSync(this.#folder, { recursive: true });
      writeFileSync(temporary, [...this.#header, ...lines.sort(), ""].join("\n"));
      renameSync(temporary, this.path);
      this.#fresh.clear();
    } catch (error) {
      if (existsSync(temporary)) rmSync(temporary);
      this.#warnOnce(`${this.path}: convolution plans cannot be saved: ${reason(error)}`);
    }
  }

  #read(): Map<string, string> {
    let text: string;
    try {
      text = readFileSync(this.path, "utf8");
    } catch (error) {
      const absent = (error as { code?: string }).code === "ENOENT";
      if (!absent) this.#warnOnce(`${this.path}: convolution plans cannot be read: ${reason(error)}`);
      return new Map();
    }
    const lines = text.split("\n").filter((line) => line !== "");
    if (this.#header.some((line, i) => lines[i] !== line)) {
      this.#warnOnce(`${this.path}: its first lines are not those of this device and these libraries; it is not used`);
      return new Map();
    }
    const picks = new Map<string, string>();
    let damaged = 0;
    for (const line of lines.slice(this.#header.length)) {
      const [, key, pick] = LINE.exec(line) ?? [];
      if (key === undefined || pick === undefined) damaged++;
      else picks.set(key, pick);
    }
    if (damaged > 0) this.#warnOnce(`${this.path}: ${damaged} lines that are no convolution plans are left out`);
    return picks;
  }

  #warnOnce(message: string): void {
    if (this.#warned) return;
    this.#warned = true;
    this.#warn(message);
  }
}

function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
