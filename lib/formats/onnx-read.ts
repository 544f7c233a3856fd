/** Reads ONNX models: the weights by name, and the graph as data. Nothing in the file is trusted, and nothing of it is run. */
import { check, DlfsError, ErrorCode } from "../native/error";
import { FileBytes, type FileBytesOptions } from "./file-bytes";
import { dtypeOf, ExternalFiles, readEntry, readTensor } from "./onnx-tensor";
import type { OnnxAttribute, OnnxModel, OnnxNode, OnnxValueInfo } from "./onnx-types";
import { MAX_ONNX_BYTES } from "./onnx-write";
import { ProtoError, ProtoReader } from "./protobuf";
import { OpenWeightFile, quoteName, type WeightTensor } from "./weights";

/** Parts (nodes, names, attributes, ...) of a file; each takes more memory than in the file. Large networks have some 100,000. */
const MAX_PARTS = 4_000_000;

/** AttributeProto.AttributeType of what is not read. */
const OTHER_TYPES = ["TENSOR", "GRAPH", "STRINGS", "TENSORS", "GRAPHS", "SPARSE_TENSOR", "TYPE_PROTO"] as const;
const otherFields = new Map<number, (typeof OTHER_TYPES)[number]>([
  [5, "TENSOR"],
  [6, "GRAPH"],
  [9, "STRINGS"],
  [10, "TENSORS"],
  [11, "GRAPHS"],
  [22, "SPARSE_TENSOR"],
  [14, "TYPE_PROTO"],
]);

/** An attribute as it is read: one of a type that is not read (a graph, a tensor, ...) is there by its type alone. */
export type OnnxReadAttribute = OnnxAttribute | { readonly other: (typeof OTHER_TYPES)[number] };

/** A node as it is read. */
export interface OnnxReadNode extends Omit<OnnxNode, "attributes"> {
  /** The set of operators; "" is ai.onnx. */
  readonly domain: string;
  readonly attributes: Readonly<Record<string, OnnxReadAttribute>>;
}

/** A model as it is read. */
export interface OnnxReadModel extends Omit<OnnxModel, "graph"> {
  readonly graph: Omit<OnnxModel["graph"], "nodes"> & { readonly nodes: readonly OnnxReadNode[] };
}

/** An open ONNX file; its initializers are loaded when they are asked for. */
export class OnnxFile extends OpenWeightFile {
  readonly format = "onnx";

  constructor(
    file: FileBytes,
    private readonly external: ExternalFiles,
    /** The graph's initializers, by name. */
    readonly tensors: ReadonlyMap<string, WeightTensor>,
    readonly model: OnnxReadModel,
  ) {
    super(file);
  }

  /** The metadata. */
  get values(): ReadonlyMap<string, string> {
    return new Map(Object.entries(this.model.metadata));
  }

  override close(): void {
    super.close();
    this.external.close();
  }
}

/**
 * Opens an ONNX model and checks all that it claims about its initializers, those in files beside it included.
 *
 * @throws DlfsError naming the file and the field: of code `io` for a file that is missing, truncated or damaged, or whose
 *   tensors lie outside of its folder; `unsupported` for element types without a counterpart, and sparse initializers
 */
export async function readOnnx(path: string, options: FileBytesOptions = {}): Promise<OnnxFile> {
  const file = FileBytes.open(path, "ONNX file", options);
  const external = new ExternalFiles(path, options);
  try {
    const tooLarge = () => `damaged: ${file.size} bytes, an ONNX file has at most ${MAX_ONNX_BYTES}`;
    check(file.size <= MAX_ONNX_BYTES, path, tooLarge, ErrorCode.io);
    const { model, tensors } = new Reader(path, external).model(new ProtoReader(file.slice(0, file.size, "model")));
    return new OnnxFile(file, external, tensors, model);
  } catch (error) {
    file.close();
    external.close();
    if (error instanceof ProtoError) {
      throw new DlfsError(ErrorCode.io, path, `damaged: ${error.message}`, { cause: error });
    }
    throw error;
  }
}

