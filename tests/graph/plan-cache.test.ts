/** Picks on disk: which are used, what damages do, and that processes do not lose each other's. */
import { afterEach, beforeEach, describe, expect, spyOn, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  conv2d,
  convPicks,
  Parameter,
  PlanCache,
  Program,
  restoreConvPicks,
  tuneConvolutions,
  useParameter,
} from "../../lib/graph";
import { Device, Tensor } from "../../lib/tensor";
import { backend } from "../support/device";

let folder = "";
let warnings: string[] = [];
const warn = (message: string) => void warnings.push(message);

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "dlfs-plans-"));
  warnings = [];
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** Plans one convolution as a program does; what is in use then, "key=pick". */
function plan(device: Device): string {
  const weight = new Parameter([8, 3, 3, 4], { kind: "constant", value: 0 });
  using values = Tensor.full(device, weight.shape, 0.1);
  weight.tensor = values;
  const spec = { x: { shape: [1, 6, 6, 4], dtype: "f32" as const } };
  new Program(device, spec, ({ x }) => ({ y: conv2d(x!, useParameter(weight), null, { padding: 1 }) })).dispose();
  const picks = convPicks(device);
  expect(picks).toHaveLength(1);
  return picks[0]!;
}

/** A new device that tunes with picks in the folder; how many convolutions it tuned, and its pick. */
function tuned(options: { deterministic?: boolean } = {}): { count: number; pick: string } {
  using device = new Device({ backend, ...options });
  let count = 0;
  tuneConvolutions(device, {
    ms: 5,
    cache: new PlanCache(device, folder, warn),
    onProgress: ({ total }) => {
      count = total;
    },
  });
  const pick = plan(device);
  return { count, pick };
}

function onlyFile(): string {
  const files = readdirSync(folder);
  expect(files).toHaveLength(1);
  return join(folder, files[0]!);
}

describe("picks on disk", () => {
  test("spare the next start the tuning", () => {
    const first = tuned();
    expect(first.count).toBe(1);
    expect(tuned()).toEqual({ count: 0, pick: first.pick });
    expect(warnings).toEqual([]);
    const lines = readFileSync(onlyFile(), "utf8").trim().split("\n");
    using device = new Device({ backend });
    expect(lines.filter((line) => line.startsWith("#")).join("\n")).toContain(device.info.name);
    expect(lines.at(-1)).toBe(first.pick);
  });

  test("are kept apart by the options that limit the choice", () => {
    tuned();
    expect(tuned({ deterministic: true }).count).toBe(1);
    expect(readdirSync(folder)).toHaveLength(2);
  });

  test("leave out damaged lines, with one warning", () => {
    const { pick } = tuned();
    const file = onlyFile();
    const text = readFileSync(file, "utf8");
    writeFileSync(file, `${text}0,1,2=\n=x\nnot a pick\n0,1,\u0007=abc\n`);
    expect(tuned()).toEqual({ count: 0, pick });
    expect(warnings).toEqual([`${file}: 4 lines that are no convolution plans are left out`]);
  });

  test("of another device or library are not used, and replaced", () => {
    tuned();
    const file = onlyFile();
    const text = readFileSync(file, "utf8");
    writeFileSync(file, text.replace(/^# device: .*$/m, "# device: another"));
    const { count, pick } = tuned();
    expect(count).toBe(1);
    expect(warnings).toHaveLength(1);
    // On a GPU another algorithm may have won this time.
    const head = text.split("\n").filter((line) => line.startsWith("#"));
    const now = readFileSync(file, "utf8").split("\n");
    expect(now.filter((line) => line.startsWith("#"))).toEqual(head);
    expect(now).toContain(pick);
  });

  test("that do not fit any more are tuned again", () => {
    const { pick } = tuned();
    const file = onlyFile();
    writeFileSync(file, readFileSync(file, "utf8").replace(/^(\d.*)=.*$/m, "$1=no such algorithm"));
    const console_ = spyOn(console, "warn").mockImplementation(() => {});
    try {
      expect(tuned().count).toBe(1);
      expect(console_.mock.calls.join()).toContain("no such algorithm");
    } finally {
      console_.mockRestore();
    }
    expect(readFileSync(file, "utf8")).toContain(pick.slice(0, pick.indexOf("=") + 1));
    expect(readFileSync(file, "utf8")).not.toContain("no such algorithm");
  });

  test("of two processes are merged", () => {
    using device = new Device({ backend });
    const [one, two] = [new PlanCache(device, folder, warn), new PlanCache(device, folder, warn)];
    one.set("1,1", "a");
    one.set("1,2", "b");
    one.save();
    two.set("1,2", "c");
    two.set("1,3", "d");
    two.save();
    const both = new PlanCache(device, folder, warn);
    expect(["1,1", "1,2", "1,3"].map((key) => both.get(key))).toEqual(["a", "c", "d"]);
    expect(readdirSync(folder)).toHaveLength(1);
    expect(warnings).toEqual([]);
  });

  test("that cannot be saved cost a warning, not the start", () => {
    const file = join(folder, "file");
    writeFileSync(file, "");
    using device = new Device({ backend });
    const cache = new PlanCache(device, join(file, "plans"), warn);
    cache.set("1,1", "a");
    cache.save();
    cache.save();
    expect(warnings).toHaveLength(1);
    expect(existsSync(cache.path)).toBe(false);
  });

  test("give way to a checkpoint's", () => {
    using heuristic = new Device({ backend });
    const chosen = plan(heuristic);
    const key = chosen.slice(0, chosen.indexOf("="));
    using device = new Device({ backend });
    const cache = new PlanCache(device, folder, warn);
    cache.set(key, "no such algorithm");
    tuneConvolutions(device, { ms: 5, cache });
    restoreConvPicks(device, [chosen]);
    expect(plan(device)).toBe(chosen);
  });
});

test("a pick restored after a program was made is used by the programs after it", () => {
  using device = new Device({ backend });
  const chosen = plan(device);
  const other = `${chosen.slice(0, chosen.indexOf("="))}=${backend === "cuda" ? "direct" : "direct loops"}`;
  if (other === chosen) throw new Error("the heuristics chose what this test restores");
  restoreConvPicks(device, [other]);
  expect(plan(device)).toBe(other);
});
