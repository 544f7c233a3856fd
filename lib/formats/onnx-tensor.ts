/** TensorProto: where the elements of an ONNX tensor lie, checked against what it claims; they are made when asked for. */
import { realpathSync } from "node:fs";
import { dirname, isAbsolute, join, sep } from "node:path";
import { DlfsError, ErrorCode } from "../native/error";
import { FileBytes, type FileBytesOptions } from "./file-bytes";
import { onnxDTypes, otherDTypes } from "./onnx-types";
import { countVarints, decodeVarints, ProtoError, type ProtoReader } from "./protobuf";
import { countElements, quoteName, type WeightDType, WeightTensor, weightDTypeSize } from "./weights";

const dtypesByNumber = new Map<number, WeightDType>(
  Object.entries(onnxDTypes).map(([dtype, number]) => [number, dtype as WeightDType]),
);

/** No tensor of a network has more dimensions. */
const MAX_RANK = 64;

/** Fields of TensorProto that hold elements by type, with the wire type of one element. */
const typedFields = {
  4: { name: "float_data", wire: 5, dtypes: ["f32"] },
  5: {
    name: "int32_data",
    wire: 0,
    dtypes: ["i32", "i16", "i8", "u16", "u8", "bool", "f16", "bf16", "f8e4m3", "f8e5m2"],
  },
  7: { name: "int64_data", wire: 0, dtypes: ["i64"] },
  10: { name: "double_data", wire: 1, dtypes: ["f64"] },
  11: { name: "uint64_data", wire: 0, dtypes: ["u32", "u64"] },
} as const satisfies Record<number, { name: string; wire: 0 | 1 | 5; dtypes: readonly WeightDType[] }>;

type TypedField = keyof typeof typedFields;

/** The number of an element type as a dtype; throws ProtoError, or says that the type is not supported. */
export function dtypeOf(path: string, what: string, number: number): WeightDType {
  const dtype = dtypesByNumber.get(number);
  if (dtype) return dtype;
  const other = Object.hasOwn(otherDTypes, number) ? otherDTypes[number] : undefined;
  if (!other) throw new ProtoError(`there is no element type ${number}`);
  throw new DlfsError(ErrorCode.unsupported, path, `${what}: element type ${other} is not supported`);
}

/** Files beside an ONNX file in which some of its tensors lie. */
export class ExternalFiles {
  private readonly files = new Map<string, FileBytes>();

  constructor(
    private readonly path: string,
    private readonly options: FileBytesOptions,
  ) {}

  /** Opens a file in the folder of the ONNX file, or below it; throws ProtoError for a place anywhere else. */
  open(location: string): FileBytes {
    const known = this.files.get(location);
    if (known) return known;
    const steps = location.split(/[\\/]/);
    if (location === "" || isAbsolute(location) || steps.includes("..") || location.includes("\0")) {
      throw new ProtoError(`location ${quoteName(location)}: expected a path within the file's folder`);
    }
    const folder = realpathSync(dirname(this.path));
    const file = FileBytes.open(join(folder, location), "file of tensors", this.options);
    // A link may lead elsewhere.
    if (!realpathSync(file.path).startsWith(folder.endsWith(sep) ? folder : `${folder}${sep}`)) {
      file.close();
      throw new ProtoError(`location ${quoteName(location)}: it leads out of the file's folder`);
    }
    this.files.set(location, file);
    return file;
  }

  close(): void {
    for (const file of this.files.values()) file.close();
    this.files.clear();
  }
}

/** What the fields of a TensorProto say. */
interface Claims {
  name: string;
  dims: number[];
  dataType: number;
  raw: Uint8Array<ArrayBuffer> | undefined;
  typed: Map<TypedField, Uint8Array<ArrayBuffer>[]>;
  external: Map<string, string>;
  location: number;
}

/**
 * Reads a TensorProto and checks that its elements are there.
 *
 * @throws ProtoError saying what is wrong; DlfsError of code `unsupported` naming file and tensor
 */
