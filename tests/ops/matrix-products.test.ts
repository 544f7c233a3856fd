/** Every algorithm that cuBLASLt names for 1x1 convolutions and linear layers, not only the one that is chosen. */
import { describe, expect, test } from "bun:test";
import { constants, cString, DlfsError, ErrorCode, fromCString } from "../../lib/native";
import { dtypeCode, outHandle, Tensor } from "../../lib/tensor";
import { expectClose, expectSameBytes } from "../support/compare";
import { backend, missing, testDevice } from "../support/device";
import { errorOf } from "../support/errors";
import { Random } from "../support/random";
import type { OpCase } from "./cases/case";
import {
  type ConvShape,
  convBackwardData,
  convBackwardWeight,
  convForward,
  convShape,
  type Epilogue,
} from "./cases/conv";
import { checkResults } from "./check";
import * as reference from "./reference/conv";

const linear = (rows: number, c: number, k: number): ConvShape => convShape({ n: rows, h: 1, w: 1, c, k });

/** Sizes that vectors and tiles divide, and those that they do not. */
const shapes: [string, ConvShape][] = [
  ["96 x 64 -> 128", linear(96, 64, 128)],
  ["1 x 64 -> 80", linear(1, 64, 80)],
  ["33 x 819 -> 7", linear(33, 819, 7)],
  ["20 x 5 -> 1", linear(20, 5, 1)],
  ["7 x 3 -> 80", linear(7, 3, 80)],
  ["1 x 1 -> 1", linear(1, 1, 1)],
  ["1000 x 16 -> 8, a long sum of a weight gradient", linear(1000, 16, 8)],
  ["2x6x5 x 40 -> 24", convShape({ h: 6, w: 5, c: 40, k: 24 })],
];

const epilogues: [string, Epilogue][] = [
  ["no epilogue", {}],
  ["bias", { bias: true }],
  ["residual", { residual: true }],
  ["bias and residual", { bias: true, residual: true }],
  ["bias and relu", { bias: true, activation: "relu" }],
  ["residual and silu", { residual: true, activation: "silu" }],
];

const device = testDevice();
const { native } = device;

/** Runs body for each candidate: "lt:0", "lt:1", ... until the library says that there are no more. Returns their number. */
function forCandidates(body: (pick: string) => void): number {
  for (let i = 0; ; ++i) {
    try {
      body(`lt:${i}`);
    } catch (error) {
      if (error instanceof DlfsError && error.code === ErrorCode.argument && / candidates for /.test(error.message))
        return i;
      throw new Error(`candidate ${i}: ${error instanceof Error ? error.message : error}`, { cause: error });
    }
  }
}

function create(pick: string, { n, h, w, c, k }: ConvShape, direction = 0, dtype: number = constants.F32): number {
  const out = outHandle();
  const geometry = [n, h, w, c, k, 1, 1, 1, 1, 0, 0, 1, 1, 1] as const;
  native.convCreate(device.handle, out.view, cString(pick), direction, dtype, ...geometry, 0, constants.ACT_NONE);
  return out.value;
}

function pickOf(conv: number): string {
  const text = new Uint8Array(256);
  native.convPick(conv, text, text.byteLength);
  return fromCString(text);
}

