import { describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { ErrorCode, headerHash } from "../../lib/native";
import { argumentNames, constants, symbols } from "../../lib/native/symbols.generated";
import { testDevice } from "../support/device";

const root = fileURLToPath(new URL("../../", import.meta.url));
const header = readFileSync(`${root}csrc/include/dlfs.h`, "utf8");

describe("the generated symbol table", () => {
  test("generating it again changes nothing", () => {
    const { exitCode, stderr } = Bun.spawnSync([process.execPath, "scripts/generate-symbols.ts", "--check"], {
      cwd: root,
    });
    expect({ exitCode, stderr: stderr.toString() }).toEqual({ exitCode: 0, stderr: "" });
  });

  test("carries the header's hash", () => {
    expect(headerHash).toBe(createHash("sha256").update(header).digest("hex").slice(0, 16));
  });

  test("has every function of the header and no other", () => {
    const declared = [...header.matchAll(/DLFS_API (?:dlfs_status|int32_t|const char \*)\s*(dlfs_\w+)\(/g)].map(
      (match) => match[1]!,
    );
    expect(declared.length).toBeGreaterThan(90);
    expect(Object.keys(symbols).sort()).toEqual(declared.sort());
  });

  test("names every argument", () => {
    for (const [symbol, { args }] of Object.entries(symbols))
      expect(argumentNames[symbol], symbol).toHaveLength(args.length);
  });

  test("has every constant of the header", () => {
    const defined = [...header.matchAll(/^#define DLFS_(\w+) (-?\d+)\b/gm)].map(([, name, value]) => [
      name,
      Number(value),
    ]);
    expect(Object.entries(constants).sort()).toEqual(defined.sort() as never);
    expect(Object.values(ErrorCode).every((code) => code < 0)).toBe(true);
  });

  test("all its functions are in the facade", () => {
    const { native } = testDevice();
    const expected = Object.keys(symbols)
      .filter((symbol) => !["dlfs_last_error", "dlfs_abi_version"].includes(symbol))
      .map((symbol) =>
        symbol.slice("dlfs_".length).replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase()),
      );
    expect(Object.keys(native).sort()).toEqual(expected.sort());
  });
});
