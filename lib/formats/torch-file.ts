/**
 * Reads what `torch.save` writes (PyTorch 1.6 and later) without running code: a zip archive, stored without
 * compression, of
 *
 * | entry            | content                                                                       |
 * |------------------|-------------------------------------------------------------------------------|
 * | `NAME/data.pkl`  | a pickle; tensors refer to storages by persistent ids                         |
 * | `NAME/data/KEY`  | the bytes of storage KEY                                                      |
 * | `NAME/byteorder` | "little" or "big" (PyTorch 2.1 and later)                                     |
 *
 * The pickle may use the globals of `allowedGlobals` and no others.
 */
import { DlfsError, ErrorCode } from "../native/error";
import type { FileBytesOptions } from "./file-bytes";
import { FileBytes } from "./file-bytes";
import type { PickleKey, PickleValue } from "./pickle";
import { PickleDict, PickleGlobal, PickleObject, PickleTuple, typeName, unpickle } from "./pickle";
import {
  rebuildParameter,
  rebuildTensorV2,
  rebuildTensorV3,
  TorchDType,
  TorchStorage,
  TorchTensor,
} from "./torch-tensor";
import type { WeightDType, WeightValue } from "./weights";
import { OpenWeightFile, quoteName, WeightTensor, weightDTypeSize } from "./weights";
import type { ZipEntry } from "./zip";
import { readZipDirectory, readZipEntry } from "./zip";

const MAX_PICKLE_BYTES = 100_000_000;
/** Bounds for walking through what was unpickled: shared parts can make it endless. */
const MAX_DEPTH = 64;
const MAX_VALUES = 500_000;
const MAX_NAME_CHARACTERS = 100_000_000;
/** Where training scripts keep the model in a checkpoint. */
const MODEL_KEYS = ["model", "state_dict", "model_state_dict"];

const RESAVE = 'torch.save(torch.load("old.pth", map_location="cpu"), "new.pth")';
/** How PyTorch's format before 1.6 begins: a pickle (protocol 2) of the integer 0x1950a86a20f9469cfc6c. */
const LEGACY_MAGIC = Uint8Array.of(0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19);

/** A storage class such as torch.FloatStorage. */
class StorageType extends PickleObject {
  constructor(readonly dtype: WeightDType | undefined) {
    super();
  }
}

const storageTypes: Record<string, WeightDType | undefined> = {
  DoubleStorage: "f64",
  FloatStorage: "f32",
  HalfStorage: "f16",
  BFloat16Storage: "bf16",
  LongStorage: "i64",
  IntStorage: "i32",
  ShortStorage: "i16",
  CharStorage: "i8",
  ByteStorage: "u8",
  BoolStorage: "bool",
  UntypedStorage: undefined,
};

const dtypes: Record<string, WeightDType> = {
  float64: "f64",
  float32: "f32",
  float16: "f16",
  bfloat16: "bf16",
  float8_e5m2: "f8e5m2",
  float8_e4m3fn: "f8e4m3",
  int64: "i64",
  int32: "i32",
  int16: "i16",
  int8: "i8",
  uint64: "u64",
  uint32: "u32",
  uint16: "u16",
  uint8: "u8",
  bool: "bool",
};

/** All that a file's pickle can name. */
const allowedGlobals = new Map<string, PickleGlobal | PickleObject>([
  ...Object.entries({
    "collections.OrderedDict": makeDict,
    "torch._utils._rebuild_tensor_v2": rebuildTensorV2,
    "torch._utils._rebuild_tensor_v3": rebuildTensorV3,
    "torch._utils._rebuild_parameter": rebuildParameter,
    "torch.Size": makeSize,
    "torch.device": (args: readonly PickleValue[]) => args.map(String).join(":"),
  }).map(([name, call]): [string, PickleGlobal] => [name, new PickleGlobal(name, call)]),
  ...Object.entries(storageTypes).flatMap(([name, dtype]): [string, PickleObject][] => {
    const type = new StorageType(dtype);
    return [
      [`torch.${name}`, type],
      [`torch.storage.${name}`, type],
    ];
  }),
  ...Object.entries(dtypes).map(([name, dtype]): [string, PickleObject] => [`torch.${name}`, new TorchDType(dtype)]),
]);

export interface TorchFileOptions extends FileBytesOptions {
  /**
   * The dict to take tensors from, by its keys joined with dots ("model", "ema.shadow"), or "" for all in the file.
   * Default: the outermost one if it holds tensors itself, else "model", "state_dict" or "model_state_dict" if it does,
   * else the only one that does.
   */
  entry?: string;
  /** Compare the zip archive's checksums (default). PyTorch can be told to write files without. */
  verify?: boolean;
}

/** An open file of `torch.save`; its tensors are loaded when they are asked for. */
export class TorchFile extends OpenWeightFile {
  readonly format = "torch";

