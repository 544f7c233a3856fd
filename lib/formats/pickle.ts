/**
 * An interpreter of Python's pickle format (protocols 2 to 5) that runs no code: of Python's globals it knows those that
 * the caller lists, and calls nothing else. It builds plain data only (PEP 307, PEP 3154, PEP 574; opcodes as in
 * CPython's pickletools), in memory bounded by the input's size and by the limits below.
 */
import { DlfsError, ErrorCode } from "../native/error";
import { quoteName } from "./weights";

/** What a pickle can hold here. Python's list is an array; whole numbers beyond 2^53 are bigints. */
export type PickleValue =
  | null
  | boolean
  | number
  | bigint
  | string
  | Uint8Array
  | PickleValue[]
  | PickleTuple
  | PickleDict
  | PickleGlobal
  | PickleObject;

/** Python's tuple. */
export class PickleTuple {
  constructor(readonly items: readonly PickleValue[]) {}
}

export type PickleKey = string | number | bigint | boolean | null;

/** Python's dict or OrderedDict. */
export class PickleDict extends Map<PickleKey, PickleValue> {}

/** A global on the allow-list, such as "torch.FloatStorage" or "collections.OrderedDict". */
export class PickleGlobal {
  constructor(
    readonly name: string,
    /** What calling it with arguments gives; it throws a message (Error) for impossible ones. */
    readonly call?: (args: readonly PickleValue[]) => PickleValue,
  ) {}
}

/** Base of what the caller's globals and persistent ids give: opaque here. */
export abstract class PickleObject {}

export interface UnpickleOptions {
  /** The file, for messages. */
  path: string;
  /** The place in the file, for messages: "data.pkl". */
  field: string;
  /** The global of a dotted name ("torch._utils._rebuild_tensor_v2"), or undefined where it is not allowed. */
  global(name: string): PickleGlobal | PickleObject | undefined;
  /** The object that a persistent id stands for; it throws a message (Error) for an impossible one. */
  persistent(id: PickleValue): PickleValue;
}

/** A checkpoint of 10,000 tensors with their optimizer state takes about a million operations. */
const MAX_OPERATIONS = 10_000_000;
/** Lists, tuples, dicts, byte strings and the caller's objects: each takes far more memory than the byte making it. */
const MAX_OBJECTS = 1_000_000;
const MAX_INTEGER_BYTES = 64;
/** How far below the top of the stack a message looks for the key of what is being built. */
const KEY_DEPTH = 6;

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

const Op = {
  PROTO: 0x80,
  FRAME: 0x95,
  STOP: 0x2e,
  MARK: 0x28,
  POP: 0x30,
  POP_MARK: 0x31,
  DUP: 0x32,
  NONE: 0x4e,
  NEWTRUE: 0x88,
  NEWFALSE: 0x89,
  BININT: 0x4a,
  BININT1: 0x4b,
  BININT2: 0x4d,
  LONG1: 0x8a,
  LONG4: 0x8b,
  BINFLOAT: 0x47,
  BINUNICODE: 0x58,
  SHORT_BINUNICODE: 0x8c,
  BINUNICODE8: 0x8d,
  BINSTRING: 0x54,
  SHORT_BINSTRING: 0x55,
  BINBYTES: 0x42,
  SHORT_BINBYTES: 0x43,
  BINBYTES8: 0x8e,
  EMPTY_LIST: 0x5d,
  APPEND: 0x61,
  APPENDS: 0x65,
  EMPTY_TUPLE: 0x29,
  TUPLE: 0x74,
  TUPLE1: 0x85,
  TUPLE2: 0x86,
  TUPLE3: 0x87,
  EMPTY_DICT: 0x7d,
  SETITEM: 0x73,
  SETITEMS: 0x75,
  BINPUT: 0x71,
  LONG_BINPUT: 0x72,
  MEMOIZE: 0x94,
  BINGET: 0x68,
  LONG_BINGET: 0x6a,
  GLOBAL: 0x63,
  STACK_GLOBAL: 0x93,
  REDUCE: 0x52,
  BUILD: 0x62,
  BINPERSID: 0x51,
} as const;

