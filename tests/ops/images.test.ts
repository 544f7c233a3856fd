import { describe, expect, test } from "bun:test";
import { constants, ErrorCode, fromCString } from "../../lib/native";
import { dtypeCode, elementCount, outHandle, PinnedBuffer, Tensor, until } from "../../lib/tensor";
import { runChild } from "../support/child";
import { expectClose, expectSameBytes } from "../support/compare";
import { missing, testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { bytesOf, decodeImage, type ImageCase, imageCases, imageInfo, lackOf, sizeOf } from "../support/image-cases";
import { packTransform } from "./reference/preprocess";

const device = testDevice();
const { native } = device;
const stream = device.stream.handle;
const FORMATS = { jpeg: constants.IMAGE_JPEG, png: constants.IMAGE_PNG, webp: constants.IMAGE_WEBP };

const files = imageCases();
const file = (name: string) => files.find((golden) => golden.name === name)!;
const decode = (bytes: Uint8Array, height: number, width: number) => decodeImage(device, bytes, height, width);
const info = (bytes: Uint8Array) => imageInfo(device, bytes);
const lacks = (golden: ImageCase) => lackOf(device, golden);

/** A copy with another frame header (SOF): its marker, and the size it claims. */
function withFrame(
  bytes: Uint8Array,
  { marker = 0xc0, height, width }: { marker?: number; height?: number; width?: number },
): Uint8Array {
  const copy = bytes.slice();
  const at = copy.findIndex(
    (byte, i) => byte === 0xff && copy[i + 1] === 0xc0 && copy[i + 2] === 0 && copy[i + 3] === 17,
  );
  expect(at).toBeGreaterThan(0);
  copy[at + 1] = marker;
  const view = new DataView(copy.buffer);
  if (height !== undefined) view.setUint16(at + 5, height);
  if (width !== undefined) view.setUint16(at + 7, width);
  return copy;
}

/** Levels by which decoders may differ: chroma interpolation and the rounding of the inverse transform are theirs to choose. */
const levels = device.backend === "cpu" ? { mean: 0.2, most: 2 } : { mean: 2, most: 24 };

function expectPixels(actual: Uint8Array, expected: ArrayLike<number>, { mean, most } = levels): void {
  const differences = Array.from(actual, (v, i) => Math.abs(v - expected[i]!));
  expect(actual.length).toBe(expected.length);
  expect(Math.max(...differences)).toBeLessThanOrEqual(most);
  expect(differences.reduce((a, b) => a + b) / differences.length).toBeLessThanOrEqual(mean);
}

describe("reading headers", () => {
  test.each(files.map((golden) => [golden.name, golden] as const))("%s", (_name, golden) => {
    const [height, width] = sizeOf(golden);
    const { format, components, bits, process, orientation } = golden.params;
    const adobe = golden.name === "YCCK" ? 2 : golden.name === "CMYK" ? 0 : -1;
    expect(info(bytesOf(golden))).toEqual([
      width,
      height,
      FORMATS[format],
      components,
      bits,
      process,
      orientation,
      adobe,
    ]);
  });

  const plain = bytesOf(file("4:2:0"));

  test("lossless and arithmetic-coded files are told apart", () => {
    expect(info(withFrame(plain, { marker: 0xc3 }))[5]).toBe(2);
    expect(info(withFrame(plain, { marker: 0xc9 }))[5]).toBe(3);
  });

  test("a claimed size is reported, not believed", () => {
    expect(info(withFrame(plain, { height: 65500, width: 65500 })).slice(0, 2)).toEqual([65500, 65500]);
  });

  test.each([
    ["text", new TextEncoder().encode("this is no picture, but some 40 bytes of text")],
    ["a PNG without a header", Uint8Array.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0, 0, 0, 13])],
    ["a WebP without a picture", new TextEncoder().encode("RIFF\x04\0\0\0WEBP")],
    ["the start marker alone", plain.slice(0, 2)],
    ["one byte", plain.slice(0, 1)],
    ["an end before the frame header", plain.slice(0, 60)],
    ["height 0", withFrame(plain, { height: 0 })],
    ["width 0", withFrame(plain, { width: 0 })],
  ])("%s is an image error that says why", (_name, bytes) => {
    const error = errorOf(() => info(bytes));
    expect(error.code).toBe(ErrorCode.image);
    expect(error.message.length).toBeGreaterThan("dlfs_image_info_sync: ".length + 5);
  });

  test.each([
    ["GIF89a....", "GIF"],
    ["BM........", "BMP"],
    ["II*\0......", "TIFF"],
    ["MM\0*......", "TIFF"],
    ["....ftypavif", "HEIF or AVIF"],
    ["RIFF....WAVEfmt ", "a RIFF file"],
    ["<html>", "HTML or XML"],
  ])("%p is named, beside what can be decoded", (start, kind) => {
    const error = errorOf(() => info(new TextEncoder().encode(start)));
    expect(error.code).toBe(ErrorCode.image);
    expect(error.message).toContain(`expected a JPEG, PNG or WebP file, got ${kind} (`);
  });

  test("no bytes at all are refused before native code sees them", () => {
    expect(errorOf(() => info(new Uint8Array(0))).code).toBe(ErrorCode.argument);
  });

  test("a length of 0 is an image error", () => {
    expect(errorOf(() => native.imageInfoSync(new Int32Array(8), plain, 0)).code).toBe(ErrorCode.image);
  });
});