  constructor(
    file: FileBytes,
    /** The dict that `tensors` was taken from; names in `tensors` are relative to it. */
    readonly entry: string,
    /** Every dict of the file that holds tensors directly, as `TorchFileOptions.entry` names them. */
    readonly entries: readonly string[],
    readonly tensors: ReadonlyMap<string, WeightTensor>,
    /** Numbers, strings and flags of the whole file, by their keys joined with dots: "epoch". */
    readonly values: ReadonlyMap<string, WeightValue>,
  ) {
    super(file);
  }
}

/**
 * Opens a file that `torch.save` wrote. Storages shared by tensors and tensors of any strides are read; what a tensor
 * gives is always row-major.
 *
 * @throws DlfsError naming the file and the place in it: of code `io` for a file that is missing or damaged,
 *   `unsupported` for a Python global that is not allowed, for another format (before PyTorch 1.6, TorchScript), or a
 *   dtype not supported, `argument` where `entry` is needed or is no dict of the file
 */
export async function readTorchFile(path: string, options: TorchFileOptions = {}): Promise<TorchFile> {
  const file = FileBytes.open(path, "PyTorch file", options);
  try {
    checkNotLegacy(file);
    const root = readArchive(file, options.verify !== false);
    const content = collect(path, root);
    const entry = chooseEntry(path, content, options.entry);
    const tensors = new Map<string, WeightTensor>();
    const start = entry === "" ? 0 : entry.length + 1;
    for (const [full, { tensor, scope }] of content.tensors) {
      if (!isBelow(scope, entry)) continue;
      const name = full.slice(start);
      const load = () => tensor.bytes(`tensor ${quoteName(name)}`);
      tensors.set(name, new WeightTensor(path, name, tensor.dtype, tensor.shape, load));
    }
    return new TorchFile(file, entry, [...content.dicts], tensors, content.values);
  } catch (error) {
    file.close();
    throw error;
  }
}

function checkNotLegacy(file: FileBytes): void {
  const first = file.slice(0, Math.min(file.size, LEGACY_MAGIC.length), "magic");
  if (first.length === LEGACY_MAGIC.length && LEGACY_MAGIC.every((byte, i) => first[i] === byte)) {
    const message = `PyTorch's format before version 1.6; save it again with PyTorch 1.6 or later: ${RESAVE}`;
    throw new DlfsError(ErrorCode.unsupported, file.path, message);
  }
}

/** The unpickled value, its storages bound to the archive's entries. */
function readArchive(file: FileBytes, verify: boolean): PickleValue {
  const { path } = file;
  const entries = readZipDirectory(file);
  const pickles = [...entries.values()].filter(({ name }) => /^(?:[^/]*\/)?data\.pkl$/.test(name));
  const pickle = pickles[0];
  if (!pickle) throw new DlfsError(ErrorCode.unsupported, path, "a zip archive without data.pkl is no PyTorch file");
  if (pickles.length > 1) throw new DlfsError(ErrorCode.io, path, `damaged: it has ${pickles.length} data.pkl`);
  const folder = pickle.name.slice(0, -"data.pkl".length);
  if (entries.has(`${folder}constants.pkl`)) {
    const resave = 'torch.save(torch.jit.load("old.pt").state_dict(), "new.pth")';
    throw new DlfsError(ErrorCode.unsupported, path, `a TorchScript program; save its weights alone: ${resave}`);
  }
  const byteorder = entries.get(`${folder}byteorder`);
  if (byteorder) {
    const order = byteorder.length > 16 ? "?" : new TextDecoder().decode(readZipEntry(file, byteorder, verify));
    if (order !== "little") {
      throw new DlfsError(ErrorCode.unsupported, path, `byteorder: expected "little", got ${quoteName(order)}`);
    }
  }
  if (pickle.length > MAX_PICKLE_BYTES) {
    const message = `${pickle.name}: ${pickle.length} bytes, at most ${MAX_PICKLE_BYTES} are read`;
    throw new DlfsError(ErrorCode.unsupported, path, message);
  }
  const loaders = new Map<string, TorchStorage["load"]>();
  return unpickle(readZipEntry(file, pickle, verify), {
    path,
    field: quoteName(pickle.name),
    global: (name) => allowedGlobals.get(name),
    persistent: (id) => {
      const [kind, type, key, , count] = id instanceof PickleTuple ? id.items : [];
      if (kind !== "storage" || !(type instanceof StorageType) || typeof key !== "string") {
        throw new Error("expected a storage with type and key");
      }
      const entry = entries.get(`${folder}data/${key}`);
      if (!entry) throw new Error(`storage ${quoteName(key)} is not in the archive`);
      const bytes = Number(count) * (type.dtype === undefined ? 1 : weightDTypeSize(type.dtype));
      if (typeof count !== "number" || bytes !== entry.length) {
        throw new Error(`storage ${quoteName(key)} should have ${bytes} bytes, the archive has ${entry.length}`);
      }
      const load = loaders.get(key) ?? loader(file, entry, verify);
      loaders.set(key, load);
      return new TorchStorage(key, type.dtype, entry.length, load);
    },
  });
}

