/** Weight initialisation. */

import { exact } from "../../support/compare";
import * as reference from "../reference/philox";
import type { OpCase } from "./case";

function initUniform(n: number, seed: number, offset: number, low: number, high: number): OpCase {
  return {
    op: "init_uniform",
    name: `${n} in [${low}, ${high}), seed ${seed}, offset ${offset}`,
    dtypes: ["f32"],
    inputs: {},
    // the same bits on every backend
    outputs: { x: { shape: [n], tolerance: exact } },
    prepare(c) {
      const x = c.address("x");
      return () => void c.native.initUniform(c.stream, x!, n, seed, offset, low, high);
    },
    reference: () => ({ x: reference.uniform(n, seed, offset, low, high) }),
  };
}

function initNormal(n: number, seed: number, offset: number, mean: number, std: number): OpCase {
  return {
    op: "init_normal",
    name: `${n} of mean ${mean} and deviation ${std}, seed ${seed}, offset ${offset}`,
    dtypes: ["f32"],
    inputs: {},
    // computed in double precision and rounded once: half a unit in the last place, and a little for the functions
    outputs: { x: { shape: [n], tolerance: { rtol: 2 ** -22, atol: std * 1e-9 } } },
    prepare(c) {
      const x = c.address("x");
      return () => void c.native.initNormal(c.stream, x!, n, seed, offset, mean, std);
    },
    reference: () => ({ x: reference.normal(n, seed, offset, mean, std) }),
  };
}

export const initCases: OpCase[] = [
  initUniform(1, 0, 0, 0, 1),
  initUniform(1003, 0, 0, -0.1, 0.1),
  initUniform(4096, 123456789, 7, -3, 5),
  initUniform(66, Number.MAX_SAFE_INTEGER, 2 ** 33 + 1, 0, 1),
  initUniform(18, -5, 1, -1, 1),
  initNormal(1, 0, 0, 0, 1),
  initNormal(1003, 1, 2, 0, 0.01),
  initNormal(4098, 99, 2 ** 33 + 1, -2, 3),
];