describe("decoding images", () => {
  for (const golden of files) {
    const reason = lacks(golden);
    if (reason) test.skip(`${golden.name} (skipped: ${reason})`, () => {});
    else {
      test(golden.name, () => {
        const [height, width] = sizeOf(golden);
        // Nothing of a PNG and of lossless WebP is left to the decoder's choice.
        const exact = golden.params.format !== "jpeg" && golden.params.process === 2;
        const allowed = exact ? { mean: 0, most: 0 } : levels;
        expectPixels(decode(bytesOf(golden), height, width), golden.array("pixels"), allowed);
      });
    }
  }

  const golden = file("4:2:0");
  const [height, width] = sizeOf(golden);
  const plain = bytesOf(golden);

  test("a file decodes to the same bytes each time", () => {
    expectSameBytes(decode(plain, height, width), decode(plain, height, width));
  });

  test("a size other than the file's is refused", () => {
    const error = errorOf(() => decode(plain, width, height));
    expect([ErrorCode.argument, ErrorCode.shape] as number[]).toContain(error.code);
    expect(error.message).toContain(`${width}`);
  });

  test.each([0.3, 0.5, 0.7, 0.9, 0.97])("a file cut at %d of its length is an image error", (part) => {
    const cut = plain.slice(0, Math.floor(plain.length * part));
    expect(errorOf(() => decode(cut, height, width)).code).toBe(ErrorCode.image);
  });

  test("a claim of 65500 x 65500 pixels is refused before anything is allocated", () => {
    const before = device.memory().peak;
    using small = Tensor.empty(device, [16], "u8");
    const bytes = withFrame(plain, { height: 65500, width: 65500 });
    const error = errorOf(() => native.imageDecodeSync(stream, small.address, bytes, bytes.byteLength, 65500, 65500));
    expect(error.code).toBe(ErrorCode.image);
    expect(error.message).toContain("65500");
    expect(device.memory().peak - before).toBeLessThan(1 << 20);
  });

  test("a lossless frame is refused with a status", () => {
    const bytes = withFrame(plain, { marker: 0xc3 });
    expect([ErrorCode.image, ErrorCode.unsupported] as number[]).toContain(
      errorOf(() => decode(bytes, height, width)).code,
    );
  });

  test("damaged files end in pixels or an image error, never in a crash", async () => {
    const { exitCode, signal, stdout, stderr } = await runChild(`
      import { loadGolden } from "./tests/support/golden";
      import { Random } from "./tests/support/random";
      import { Device, Tensor } from "./lib/tensor";
      const device = new Device();
      const random = new Random("damage");
      let [decoded, refused] = [0, 0];
      for (const golden of loadGolden("images")) {
        const [height, width] = golden.shape("pixels");
        const pixels = Tensor.empty(device, [height, width, 3], "u8");
        for (let round = 0; round < 40; ++round) {
          const bytes = golden.array("bytes").slice();
          const flips = random.integer(1, 12);
          for (let i = 0; i < flips; ++i) bytes[random.integer(2, bytes.length)] = random.integer(0, 256);
          try {
            device.native.imageDecodeSync(device.stream.handle, pixels.address, bytes, bytes.length, width, height);
            ++decoded;
          } catch (error) {
            if (![-100, -101, -104, -301].includes(error.code)) throw error;
            ++refused;
          }
        }
        pixels.dispose();
      }
      device.dispose();
      console.log(decoded > 0 && refused > 0 ? "both kinds" : [decoded, refused]);
    `);
    expect({ exitCode, signal, stdout: stdout.trim(), stderr: exitCode === 0 ? "" : stderr }).toEqual({
      exitCode: 0,
      signal: null,
      stdout: "both kinds",
      stderr: "",
    });
  });
});

