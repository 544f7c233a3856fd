import { type DType, dtypeCode, dtypeSize, elementCount } from "../../tensor";
import { expectShape, type Op } from "../node";

/** The same elements under another shape; costs nothing. */
export const reshape: Op<{ shape: readonly number[] }> = {
  kind: "reshape",
  alias: true,
  infer([x], { shape }) {
    expectShape(
      elementCount(shape) === elementCount(x!.shape),
      () =>
        `cannot view (${x!.shape.join(", ")}) as (${shape.join(", ")}): ${elementCount(x!.shape)} and ${elementCount(shape)} elements`,
    );
    return [{ shape, dtype: x!.dtype }];
  },
  gradient: (builder, { inputs: [x], outputs: [y] }, [dy]) =>
    builder.apply(reshape, [builder.value(dy!, y!)], { shape: x!.shape }),
  emit() {},
};

/** (..., rows, columns) to (..., columns, rows). */
export const transpose: Op<object> = {
  kind: "transpose",
  infer([x]) {
    const { shape, dtype } = x!;
    const allowed: DType[] = ["f32", "bf16", "f16", "i32"];
    expectShape(allowed.includes(dtype), () => `expected a tensor of dtype ${allowed.join(", ")}, got ${dtype}`);
    expectShape(shape.length >= 2, () => `expected a tensor of shape (..., rows, columns), got (${shape.join(", ")})`);
    return [{ shape: [...shape.slice(0, -2), shape.at(-1)!, shape.at(-2)!], dtype }];
  },
  gradient: (builder, { outputs: [y] }, [dy]) => builder.apply(transpose, [builder.value(dy!, y!)], {}),
  emit(e, { inputs: [x], outputs: [y] }) {
    const [dst, src, dtype] = [e.address(y!), e.address(x!), dtypeCode(x!.dtype)];
    const [rows, columns] = x!.shape.slice(-2) as [number, number];
    const n = elementCount(x!.shape.slice(0, -2));
    e.call(() => e.native.transpose(e.stream, dst, src, n, rows, columns, dtype));
  },
};

function expectAxis(shape: readonly number[], axis: number): void {
  expectShape(
    Number.isInteger(axis) && axis >= 0 && axis < shape.length,
    () => `expected an axis from 0 to ${shape.length - 1}, got ${axis}`,
  );
}

/** Sizes of a tensor seen as rows around an axis: rows before it, bytes of one step along it. */
function pitch(shape: readonly number[], axis: number, elementBytes: number): { rows: number; step: number } {
  return { rows: elementCount(shape.slice(0, axis)), step: elementCount(shape.slice(axis + 1)) * elementBytes };
}

/** Joins tensors along an axis; all other sizes must agree. */
export const concat: Op<{ axis: number }> = {
  kind: "concat",
  infer(inputs, { axis }) {
    const [first] = inputs;
    expectShape(first !== undefined, () => "expected at least one tensor to join");
    expectAxis(first.shape, axis);
    for (const [i, x] of inputs.entries()) {
      expectShape(
        x.dtype === first.dtype &&
          x.shape.length === first.shape.length &&
          x.shape.every((size, d) => d === axis || size === first.shape[d]),
        () =>
          `tensor ${i}: expected ${first.dtype} (${first.shape.map((size, d) => (d === axis ? "any" : size)).join(", ")}), got ${x.dtype} (${x.shape.join(", ")})`,
      );
    }
    const length = inputs.reduce((sum, x) => sum + x.shape[axis]!, 0);
    return [{ shape: first.shape.map((size, d) => (d === axis ? length : size)), dtype: first.dtype }];
  },
  gradient(builder, { inputs, outputs: [y], attrs: { axis } }, [dy]) {
    const upstream = builder.value(dy!, y!);
    let start = 0;
    return inputs.map((x) => {
      const length = x.shape[axis]!;
      const part = builder.needed(x) ? builder.apply(slice, [upstream], { axis, start, length })[0]! : null;
      start += length;
      return part;
    });
  },
  emit(e, { inputs, outputs: [y], attrs: { axis } }) {
    const { rows, step } = pitch(y!.shape, axis, dtypeSize(y!.dtype));
    const dstPitch = y!.shape[axis]! * step;
    let offset = 0;
    for (const x of inputs) {
      const bytes = x.shape[axis]! * step;
      const [dst, src] = [e.address(y!) + offset, e.address(x)];
      e.call(() => e.native.copy2d(e.stream, dst, src, rows, bytes, dstPitch, bytes));
      offset += bytes;
    }
  },
};

/** `length` steps along an axis from `start`. */
export const slice: Op<{ axis: number; start: number; length: number }> = {
  kind: "slice",
  infer([x], { axis, start, length }) {
    expectAxis(x!.shape, axis);
    expectShape(
      start >= 0 && length > 0 && start + length <= x!.shape[axis]!,
      () => `cannot take ${length} from ${start} along axis ${axis} of (${x!.shape.join(", ")})`,
    );
    return [{ shape: x!.shape.map((size, d) => (d === axis ? length : size)), dtype: x!.dtype }];
  },
  gradient: (builder, { inputs: [x], outputs: [y], attrs }, [dy]) =>
    builder.apply(sliceBackward, [builder.value(dy!, y!)], { ...attrs, shape: x!.shape }),
  emit(e, { inputs: [x], outputs: [y], attrs: { axis, start, length } }) {
    const { rows, step } = pitch(x!.shape, axis, dtypeSize(x!.dtype));
    const [dst, src] = [e.address(y!), e.address(x!) + start * step];
    const [bytes, srcPitch] = [length * step, x!.shape[axis]! * step];
    e.call(() => e.native.copy2d(e.stream, dst, src, rows, bytes, bytes, srcPitch));
  },
};

/** The gradient of slice: dy at its place, zeros elsewhere. */
const sliceBackward: Op<{ axis: number; start: number; length: number; shape: readonly number[] }> = {
  kind: "slice_backward",
  infer: ([dy], { shape }) => [{ shape, dtype: dy!.dtype }],
  emit(e, { inputs: [dy], outputs: [dx], attrs: { axis, start, length } }) {
    const { rows, step } = pitch(dx!.shape, axis, dtypeSize(dx!.dtype));
    const [base, src] = [e.address(dx!), e.address(dy!)];
    const total = elementCount(dx!.shape) * dtypeSize(dx!.dtype);
    const [bytes, dstPitch] = [length * step, dx!.shape[axis]! * step];
    e.call(() => e.native.memset(e.stream, base, total, 0));
    e.call(() => e.native.copy2d(e.stream, base + start * step, src, rows, bytes, dstPitch, bytes));
  },
};
