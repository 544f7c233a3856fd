/**
 * Times COCO evaluation on a made set of val2017's size: 5,000 images, 36,781 boxes, 80 classes, 500,000 detections.
 *
 *   bun run scripts/bench-coco-eval.ts [--python PATH] [--folder FOLDER] [--repeats N]
 *
 * Times this library and, with --python, pycocotools and faster-coco-eval where that Python has them, on the same files,
 * one after the other in one run; N times each (default 3), the fastest counts. "read" is from files to objects in
 * memory with whatever index the library makes of them; "evaluate" from there to the twelve figures. For this library it
 * includes the taking over of all objects, for the others `loadRes` belongs to reading. Prints a table in Markdown and
 * exits with 1 where the figures differ by more than 1e-12. The files are left in FOLDER where one is given.
 */
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { CocoEvaluator } from "../lib/metrics/index";

const IMAGES = 5000;
const BOXES = 36_781;
const CLASSES = 80;
const DETECTIONS = 500_000;
/** As many as val2017 has. */
const CROWDS = 446;
const LIMIT = 1e-12;

interface Timing {
  name: string;
  read: number;
  evaluate: number;
  stats: number[];
}

interface Annotation {
  id: number;
  image_id: number;
  category_id: number;
  bbox: [number, number, number, number];
  area: number;
  iscrowd: number;
}

interface Result {
  image_id: number;
  category_id: number;
  bbox: [number, number, number, number];
  score: number;
}

const PYTHON = `
import contextlib, importlib, io, json, sys, time
truth, results, repeats = sys.argv[1], sys.argv[2], int(sys.argv[3])
for name, module, coco, evaluator in (
    ("pycocotools", "pycocotools", "coco.COCO", "cocoeval.COCOeval"),
    ("faster-coco-eval", "faster_coco_eval", "COCO", "COCOeval_faster"),
):
    def find(path):
        parts = path.split(".")
        return getattr(importlib.import_module(".".join([module] + parts[:-1])), parts[-1])
    try:
        version = importlib.import_module("importlib.metadata").version(name)
        coco_class, evaluator_class = find(coco), find(evaluator)
    except ImportError:
        continue
    read, evaluate = [], []
    for _ in range(repeats):
        with contextlib.redirect_stdout(io.StringIO()):
            start = time.perf_counter()
            gt = coco_class(truth)
            dt = gt.loadRes(results)
            loaded = time.perf_counter()
            e = evaluator_class(gt, dt, "bbox")
            e.evaluate()
            e.accumulate()
            e.summarize()
            end = time.perf_counter()
        read.append((loaded - start) * 1000)
        evaluate.append((end - loaded) * 1000)
    stats = [float(s) for s in e.stats][:12]
    print(json.dumps({"name": f"{name} {version}", "read": min(read), "evaluate": min(evaluate), "stats": stats}), flush=True)
`;

/** Park and Miller's minimal standard generator: the same set on every machine. */
function generator(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state * 48271) % 2147483647;
    return state / 2147483647;
  };
}

const round2 = (value: number) => Math.round(value * 100) / 100;

/** Classes of falling frequency, boxes of all sizes; detections near objects of the right or another class, and strays. */
function makeSet(): { truth: object; results: Result[] } {
  const random = generator(2017);
  const gaussian = () => Math.sqrt(-2 * Math.log(random())) * Math.cos(2 * Math.PI * random());
  const cumulative: number[] = [];
  for (let k = 0; k < CLASSES; k++) cumulative.push((cumulative[k - 1] ?? 0) + 1 / (k + 1) ** 0.8);
  const drawClass = () => {
    const at = random() * cumulative[CLASSES - 1]!;
    return 1 + cumulative.findIndex((sum) => at <= sum);
  };
  const drawBox = (): [number, number, number, number] => {
    const [w, h] = [round2(8 + 500 * random() ** 3), round2(8 + 400 * random() ** 3)];
    return [round2(random() * (640 - w)), round2(random() * (480 - h)), w, h];
  };
  const images = Array.from({ length: IMAGES }, (_, i) => ({ id: i + 1, width: 640, height: 480 }));
  const annotations: Annotation[] = [];
  for (let i = 0; i < BOXES; i++) {
    const bbox = drawBox();
    annotations.push({
      id: i + 1,
      image_id: 1 + Math.floor(random() * IMAGES),
      category_id: drawClass(),
      bbox,
      area: round2(bbox[2] * bbox[3] * (0.4 + 0.6 * random())),
      iscrowd: i < CROWDS ? 1 : 0,
    });
  }
  const results: Result[] = [];
  const score = (mean: number) => Math.round(1e5 * Math.min(0.99999, Math.max(1e-5, mean + 0.25 * gaussian()))) / 1e5;
  for (const { image_id, category_id, bbox } of annotations) {
    for (let copy = 0; copy < 6; copy++) {
      const spread = 0.02 + 0.3 * random();
      const [x, y, w, h] = bbox;
      const moved = [x + spread * w * gaussian() * 0.5, y + spread * h * gaussian() * 0.5].map(round2) as [
        number,
        number,
      ];
      const size = [w, h].map((s) => round2(s * Math.exp(0.5 * spread * gaussian()))) as [number, number];
      const category = random() < 0.8 ? category_id : drawClass();
      results.push({
        image_id,
        category_id: category,
        bbox: [...moved, ...size],
        score: score(0.7 - spread - 0.06 * copy),
      });
    }
  }
  while (results.length < DETECTIONS) {
    const image_id = 1 + Math.floor(random() * IMAGES);
    results.push({ image_id, category_id: drawClass(), bbox: drawBox(), score: score(0.1) });
  }
  const categories = Array.from({ length: CLASSES }, (_, k) => ({ id: k + 1, name: `class ${k + 1}` }));
  return { truth: { info: {}, licenses: [], images, annotations, categories }, results };
}

