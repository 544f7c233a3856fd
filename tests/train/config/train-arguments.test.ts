/** Settings from files, overrides and options: what they become, and how what is wrong is named. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { checkContradictions, describeConfig, parseTrainArguments, resolveConfig } from "../../../lib/train";

let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "dlfs-settings-"));
});
afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

function write(name: string, text: string): string {
  const path = join(folder, name);
  writeFileSync(path, text);
  return path;
}

const settingsOf = (...argv: string[]) => parseTrainArguments(argv).settings;

/** The message of an error in the arguments, contradictions among them. */
function wrong(...argv: string[]): string {
  try {
    checkContradictions(parseTrainArguments(argv));
  } catch (error) {
    return (error as Error).message;
  }
  return "nothing is wrong";
}

describe("settings", () => {
  test("of files in each format, of overrides and of options are the same", () => {
    const expected = {
      learningRate: 0.02,
      size: [480, 640],
      groupByAspect: true,
      ema: { decay: 0.999, warmup: 2000 },
      schedule: { kind: "cosine", least: 0.001 },
      groups: [{ match: "^backbone[.]", rate: 0.1 }],
      clipNorm: null,
    };
    const json = `{"learningRate": 0.02, "size": "480x640", "groupByAspect": true, "ema": 0.999, "clipNorm": null,
      "schedule": {"kind": "cosine", "least": 0.001}, "groups": [{"match": "^backbone[.]", "rate": 0.1}]}`;
    const yaml = `
learningRate: 0.02
size: [480, 640]   # height, width
groupByAspect: true
ema: {decay: 0.999}
clipNorm: none
schedule:
  kind: cosine
  least: 0.001
groups:
  - match: ^backbone[.]
    rate: 0.1
`;
    const toml = `learningRate = 0.02
size = "480x640"
groupByAspect = true
ema = 0.999
clipNorm = "none"
[schedule]
kind = "cosine"
least = 0.001
[[groups]]
match = "^backbone[.]"
rate = 0.1
`;
    for (const [name, text] of [
      ["a.json", json],
      ["a.jsonc", `// comment\n${json}`],
      ["a.yaml", yaml],
      ["a.toml", toml],
    ] as const) {
      expect(settingsOf("--config", write(name, text)) as unknown).toEqual(expected);
    }
    const overrides = ["learningRate=0.02", "size=480x640", "groupByAspect=true", "ema=0.999", "clipNorm=none"];
    overrides.push("schedule={kind: cosine, least: 0.001}", 'groups=[{match: "^backbone[.]", rate: 0.1}]');
    expect(settingsOf(...overrides) as unknown).toEqual(expected);
    const options = ["--lr", "0.02", "--size=480x640", "--group-by-aspect", "--ema", "0.999", "--clip-norm", "0"];
    options.push(
      "--schedule",
      "cosine",
      "--schedule.least",
      "0.001",
      "--groups",
      '[{"match":"^backbone[.]","rate":0.1}]',
    );
    expect(settingsOf(...options) as unknown).toEqual(expected);
  });

  test("of the command line stand over those of files, later ones over earlier ones", () => {
    const first = write("first.yaml", "batch: 4\nseed: 1\nema: {decay: 0.99, warmup: 5}\ngroupByAspect: true\n");
    const second = write("second.yaml", "seed: 2\n");
    const settings = settingsOf(
      "--batch",
      "8",
      "--config",
      first,
      "--config",
      second,
      "--no-group-by-aspect",
      "batch=6",
    );
    expect(settings).toEqual({ batch: 6, seed: 2, ema: { decay: 0.99, warmup: 5 }, groupByAspect: false });
  });

  test("with fields are replaced field by field, and another kind begins anew", () => {
    const file = write("fields.yaml", "schedule: {kind: multiStep, milestones: [100, 200], gamma: 0.5}\nema: 0.99\n");
    const { schedule, ema } = settingsOf("--config", file, "schedule.gamma=0.2", "ema.warmup=0");
    expect(schedule).toEqual({ kind: "multiStep", milestones: [100, 200], gamma: 0.2 });
    expect(ema).toEqual({ decay: 0.99, warmup: 0 });
    expect(settingsOf("--config", file, "schedule.kind=polynomial", "schedule.power=0.9").schedule).toEqual({
      kind: "polynomial",
      power: 0.9,
    });
    expect(settingsOf("schedule.milestones=0.5,0.8").schedule).toMatchObject({ milestones: [0.5, 0.8], gamma: 0.1 });
    expect(settingsOf("warmup.iterations=20").warmup).toEqual({ kind: "linear", iterations: 20, factor: 0.001 });
    expect(settingsOf("--plateau", "AP50", "plateau.patience=2").plateau).toMatchObject({
      metric: "AP50",
      patience: 2,
    });
    expect(settingsOf("--ema", "0.9", "ema=none").ema).toBeNull();
  });
});

