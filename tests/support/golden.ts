/** Numbers recorded from PyTorch, torchvision and Pillow: tests/golden/ops/*.json, made by the record*.py beside them. */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

type GoldenArray = Float32Array | Int32Array | Uint8Array;

/** One recorded case; P describes what record.py wrote as its parameters. */
export interface GoldenCase<P> {
  name: string;
  params: P;
  /** The array of a name; throws when the case has none. */
  array(name: string): GoldenArray;
  shape(name: string): number[];
  has(name: string): boolean;
  /** Names of the arrays, in the order recorded. */
  names: string[];
}

interface Stored {
  shape: number[];
  dtype: "f32" | "i32" | "u8";
  data: string;
}

function decode({ dtype, data }: Stored): GoldenArray {
  const bytes = Uint8Array.from(Buffer.from(data, "base64"));
  return dtype === "u8" ? bytes : dtype === "i32" ? new Int32Array(bytes.buffer) : new Float32Array(bytes.buffer);
}

export function loadGolden<P = Record<string, never>>(file: string): GoldenCase<P>[] {
  const path = fileURLToPath(new URL(`../golden/ops/${file}.json`, import.meta.url));
  const { cases } = JSON.parse(readFileSync(path, "utf8")) as {
    cases: { name: string; params: P; arrays: Record<string, Stored> }[];
  };
  return cases.map(({ name, params, arrays }) => {
    const stored = (key: string): Stored => {
      const found = arrays[key];
      if (!found) throw new Error(`${file}.json, case "${name}": no array "${key}"`);
      return found;
    };
    return {
      name,
      params,
      names: Object.keys(arrays),
      has: (key) => key in arrays,
      array: (key) => decode(stored(key)),
      shape: (key) => stored(key).shape,
    };
  });
}
