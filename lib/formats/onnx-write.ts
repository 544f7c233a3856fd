import { check, ErrorCode } from "../native/error";
import { AtomicFile } from "./atomic-file";
import { type OnnxAttribute, type OnnxModel, type OnnxNode, type OnnxValueInfo, onnxDTypes } from "./onnx-types";
import { ProtoWriter } from "./protobuf";
import type { WeightSource } from "./safetensors";
import { countElements, quoteName, weightDTypeSize } from "./weights";

/** Largest message of protocol buffers. */
export const MAX_ONNX_BYTES = 2 ** 31 - 1;

/** Small pieces are written together. */
const CHUNK_BYTES = 1024 * 1024;

/**
 * Writes an ONNX model; the file appears complete or not at all. Whether the graph is valid is not checked.
 *
 * @param initializers the graph's constants and weights, in the order of the file; data may be made when its turn has come
 * @throws DlfsError naming the file: of code `argument` or `shape` for initializers that do not fit (a name twice, data of
 *   another size), `unsupported` where it would be larger than 2 GiB, `io` where writing fails
 */
export async function writeOnnx(path: string, model: OnnxModel, initializers: readonly WeightSource[]): Promise<void> {
  const names = new Set<string>();
  for (const { name, shape } of initializers) {
    check(!names.has(name), path, () => `initializer ${quoteName(name)}: the name occurs twice`);
    names.add(name);
    const impossible = () => `initializer ${quoteName(name)}: impossible shape [${shape}]`;
    check(!Number.isNaN(countElements(shape)), path, impossible, ErrorCode.shape);
  }
  const message = encodeModel(path, model, initializers);
  check(
    message.length <= MAX_ONNX_BYTES,
    path,
    () => `the model takes ${message.length} bytes, an ONNX file holds at most ${MAX_ONNX_BYTES}`,
    ErrorCode.unsupported,
  );
  const file = await AtomicFile.create(path);
  try {
    const chunk = new Uint8Array(CHUNK_BYTES);
    let filled = 0;
    for (const part of message.parts) {
      const bytes = part instanceof Uint8Array ? part : await part.load();
      if (filled + bytes.length > chunk.length) {
        await file.append(chunk.subarray(0, filled));
        filled = 0;
      }
      if (bytes.length > chunk.length) await file.append(bytes);
      else {
        chunk.set(bytes, filled);
        filled += bytes.length;
      }
    }
    await file.append(chunk.subarray(0, filled));
  } catch (error) {
    await file.abort();
    throw error;
  }
  await file.commit();
}

function encodeModel(path: string, model: OnnxModel, initializers: readonly WeightSource[]): ProtoWriter {
  const { graph, producer } = model;
  const out = new ProtoWriter();
  out.int(1, model.irVersion).text(2, producer.name).text(3, producer.version);
  out.message(7, (body) => {
    for (const node of graph.nodes) body.message(1, (inner) => encodeNode(inner, node));
    body.text(2, graph.name);
    for (const tensor of initializers) body.message(5, (inner) => encodeTensor(inner, path, tensor));
    for (const value of graph.inputs) body.message(11, (inner) => encodeValueInfo(inner, value));
    for (const value of graph.outputs) body.message(12, (inner) => encodeValueInfo(inner, value));
  });
  out.message(8, (set) => set.text(1, "").int(2, model.opset));
  for (const [key, value] of Object.entries(model.metadata))
    out.message(14, (entry) => entry.text(1, key).text(2, value));
  return out;
}

function encodeNode(out: ProtoWriter, node: OnnxNode): void {
  for (const name of node.inputs) out.text(1, name);
  for (const name of node.outputs) out.text(2, name);
  out.text(3, node.name).text(4, node.opType);
  for (const [name, value] of Object.entries(node.attributes)) {
    out.message(5, (inner) => encodeAttribute(inner.text(1, name), value));
  }
}

/** The numbers at the end are AttributeProto.AttributeType. */
function encodeAttribute(out: ProtoWriter, value: OnnxAttribute): void {
  if ("float" in value) out.float(2, value.float).int(20, 1);
  else if ("int" in value) out.int(3, value.int).int(20, 2);
  else if ("text" in value) out.text(4, value.text).int(20, 3);
  else if ("floats" in value) out.floats(7, value.floats).int(20, 6);
  else out.ints(8, value.ints).int(20, 7);
}

function encodeTensor(out: ProtoWriter, path: string, { name, dtype, shape, data }: WeightSource): void {
  const length = countElements(shape) * weightDTypeSize(dtype);
  const load = async () => {
    const bytes = typeof data === "function" ? await data() : data;
    const mismatch = () =>
      `initializer ${quoteName(name)}: ${dtype} [${shape}] has ${length} bytes, got ${bytes.length}`;
    check(bytes.length === length, path, mismatch, ErrorCode.shape);
    return bytes;
  };
  out.ints(1, shape).int(2, onnxDTypes[dtype]).text(8, name).bytes(9, { length, load });
}

function encodeValueInfo(out: ProtoWriter, { name, dtype, shape }: OnnxValueInfo): void {
  out.text(1, name).message(2, (type) =>
    type.message(1, (tensor) =>
      tensor.int(1, onnxDTypes[dtype]).message(2, (dims) => {
        for (const size of shape) {
          dims.message(1, (dim) => (typeof size === "number" ? dim.int(1, size) : dim.text(2, size)));
        }
      }),
    ),
  );
}
