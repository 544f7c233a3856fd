/** A data set of a few small JPEGs with coloured squares, in COCO's layout, for tests of training. */
import { mkdirSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DeviceImageCodec } from "../../lib/data";
import type { Device } from "../../lib/tensor";

const COLOURS = [
  [220, 40, 40],
  [40, 200, 60],
] as const;

/** Writes `count` images of 64x64 with one or two squares of two classes to each of the splits train and val. */
export async function writeTinyDataset(device: Device, count = 8): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "dlfs-tiny-"));
  const codec = new DeviceImageCodec(device);
  for (const split of ["train2017", "val2017"]) {
    const images = [];
    const annotations: object[] = [];
    for (let i = 0; i < count; ++i) {
      const pixels = new Uint8Array(64 * 64 * 3).fill(110);
      const squares = 1 + (i % 2);
      for (let k = 0; k < squares; ++k) {
        const category = (i + k) % 2;
        const side = 16 + 4 * (i % 3);
        const [x, y] = [2 + k * 32 + (i % 4), 5 + 3 * i];
        for (let row = y; row < y + side; ++row) {
          for (let column = x; column < x + side; ++column) pixels.set(COLOURS[category]!, (row * 64 + column) * 3);
        }
        const id = annotations.length + 1;
        annotations.push({
          id,
          image_id: i + 1,
          category_id: category + 3,
          bbox: [x, y, side, side],
          area: side * side,
          iscrowd: 0,
        });
      }
      const file = `${i + 1}.jpg`;
      images.push({ id: i + 1, file_name: file, width: 64, height: 64 });
      mkdirSync(join(folder, split), { recursive: true });
      await Bun.write(join(folder, split, file), codec.encode({ width: 64, height: 64, data: pixels }, 95));
    }
    const categories = [
      { id: 3, name: "red" },
      { id: 4, name: "green" },
    ];
    await Bun.write(
      join(folder, "annotations", `instances_${split}.json`),
      JSON.stringify({ images, annotations, categories }),
    );
  }
  return folder;
}