if (backend !== "cuda") {
  test.skip("cuBLASLt's algorithms (skipped: the cpu backend has none)", () => {});
} else {
  describe("every candidate computes what the reference does, with the same bytes each time", () => {
    for (const dtype of ["f32", "bf16", "f16"] as const) {
      const reason = missing(device, dtype, dtype === "bf16" ? ["conv.bf16"] : dtype === "f16" ? ["conv.f16"] : []);
      if (reason) {
        test.skip(`${dtype} (skipped: ${reason})`, () => {});
        continue;
      }
      const check = (name: string, opCase: (pick: string) => OpCase) =>
        test(`${dtype}: ${name}`, () => {
          expect(forCandidates((pick) => checkResults(opCase(pick), dtype))).toBeGreaterThan(0);
        });
      for (const [name, shape] of shapes) {
        for (const [what, epilogue] of epilogues)
          check(`${name}, forward, ${what}`, (pick) => convForward(name, shape, epilogue, pick));
        check(`${name}, data gradient`, (pick) => convBackwardData(name, shape, {}, pick));
        check(`${name}, data gradient, residual`, (pick) =>
          convBackwardData(name, shape, { residual: true, inPlace: true }, pick),
        );
        check(`${name}, weight gradient`, (pick) => convBackwardWeight(name, shape, pick));
      }
    }
  });

  test.each(["", "lt:0"])("the fp32 weight gradient of 16-bit inputs is not rounded on its way (pick '%s')", (pick) => {
    for (const [name, shape] of shapes.filter(([, { h }]) => pick === "lt:0" || h > 1)) {
      const opCase = convBackwardWeight(name, shape, pick);
      const exact: OpCase = { ...opCase, outputs: { dw: { ...opCase.outputs.dw!, roundings: 0 } } };
      for (const dtype of ["bf16", "f16"] as const) if (!missing(device, dtype)) checkResults(exact, dtype);
    }
  });

  describe("picks", () => {
    const shape = linear(96, 64, 128);

    test("of every candidate make the same plan again", () => {
      for (const direction of [0, 1, 2]) {
        for (const dtype of ["f32", "bf16"] as const) {
          if (missing(device, dtype, dtype === "bf16" ? ["conv.bf16"] : [])) continue;
          const count = forCandidates((pick) => {
            const conv = create(pick, shape, direction, dtypeCode(dtype));
            const text = pickOf(conv);
            native.convDestroy(conv);
            expect(text).toStartWith("lt:");
            expect(text.length).toBeLessThan(256);
            const again = create(text, shape, direction, dtypeCode(dtype));
            expect(pickOf(again)).toBe(text);
            native.convDestroy(again);
          });
          expect(count).toBeGreaterThan(0);
        }
      }
    });

    test("of linear layers are cuBLASLt's without a measurement", () => {
      for (const direction of [0, 1, 2]) {
        const conv = create("", shape, direction);
        expect(pickOf(conv)).toStartWith("lt:");
        native.convDestroy(conv);
      }
    });

    test("that are damaged, of another version, or for another kind of convolution are refused", () => {
      const conv = create("lt:0", shape);
      const text = pickOf(conv);
      native.convDestroy(conv);
      const damaged = [
        "lt:",
        "lt:x",
        "lt:99",
        text.slice(0, -1),
        `${text}0`,
        text.replace(/^lt:\d+/, "lt:1"),
        text.replace(/ sm\d+/, " sm10"),
        text.replace(/.$/, "g"),
        text.replace(/ f\d/, " f1"), // the plan has no epilogue to fuse
      ];
      for (const pick of damaged) expect(errorOf(() => create(pick, shape)).code).toBe(ErrorCode.argument);
      const out = outHandle();
      const strided = [2, 4, 4, 64, 128, 1, 1, 2, 2, 0, 0, 1, 1, 1] as const;
      const error = errorOf(() =>
        native.convCreate(device.handle, out.view, cString(text), 0, constants.F32, ...strided, 0, constants.ACT_NONE),
      );
      expect(error.code).toBe(ErrorCode.argument);
      expect(error.message).toContain("matrix product");
    });
  });

  test("a captured product gives the bytes of one that runs at once", () => {
    const shape = linear(130, 96, 72);
    const values = (name: string, ...sizes: number[]) =>
      Tensor.from(device, new Random(name).normal(sizes[0]! * sizes[1]!, 0, 0.3), sizes);
    using x = values("x", 130, 96);
    using w = values("w", 72, 96);
    using y = Tensor.zeros(device, [130, 72]);
    const expected = reference.convForward(x.read(), w.read(), shape);
    const conv = create("lt:0", shape);
    const bytes = outHandle();
    native.convWorkspace(conv, bytes.view);
    using workspace = Tensor.zeros(device, [Math.max(1, bytes.value)], "u8");
    const { stream } = device;
    const run = () =>
      native.convForward(stream.handle, conv, y.address, x.address, w.address, null, null, workspace.address);
    run();
    const first = Float32Array.from(y.read());
    expectClose(first, expected, { rtol: 1e-5, atol: 1e-4 }, "y");
    const graph = outHandle();
    native.graphBegin(stream.handle);
    run();
    native.graphEnd(stream.handle, graph.view);
    native.convDestroy(conv);
    for (let i = 0; i < 2; ++i) {
      native.memset(stream.handle, y.address, y.byteLength, 255);
      native.graphLaunch(stream.handle, graph.value);
      expectSameBytes(new Uint8Array(Float32Array.from(y.read()).buffer), new Uint8Array(first.buffer), "y");
    }
    native.graphDestroy(graph.value);
  });

  test("addresses that are not multiples of 16 bytes are served too", () => {
    const shape = linear(9, 12, 10);
    const conv = create("lt:0", shape);
    const bytes = outHandle();
    native.convWorkspace(conv, bytes.view);
    using workspace = Tensor.zeros(device, [Math.max(1, bytes.value)], "u8");
    using x = Tensor.from(device, new Random("x").normal(9 * 12 + 1), [9 * 12 + 1]);
    using w = Tensor.from(device, new Random("w").normal(120), [10, 12]);
    using y = Tensor.zeros(device, [9, 10]);
    native.convForward(
      device.stream.handle,
      conv,
      y.address,
      x.address + 4,
      w.address,
      null,
      null,
      bytes.value > 0 ? workspace.address : null,
    );
    const expected = reference.convForward(Float32Array.from(x.read()).subarray(1), w.read(), shape);
    expectClose(y.read(), expected, { rtol: 1e-5, atol: 1e-4 }, "y");
    native.convDestroy(conv);
  });
}