describe("encoding JPEGs", () => {
  const [height, width] = [37, 45];
  const picture = Uint8Array.from({ length: height * width * 3 }, (_, i) => {
    const [x, y, c] = [Math.floor(i / 3) % width, Math.floor(i / (3 * width)), i % 3];
    return 128 + 90 * Math.sin(x / 11 + c) * Math.cos(y / 9);
  });
  const encode = (quality: number, capacity = 100_000): Uint8Array => {
    using pixels = Tensor.from(device, picture, [height, width, 3], "u8");
    const out = new Uint8Array(capacity);
    const length = outHandle();
    native.jpegEncodeSync(stream, out, length.view, pixels.address, capacity, width, height, quality);
    return out.slice(0, length.value);
  };
  const reason = missing(device, "u8", ["jpeg.encode"]);
  const encodes = reason ? test.skip : test;

  encodes("the decoded file is the picture again", () => {
    const bytes = encode(95);
    expect(info(bytes).slice(0, 7)).toEqual([width, height, constants.IMAGE_JPEG, 3, 8, 0, 1]);
    expectPixels(decode(bytes, height, width), picture, { mean: 2, most: 24 });
  });

  encodes("a lower quality makes a smaller file", () => {
    expect(encode(20).length).toBeLessThan(encode(90).length);
  });

  encodes("a picture of one pixel", () => {
    using pixels = Tensor.from(device, [200, 100, 50], [1, 1, 3], "u8");
    const [out, length] = [new Uint8Array(5000), outHandle()];
    native.jpegEncodeSync(stream, out, length.view, pixels.address, 5000, 1, 1, 95);
    expectPixels(decode(out.slice(0, length.value), 1, 1), [200, 100, 50], { mean: 3, most: 6 });
  });

  encodes("a capacity too small is an argument error that names the size needed", () => {
    const error = errorOf(() => encode(95, 100));
    expect(error.code).toBe(ErrorCode.argument);
    const needed = [...error.message.matchAll(/\d+/g)].map(Number);
    expect(needed).toContain(encode(95).length);
  });

  encodes.each([0, 101, -5])("quality %d is an argument error", (quality) => {
    expect(errorOf(() => encode(quality)).code).toBe(ErrorCode.argument);
  });
});