describe("what is wrong is named", () => {
  test.each([
    [["--iteration", "5"], "--iteration: unknown option; did you mean --iterations?"],
    [["--leanring-rate", "5"], "--leanring-rate: unknown option; did you mean --learning-rate?"],
    [["--keep-evry", "5"], "--keep-evry: unknown option; did you mean --keep-every?"],
    [["--colour", "5"], "--colour: unknown option; --help lists them"],
    [["learning-rat=5"], "learning-rat: unknown setting; did you mean learningRate?"],
    [["schedule.gama=5"], "schedule.gama: unknown field of schedule; did you mean gamma?"],
    [["seed.x=5"], "seed.x: unknown field of seed; it has no fields"],
    [["cosine"], '"cosine": expected --OPTION VALUE or SETTING=VALUE; --help lists them'],
    [["--lr"], "--lr: expected a value, X, after it"],
    [["--lr", "--batch", "4"], "--lr: expected a value, X, after it"],
    [["--lr", "fast"], '--lr: expected a number above 0, got "fast"'],
    [["--lr", ""], '--lr: expected a number above 0, got ""'],
    [["--batch", "1.5"], '--batch: expected an integer from 1, or auto, got "1.5"'],
    [["--size", "100"], '--size: expected N or HxW, multiples of 32, got "100"'],
    [["--sampler", "shufle"], 'repeat-factor, got "shufle"; did you mean shuffle?'],
    [["--model", "retinanet_resnet5_fpn"], "did you mean retinanet_resnet50_fpn"],
    [["--schedule", "cosin"], "--schedule: expected one of constant, multiStep"],
    [["schedule.kind=cosine", "schedule.gamma=1"], "schedule.gamma: unknown setting (known: iterations, least)"],
    [["--schedule", "exponential"], "--schedule.gamma: expected a number above 0, got nothing"],
    [["schedule.milestones=0.5,-3"], "schedule.milestones[1]: expected an iteration from 1, or a share of all below 1"],
    [["--ema", "2"], '--ema: expected a decay between 0 and 1, or "none", got "2"'],
    [["groups=[{match: '(', rate: 1}]"], 'groups[0].match: expected a regular expression, got "("'],
    [["groups=[{rate: 1}]"], "groups[0].match: expected a regular expression, got nothing"],
    [["--recompute", "10GB"], '--recompute: expected all, none or a size such as 10GiB or 800MiB, got "10GB"'],
    [["--clip-norm", "off"], '--clip-norm: expected a number above 0, or 0 or "none" for no clipping, got "off"'],
    [["--max-bad-images", "2"], '--max-bad-images: expected a share of at most 1, got "2"'],
    [["--config", "settings.txt"], "--config: expected a file that ends with .json,"],
    [["--config", "nowhere.yaml"], "--config: nowhere.yaml cannot be read"],
    // Each by itself is fine.
    [["--epochs", "3", "--iterations", "9"], "--epochs: say either this or --iterations"],
    [["--repeat-threshold", "0.1"], "--repeat-threshold: needs --sampler repeat-factor, the sampler is shuffle"],
    [["--overlap-evaluation", "--plateau", "AP"], "--plateau: needs the result of an evaluation before the next step"],
    [["--overlap-evaluation", "--patience", "2"], "--patience: needs the result of an evaluation before the next step"],
    [["--metrics-host", "0.0.0.0"], "--metrics-host: needs --metrics-port"],
    [["--metrics-port", "65536"], '--metrics-port: expected an integer from 0 to 65535, got "65536"'],
    [["--nesterov", "--momentum", "0"], "--nesterov: needs a momentum above 0"],
    [["keepEvery=150", "checkpointEvery=100"], "keepEvery: expected a multiple of --checkpoint-every 100, got 150"],
    [["--records", "r", "--augment", "yolo"], "--augment: yolo needs the images as they were before"],
    [["--records", "r", "--multi-scale", "64"], "--multi-scale: records are of one size"],
    [["--model", "fcos_resnet50_fpn", "--box-loss", "giou"], "--box-loss: fcos_resnet50_fpn has a box loss of its own"],
    [["--norm", "frozen"], "--norm: the compact model has no such backbone"],
    [["model={name: fcos}", "--norm", "frozen"], "--norm: say it within the settings of model"],
    [["schedule={kind: chained, parts: [{start: 5}]}"], "schedule: parts: expected the first to start at 0, got 5"],
  ])("%j", (argv, message) => {
    expect(wrong(...(argv as string[]))).toContain(message as string);
  });

  test("in a file, with the file", () => {
    const unknown = write("unknown.yaml", "learning_rate: 0.1\n");
    expect(wrong("--config", unknown)).toBe(`${unknown}: learning_rate: unknown setting; did you mean learningRate?`);
    const value = write("value.json", '{"schedule": {"kind": "multiStep", "gama": 2}}');
    expect(wrong("--config", value)).toBe(
      `${value}: schedule.gama: unknown setting; did you mean gamma? (known: milestones, gamma)`,
    );
    const list = write("list.json", "[1]");
    expect(wrong("--config", list)).toBe(`${list}: expected settings by name, got [1]`);
    const cut = write("cut.json", '{"batch": ');
    expect(wrong("--config", cut)).toStartWith(`${cut}: `);
  });

  test("of a run that goes on", () => {
    const run = join(folder, "run");
    mkdirSync(run);
    expect(wrong("--resume", join(folder, "none"))).toBe(`--resume: ${join(folder, "none")} does not exist`);
    expect(wrong("--resume", run)).toBe(`--resume: ${run} is no run folder: it has no config.json`);
    writeFileSync(join(run, "config.json"), '{"model": {"name": "compact", "classes": 2}, "batch": "many"}');
    expect(wrong("--resume", run)).toBe(`${run}/config.json: batch: expected an integer from 1, or auto, got "many"`);
    expect(wrong("--resume", run, "--batch", "2")).toBe("nothing is wrong");
    expect(wrong("--resume", run, "--weights", "x.pth")).toBe("--weights: a resumed run keeps its model");
    expect(wrong("--resume", run, "--antialias")).toBe("--antialias: a resumed run keeps how its images are resized");
  });
});

test("the settings that are echoed, put on a command line, are the same training", async () => {
  const facts = { data: "/data/my images", backend: "cpu", bf16: true, images: 100, classes: ["a"] } as const;
  const argv = [
    "--schedule",
    "oneCycle",
    "--ema",
    "0.99",
    'groups=[{match: "^it\'s$", rate: 0.5}]',
    "--no-decay-biases",
  ];
  argv.push("--plateau", "AP75", "--recompute", "all", "--size", "64x96", "--weights", "a b.pth");
  const config = resolveConfig(parseTrainArguments(argv), facts);
  const [, ...words] = describeConfig(config)
    .join(" ")
    .match(/^settings: (.*)$/) as RegExpMatchArray;
  const shell = Bun.spawn(["sh", "-c", `for word in ${words}; do printf '%s\\0' "$word"; done`], { stdout: "pipe" });
  const typed = (await new Response(shell.stdout).text()).split("\0").slice(0, -1);
  const echoed = typed.filter((entry) => !entry.startsWith("scaleJitter="));
  expect(echoed.length).toBe(typed.length - 1);
  expect(resolveConfig(parseTrainArguments(echoed), facts)).toEqual(config);
});
