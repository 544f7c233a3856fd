/**
 * Times the annotation store at size: a drawn COCO file, boxes in random order of images and categories last as in COCO's own,
 * is imported; then batches are asked for.
 *
 *   bun run scripts/bench-annotation-store.ts [--images 1000000] [--boxes 10000000] [--folder DIR]
 */
import { closeSync, openSync, readFileSync, rmSync, statSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { importCoco, SQLiteAnnStore } from "../lib/data";

const { values } = parseArgs({
  options: {
    images: { type: "string", default: "1000000" },
    boxes: { type: "string", default: "10000000" },
    folder: { type: "string", default: tmpdir() },
  },
});
const [images, boxes] = [Number(values.images), Number(values.boxes)];
const input = join(values.folder, "dlfs-bench-annotations.json");
const output = join(values.folder, "dlfs-bench-annotations.sqlite");

let state = 12345;
function random(): number {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return state / 2 ** 32;
}

function draw(): void {
  const file = openSync(input, "w");
  let pieces: string[] = [];
  let length = 0;
  const put = (text: string): void => {
    pieces.push(text);
    length += text.length;
    if (length < 1 << 20) return;
    writeSync(file, pieces.join(""));
    [pieces, length] = [[], 0];
  };
  const list = (name: string, count: number, entry: (i: number) => string): void => {
    put(`"${name}": [`);
    for (let i = 0; i < count; i++) put(`${i > 0 ? ", " : ""}{${entry(i)}}`);
    put("]");
  };
  put("{");
  list("images", images, (i) => {
    const name = String(i + 1).padStart(12, "0");
    return `"license": 0, "file_name": "${name}.jpg", "height": 480, "width": 640, "date_captured": "2013-11-14 11:18:45", "id": ${i + 1}`;
  });
  put(", ");
  const cents = (value: number): number => Math.floor(100 * value) / 100;
  list("annotations", boxes, (i) => {
    const [w, h] = [4 + cents(300 * random()), 4 + cents(200 * random())];
    const [x, y] = [cents((640 - w) * random()), cents((480 - h) * random())];
    const image = 1 + Math.floor(images * random());
    return (
      `"segmentation": [], "area": ${(w * h).toFixed(4)}, "iscrowd": 0, "image_id": ${image}, ` +
      `"bbox": [${x}, ${y}, ${w}, ${h}], "category_id": ${1 + Math.floor(80 * random())}, "id": ${i + 1}`
    );
  });
  put(", ");
  list("categories", 80, (i) => `"supercategory": "", "id": ${i + 1}, "name": "class ${i + 1}"`);
  put("}\n");
  writeSync(file, pieces.join(""));
  closeSync(file);
}

function removeAll(): void {
  for (const path of [input, output, `${output}-wal`, `${output}-shm`]) rmSync(path, { force: true });
}

function time(name: string, count: number, work: (i: number) => unknown): void {
  const times = Array.from({ length: count }, (_, i) => {
    const start = performance.now();
    work(i);
    return performance.now() - start;
  }).sort((a, b) => a - b);
  const at = (part: number): string => (times[Math.floor(part * (count - 1))] as number).toFixed(3);
  console.log(`${name.padEnd(42)} median ${at(0.5)} ms, 99 % ${at(0.99)} ms`);
}

removeAll();
try {
  draw();
  console.log(`${images} images, ${boxes} boxes, ${(statSync(input).size / 1e9).toFixed(2)} GB of JSON`);
  const [start, before] = [performance.now(), process.cpuUsage()];
  using store = new SQLiteAnnStore(output);
  await importCoco(store, input, { split: "train" });
  const seconds = (performance.now() - start) / 1000;
  const { user, system } = process.cpuUsage(before);
  const cpu = (user + system) / 1e6;
  const peak = Number(/VmHWM:\s*(\d+)/.exec(readFileSync("/proc/self/status", "utf8"))?.[1]) / 1024;
  console.log(
    `import: ${seconds.toFixed(1)} s, ${Math.round(boxes / seconds)} boxes/s; ${cpu.toFixed(1)} s of CPU, ` +
      `${Math.round(boxes / cpu)} boxes a second of CPU; ` +
      `peak ${peak.toFixed(0)} MiB, ${(statSync(output).size / 1e9).toFixed(2)} GB`,
  );
  const any = (): number => Math.floor(random() * (images - 40)) + 1;
  time("boxes of 32 images in a row", 2000, () => {
    const first = any();
    store.annotationsOfBatch(Array.from({ length: 32 }, (_, k) => first + k));
  });
  time("boxes of 32 images anywhere", 2000, () => store.annotationsOfBatch(Array.from({ length: 32 }, any)));
  time("32 images by ids", 2000, () => {
    const first = any();
    store.findImages({ ids: [first, first + 31] });
  });
  time("32 images of a split", 2000, () => store.findImages({ split: "train" }, { after: any(), limit: 32 }));
  time("32 images of a split with a category", 2000, (i) =>
    store.findImages({ split: "train", categoryId: 1 + (i % 80) }, { after: any(), limit: 32 }),
  );
  time("change a box", 500, (i) => store.updateAnnotations([{ id: 1 + i, area: 5 }]));
  time("32 changes since", 500, () => store.changesSince(store.lastChange() - 32));
} finally {
  removeAll();
}
