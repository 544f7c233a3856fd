/**
 * Runs a case on a device. All operands lie in one block of device memory with guard bytes around each: a write outside an
 * operand or a workspace, a changed input and an output element that was not written are all found, whatever the operation.
 */
import type { Device, DType } from "../../lib/tensor";
import { decodeElements, dtypeCode, dtypeSize, elementCount, encodeElements } from "../../lib/tensor";
import { Random } from "../support/random";
import { type Arrays, type CaseContext, kindOf, type OpCase, type Operand } from "./cases/case";

const GUARD = 4096;
/** Guard behind a workspace, where a wrong size means a thread's worth of scratch memory and not an element. */
const WORKSPACE_GUARD = 1 << 16;
const GUARD_BYTE = 0x5a;
/** Poison of outputs: NaN as floating-point numbers, -1515870811 and 165 as integers. */
const FLOAT_POISON = 0xff;
const INTEGER_POISON = 0xa5;

export interface CaseResult {
  outputs: Record<string, Float32Array | Int32Array | Uint8Array | Float64Array>;
  bytes: Record<string, Uint8Array>;
}

/** Draws a case's inputs, rounded to their dtypes. */
export function drawInputs(opCase: OpCase, dtype: DType): Arrays {
  const random = new Random(`${opCase.op} ${opCase.name}`);
  const inputs: Arrays = {};
  for (const [name, input] of Object.entries(opCase.inputs)) {
    const size = elementCount(input.shape);
    const values = input.values ? input.values(random, size, inputs) : random.normal(size);
    if (values.length !== size)
      throw new Error(`${opCase.name}: input ${name} has ${values.length} values for (${input.shape.join(", ")})`);
    const kind = kindOf(input, dtype);
    inputs[name] = decodeElements(Uint8Array.from(encodeElements(values, kind)), kind);
  }
  return inputs;
}

interface Slot {
  offset: number;
  bytes: number;
  dtype: DType;
}

/** Where operands lie, and the block's initial content. */
function layout(
  opCase: OpCase,
  dtype: DType,
  inputs: Arrays,
): { slots: Map<string, Slot>; image: Uint8Array<ArrayBuffer> } {
  const slots = new Map<string, Slot>();
  let end = GUARD;
  const place = (name: string, operand: Operand) => {
    const kind = kindOf(operand, dtype);
    const bytes = elementCount(operand.shape) * dtypeSize(kind);
    slots.set(name, { offset: end, bytes, dtype: kind });
    end = Math.ceil((end + bytes + GUARD) / 256) * 256;
  };
  for (const [name, input] of Object.entries(opCase.inputs)) place(name, input);
  for (const [name, output] of Object.entries(opCase.outputs)) {
    const shared = output.inPlaceOf ? slots.get(output.inPlaceOf) : undefined;
    if (shared) slots.set(name, shared);
    else place(name, output);
  }
  const image = new Uint8Array(end).fill(GUARD_BYTE);
  for (const [name, output] of Object.entries(opCase.outputs)) {
    const { offset, bytes, dtype: kind } = slots.get(name)!;
    if (!output.inPlaceOf)
      image.fill(
        kind === "i32" || kind === "u8" || kind === "i64" ? INTEGER_POISON : FLOAT_POISON,
        offset,
        offset + bytes,
      );
  }
  for (const [name, values] of Object.entries(inputs)) {
    const { offset, dtype: kind } = slots.get(name)!;
    image.set(encodeElements(values, kind), offset);
  }
  return { slots, image };
}

/** Runs a case once. Throws where the operation wrote outside its outputs. */
export function runCase(device: Device, opCase: OpCase, dtype: DType, inputs: Arrays): CaseResult {
  const { slots, image } = layout(opCase, dtype, inputs);
  const { native, stream } = device;
  const block = device.malloc(image.byteLength);
  const releases: (() => void)[] = [() => device.free(block)];
  const scratch: { address: number; bytes: number }[] = [];
  const context: CaseContext = {
    device,
    native,
    stream: stream.handle,
    dtype: dtypeCode(dtype),
    address: (name) => (slots.has(name) ? block + slots.get(name)!.offset : null),
    defer: (release) => releases.push(release),
    workspace(bytes) {
      if (bytes === 0) return null;
      const total = new Uint8Array(bytes + WORKSPACE_GUARD).fill(FLOAT_POISON, 0, bytes).fill(GUARD_BYTE, bytes);
      const address = device.malloc(total.byteLength);
      releases.push(() => device.free(address));
      native.uploadSync(stream.handle, address, total, total.byteLength);
      scratch.push({ address, bytes });
      return address;
    },
  };
  try {
    native.uploadSync(stream.handle, block, image, image.byteLength);
    const enqueue = opCase.prepare(context);
    enqueue();
    const after = new Uint8Array(image.byteLength);
    native.downloadSync(stream.handle, after, block, after.byteLength);
    for (const { address, bytes } of scratch) {
      const guard = new Uint8Array(WORKSPACE_GUARD);
      native.downloadSync(stream.handle, guard, address + bytes, WORKSPACE_GUARD);
      if (guard.some((byte) => byte !== GUARD_BYTE))
        throw new Error(`wrote past the end of its workspace of ${bytes} bytes`);
    }
    expectUntouched(opCase, slots, image, after);
    const result: CaseResult = { outputs: {}, bytes: {} };
    for (const name of Object.keys(opCase.outputs)) {
      const { offset, bytes, dtype: kind } = slots.get(name)!;
      result.bytes[name] = after.slice(offset, offset + bytes);
      result.outputs[name] = decodeElements(after.slice(offset, offset + bytes), kind);
    }
    return result;
  } finally {
    for (const release of releases.reverse()) release();
  }
}

/** Everything but the outputs must have the bytes it had before. */
function expectUntouched(opCase: OpCase, slots: Map<string, Slot>, before: Uint8Array, after: Uint8Array): void {
  const written = Object.keys(opCase.outputs).map((name) => slots.get(name)!);
  const starts = [...new Set(written)].sort((a, b) => a.offset - b.offset);
  let from = 0;
  for (const slot of [...starts, { offset: after.length, bytes: 0 }]) {
    if (Buffer.compare(before.subarray(from, slot.offset), after.subarray(from, slot.offset)) !== 0) {
      let at = from;
      while (before[at] === after[at]) ++at;
      const near = [...slots].filter(([, s]) => s.offset <= at).sort((a, b) => b[1].offset - a[1].offset)[0];
      const where = near
        ? `byte ${at - near[1].offset} of ${near[0]} (${near[1].bytes} bytes)`
        : `${GUARD - at} bytes before the first operand`;
      throw new Error(`wrote where it must not: ${where}`);
    }
    from = slot.offset + slot.bytes;
  }
}
