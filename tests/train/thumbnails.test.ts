/** The small JPEGs that go along with samples. */
import { expect, test } from "bun:test";
import { DataSource, DeviceImageCodec, type Pixels } from "../../lib/data";
import { looksLike } from "../../lib/data/image-file";
import { createImage, fillRect } from "../../lib/monitor";
import { Thumbnails } from "../../lib/train/thumbnails";
import { testDevice } from "../support/device";

const codec = new DeviceImageCodec(testDevice());
/** A picture of 1280 x 320 pixels: red on the left, blue on the right. */
const wide = createImage(1280, 320, [200, 0, 0]);
fillRect(wide, { x: 640, y: 0, width: 640, height: 320 }, [0, 0, 200]);
const LARGE = codec.encode(wide, 95);
const SMALL = codec.encode(createImage(40, 30, [0, 99, 0]), 90);

class Files extends DataSource {
  readonly reads: string[] = [];
  constructor(private readonly files: Record<string, Uint8Array>) {
    super();
  }
  override locate = (key: string) => key;
  override read = async (key: string) => {
    this.reads.push(key);
    const bytes = this.files[key];
    if (!bytes) throw new Error("no such file");
    return bytes as Uint8Array<ArrayBuffer>;
  };
  override async *list() {}
  override stat = async () => null;
  override write = async () => {};
}

/** The mean of a part of an image, by colour. */
const colorOf = ({ data, width, height }: Pixels, from: number, to: number): number[] =>
  [0, 1, 2].map((c) => {
    let sum = 0;
    for (let y = 0; y < height; y++) for (let x = from; x < to; x++) sum += data[3 * (y * width + x) + c]!;
    return Math.round(sum / height / (to - from));
  });

test("large files become small JPEGs of the same picture", async () => {
  // Bytes behind its end make a file large.
  const padded = new Uint8Array(200_000);
  padded.set(LARGE);
  const thumbnail = (await new Thumbnails(new Files({ large: padded }), codec).of("large"))!;
  expect(thumbnail.length).toBeLessThan(20_000);
  expect(looksLike(thumbnail)).toBe("JPEG");
  const image = codec.decode(thumbnail);
  expect([image.width, image.height]).toEqual([640, 160]);
  for (const [i, value] of [...colorOf(image, 0, 300), ...colorOf(image, 340, 640)].entries()) {
    expect(Math.abs(value - [200, 0, 0, 0, 0, 200][i]!)).toBeLessThan(6);
  }
});

test("small JPEGs go along as they are, and each image is read once", async () => {
  const files = new Files({ small: SMALL });
  const thumbnails = new Thumbnails(files, codec);
  expect(await thumbnails.of("small")).toEqual(SMALL);
  expect(await thumbnails.of("small")).toEqual(SMALL);
  expect(files.reads).toEqual(["small"]);
});

test("a file that is no JPEG becomes one", async () => {
  const png = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAEklEQVR4nGM4wcXFdYKLAUIBABmaA3EjpeR6AAAAAElFTkSuQmCC";
  const bytes = Uint8Array.fromBase64(png);
  const thumbnail = await new Thumbnails(new Files({ png: bytes }), codec).of("png");
  if (!codec.formats.includes("png")) expect(thumbnail).toBeNull();
  else expect(looksLike(thumbnail!)).toBe("JPEG");
});

test("what is damaged has none, and what cannot be read may be read later", async () => {
  const files: Record<string, Uint8Array> = { damaged: Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 1, 2, 3) };
  const thumbnails = new Thumbnails(new Files(files), codec);
  expect(await thumbnails.of("damaged")).toBeNull();
  expect(await thumbnails.of("late")).toBeNull();
  files.late = SMALL;
  expect(await thumbnails.of("late")).toEqual(SMALL);
});