async function timeOurs(truthFile: string, resultFile: string, repeats: number): Promise<Timing> {
  let read = Infinity;
  let evaluate = Infinity;
  let stats: number[] = [];
  for (let i = 0; i < repeats; i++) {
    const start = performance.now();
    const truth = (await Bun.file(truthFile).json()) as {
      images: { id: number }[];
      categories: { id: number }[];
      annotations: Annotation[];
    };
    const results = (await Bun.file(resultFile).json()) as Result[];
    const loaded = performance.now();
    const evaluator = new CocoEvaluator({ images: truth.images, categories: truth.categories });
    for (const { id, image_id, category_id, bbox, area, iscrowd } of truth.annotations) {
      evaluator.addGroundTruth([{ id, imageId: image_id, categoryId: category_id, bbox, area, iscrowd }]);
    }
    for (const { image_id, category_id, bbox, score } of results) {
      evaluator.addDetection(image_id, category_id, bbox, score);
    }
    stats = Object.values(evaluator.evaluate().stats);
    const end = performance.now();
    read = Math.min(read, loaded - start);
    evaluate = Math.min(evaluate, end - loaded);
  }
  return { name: "dlfs", read, evaluate, stats };
}

async function timePython(python: string, files: [string, string], repeats: number): Promise<Timing[]> {
  const child = Bun.spawn([python, "-c", PYTHON, ...files, String(repeats)], { stdout: "pipe", stderr: "inherit" });
  const lines = (await new Response(child.stdout).text()).trim().split("\n");
  if ((await child.exited) !== 0) throw new Error(`${python} ended with status ${child.exitCode}`);
  return lines.filter((line) => line !== "").map((line) => JSON.parse(line) as Timing);
}

function table(timings: Timing[]): string {
  const ours = timings[0]!;
  const seconds = (milliseconds: number) => `${(milliseconds / 1000).toFixed(3)} s`;
  const rows = timings.map(({ name, read, evaluate, stats }) => [
    name,
    seconds(read),
    seconds(evaluate),
    `${(evaluate / ours.evaluate).toFixed(1)}`,
    `${((read + evaluate) / (ours.read + ours.evaluate)).toFixed(1)}`,
    stats[0]!.toFixed(6),
  ]);
  const all = [["evaluator", "read", "evaluate", "evaluate, times ours", "both, times ours", "AP"], ...rows];
  const widths = all[0]!.map((_, column) => Math.max(...all.map((row) => row[column]!.length)));
  const line = (row: string[]) => `| ${row.map((cell, column) => cell.padEnd(widths[column]!)).join(" | ")} |`;
  return [line(all[0]!), line(widths.map((width) => "-".repeat(width))), ...all.slice(1).map(line)].join("\n");
}

const { values: args } = parseArgs({
  options: { python: { type: "string" }, folder: { type: "string" }, repeats: { type: "string", default: "3" } },
});
const repeats = Number(args.repeats);
if (!Number.isInteger(repeats) || repeats < 1)
  throw new Error(`--repeats: expected a positive integer, got ${args.repeats}`);
const folder = args.folder ?? (await mkdtemp(join(tmpdir(), "dlfs-coco-bench-")));
await mkdir(folder, { recursive: true });
try {
  const files: [string, string] = [join(folder, "instances.json"), join(folder, "results.json")];
  const { truth, results } = makeSet();
  await Bun.write(files[0], JSON.stringify(truth));
  await Bun.write(files[1], JSON.stringify(results));
  const timings = [await timeOurs(...files, repeats)];
  if (args.python) timings.push(...(await timePython(args.python, files, repeats)));
  console.log(
    `${IMAGES} images, ${BOXES} boxes, ${CLASSES} classes, ${DETECTIONS} detections; best of ${repeats}; ` +
      `${cpus()[0]?.model ?? "unknown CPU"}, ${cpus().length} threads; Bun ${Bun.version}\n`,
  );
  console.log(table(timings));
  const [ours, ...others] = timings as [Timing, ...Timing[]];
  for (const { name, stats } of others) {
    const difference = Math.max(...stats.map((value, i) => Math.abs(value - ours.stats[i]!)));
    console.log(`\nlargest difference from ${name}: ${difference}`);
    if (!(difference <= LIMIT)) process.exitCode = 1;
  }
} finally {
  if (!args.folder) await rm(folder, { recursive: true, force: true });
}