export function readTensor(reader: ProtoReader, path: string, files: ExternalFiles): WeightTensor {
  const claims = readClaims(reader, path);
  const { name, dims, raw, typed, external, location } = claims;
  const inTensor = <T>(run: () => T): T => {
    try {
      return run();
    } catch (error) {
      throw error instanceof ProtoError ? new ProtoError(`${quoteName(name)}: ${error.message}`) : error;
    }
  };
  return inTensor(() => {
    const dtype = dtypeOf(path, `initializer ${quoteName(name)}`, claims.dataType);
    const count = countElements(dims);
    const size = weightDTypeSize(dtype);
    if (Number.isNaN(count)) throw new ProtoError(`dims: impossible sizes (${dims.join(", ")})`);
    const shown = `${dtype} (${dims.join(", ")})`;
    const tensor = (load: () => Uint8Array<ArrayBuffer>) => new WeightTensor(path, name, dtype, dims, load);
    if (location === 1 || external.size > 0) {
      const { file, offset } = externalPlace(files, external, count * size, shown);
      return tensor(() => file.slice(offset, count * size, `tensor ${quoteName(name)}`));
    }
    if (raw) {
      if (typed.size > 0) throw new ProtoError("its elements are there twice");
      if (raw.length !== count * size) {
        throw new ProtoError(`raw_data: ${shown} has ${count * size} bytes, got ${raw.length}`);
      }
      return tensor(() => raw);
    }
    const fields = [...typed];
    if (fields.length > 1) throw new ProtoError("its elements are there twice");
    const [field, pieces] = fields[0] ?? [undefined, []];
    if (field !== undefined) checkTyped(field, dtype);
    const wire = field === undefined ? 0 : typedFields[field].wire;
    const found = pieces.reduce((sum, piece) => sum + elementsIn(piece, wire), 0);
    if (found !== count) {
      const where = field === undefined ? "" : `${typedFields[field].name}: `;
      throw new ProtoError(`${where}${shown} has ${count} elements, got ${found}`);
    }
    return tensor(() => decodeTyped(pieces, wire, size, count));
  });
}

function readClaims(reader: ProtoReader, path: string): Claims {
  const typed: Claims["typed"] = new Map();
  const claims: Claims = { name: "", dims: [], dataType: 0, raw: undefined, typed, external: new Map(), location: 0 };
  while (reader.next()) {
    switch (reader.field) {
      case 1:
        claims.dims.push(...reader.ints().slice(0, MAX_RANK + 1));
        if (claims.dims.length > MAX_RANK) throw new ProtoError(`dims: more than ${MAX_RANK} dimensions`);
        break;
      case 2:
        claims.dataType = reader.int();
        break;
      case 3:
        throw new DlfsError(ErrorCode.unsupported, path, "a tensor in segments is not supported");
      case 4:
      case 5:
      case 7:
      case 10:
      case 11: {
        const pieces = typed.get(reader.field) ?? [];
        pieces.push(reader.numberBytes(typedFields[reader.field].wire));
        typed.set(reader.field, pieces);
        break;
      }
      case 8:
        claims.name = reader.text();
        break;
      case 9:
        claims.raw = reader.bytes();
        break;
      case 13: {
        const [key, value] = readEntry(reader.message());
        claims.external.set(key, value);
        break;
      }
      case 14:
        claims.location = reader.int();
    }
  }
  return claims;
}

/** StringStringEntryProto. */
export function readEntry(reader: ProtoReader): [key: string, value: string] {
  const entry: [string, string] = ["", ""];
  while (reader.next()) if (reader.field === 1 || reader.field === 2) entry[reader.field - 1] = reader.text();
  return entry;
}

function checkTyped(field: TypedField, dtype: WeightDType): void {
  const { name, dtypes } = typedFields[field];
  if (!(dtypes as readonly WeightDType[]).includes(dtype)) {
    throw new ProtoError(`${name}: it holds ${dtypes.join(", ")}, the tensor is ${dtype}`);
  }
}

function elementsIn(piece: Uint8Array, wire: 0 | 1 | 5): number {
  if (wire === 0) return countVarints(piece);
  const size = wire === 5 ? 4 : 8;
  if (piece.length % size !== 0) throw new ProtoError(`${piece.length} bytes are no numbers of ${size} bytes`);
  return piece.length / size;
}

function decodeTyped(
  pieces: readonly Uint8Array<ArrayBuffer>[],
  wire: 0 | 1 | 5,
  size: number,
  count: number,
): Uint8Array<ArrayBuffer> {
  const [single] = pieces;
  if (wire !== 0 && pieces.length === 1 && single) return single;
  const out = new Uint8Array(count * size);
  let element = 0;
  for (const piece of pieces) {
    if (wire === 0) element = decodeVarints(piece, out, size, element);
    else {
      out.set(piece, element * size);
      element += piece.length / size;
    }
  }
  return out;
}

function externalPlace(
  files: ExternalFiles,
  external: ReadonlyMap<string, string>,
  bytes: number,
  shown: string,
): { file: FileBytes; offset: number } {
  const number = (key: string): number | undefined => {
    const text = external.get(key);
    if (text === undefined) return undefined;
    const value = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN;
    if (!Number.isSafeInteger(value))
      throw new ProtoError(`external_data: ${key}: expected a whole number, got ${quoteName(text)}`);
    return value;
  };
  const location = external.get("location");
  if (location === undefined) throw new ProtoError("external_data: location: missing");
  const offset = number("offset") ?? 0;
  const length = number("length") ?? bytes;
  if (length !== bytes) throw new ProtoError(`external_data: length: ${shown} has ${bytes} bytes, got ${length}`);
  const file = files.open(location);
  if (offset + length > file.size) {
    const message = `${length} bytes at ${offset} go beyond the end of ${quoteName(location)}, which has ${file.size}`;
    throw new ProtoError(`external_data: ${message}`);
  }
  return { file, offset };
}