/**
 * The value of a pickle.
 *
 * @throws DlfsError naming file, field and byte: of code `io` for a damaged pickle, `unsupported` for a global that is
 *   not allowed, an unknown opcode or protocol, and for more than the limits
 */
export function unpickle(bytes: Uint8Array, options: UnpickleOptions): PickleValue {
  return new Unpickler(bytes, options).run();
}

class Unpickler {
  private readonly view: DataView;
  private readonly stack: PickleValue[] = [];
  /** Heights of the stack at each open MARK. */
  private readonly marks: number[] = [];
  private readonly memo = new Map<number, PickleValue>();
  private at = 0;
  /** Where the operation being executed began. */
  private start = 0;
  private objects = 0;

  constructor(
    private readonly bytes: Uint8Array,
    private readonly options: UnpickleOptions,
  ) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  run(): PickleValue {
    for (let operations = 0; operations < MAX_OPERATIONS; operations++) {
      this.start = this.at;
      const op = this.u8();
      if (op === Op.STOP) {
        if (this.marks.length > 0 || this.stack.length !== 1) throw this.damaged("it ends with values left over");
        if (this.at !== this.bytes.length) throw this.damaged(`${this.bytes.length - this.at} bytes follow its end`);
        return this.pop();
      }
      this.execute(op);
    }
    throw this.unsupported(`more than ${MAX_OPERATIONS} operations`);
  }

  private execute(op: number): void {
    switch (op) {
      case Op.PROTO: {
        const protocol = this.u8();
        if (protocol < 2 || protocol > 5) throw this.unsupported(`pickle protocol ${protocol}, 2 to 5 are read`);
        return;
      }
      case Op.FRAME:
        this.need(this.u64());
        return;
      case Op.MARK:
        this.marks.push(this.stack.length);
        return;
      case Op.POP:
        // As in CPython: above a mark there may be nothing to pop but the mark.
        if (this.stack.length === this.floor && this.marks.length > 0) this.marks.pop();
        else this.pop();
        return;
      case Op.POP_MARK:
        this.popMark();
        return;
      case Op.DUP:
        this.push(this.top());
        return;
      case Op.BINPUT:
        this.memoize(this.u8());
        return;
      case Op.LONG_BINPUT:
        this.memoize(this.u32());
        return;
      case Op.MEMOIZE:
        this.memoize(this.memo.size);
        return;
      case Op.BINGET:
        this.recall(this.u8());
        return;
      case Op.LONG_BINGET:
        this.recall(this.u32());
        return;
      case Op.GLOBAL:
        this.pushGlobal(this.line(), this.line());
        return;
      case Op.STACK_GLOBAL: {
        const name = this.pop();
        const module = this.pop();
        if (typeof name !== "string" || typeof module !== "string") throw this.damaged("a global's name is no string");
        this.pushGlobal(module, name);
        return;
      }
      case Op.REDUCE:
        this.reduce();
        return;
      case Op.BUILD:
        this.build();
        return;
      case Op.BINPERSID: {
        const id = this.pop();
        this.countObject();
        this.push(this.guard("persistent id", () => this.options.persistent(id)));
        return;
      }
      default:
        if (this.executeContainer(op)) return;
        this.push(this.scalar(op));
    }
  }

  /** False for an operation that is about no container. */
  private executeContainer(op: number): boolean {
    switch (op) {
      case Op.EMPTY_LIST:
        this.pushContainer([]);
        return true;
      case Op.EMPTY_DICT:
        this.pushContainer(new PickleDict());
        return true;
      case Op.EMPTY_TUPLE:
        this.pushContainer(new PickleTuple([]));
        return true;
      case Op.TUPLE:
        this.pushContainer(new PickleTuple(this.popMark()));
        return true;
      case Op.TUPLE1:
      case Op.TUPLE2:
      case Op.TUPLE3: {
        const items: PickleValue[] = [];
        for (let i = Op.TUPLE1; i <= op; i++) items.unshift(this.pop());
        this.pushContainer(new PickleTuple(items));
        return true;
      }
      case Op.APPEND:
        this.append([this.pop()]);
        return true;
      case Op.APPENDS:
        this.append(this.popMark());
        return true;
      case Op.SETITEM: {
        const value = this.pop();
        this.setItems([this.pop(), value]);
        return true;
      }
      case Op.SETITEMS:
        this.setItems(this.popMark());
        return true;
      default:
        return false;
    }
  }

