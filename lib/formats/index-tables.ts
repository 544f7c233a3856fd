/** Tables that the indices of several formats have (schemas/checkpoint.fbs): tensors, versions, names with values. */
import type { Builder } from "flatbuffers";
import { DlfsError, ErrorCode } from "../native/error";
import { alignUp, SECTION_ALIGNMENT } from "./aligned-file";
import type { CheckpointEntry, CheckpointTensor, CheckpointVersions, StoredDType } from "./checkpoint-types";
import * as fb from "./generated/checkpoint_generated";
import type { IndexReader } from "./index-reader";

const DTYPES: Record<StoredDType, { code: fb.DType; size: number }> = {
  f32: { code: fb.DType.F32, size: 4 },
  bf16: { code: fb.DType.BF16, size: 2 },
  f16: { code: fb.DType.F16, size: 2 },
  i32: { code: fb.DType.I32, size: 4 },
  u8: { code: fb.DType.U8, size: 1 },
  i64: { code: fb.DType.I64, size: 8 },
};

/** The largest rank that a tensor in a checkpoint may have. */
const MAX_RANK = 16;

/** Bytes of a tensor; Infinity where that is no exact number. */
export function byteLength({ dtype, shape }: CheckpointTensor): number {
  const bytes = shape.reduce((product, size) => product * size, DTYPES[dtype].size);
  return Number.isSafeInteger(bytes) ? bytes : Infinity;
}

/** Refuses a tensor that cannot be written, naming the file and the tensor. */
export function checkTensor(path: string, tensor: CheckpointTensor, length: number): void {
  const fail = (message: string) => {
    throw new DlfsError(ErrorCode.argument, path, `tensor "${tensor.name}": ${message}`);
  };
  if (tensor.name === "") fail("its name is empty");
  if (!Object.hasOwn(DTYPES, tensor.dtype)) fail(`unknown dtype "${tensor.dtype}"`);
  const shape = `[${tensor.shape.join(", ")}]`;
  if (tensor.shape.length > MAX_RANK) fail(`shape ${shape} has more than ${MAX_RANK} dimensions`);
  if (!tensor.shape.every((size) => Number.isSafeInteger(size) && size >= 0)) {
    fail(`shape ${shape} must be of whole numbers from 0`);
  }
  const expected = byteLength(tensor);
  if (expected !== length) fail(`${tensor.dtype} ${shape} has ${expected} bytes, got ${length}`);
}

export function encodeKeyValue(b: Builder, key: string, value: string): number {
  return fb.KeyValue.createKeyValue(b, b.createString(key), b.createString(value));
}

export function decodeKeyValue(reader: IndexReader, entry: fb.KeyValue, name: string): { key: string; value: string } {
  return {
    key: reader.required(`${name}.key`, () => entry.key()),
    value: reader.required(`${name}.value`, () => entry.value()),
  };
}

export function encodeNumbers(b: Builder, values: Readonly<Record<string, number>>): number[] {
  return Object.entries(values).map(([name, value]) =>
    fb.NamedNumber.createNamedNumber(b, b.createString(name), value),
  );
}

export function decodeNumber(reader: IndexReader, entry: fb.NamedNumber, name: string): [string, number] {
  return [reader.required(`${name}.name`, () => entry.name()), reader.field(`${name}.value`, () => entry.value())];
}

export function encodeVersions(b: Builder, versions: CheckpointVersions): number {
  const libraries = fb.Versions.createLibrariesVector(
    b,
    Object.entries(versions.libraries).map(([key, value]) => encodeKeyValue(b, key, value)),
  );
  const dlfs = b.createString(versions.dlfs);
  const bun = b.createString(versions.bun);
  return fb.Versions.createVersions(b, dlfs, bun, b.createString(versions.backend), libraries);
}