describe("decoding and preprocessing batches", () => {
  const [outH, outW, channels] = [24, 40, 3];
  const normalisation = Float32Array.from([0.485, 0.456, 0.406, 0.229, 0.224, 0.225, 124, 116, 104]);
  const fill = [124, 116, 104].map((value, c) => (value / 255 - normalisation[c]!) / normalisation[3 + c]!);
  const slotSize = outH * outW * channels;

  /** The good image through the operations one by one. */
  const expectedSlot = (golden: ImageCase, transform: number[]): Float32Array => {
    const [height, width] = sizeOf(golden);
    const bytes = bytesOf(golden);
    using pixels = Tensor.empty(device, [height, width, 3], "u8");
    native.imageDecodeSync(stream, pixels.address, bytes, bytes.byteLength, width, height);
    using out = Tensor.empty(device, [outH, outW, channels]);
    native.preprocess(
      stream,
      out.address,
      BigInt64Array.of(BigInt(pixels.address)),
      Int32Array.of(height, width),
      Float32Array.from(transform),
      normalisation,
      1,
      outH,
      outW,
      channels,
      dtypeCode("f32"),
      0,
    );
    return out.read() as Float32Array;
  };

  /** Runs a batch to its end: the slots, each image's status and message. */
  async function runBatch(images: Uint8Array[], transforms: number[][], threads: number) {
    const decoder = outHandle();
    native.decoderCreate(device.handle, decoder.view, threads, 0);
    using pinned = new PinnedBuffer(
      device,
      images.reduce((sum, bytes) => sum + bytes.length + 64, 0),
    );
    const sources: bigint[] = [];
    let offset = 0;
    for (const bytes of images) {
      pinned.bytes.set(bytes, offset);
      sources.push(BigInt(pinned.address + offset));
      offset += Math.ceil((bytes.length + 1) / 64) * 64;
    }
    using out = Tensor.full(device, [images.length, outH, outW, channels], Number.POSITIVE_INFINITY);
    device.stream.synchronize();
    const job = outHandle();
    native.decoderSubmit(
      decoder.value,
      job.view,
      out.address,
      BigInt64Array.from(sources),
      BigInt64Array.from(images, (bytes) => BigInt(bytes.length)),
      new Uint8Array(1),
      Float32Array.from(transforms.flat()),
      normalisation,
      0,
      images.length,
      outH,
      outW,
      channels,
      dtypeCode("f32"),
      0,
    );
    await until(() => native.jobQuery(job.value) === 0);
    native.jobWaitSync(job.value);
    const status = new Int32Array(images.length);
    native.jobResults(job.value, status);
    const messages = images.map((_, i) => {
      const text = new Uint8Array(300);
      native.jobMessage(job.value, text, text.byteLength, i);
      return fromCString(text);
    });
    const all = out.read() as Float32Array;
    native.jobDestroy(job.value);
    native.decoderDestroy(decoder.value);
    return {
      slots: images.map((_, i) => all.slice(i * slotSize, (i + 1) * slotSize)),
      status,
      messages,
      job: job.value,
      decoder: decoder.value,
    };
  }

  // One of each way of decoding and turning.
  const good = files.filter((golden) => !lacks(golden) && !golden.name.startsWith("sampling"));
  const whole = (golden: ImageCase): number[] => {
    const [height, width] = sizeOf(golden);
    return packTransform({ crop: [0, 0, width, height], target: [3, 2, outW - 6, outH - 5], flipX: true });
  };
  const batches = missing(device, "u8", ["jpeg.decode"]) ? test.skip : test;

  batches("slots hold what decoding and preprocessing one by one gives, in whatever order threads work", async () => {
    for (const threads of [1, 4]) {
      const { slots, status, messages } = await runBatch(good.map(bytesOf), good.map(whole), threads);
      expect(Array.from(status)).toEqual(good.map(() => 0));
      expect(messages).toEqual(good.map(() => ""));
      for (const [i, golden] of good.entries())
        expectClose(slots[i]!, expectedSlot(golden, whole(golden)), { rtol: 0, atol: 0 }, golden.name);
    }
  });

  batches("bad images fill their slots and say why; their neighbours are not affected", async () => {
    const first = good[0]!;
    const bytes = bytesOf(first);
    const bad: [string, Uint8Array][] = [
      ["text", new TextEncoder().encode("no picture at all")],
      ["cut", bytes.slice(0, bytes.length >> 1)],
      ["a huge claim", withFrame(bytes, { height: 65500, width: 65500 })],
      ["empty", new Uint8Array(0)],
    ];
    const images = bad.flatMap(([, damaged]) => [bytes, damaged]);
    const { slots, status, messages } = await runBatch(
      images,
      images.map(() => whole(first)),
      3,
    );
    const expected = expectedSlot(first, whole(first));
    for (const [i, [name]] of bad.entries()) {
      expect(status[2 * i]).toBe(0);
      expectClose(slots[2 * i]!, expected, { rtol: 0, atol: 0 }, `the image before ${name}`);
      expect(status[2 * i + 1], name).toBe(ErrorCode.image);
      expect(messages[2 * i + 1]!.length, name).toBeGreaterThan(10);
      expectClose(
        slots[2 * i + 1]!,
        Float32Array.from({ length: slotSize }, (_, j) => fill[j % 3]!),
        { rtol: 1e-6, atol: 1e-6 },
        name,
      );
    }
  });

  batches("a job and a decoder are gone after they were destroyed", async () => {
    const { job, decoder } = await runBatch([bytesOf(good[0]!)], [whole(good[0]!)], 1);
    expect(errorOf(() => native.jobQuery(job)).code).toBe(ErrorCode.handle);
    expect(errorOf(() => native.decoderDestroy(decoder)).code).toBe(ErrorCode.handle);
  });

  batches("a decoder can be destroyed while it works", () => {
    const decoder = outHandle();
    native.decoderCreate(device.handle, decoder.view, 2, 0);
    const bytes = bytesOf(file("64x48"));
    const count = 50;
    using pinned = new PinnedBuffer(device, bytes.length);
    pinned.bytes.set(bytes);
    using out = Tensor.empty(device, [count, outH, outW, channels]);
    const job = outHandle();
    const transforms = Float32Array.from(Array.from({ length: count }, () => whole(file("64x48"))).flat());
    const sources = BigInt64Array.from({ length: count }, () => BigInt(pinned.address));
    const lengths = BigInt64Array.from({ length: count }, () => BigInt(bytes.length));
    native.decoderSubmit(
      decoder.value,
      job.view,
      out.address,
      sources,
      lengths,
      new Uint8Array(1),
      transforms,
      normalisation,
      0,
      count,
      outH,
      outW,
      channels,
      dtypeCode("f32"),
      0,
    );
    native.decoderDestroy(decoder.value);
    expect(native.jobQuery(job.value)).toBe(0);
    const status = new Int32Array(count);
    native.jobResults(job.value, status);
    native.jobDestroy(job.value);
    expect(status.every((code) => code === 0)).toBe(true);
    const all = out.read() as Float32Array;
    expect(elementCount(out.shape)).toBe(all.length);
    expectClose(all.slice((count - 1) * slotSize), all.slice(0, slotSize), { rtol: 0, atol: 0 }, "the last slot");
  });
});