  private scalar(op: number): PickleValue {
    switch (op) {
      case Op.NONE:
        return null;
      case Op.NEWTRUE:
        return true;
      case Op.NEWFALSE:
        return false;
      case Op.BININT:
        return this.view.getInt32(this.take(4), true);
      case Op.BININT1:
        return this.u8();
      case Op.BININT2:
        return this.view.getUint16(this.take(2), true);
      case Op.LONG1:
        return this.integer(this.u8());
      case Op.LONG4:
        return this.integer(this.u32());
      case Op.BINFLOAT:
        return this.view.getFloat64(this.take(8), false);
      case Op.BINUNICODE:
        return this.text(this.u32());
      case Op.SHORT_BINUNICODE:
        return this.text(this.u8());
      case Op.BINUNICODE8:
        return this.text(this.u64());
      case Op.BINSTRING:
        return this.text(this.u32());
      case Op.SHORT_BINSTRING:
        return this.text(this.u8());
      case Op.BINBYTES:
        return this.binary(this.u32());
      case Op.SHORT_BINBYTES:
        return this.binary(this.u8());
      case Op.BINBYTES8:
        return this.binary(this.u64());
      default:
        throw this.unsupported(`pickle operation 0x${op.toString(16).padStart(2, "0")} is not allowed`);
    }
  }

  private pushGlobal(module: string, name: string): void {
    const full = `${module}.${name}`;
    const global = this.options.global(full);
    if (!global) {
      throw this.unsupported(
        `it needs the Python global ${quoteName(full)}, which is not allowed here: ` +
          "only plain data and tensors are read (of a model, save its state_dict())",
      );
    }
    this.push(global);
  }

  private reduce(): void {
    const args = this.pop();
    const callee = this.pop();
    if (!(args instanceof PickleTuple)) throw this.damaged("the arguments of a call are no tuple");
    if (!(callee instanceof PickleGlobal)) throw this.damaged(`a call of ${typeName(callee)}`);
    const { call, name } = callee;
    if (!call) throw this.unsupported(`a call of ${name} is not allowed`);
    this.countObject();
    this.push(this.guard(name, () => call(args.items)));
  }

  /** Attributes set on an OrderedDict (a state dict's `_metadata`) are no part of its content. */
  private build(): void {
    const state = this.pop();
    if (!(this.top() instanceof PickleDict && state instanceof PickleDict)) {
      throw this.unsupported(`attributes set on ${typeName(this.top())} are not allowed`);
    }
  }

  private append(items: readonly PickleValue[]): void {
    const list = this.top();
    if (!Array.isArray(list)) throw this.damaged(`an append to ${typeName(list)}`);
    for (const item of items) list.push(item);
  }

  private setItems(items: readonly PickleValue[]): void {
    const dict = this.top();
    if (!(dict instanceof PickleDict)) throw this.damaged(`an item set on ${typeName(dict)}`);
    if (items.length % 2 !== 0) throw this.damaged("a dict's key without a value");
    for (let i = 0; i < items.length; i += 2) {
      const key = items[i] as PickleValue;
      if (typeof key === "object" && key !== null) throw this.unsupported(`${typeName(key)} as a dict's key`);
      dict.set(key, items[i + 1] as PickleValue);
    }
  }

  private get floor(): number {
    return this.marks.at(-1) ?? 0;
  }

  private push(value: PickleValue): void {
    this.stack.push(value);
  }

  private pushContainer(value: PickleValue): void {
    this.countObject();
    this.stack.push(value);
  }

  private countObject(): void {
    if (++this.objects > MAX_OBJECTS) throw this.unsupported(`more than ${MAX_OBJECTS} objects`);
  }

  private pop(): PickleValue {
    if (this.stack.length <= this.floor) throw this.damaged("it takes a value from an empty stack");
    return this.stack.pop() as PickleValue;
  }

