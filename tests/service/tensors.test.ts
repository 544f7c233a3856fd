/** Elements of tensors in JSON and in bytes, and sizes in the headers of image files. */
import { describe, expect, test } from "bun:test";
import { checkImageFile } from "../../lib/service/image-header";
import { bytesFromBinary, bytesFromJson, bytesOfText, uint8FromJson } from "../../lib/service/tensors";
import { ServiceError } from "../../lib/service/types";
import { bytesOf, imageCases, sizeOf } from "../support/image-cases";

/** The message of the ServiceError of status 400 that `run` throws. */
function refusal(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(ServiceError);
    expect((error as ServiceError).status).toBe(400);
    return (error as ServiceError).message;
  }
  throw new Error("nothing was refused");
}

describe("UINT8 in JSON", () => {
  test("is flat or nested", () => {
    const flat = Array.from({ length: 24 }, (_, i) => i * 10);
    const nested = [0, 1].map((i) => [0, 1, 2, 3].map((j) => flat.slice(i * 12 + j * 3, i * 12 + j * 3 + 3)));
    expect([...uint8FromJson(flat, [2, 4, 3], "x")]).toEqual(flat);
    expect([...uint8FromJson(nested, [2, 4, 3], "x")]).toEqual(flat);
    expect([...uint8FromJson([[[[7]]]], [1, 1, 1, 1], "x")]).toEqual([7]);
    expect(uint8FromJson([], [0, 3], "x").length).toBe(0);
    // More than what is taken at first.
    const many = Array.from({ length: 300 }, (_, i) => Array.from({ length: 1000 }, (_, j) => (i + j) % 256));
    expect(uint8FromJson(many, [300, 1000], "x")).toEqual(Uint8Array.from(many.flat()));
  });

  test("of another shape or with other elements is refused", () => {
    const cases: [unknown, number[], string][] = [
      [[1, 2, 3], [2, 2], "x: shape [2,2] has 4 elements, got 3"],
      [[[1, 2]], [2, 2], "x: expected arrays of 2 at depth 1 of shape [2,2], got 1"],
      [[[1, 2], [3]], [2, 2], "x: expected arrays of 2 at depth 2 of shape [2,2], got 1"],
      [[[1, 2], 3], [2, 2], "x: expected arrays of 2 at depth 2 of shape [2,2], got 3"],
      [
        [
          [1, 2],
          [3, [4]],
        ],
        [2, 2],
        "x: element 3: expected an integer from 0 to 255, got [4]",
      ],
      [[[1]], [1], "x: expected arrays of undefined at depth 2 of shape [1], got 1"],
      [[1, 256], [2], "x: element 1: expected an integer from 0 to 255, got 256"],
      [[1, 0.5], [2], "x: element 1: expected an integer from 0 to 255, got 0.5"],
      [[-1], [1], "x: element 0: expected an integer from 0 to 255, got -1"],
      [["1"], [1], 'x: element 0: expected an integer from 0 to 255, got "1"'],
      [{ 0: 1 }, [1], "x: expected an array, got an object"],
      ["abc", [3], 'x: expected an array, got "abc"'],
      [[1], [2 ** 20, 2 ** 20], "x: shape [1048576,1048576] has 1099511627776 elements, got 1"],
    ];
    for (const [data, shape, message] of cases) expect(refusal(() => uint8FromJson(data, shape, "x"))).toBe(message);
    let deep: unknown = [1];
    for (let i = 0; i < 100_000; i++) deep = [deep];
    expect(refusal(() => uint8FromJson(deep, [1, 1, 1], "x"))).toContain("element 0");
  });
});

