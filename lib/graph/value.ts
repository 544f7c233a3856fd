import { DlfsError, ErrorCode } from "../native";
import type { DType } from "../tensor";
import type { Node } from "./node";
import type { Parameter } from "./parameter";

/** Shape and dtype of something that a graph computes. */
export interface Spec {
  readonly shape: readonly number[];
  readonly dtype: DType;
}

/** Where a value that no node computes comes from. */
export type Leaf =
  | { readonly leaf: "input"; readonly name: string }
  /** A parameter or buffer in its own dtype (fp32). */
  | { readonly leaf: "parameter"; readonly parameter: Parameter }
  /** The low-precision copy of a parameter that follows it. */
  | { readonly leaf: "copy"; readonly parameter: Parameter };

/**
 * A symbolic tensor inside `forward`: it has a shape and a dtype, and no numbers, because forward runs once per input shape
 * to record what is to be computed. Every reader of numbers throws an error that says so.
 */
export class Value implements Spec {
  constructor(
    readonly id: number,
    readonly shape: readonly number[],
    readonly dtype: DType,
    readonly source: Node | Leaf,
    /** Which output of its node. */
    readonly output: number,
  ) {}

  get node(): Node | null {
    return "op" in this.source ? this.source : null;
  }

  get leaf(): Leaf | null {
    return "leaf" in this.source ? this.source : null;
  }

  toString(): string {
    return `${this.dtype} (${this.shape.join(", ")})`;
  }

  /** Numbers exist only once a program has run. */
  get data(): never {
    return unreadable("data");
  }
  read(): never {
    return unreadable("read()");
  }
  item(): never {
    return unreadable("item()");
  }
  [Symbol.toPrimitive](hint: string): string {
    if (hint === "string") return this.toString();
    return unreadable("arithmetic on it");
  }
}

function unreadable(what: string): never {
  throw new DlfsError(
    ErrorCode.unsupported,
    "forward",
    `${what}: a symbolic tensor has no numbers; forward() describes the computation and runs before it. ` +
      "Return the value as an output of the model and read it after the call",
  );
}

export function sameShape(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((size, i) => size === b[i]);
}
