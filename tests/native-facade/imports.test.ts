/** Which folders may import what. Read from the sources' text: no file is loaded. */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../", import.meta.url));
const sources = ["lib", "examples", "scripts", "tests"].flatMap((folder) =>
  [...new Bun.Glob("**/*.ts").scanSync({ cwd: `${root}${folder}` })].map((file) => `${folder}/${file}`),
);

/** Comments removed, so that a text which speaks of an import is none. */
function code(file: string): string {
  return readFileSync(`${root}${file}`, "utf8")
    .replace(/\/\*[\s\S]*?\*\//g, "")
    .replace(/^\s*\/\/.*$/gm, "");
}

/** What a file imports, relative paths resolved against the repository. */
function importsOf(file: string): string[] {
  const found = code(file).matchAll(/(?:\bfrom|\bimport|\brequire\s*\(|\bimport\s*\()\s*["']([^"'\n]+)["']/g);
  return [...found].map(([, path]) => (path!.startsWith(".") ? normalize(join(dirname(file), path!)) : path!));
}

test("the sources were found", () => {
  expect(sources).toContain("lib/native/library.ts");
  expect(importsOf("lib/native/library.ts")).toContain("bun:ffi");
  expect(importsOf("lib/tensor/tensor.ts")).toContain("lib/native");
});

describe("bun:ffi", () => {
  test("is imported by lib/native alone", () => {
    expect(sources.filter((file) => importsOf(file).includes("bun:ffi") && !file.startsWith("lib/native/"))).toEqual(
      [],
    );
  });

  // A typed array moves when the JIT warms up: an address kept from ptr() then points at abandoned memory.
  test("ptr() is used nowhere, in lib/native neither", () => {
    const own = "tests/native-facade/imports.test.ts";
    const users = sources.filter(
      (file) => file !== own && /\bptr\s*\(|\bptr\s*[,}][^;]*from\s*["']bun:ffi/.test(code(file)),
    );
    expect(users).toEqual([]);
  });

  test("no library is closed", () => {
    expect(sources.filter((file) => file.startsWith("lib/native/") && /\.close\(\)/.test(code(file)))).toEqual([]);
  });
});

describe("imports point down", () => {
  /** A folder of lib may import the ones listed, and itself. */
  const allowed: Record<string, string[]> = {
    native: [],
    tensor: ["native"],
    distributed: ["native", "tensor"],
    graph: ["native", "tensor"],
    layers: ["native", "tensor", "graph"],
    detection: ["native", "tensor", "graph"],
    models: ["native", "tensor", "graph", "layers", "detection"],
    export: ["native", "tensor", "graph", "layers", "formats"],
    metrics: ["native"],
    formats: ["native", "tensor"],
    data: ["native", "tensor", "formats"],
    monitor: ["native", "formats"],
    train: [
      ...["native", "tensor", "distributed", "graph", "layers", "detection", "models"],
      ...["metrics", "formats", "data", "monitor", "live", "dashboard"],
    ],
    engine: ["native", "tensor", "formats", "data", "monitor", "train"],
    live: ["native", "formats", "data", "monitor"],
    dashboard: ["native", "metrics", "formats", "data", "monitor", "live"],
    service: ["native", "tensor", "formats", "data", "monitor", "live", "train", "engine"],
    label: ["native", "formats", "data", "live"],
    bench: ["native", "tensor", "graph", "layers", "models", "data", "train"],
    cli: [
      "native",
      "tensor",
      "distributed",
      "data",
      "detection",
      "models",
      "train",
      "export",
      "engine",
      "service",
      "label",
      "dashboard",
      "bench",
    ],
  };

  test("of every folder there is a rule", () => {
    const folders = sources.flatMap((file) => /^lib\/([^/]+)\//.exec(file)?.[1] ?? []);
    expect([...new Set(folders)].sort()).toEqual(Object.keys(allowed).sort());
  });

  test.each(Object.keys(allowed))("of lib/%s", (folder) => {
    const files = sources.filter((file) => file.startsWith(`lib/${folder}/`));
    const wrong = files.flatMap((file) =>
      importsOf(file)
        .map((path) => /^lib\/([^/]+)/.exec(path)?.[1])
        .filter((target) => target !== undefined && target !== folder && !allowed[folder]!.includes(target))
        .map((target) => `${file} imports lib/${target}`),
    );
    expect(wrong).toEqual([]);
  });
});
