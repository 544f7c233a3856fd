/** A data set that a small detector learns in some seconds, and to which labels matter: coloured squares, in COCO's layout. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DeviceImageCodec } from "../../lib/data";
import type { Device } from "../../lib/tensor";
import { Random } from "./random";

const SIDE = 64;
const COLOURS = [
  [220, 40, 40],
  [40, 200, 60],
] as const;

/** Writes train2017 and val2017 with so many images of 64x64, each with up to three rectangles of two classes on grey. */
export function writeSquares(device: Device, folder: string, counts: { train: number; val: number }): void {
  const codec = new DeviceImageCodec(device);
  mkdirSync(join(folder, "annotations"), { recursive: true });
  for (const [split, count] of [
    ["train2017", counts.train],
    ["val2017", counts.val],
  ] as const) {
    const random = new Random(split);
    mkdirSync(join(folder, split));
    const images: object[] = [];
    const annotations: { image_id: number; bbox: number[] }[] = [];
    for (let id = 1; id <= count; id++) {
      const data = new Uint8Array(SIDE * SIDE * 3).fill(random.integer(60, 180));
      const boxes: number[][] = [];
      for (let trial = random.integer(1, 4); trial > 0; trial--) {
        const [w, h] = [random.integer(13, 29), random.integer(13, 29)];
        const [x, y] = [random.integer(0, SIDE - w), random.integer(0, SIDE - h)];
        if (
          boxes.some(
            ([left, top, width, height]) => x < left! + width! && left! < x + w && y < top! + height! && top! < y + h,
          )
        )
          continue;
        const colour = random.integer(0, 2);
        for (let row = y; row < y + h; row++) {
          for (let column = x; column < x + w; column++) data.set(COLOURS[colour]!, (row * SIDE + column) * 3);
        }
        boxes.push([x, y, w, h]);
        const own = { id: annotations.length + 1, image_id: id, category_id: colour + 1, iscrowd: 0 };
        annotations.push({ ...own, bbox: [x, y, w, h], ...{ area: w * h } });
      }
      images.push({ id, file_name: `${id}.jpg`, width: SIDE, height: SIDE });
      writeFileSync(join(folder, split, `${id}.jpg`), codec.encode({ width: SIDE, height: SIDE, data }, 90));
    }
    const categories = ["red", "green"].map((name, i) => ({ id: i + 1, name }));
    writeFileSync(
      join(folder, "annotations", `instances_${split}.json`),
      JSON.stringify({ images, annotations, categories }),
    );
  }
}
