/** Opens weights of any supported format, told by what is in the file and not by its name. */
import { DlfsError, ErrorCode } from "../native/error";
import { FileBytes } from "./file-bytes";
import { NUMPY_MAGIC, readNumpy } from "./numpy";
import { readOnnx } from "./onnx-read";
import { readSafetensors } from "./safetensors";
import type { TorchFileOptions } from "./torch-file";
import { readTorchFile } from "./torch-file";
import type { WeightFile } from "./weights";

/**
 * Opens a safetensors file, one that `torch.save` wrote (`.pth`, `.pt`, `.bin`), NumPy's arrays (`.npz`, `.npy`), or an ONNX
 * model for its initializers.
 *
 * @throws DlfsError as `readSafetensors`, `readTorchFile`, `readNumpy` and `readOnnx` do, and of code `unsupported` for any
 *   other file
 */
export async function loadWeights(path: string, options: TorchFileOptions = {}): Promise<WeightFile> {
  const format = recognise(path);
  if (format === "torch") return await readTorchFile(path, options);
  if (options.entry !== undefined && options.entry !== "") {
    const kind = format === "onnx" ? "an onnx file" : `a ${format} file`;
    const message = `entry "${options.entry}": ${kind} has no dicts to choose from`;
    throw new DlfsError(ErrorCode.argument, path, message);
  }
  if (format === "onnx") return await readOnnx(path, options);
  return format === "numpy" ? await readNumpy(path, options) : await readSafetensors(path, options);
}

function recognise(path: string): WeightFile["format"] {
  const file = FileBytes.open(path, "file of weights", { map: false });
  try {
    const bytes = file.slice(0, Math.min(file.size, 16), "magic");
    const text = String.fromCharCode(...bytes);
    if (text.startsWith(NUMPY_MAGIC) || startsWithArray(file)) return "numpy";
    // A zip archive, or the pickle that begins files of PyTorch before 1.6, which its reader tells about.
    if (text.startsWith("PK\x03\x04") || text.startsWith("\x80\x02\x8a\x0a")) return "torch";
    if (isOnnx(bytes)) return "onnx";
    if (text[8] === "{") return "safetensors";
    const found =
      file.size === 0
        ? "it is empty"
        : text.startsWith("DLFSCKPT")
          ? "it is a checkpoint of dlfs, read it with readCheckpoint"
          : text.startsWith("version https:")
            ? "it is a Git LFS pointer, fetch the file itself with git lfs pull"
            : `it starts with bytes ${bytes.toHex()}`;
    const message = `neither safetensors nor a file of torch.save, NumPy or ONNX: ${found}`;
    throw new DlfsError(ErrorCode.unsupported, path, message);
  } finally {
    file.close();
  }
}

/** Whether a zip archive's first entry is an array of NumPy's: told by its local header, which begins the file. */
function startsWithArray(file: FileBytes): boolean {
  if (file.size < 30) return false;
  const header = file.slice(0, 30, "magic");
  const name = file.slice(30, Math.min(file.size - 30, header[26]! + 256 * header[27]!), "magic");
  return header[0] === 0x50 && header[1] === 0x4b && String.fromCharCode(...name.slice(-4)) === ".npy";
}

/**
 * ONNX has no magic number. A ModelProto starts with its ir_version (key 0x08, a small number), and another of its fields: a
 * text, a number, the graph, an operator set, or metadata.
 */
function isOnnx(bytes: Uint8Array): boolean {
  const [key, version = 0, next = 0] = bytes;
  const fields = [0x12, 0x1a, 0x22, 0x28, 0x32, 0x3a, 0x42, 0x72];
  const plausible = key === 0x08 && version >= 1 && version < 0x80 && fields.includes(next);
  // The 64-bit length of a safetensors header may look the same, but is less than 100 MB, so that its upper half is 0.
  return plausible && bytes.subarray(4, 8).some((byte) => byte !== 0);
}