/** Names of a message's fields, and what reads them. Fields that are not listed are passed over. */
type Fields = Readonly<Record<number, readonly [name: string, read: (value: ProtoReader) => void]>>;

/** Runs `read`; what is wrong gets the place in front. */
function at<T>(place: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    throw error instanceof ProtoError ? new ProtoError(`${place}: ${error.message}`) : error;
  }
}

class Reader {
  private parts = 0;

  constructor(
    private readonly path: string,
    private readonly external: ExternalFiles,
  ) {}

  private each(reader: ProtoReader, fields: Fields): void {
    while (reader.next()) {
      const field = fields[reader.field];
      if (!field) continue;
      if (++this.parts > MAX_PARTS) throw new ProtoError(`it has more than ${MAX_PARTS} parts`);
      at(field[0], () => field[1](reader));
    }
  }

  model(reader: ProtoReader): { model: OnnxReadModel; tensors: Map<string, WeightTensor> } {
    let irVersion = 0;
    let opset = 0;
    const producer = { name: "", version: "" };
    const metadata: [string, string][] = [];
    const graphs: ReturnType<Reader["graph"]>[] = [];
    this.each(reader, {
      1: ["ir_version", (value) => (irVersion = value.int())],
      2: ["producer_name", (value) => (producer.name = value.text())],
      3: ["producer_version", (value) => (producer.version = value.text())],
      7: ["graph", (value) => graphs.push(this.graph(value.message()))],
      8: ["opset_import", (value) => (opset = this.opset(value.message()) ?? opset)],
      14: ["metadata_props", (value) => metadata.push(readEntry(value.message()))],
    });
    const [found, ...more] = graphs;
    if (irVersion < 1) throw new ProtoError("ir_version: missing: it is no ONNX model");
    if (!found || more.length > 0) throw new ProtoError(`graph: expected one, got ${graphs.length}`);
    if (opset < 1) throw new ProtoError("opset_import: no version of ai.onnx");
    const { graph, tensors } = found;
    return { model: { irVersion, opset, producer, metadata: Object.fromEntries(metadata), graph }, tensors };
  }

  /** The version of ai.onnx; undefined where it is about another set of operators. */
  private opset(reader: ProtoReader): number | undefined {
    let [domain, version] = ["", 0];
    this.each(reader, {
      1: ["domain", (value) => (domain = value.text())],
      2: ["version", (value) => (version = value.int())],
    });
    return domain === "" || domain === "ai.onnx" ? version : undefined;
  }

  private graph(reader: ProtoReader): { graph: OnnxReadModel["graph"]; tensors: Map<string, WeightTensor> } {
    let name = "";
    const nodes: OnnxReadNode[] = [];
    const inputs: OnnxValueInfo[] = [];
    const outputs: OnnxValueInfo[] = [];
    const tensors = new Map<string, WeightTensor>();
    const unsupported = () => {
      throw new DlfsError(ErrorCode.unsupported, this.path, "graph: sparse initializers are not supported");
    };
    this.each(reader, {
      1: ["node", (value) => nodes.push(at(`${nodes.length}`, () => this.node(value.message())))],
      2: ["name", (value) => (name = value.text())],
      5: ["initializer", (value) => this.initializer(value.message(), tensors)],
      11: ["input", (value) => inputs.push(this.valueInfo(value.message()))],
      12: ["output", (value) => outputs.push(this.valueInfo(value.message()))],
      15: ["sparse_initializer", unsupported],
    });
    return { graph: { name, nodes, inputs, outputs }, tensors };
  }

