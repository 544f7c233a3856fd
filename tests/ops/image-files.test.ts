/** Parts of image files that can be wrong: EXIF data, chunks of PNG and WebP files, and what they claim. */
import { describe, expect, test } from "bun:test";
import { deflateSync } from "node:zlib";
import { ErrorCode } from "../../lib/native";
import { Tensor } from "../../lib/tensor";
import { expectSameBytes } from "../support/compare";
import { missing, testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { bytesOf, decodeImage, imageCases, imageInfo, sizeOf } from "../support/image-cases";

const device = testDevice();
const files = imageCases();
const file = (name: string) => files.find((golden) => golden.name === name)!;
const decode = (bytes: Uint8Array, height: number, width: number) => decodeImage(device, bytes, height, width);
const info = (bytes: Uint8Array) => imageInfo(device, bytes);
const testIf = (feature: "png.decode" | "webp.decode") => (missing(device, "u8", [feature]) ? test.skip : test);
const text = (value: string) => new TextEncoder().encode(value);
const concat = (...parts: (Uint8Array | number[])[]) => Uint8Array.from(parts.flatMap((part) => [...part]));

/** Decoding fails as an image error that says `words`, and takes no memory of the size that is claimed. */
function expectRefused(bytes: Uint8Array, words: string): void {
  const before = device.memory().peak;
  using small = Tensor.empty(device, [16], "u8");
  const { native, stream } = device;
  const error = errorOf(() => native.imageDecodeSync(stream.handle, small.address, bytes, bytes.byteLength, 1, 1));
  expect(error.message).toContain(words);
  expect(error.code).toBe(ErrorCode.image);
  expect(device.memory().peak - before).toBeLessThan(1 << 20);
}

describe("EXIF data", () => {
  const golden = file("orientation 6");
  const [height, width] = sizeOf(golden);
  const bytes = bytesOf(golden);
  const tiff = bytes.findIndex((_, i) => String.fromCharCode(...bytes.subarray(i, i + 4)) === "Exif") + 6;
  /** Where the entry of the orientation begins: behind the header, the number of entries and the first of them. */
  const entry = tiff + 8 + 2 + 12;
  const changed = (change: (copy: Uint8Array) => void): Uint8Array<ArrayBuffer> => {
    const copy = bytes.slice();
    change(copy);
    return copy;
  };
  const upright = changed((copy) => copy.fill(1, entry + 8, entry + 9));

  test("turns the picture that is decoded without it", () => {
    const stored = decode(upright, width, height);
    const pixel = (data: Uint8Array, across: number, x: number, y: number) =>
      Array.from(data.subarray(3 * (y * across + x), 3 * (y * across + x) + 3));
    const turned = decode(bytes, height, width);
    // Clockwise by 90 degrees: the stored picture's left column, from below, is the first row.
    for (let x = 0; x < width; x++) expect(pixel(turned, width, x, 0)).toEqual(pixel(stored, height, 0, width - 1 - x));
  });

  test.each<[string, (copy: Uint8Array) => void]>([
    ["an orientation of 0", (copy) => copy.fill(0, entry + 8, entry + 9)],
    ["an orientation of 9", (copy) => copy.fill(9, entry + 8, entry + 9)],
    ["an orientation of 6 + 256", (copy) => copy.fill(1, entry + 9, entry + 10)],
    ["the orientation as text", (copy) => copy.fill(2, entry + 2, entry + 3)],
    ["many orientations", (copy) => copy.fill(200, entry + 4, entry + 5)],
    ["another byte order", (copy) => copy.set([0x4d, 0x4d], tiff)],
    ["no TIFF header", (copy) => copy.fill(0, tiff, tiff + 8)],
    ["a directory behind the end", (copy) => copy.fill(0xff, tiff + 4, tiff + 8)],
    ["a directory at the last byte", (copy) => copy.fill(entry + 16 - tiff - 1, tiff + 4, tiff + 5)],
    ["no entries", (copy) => copy.fill(0, tiff + 8, tiff + 10)],
    ["another name", (copy) => copy.fill(0x65, tiff - 6, tiff - 5)],
  ])("with %s is as if it were not there", (_name, change) => {
    const damaged = changed(change);
    expect(info(damaged)).toEqual(info(upright));
    expectSameBytes(decode(damaged, width, height), decode(upright, width, height));
  });

  test("with more entries than there are bytes has the orientation all the same", () => {
    expect(info(changed((copy) => copy.fill(0xff, tiff + 8, tiff + 10)))).toEqual(info(bytes));
  });

  test("of the first segment counts, and none after the frame header", () => {
    const segment = bytes.slice(tiff - 10, entry + 12 + 4);
    expect([segment[0], segment[1]]).toEqual([0xff, 0xe1]);
    const start = tiff - 10;
    const twice = Uint8Array.from([...upright.slice(0, start), ...segment, ...upright.slice(start)]);
    expect(info(twice)[6]).toBe(6);
    const after = upright.findIndex((byte, i) => byte === 0xff && upright[i + 1] === 0xda);
    const late = Uint8Array.from([...upright.slice(0, after), ...segment, ...upright.slice(after)]);
    expect(info(late)[6]).toBe(1);
  });
});

describe("PNG", () => {
  const chunk = (kind: string, content: Uint8Array): Uint8Array => {
    const [head, tail] = [new DataView(new ArrayBuffer(4)), new DataView(new ArrayBuffer(4))];
    head.setUint32(0, content.length);
    tail.setUint32(0, Bun.hash.crc32(concat(text(kind), content)));
    return concat(new Uint8Array(head.buffer), text(kind), content, new Uint8Array(tail.buffer));
  };
  const header = (width: number, height: number, bits = 8, colour = 2, rest = [0, 0, 0]): Uint8Array => {
    const view = new DataView(new ArrayBuffer(8));
    view.setUint32(0, width);
    view.setUint32(4, height);
    return chunk("IHDR", concat(new Uint8Array(view.buffer), [bits, colour, ...rest]));
  };
  const signature = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
  const end = chunk("IEND", new Uint8Array(0));
  const png = (...chunks: Uint8Array[]) => concat(signature, ...chunks);
  const golden = file("PNG RGB");
  const [height, width] = sizeOf(golden);
  const plain = bytesOf(golden);
  const decodes = testIf("png.decode");

  decodes("a picture of our own, with bytes behind its end", () => {
    const data = deflateSync(Uint8Array.from([0, 1, 2, 3, 4, 5, 6, 0, 7, 8, 9, 10, 11, 12]));
    const bytes = concat(png(header(2, 2), chunk("IDAT", data), end), [1, 2, 3]);
    expect([...decode(bytes, 2, 2)]).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
  });

  test("the header is read of a file's beginning", () => {
    expect(info(plain.slice(0, 33))).toEqual(info(plain));
  });

  decodes("every cut is an image error", () => {
    for (let length = 8; length < plain.length; length++) {
      expect(errorOf(() => decode(plain.slice(0, length), height, width)).code).toBe(ErrorCode.image);
    }
  });

  test.each([
    ["no pixels", png(header(0, 5), end), "size is 0"],
    ["colours of 4 bits", png(header(5, 5, 4, 2), end), "4 bits per sample of colour type 2"],
    ["an unknown interlacing", png(header(5, 5, 8, 2, [0, 0, 2]), end), "interlacing"],
    ["no header", png(chunk("IDAT", text("data")), end), "does not begin with a header"],
    ["a signature that was transferred as text", concat([0x89, 0x50, 0x4e, 0x47, 10, 0x1a, 10], end), "signature"],
    ["a claim of 56000 x 7800 pixels", png(header(56_000, 7800), chunk("IDAT", new Uint8Array(200)), end), "more than"],
    ["a claim of 2^31 - 1 pixels a side", png(header(2 ** 31 - 1, 2 ** 31 - 1), end), "more than the limit"],
    ["a claim of 2^32 - 1 pixels a side", png(header(2 ** 32 - 1, 2 ** 32 - 1), end), "damaged PNG"],
    [
      "a claim that its data cannot hold",
      png(header(16_000, 16_000), chunk("IDAT", new Uint8Array(300)), end),
      "300 bytes",
    ],
    ["a side of 65536", png(header(65536, 1), chunk("IDAT", new Uint8Array(300)), end), "65535 a side"],
    ["no image data", png(header(200, 200), end), "0 bytes of image data"],
  ])("%s is refused before anything is allocated", (_name, bytes, words) => expectRefused(bytes, words));

  decodes.each<[string, Uint8Array, string]>([
    ["no palette", png(header(1, 1, 8, 3), chunk("IDAT", deflateSync(new Uint8Array(2))), end), "PLTE"],
    ["less data than pixels", png(header(1, 2), chunk("IDAT", deflateSync(new Uint8Array(4))), end), "libpng"],
    ["data that are not compressed", png(header(1, 1), chunk("IDAT", text("no zlib stream")), end), "libpng"],
    ["a filter that there is not", png(header(1, 1), chunk("IDAT", deflateSync(text("\u0009abc"))), end), "libpng"],
  ])("%s is an image error with the library's words", (_name, bytes, words) => {
    const [w, h] = info(bytes) as [number, number];
    const error = errorOf(() => decode(bytes, h, w));
    expect(error.code).toBe(ErrorCode.image);
    expect(error.message).toContain(words);
  });

  decodes("a wrong checksum is an image error", () => {
    const changed = plain.slice();
    changed[changed.length - 12 - 4] = (changed[changed.length - 12 - 4] as number) ^ 1;
    expect(errorOf(() => decode(changed, height, width)).message).toContain("CRC");
  });

  test("EXIF data behind the image data does not count", () => {
    const turned = bytesOf(file("PNG with orientation 5"));
    const at = turned.findIndex((_, i) => String.fromCharCode(...turned.subarray(i, i + 4)) === "eXIf") - 4;
    const exif = turned.slice(at, at + 12 + new DataView(turned.buffer).getUint32(at));
    expect(info(turned)[6]).toBe(5);
    expect(info(concat(plain.slice(0, -12), exif, end))[6]).toBe(1);
  });
});

describe("WebP", () => {
  const u24 = (value: number) => [value & 255, (value >> 8) & 255, value >> 16];
  const chunk = (kind: string, content: Uint8Array | number[]): Uint8Array =>
    concat(text(kind), u24(content.length), [0], content, content.length % 2 ? [0] : []);
  const webp = (...chunks: Uint8Array[]) => {
    const content = concat(...chunks);
    return concat(text("RIFF"), u24(content.length + 4), [0], text("WEBP"), content);
  };
  const extended = (width: number, height: number, flags = 0) =>
    chunk("VP8X", [flags, 0, 0, 0, ...u24(width - 1), ...u24(height - 1)]);
  const lossless = (width: number, height: number) => {
    const fields = width - 1 + (height - 1) * 2 ** 14;
    return chunk("VP8L", [0x2f, fields & 255, (fields >> 8) & 255, (fields >> 16) & 255, fields >>> 24, 0, 0, 0]);
  };
  const lossy = (width: number, height: number) =>
    chunk("VP8 ", [0x10, 0, 0, 0x9d, 1, 0x2a, width & 255, width >> 8, height & 255, height >> 8, 0, 0]);
  const frame = (x: number, width: number, picture: Uint8Array) =>
    chunk("ANMF", concat(u24(x / 2), u24(0), u24(width - 1), u24(9), [0, 0, 0, 0], picture));
  const decodes = testIf("webp.decode");

  for (const name of ["WebP lossy", "WebP lossless", "WebP animation"]) {
    const golden = file(name);
    const [height, width] = sizeOf(golden);
    const plain = bytesOf(golden);

    test(`${name}: the header is read of a file's beginning`, () => {
      expect(info(plain.slice(0, name === "WebP animation" ? 100 : 32))).toEqual(info(plain));
    });

    decodes(`${name}: every cut is an image error`, () => {
      for (let length = 12; length < plain.length; length++) {
        expect(errorOf(() => decode(plain.slice(0, length), height, width)).code).toBe(ErrorCode.image);
      }
    });
  }

  test("EXIF data lie at the end, so a beginning without them is an image error", () => {
    const bytes = bytesOf(file("WebP with orientation 6"));
    expect(info(bytes)[6]).toBe(6);
    expect(errorOf(() => info(bytes.slice(0, 100))).message).toContain("no EXIF data");
  });

  test("a flag for EXIF data that are not there means nothing", () => {
    expect(info(webp(extended(20, 10, 8), lossless(20, 10)))).toEqual([20, 10, 3, 3, 8, 2, 1, -1]);
  });

  test.each([
    ["no picture", webp(extended(20, 10)), "no picture"],
    ["text", webp(chunk("text", text("something"))), "does not begin with"],
    ["no pixels", webp(lossy(0, 10)), "size is 0"],
    ["a lossy frame that is no key frame", webp(chunk("VP8 ", [1, 0, 0, 0x9d, 1, 0x2a, 9, 0, 9, 0])), "lossy picture"],
    ["another version of lossless data", webp(chunk("VP8L", [0x2f, 0, 0, 0, 0x20, 0])), "lossless picture"],
    [
      "a picture of another size than the file's",
      webp(extended(20, 11), lossless(20, 10)),
      "20 x 10 pixels in a file of 20 x 11",
    ],
    [
      "a frame of another size than its picture",
      webp(extended(40, 40, 2), frame(0, 19, lossless(20, 10))),
      "a frame of 19 x 10",
    ],
    ["a frame beside the canvas", webp(extended(40, 40, 2), frame(22, 20, lossless(20, 10))), "at (22, 0) of 40 x 40"],
    [
      "a claim of 2^24 x 16 pixels",
      webp(extended(2 ** 24, 40, 2), frame(0, 20, lossless(20, 10))),
      "more than the limit",
    ],
    ["16384 x 16384 pixels of nothing", webp(lossless(16384, 16384)), "8 bytes of a picture"],
    ["16383 x 16383 lossy pixels of nothing", webp(lossy(16383, 16383)), "12 bytes of a picture"],
  ])("%s is refused before anything is allocated", (_name, bytes, words) => expectRefused(bytes, words));

  decodes("damaged data are an image error with the library's words", () => {
    expect(errorOf(() => decode(webp(lossy(20, 10)), 10, 20)).message).toContain("libwebp: ");
  });
});
