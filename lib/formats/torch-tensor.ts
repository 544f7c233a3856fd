/** Tensors of PyTorch's files: views of a storage by offset, sizes and strides, counted in elements. */
import type { PickleValue } from "./pickle";
import { PickleDict, PickleObject, PickleTuple } from "./pickle";
import { gather } from "./strided";
import type { WeightDType } from "./weights";
import { countElements, weightDTypeSize } from "./weights";

/** A tensor whose elements repeat (stride 0) may be larger than its file; no more than this is made of it. */
const MAX_EXPANDED_BYTES = 256 * 1024 * 1024;

/** A typed view of one of the file's storages. */
export class TorchStorage extends PickleObject {
  constructor(
    readonly key: string,
    /** Undefined for raw bytes, whose type is then the tensor's. */
    readonly dtype: WeightDType | undefined,
    readonly byteLength: number,
    /** The storage's bytes; `field` is what they are for, for messages. */
    readonly load: (field: string) => Uint8Array<ArrayBuffer>,
  ) {
    super();
  }
}

/** A tensor as it was pickled; its constructor checks that it lies within its storage. */
export class TorchTensor extends PickleObject {
  constructor(
    readonly storage: TorchStorage,
    readonly dtype: WeightDType,
    /** Elements before the first one. */
    readonly offset: number,
    readonly shape: readonly number[],
    /** Elements from one index to the next, by dimension. */
    readonly strides: readonly number[],
  ) {
    super();
    const count = countElements(shape);
    if (Number.isNaN(count)) throw new Error(`impossible sizes (${shape})`);
    if (strides.length !== shape.length) {
      throw new Error(`sizes (${shape}) do not go with strides (${strides})`);
    }
    if (strides.some((stride) => !Number.isSafeInteger(stride) || stride < 0)) {
      throw new Error(`impossible strides (${strides})`);
    }
    if (!Number.isSafeInteger(offset) || offset < 0) throw new Error(`impossible storage offset ${offset}`);
    const available = Math.floor(storage.byteLength / weightDTypeSize(dtype));
    const last = shape.reduce((sum, size, i) => sum + (size - 1) * (strides[i] as number), offset);
    if (count > 0 && last >= available) {
      throw new Error(
        `sizes (${shape}), strides (${strides}) and offset ${offset} reach element ${last}, ` +
          `storage ${storage.key} has ${available}`,
      );
    }
    if (count > available && count * weightDTypeSize(dtype) > MAX_EXPANDED_BYTES) {
      throw new Error(`sizes (${shape}) repeat the ${available} elements of storage ${storage.key} too often`);
    }
  }

  /** Row-major elements: a view of the storage where it has them so, else a copy. */
  bytes(field: string): Uint8Array<ArrayBuffer> {
    const size = weightDTypeSize(this.dtype);
    const count = countElements(this.shape);
    const begin = this.offset * size;
    if (count === 0) return new Uint8Array(0);
    const storage = this.storage.load(field);
    if (this.isContiguous()) return storage.subarray(begin, begin + count * size);
    return gather(storage, size, this.offset, this.shape, this.strides, count);
  }

  private isContiguous(): boolean {
    let expected = 1;
    for (let i = this.shape.length - 1; i >= 0; i--) {
      const size = this.shape[i] as number;
      if (size !== 1 && this.strides[i] !== expected) return false;
      expected *= size;
    }
    return true;
  }
}

/** `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks, metadata)`. */
export function rebuildTensorV2(args: readonly PickleValue[]): TorchTensor {
  const [storage, offset, shape, strides, , , metadata] = args;
  if (args.length < 6 || args.length > 7) throw new Error(`expected 6 or 7 arguments, got ${args.length}`);
  if (!(storage instanceof TorchStorage)) throw new Error("the first argument is no storage");
  if (storage.dtype === undefined) throw new Error(`storage ${storage.key} has no type`);
  checkNoMetadata(metadata);
  return new TorchTensor(storage, storage.dtype, wholeNumber(offset), wholeNumbers(shape), wholeNumbers(strides));
}

/** What `rebuildTensorV3` gets as its dtype: "torch.float8_e4m3fn" and the like. */
export class TorchDType extends PickleObject {
  constructor(readonly dtype: WeightDType) {
    super();
  }
}

/** `_rebuild_tensor_v3(storage, offset, size, stride, requires_grad, backward_hooks, dtype, metadata)`. */
export function rebuildTensorV3(args: readonly PickleValue[]): TorchTensor {
  const [storage, offset, shape, strides, , , dtype, metadata] = args;
  if (args.length < 7 || args.length > 8) throw new Error(`expected 7 or 8 arguments, got ${args.length}`);
  if (!(storage instanceof TorchStorage)) throw new Error("the first argument is no storage");
  if (!(dtype instanceof TorchDType)) throw new Error("the seventh argument is no dtype");
  checkNoMetadata(metadata);
  return new TorchTensor(storage, dtype.dtype, wholeNumber(offset), wholeNumbers(shape), wholeNumbers(strides));
}

/** `torch._utils._rebuild_parameter(data, requires_grad, backward_hooks)`. */
export function rebuildParameter(args: readonly PickleValue[]): TorchTensor {
  const [data] = args;
  if (args.length !== 3 || !(data instanceof TorchTensor)) throw new Error("expected a tensor and two more arguments");
  return data;
}

/** Lazy conjugation and negation would change the values. */
function checkNoMetadata(metadata: PickleValue | undefined): void {
  if (metadata === undefined || metadata === null) return;
  const set = metadata instanceof PickleDict ? [...metadata].filter(([, value]) => value !== false) : [["?"]];
  if (set.length > 0) throw new Error(`tensors with the property ${String(set[0]?.[0])} are not read`);
}

function wholeNumber(value: PickleValue | undefined): number {
  if (typeof value !== "number") throw new Error("expected a whole number");
  return value;
}

function wholeNumbers(value: PickleValue | undefined): number[] {
  const items = value instanceof PickleTuple ? value.items : value;
  if (!Array.isArray(items)) throw new Error("sizes and strides are tuples");
  return items.map(wholeNumber);
}