describe("BYTES", () => {
  test("in JSON are base64 or data URLs", () => {
    const bytes = Uint8Array.from({ length: 256 }, (_, i) => i);
    const texts = [
      bytes.toBase64(),
      bytes.toBase64({ alphabet: "base64url" }),
      bytes.toBase64({ omitPadding: true }),
      `data:image/jpeg;base64,${bytes.toBase64()}`,
    ];
    expect(bytesFromJson(texts, [4], "x")).toEqual([bytes, bytes, bytes, bytes]);
    expect(bytesFromJson([[texts[0]], [texts[1]]], [2, 1], "x")).toEqual([bytes, bytes]);
    expect(refusal(() => bytesFromJson(["AA==", 5], [2], "x"))).toBe("x[1]: expected base64, got 5");
    expect(refusal(() => bytesOfText("A*A=", "x"))).toBe('x: expected base64, got "A*A="');
    expect(refusal(() => bytesOfText("data:image/png,abc", "x"))).toContain("expected a data URL in base64");
    expect(refusal(() => bytesOfText("data:no comma", "x"))).toContain("expected a data URL in base64");
  });

  test("in bytes have lengths before them", () => {
    const packed = Uint8Array.of(2, 0, 0, 0, 8, 9, 0, 0, 0, 0, 1, 0, 0, 0, 7);
    expect(bytesFromBinary(packed, 3, "x").map((element) => [...element])).toEqual([[8, 9], [], [7]]);
    expect(bytesFromBinary(new Uint8Array(0), 0, "x")).toEqual([]);
    const cases: [Uint8Array, number, string][] = [
      [packed, 2, "x: 5 bytes more than its 2 elements"],
      [packed, 4, "x: expected 4 elements, got 3"],
      [packed.subarray(0, 5), 1, "x[0]: expected 2 bytes, got 1"],
      [packed.subarray(0, 8), 2, "x[1]: the bytes end within its length"],
      [Uint8Array.of(255, 255, 255, 255, 1), 1, "x[0]: expected 4294967295 bytes, got 1"],
    ];
    for (const [bytes, count, message] of cases) {
      expect(refusal(() => bytesFromBinary(bytes, count, "x"))).toBe(message);
    }
  });
});

describe("headers of image files", () => {
  test.each(imageCases().map((golden) => [golden.name, golden] as const))(
    "%s has the size of its pixels",
    (_, golden) => {
      const [height, width] = sizeOf(golden);
      const pixels = width * height;
      checkImageFile(bytesOf(golden), "x", pixels);
      const message = refusal(() => checkImageFile(bytesOf(golden), "x", pixels - 1));
      // Turned by 90 degrees where its orientation says so.
      expect([`${width} x ${height}`, `${height} x ${width}`]).toContain(
        /x: (\d+ x \d+) pixels are more/.exec(message)?.[1] ?? "",
      );
    },
  );

  test("that are cut off, of other kinds or of no size are refused", () => {
    const [golden] = imageCases().filter(({ params }) => params.format === "jpeg");
    const jpeg = bytesOf(golden!);
    const cases: [Uint8Array, string][] = [
      [new Uint8Array(0), "x: the image is empty"],
      [jpeg.subarray(0, 20), "x: the JPEG image ends before its size, or is damaged there"],
      [Uint8Array.of(0xff, 0xd8, 0xff, 0xda, 0, 4), "x: the JPEG image ends before its size, or is damaged there"],
      [Uint8Array.of(0xff, 0xd8, 0xff, 0xe0, 0, 0), "x: the JPEG image ends before its size, or is damaged there"],
      [Uint8Array.of(0xff, 0xd8, 0xff, 0xc0, 0, 11, 8, 0, 0, 0, 9, 1), "x: the JPEG image has 9 x 0 pixels"],
      [Buffer.from("GIF89a"), "x: expected a JPEG, PNG or WebP image, got GIF"],
      [Buffer.from("hello, world"), "x: expected a JPEG, PNG or WebP image, got something else"],
    ];
    for (const [bytes, message] of cases) expect(refusal(() => checkImageFile(bytes, "x", 1e9))).toBe(message);
    const huge = Buffer.from("iVBORw0KGgoAAAANSUhEUv////7////+CAYAAAA=", "base64");
    expect(refusal(() => checkImageFile(huge, "x", 2 ** 26))).toBe(
      "x: 4294967294 x 4294967294 pixels are more than the limit of 67108864",
    );
  });
});