export function decodeVersions(reader: IndexReader, versions: fb.Versions): CheckpointVersions {
  const libraries = reader.list(
    "versions.libraries",
    () => versions.librariesLength(),
    versions.libraries.bind(versions),
    (entry, name) => decodeKeyValue(reader, entry, name),
  );
  return {
    dlfs: reader.required("versions.dlfs", () => versions.dlfs()),
    bun: reader.required("versions.bun", () => versions.bun()),
    backend: reader.required("versions.backend", () => versions.backend()),
    libraries: Object.fromEntries(libraries.map(({ key, value }) => [key, value])),
  };
}

export function encodeTensor(b: Builder, entry: CheckpointEntry): number {
  const name = b.createString(entry.name);
  const shape = fb.Tensor.createShapeVector(b, entry.shape.map(BigInt));
  const code = DTYPES[entry.dtype].code;
  return fb.Tensor.createTensor(b, name, code, shape, BigInt(entry.offset), BigInt(entry.length), entry.checksum);
}

/** The tensors of an index, which must lie one behind the other before `sectionsEnd`, under names of their own. */
export function decodeTensors(
  reader: IndexReader,
  sectionsEnd: number,
  length: () => number,
  at: (i: number) => fb.Tensor | null,
): CheckpointEntry[] {
  const tensors = reader.list("tensors", length, at, (entry, name) => decodeTensor(reader, sectionsEnd, entry, name));
  checkPlaces(reader, tensors);
  return tensors;
}

function decodeTensor(reader: IndexReader, sectionsEnd: number, entry: fb.Tensor, place: string): CheckpointEntry {
  const name = reader.required(`${place}.name`, () => entry.name());
  const at = (field: string) => `${place} "${name}" ${field}`;
  if (name === "") reader.fail(`${place}.name`, "it is empty");
  const code = reader.field(at("dtype"), () => entry.dtype());
  const dtype = (Object.keys(DTYPES) as StoredDType[]).find((key) => DTYPES[key].code === code);
  if (!dtype) reader.fail(at("dtype"), `${code} is none of this version`);
  const rank = reader.field(at("shape"), () => entry.shapeLength());
  if (rank > MAX_RANK) {
    reader.fail(at("shape"), `${rank} dimensions, at most ${MAX_RANK} are possible`);
  }
  const shape: number[] = [];
  for (let i = 0; i < rank; i++) shape.push(reader.count(at(`shape[${i}]`), () => entry.shape(i) ?? 0n));
  const tensor: CheckpointEntry = {
    name,
    dtype,
    shape,
    offset: reader.count(at("offset"), () => entry.offset()),
    length: reader.count(at("length"), () => entry.length()),
    checksum: reader.field(at("checksum"), () => entry.checksum()),
  };
  if (tensor.offset % SECTION_ALIGNMENT !== 0 || tensor.offset < SECTION_ALIGNMENT) {
    reader.fail(
      at("offset"),
      `expected a multiple of ${SECTION_ALIGNMENT} from ${SECTION_ALIGNMENT}, got ${tensor.offset}`,
    );
  }
  if (tensor.length !== byteLength(tensor)) {
    reader.fail(at("length"), `${dtype} [${shape.join(", ")}] has ${byteLength(tensor)} bytes, got ${tensor.length}`);
  }
  if (tensor.offset + tensor.length > sectionsEnd) {
    reader.fail(
      at("offset"),
      `${tensor.length} bytes at ${tensor.offset} go beyond the end of the tensors at ${sectionsEnd}`,
    );
  }
  return tensor;
}

function checkPlaces(reader: IndexReader, tensors: readonly CheckpointEntry[]): void {
  const names = new Set<string>();
  let previous: CheckpointEntry | undefined;
  for (const tensor of tensors) {
    if (names.has(tensor.name)) reader.fail("tensors", `"${tensor.name}" occurs twice`);
    names.add(tensor.name);
    if (previous && tensor.offset < alignUp(previous.offset + previous.length)) {
      reader.fail(
        `tensor "${tensor.name}" offset`,
        `${tensor.offset} overlaps "${previous.name}" with ${previous.length} bytes at ${previous.offset}`,
      );
    }
    previous = tensor;
  }
}