/** Compares the checksum once. Bytes that were read, not mapped, are kept for as long as someone else holds them. */
function loader(file: FileBytes, entry: ZipEntry, verify: boolean): TorchStorage["load"] {
  let verified = !verify;
  let kept: WeakRef<Uint8Array<ArrayBuffer>> | undefined;
  return (field) => {
    const bytes = kept?.deref() ?? readZipEntry(file, entry, !verified, field);
    verified = true;
    if (!file.mapped) kept = new WeakRef(bytes);
    return bytes;
  };
}

/** All tensors and plain values of a file by their keys joined with dots. */
class Content {
  readonly tensors = new Map<string, { tensor: TorchTensor; scope: Scope | undefined }>();
  readonly values = new Map<string, WeightValue>();
  /** Dicts that hold tensors directly. */
  readonly dicts = new Set<string>();
  /** All dicts, lists and tuples. */
  readonly containers = new Set<string>();
}

/** The container that a value is in. */
interface Scope {
  name: string;
  depth: number;
  outer: Scope | undefined;
}

function isBelow(scope: Scope | undefined, name: string): boolean {
  if (name === "") return true;
  for (let outer = scope; outer; outer = outer.outer) if (outer.name === name) return true;
  return false;
}

function collect(path: string, root: PickleValue): Content {
  const content = new Content();
  let visited = 0;
  let characters = 0;
  const fail = (name: string, message: string, code: number = ErrorCode.unsupported) =>
    new DlfsError(code, path, `${quoteName(name)}: ${message}`);

  const visit = (value: PickleValue, name: string, scope: Scope | undefined) => {
    if (++visited > MAX_VALUES) throw fail(name, `the file has more than ${MAX_VALUES} values`);
    characters += name.length;
    if (characters > MAX_NAME_CHARACTERS) throw fail(name, "the file's names are too long");
    if (value instanceof TorchTensor) {
      if (content.tensors.has(name)) throw fail(name, "the name occurs twice", ErrorCode.io);
      content.tensors.set(name, { tensor: value, scope });
      content.dicts.add(scope?.name ?? "");
    } else if (isChildless(value)) {
      if (value === null || typeof value !== "object") content.values.set(name, value);
    } else {
      const inside = { name, depth: (scope?.depth ?? 0) + 1, outer: scope };
      if (inside.depth > MAX_DEPTH) throw fail(name, `nested deeper than ${MAX_DEPTH}`);
      content.containers.add(name);
      for (const [key, child] of childrenOf(value)) visit(child, scope ? `${name}.${key}` : String(key), inside);
    }
  };
  visit(root, "", undefined);
  return content;
}

type Container = PickleDict | PickleTuple | PickleValue[];

function isChildless(value: PickleValue): value is Exclude<PickleValue, Container> {
  return !(value instanceof PickleDict || value instanceof PickleTuple || Array.isArray(value));
}

function childrenOf(value: Container): Iterable<[PickleKey, PickleValue]> {
  return value instanceof PickleDict ? value : (value instanceof PickleTuple ? value.items : value).entries();
}

function chooseEntry(path: string, content: Content, entry: string | undefined): string {
  const { dicts, containers, tensors } = content;
  const list = [...dicts].slice(0, 20).map((name) => quoteName(name));
  const known = dicts.size > list.length ? `${list.join(", ")}, ...` : list.join(", ");
  if (entry !== undefined) {
    if (entry === "" || containers.has(entry)) return entry;
    const message = `entry ${quoteName(entry)}: there is no such dict; tensors are in: ${known || "none"}`;
    throw new DlfsError(ErrorCode.argument, path, message);
  }
  if (dicts.has("") || tensors.size === 0) return "";
  const found = MODEL_KEYS.find((key) => dicts.has(key)) ?? (dicts.size === 1 ? [...dicts][0] : undefined);
  if (found !== undefined) return found;
  throw new DlfsError(ErrorCode.argument, path, `entry: which dict holds the weights must be said, one of: ${known}`);
}

/** OrderedDict() or OrderedDict([(key, value), ...]). */
function makeDict(args: readonly PickleValue[]): PickleDict {
  const dict = new PickleDict();
  const [pairs] = args;
  if (args.length === 0) return dict;
  if (args.length > 1 || !Array.isArray(pairs)) throw new Error("expected a list of pairs");
  for (const pair of pairs) {
    const [key, value] = pair instanceof PickleTuple ? pair.items : Array.isArray(pair) ? pair : [];
    if (key === undefined || value === undefined) throw new Error("expected a list of pairs");
    if (typeof key === "object" && key !== null) throw new Error(`${typeName(key)} as a dict's key`);
    dict.set(key, value);
  }
  return dict;
}

function makeSize(args: readonly PickleValue[]): PickleTuple {
  const [sizes] = args;
  if (args.length !== 1 || !(sizes instanceof PickleTuple)) throw new Error("expected a tuple");
  return sizes;
}
