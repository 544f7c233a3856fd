import { expect } from "bun:test";
import { DlfsError } from "../../lib/native";

/** The DlfsError that `run` throws; fails where it throws none, or another. */
export function errorOf(run: () => unknown): DlfsError {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(DlfsError);
    return error as DlfsError;
  }
  throw new Error("expected an error, got none");
}