  private initializer(reader: ProtoReader, tensors: Map<string, WeightTensor>): void {
    const tensor = readTensor(reader, this.path, this.external);
    if (tensor.name === "") throw new ProtoError(`${tensors.size}: it has no name`);
    if (tensors.has(tensor.name)) throw new ProtoError(`${quoteName(tensor.name)}: the name occurs twice`);
    tensors.set(tensor.name, tensor);
  }

  private node(reader: ProtoReader): OnnxReadNode {
    let [name, opType, domain] = ["", "", ""];
    const inputs: string[] = [];
    const outputs: string[] = [];
    const attributes: [string, OnnxReadAttribute][] = [];
    this.each(reader, {
      1: ["input", (value) => inputs.push(value.text())],
      2: ["output", (value) => outputs.push(value.text())],
      3: ["name", (value) => (name = value.text())],
      4: ["op_type", (value) => (opType = value.text())],
      5: ["attribute", (value) => attributes.push(this.attribute(value.message()))],
      7: ["domain", (value) => (domain = value.text())],
    });
    if (opType === "") throw new ProtoError("op_type: missing");
    return { name, opType, domain, inputs, outputs, attributes: Object.fromEntries(attributes) };
  }

  /** The type (field 20) is told by the field that is there; empty lists are told by the type. */
  private attribute(reader: ProtoReader): [string, OnnxReadAttribute] {
    let [name, type] = ["", 0];
    let found: OnnxReadAttribute | undefined;
    const ints: number[] = [];
    const floats: number[] = [];
    const other = (field: number): Fields[number] => {
      const kind = otherFields.get(field)!;
      return [kind, () => (found = { other: kind })];
    };
    const append = (list: number[], values: readonly number[]) => {
      for (const value of values) list.push(value);
    };
    this.each(reader, {
      1: ["name", (value) => (name = value.text())],
      2: ["f", (value) => (found = { float: value.float() })],
      3: ["i", (value) => (found = { int: value.int() })],
      4: ["s", (value) => (found = { text: value.text() })],
      7: ["floats", (value) => append(floats, value.floats())],
      8: ["ints", (value) => append(ints, value.ints())],
      20: ["type", (value) => (type = value.int())],
      ...Object.fromEntries([...otherFields.keys()].map((field) => [field, other(field)])),
    });
    if (floats.length > 0 || type === 6) return [name, { floats }];
    if (ints.length > 0 || type === 7) return [name, { ints }];
    if (found) return [name, found];
    // A zero or an empty text may be left out.
    if (type === 1) return [name, { float: 0 }];
    if (type === 2) return [name, { int: 0 }];
    if (type === 3) return [name, { text: "" }];
    throw new ProtoError(`${quoteName(name)}: it has no value`);
  }

  private valueInfo(reader: ProtoReader): OnnxValueInfo {
    let name = "";
    let type: ProtoReader | undefined;
    this.each(reader, {
      1: ["name", (value) => (name = value.text())],
      2: ["type", (value) => (type = value.message())],
    });
    return at(quoteName(name), () => {
      let dtype = 0;
      let isTensor = false;
      const shape: (number | string)[] = [];
      const dimension = (value: ProtoReader): void => {
        let size: number | string = "";
        this.each(value, {
          1: ["dim_value", (inner) => (size = inner.int())],
          2: ["dim_param", (inner) => (size = inner.text())],
        });
        shape.push(size);
      };
      const tensorType = (value: ProtoReader): void => {
        isTensor = true;
        this.each(value, {
          1: ["elem_type", (inner) => (dtype = inner.int())],
          2: ["shape", (inner) => this.each(inner.message(), { 1: ["dim", (dim) => dimension(dim.message())] })],
        });
      };
      if (type) this.each(type, { 1: ["tensor_type", (value) => tensorType(value.message())] });
      const what = `graph: ${quoteName(name)}`;
      if (!isTensor) throw new DlfsError(ErrorCode.unsupported, this.path, `${what}: only tensors are supported`);
      return { name, dtype: dtypeOf(this.path, what, dtype), shape };
    });
  }
}
