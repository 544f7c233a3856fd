/**
 * A child of damaged-models.test.ts: MODEL SEED COUNT. Loads damaged copies of a model file into engines; of each damage prints a line:
 * where, and what came of it. What crashes the process, or is no DlfsError that names the file, fails the test.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Engine } from "../../lib/engine";
import { DlfsError } from "../../lib/native";
import { testDevice } from "../support/device";
import { Random } from "../support/random";

const [model = "", seed = "", count = ""] = process.argv.slice(2);
const intact = await Bun.file(model).bytes();
const random = new Random(seed);
const device = testDevice();
const folder = mkdtempSync(join(tmpdir(), "dlfs-damaged-"));
const path = join(folder, "a.dlfs");
const picture = { width: 20, height: 10, data: new Uint8Array(600).fill(100) };

const HEADER = 64;
const index = Number(new DataView(intact.buffer).getBigUint64(16, true));

/** Sets the checksums right, so that what is behind them is looked at. */
function sign(bytes: Uint8Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const [offset, length] = [view.getBigUint64(16, true), view.getBigUint64(24, true)].map(Number) as [number, number];
  if (offset + length <= bytes.length)
    view.setBigUint64(32, Bun.hash.xxHash64(bytes.subarray(offset, offset + length), 0n), true);
  view.setBigUint64(56, Bun.hash.xxHash64(bytes.subarray(0, 56), 0n), true);
}

/** Some bytes changed: one bit, one byte, or a run of them. */
function change(bytes: Uint8Array, from: number, to: number): void {
  const at = random.integer(from, to - 1);
  const kind = random.integer(0, 2);
  if (kind === 0) bytes[at] = (bytes[at] as number) ^ (1 << random.integer(0, 7));
  else if (kind === 1) bytes[at] = random.integer(0, 255);
  else bytes.fill(random.integer(0, 1) * 255, at, Math.min(to, at + random.integer(1, 16)));
}

const damages: Record<string, () => Uint8Array> = {
  cut: () => intact.slice(0, random.integer(0, intact.length - 1)),
  longer: () => Buffer.concat([intact, intact.slice(0, random.integer(1, 200))]),
  header: () => {
    const bytes = intact.slice();
    change(bytes, 0, HEADER);
    return bytes;
  },
  "signed header": () => {
    const bytes = intact.slice();
    change(bytes, 8, 56);
    sign(bytes);
    return bytes;
  },
  tensors: () => {
    const bytes = intact.slice();
    change(bytes, HEADER, index);
    return bytes;
  },
  index: () => {
    const bytes = intact.slice();
    change(bytes, index, bytes.length);
    return bytes;
  },
  "signed index": () => {
    const bytes = intact.slice();
    change(bytes, index, bytes.length);
    sign(bytes);
    return bytes;
  },
};

for (const [where, make] of Object.entries(damages)) {
  for (let i = 0; i < Number(count); i++) {
    const bytes = make();
    writeFileSync(path, bytes);
    let outcome: string;
    try {
      await using engine = await Engine.load(path, { device, precision: "fp32", batchSizes: [1], warmUp: false });
      await engine.detect(picture);
      outcome = Buffer.compare(bytes, intact) === 0 ? "the same" : "loaded";
    } catch (error) {
      const named = error instanceof DlfsError && error.message.includes(path);
      outcome = named
        ? "refused"
        : `UNNAMED ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`;
    }
    console.log(`${where}: ${outcome.replaceAll("\n", " | ")}`);
  }
}
device.dispose();
rmSync(folder, { recursive: true });
