/** Errors as users see them. */
import { expect, test } from "bun:test";
import { DlfsError, ErrorCode, firstError } from "../../lib/native";

test("of several errors the first is told of, not those of what it left half-done", () => {
  const first = new DlfsError(ErrorCode.io, "photos", "the disk is full");
  const later = (name: string) => ({
    [Symbol.dispose]() {
      throw new Error(`${name} is still in use`);
    },
  });
  const work = () => {
    using _device = later("the device");
    using _stream = later("the stream");
    throw first;
  };
  let thrown: unknown;
  try {
    work();
  } catch (error) {
    thrown = error;
  }
  expect(thrown).toBeInstanceOf(SuppressedError);
  expect(firstError(thrown)).toBe(first);
  expect(firstError(first)).toBe(first);
  expect(firstError("text")).toBe("text");
});