  private top(): PickleValue {
    if (this.stack.length <= this.floor) throw this.damaged("it looks at a value of an empty stack");
    return this.stack.at(-1) as PickleValue;
  }

  private popMark(): PickleValue[] {
    const mark = this.marks.pop();
    if (mark === undefined) throw this.damaged("it closes a mark that was not set");
    return this.stack.splice(mark);
  }

  private memoize(index: number): void {
    this.memo.set(index, this.top());
  }

  private recall(index: number): void {
    const value = this.memo.get(index);
    if (value === undefined) throw this.damaged(`it recalls value ${index}, which was not stored`);
    this.push(value);
  }

  private need(length: number): void {
    if (length > this.bytes.length - this.at) {
      throw this.damaged(`${length} bytes are expected, ${this.bytes.length - this.at} are left: it is truncated`);
    }
  }

  /** The position of the next `length` bytes, which are consumed. */
  private take(length: number): number {
    this.need(length);
    this.at += length;
    return this.at - length;
  }

  private u8(): number {
    return this.view.getUint8(this.take(1));
  }

  private u32(): number {
    return this.view.getUint32(this.take(4), true);
  }

  private u64(): number {
    // Beyond 2^53 it is inexact, and in any case more than there are bytes.
    return Number(this.view.getBigUint64(this.take(8), true));
  }

  private slice(length: number): Uint8Array {
    const at = this.take(length);
    return this.bytes.subarray(at, at + length);
  }

  private binary(length: number): Uint8Array {
    this.countObject();
    return this.slice(length);
  }

  private text(length: number): string {
    const bytes = this.slice(length);
    try {
      return utf8.decode(bytes);
    } catch {
      throw this.damaged("a string that is not UTF-8");
    }
  }

  private line(): string {
    const end = this.bytes.indexOf(0x0a, this.at);
    if (end < 0) throw this.damaged("a line without an end: it is truncated");
    const text = this.text(end - this.at);
    this.at = end + 1;
    return text;
  }

  /** Two's complement, little-endian. */
  private integer(length: number): number | bigint {
    const bytes = this.slice(length);
    if (length > MAX_INTEGER_BYTES) throw this.unsupported(`an integer of ${length} bytes`);
    let value = 0n;
    for (let i = length - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[i] as number);
    value = BigInt.asIntN(8 * length, value);
    const narrow = Number(value);
    return Number.isSafeInteger(narrow) ? narrow : value;
  }

  private guard<T>(what: string, action: () => T): T {
    try {
      return action();
    } catch (error) {
      if (error instanceof DlfsError) throw error;
      throw this.damaged(`${what}: ${error instanceof Error ? error.message : error}`);
    }
  }

  /** Where it is: the byte, and the dict's key that comes before the value being built, such as a tensor's name. */
  private get place(): string {
    // "storage" begins PyTorch's persistent ids and is nobody's name.
    const key = this.stack.slice(-KEY_DEPTH).findLast((value) => typeof value === "string" && value !== "storage") as
      | string
      | undefined;
    return `${this.options.field}, byte ${this.start}${key === undefined ? "" : `, at ${quoteName(key)}`}`;
  }

  private damaged(message: string): DlfsError {
    return new DlfsError(ErrorCode.io, this.options.path, `damaged: ${this.place}: ${message}`);
  }

  private unsupported(message: string): DlfsError {
    return new DlfsError(ErrorCode.unsupported, this.options.path, `${this.place}: ${message}`);
  }
}

/** Python's name of a value's type. */
export function typeName(value: PickleValue | undefined): string {
  if (value === undefined) return "nothing";
  if (value === null) return "None";
  if (typeof value === "boolean") return "bool";
  if (typeof value === "number") return Number.isInteger(value) ? "int" : "float";
  if (typeof value === "bigint") return "int";
  if (typeof value === "string") return "str";
  if (value instanceof Uint8Array) return "bytes";
  if (Array.isArray(value)) return "list";
  if (value instanceof PickleTuple) return "tuple";
  if (value instanceof PickleDict) return "dict";
  if (value instanceof PickleGlobal) return value.name;
  return value.constructor.name;
}
