/**
 * Times linear layers and 1x1 convolutions by the library's own choice, by each library's first candidate and by the
 * fastest that tuning finds: what the choice without tuning should be.
 *
 *   DLFS_BACKEND=cuda bun run scripts/bench-matrix-products.ts [milliseconds of tuning, default 200]
 */

import { time } from "../lib/bench";
import { constants, cString, DlfsError, fromCString } from "../lib/native";
import { Device, type DType, dtypeCode, outHandle, Tensor } from "../lib/tensor";

/** Images, height, width, channels in and out. */
const shapes: [name: string, n: number, h: number, w: number, c: number, k: number][] = [
  ["classifier", 32, 1, 1, 1280, 1000],
  ["head", 12800, 1, 1, 256, 819],
  ["square", 4096, 1, 1, 2048, 2048],
  ["stage 1, wide", 16, 160, 160, 64, 256],
  ["stage 1, narrow", 16, 160, 160, 256, 64],
  ["stage 2, wide", 16, 80, 80, 128, 512],
  ["stage 3, narrow", 16, 40, 40, 1024, 256],
  ["stage 4, wide", 16, 20, 20, 512, 2048],
  ["pyramid", 16, 20, 20, 2048, 256],
];
const directions = ["forward", "forward, bias, relu", "data gradient", "weight gradient"] as const;

using device = new Device({ backend: process.env.DLFS_BACKEND });
const { native, stream } = device;
const tuneMs = Number(process.argv[2] ?? 200);

/** Milliseconds of a plan, with the algorithm's text. */
function run(handle: number, direction: string, tensors: { x: Tensor; w: Tensor; y: Tensor; bias: Tensor }) {
  const bytes = outHandle();
  native.convWorkspace(handle, bytes.view);
  using scratch = Tensor.empty(device, [Math.max(1, bytes.value)], "u8");
  const [s, workspace] = [stream.handle, scratch.address];
  const [x, w, y] = [tensors.x.address, tensors.w.address, tensors.y.address];
  const bias = direction.includes("bias") ? tensors.bias.address : null;
  const call = {
    d: () => native.convBackwardData(s, handle, x, y, w, null, null, workspace),
    w: () => native.convBackwardWeight(s, handle, w, x, y, workspace),
    f: () => native.convForward(s, handle, y, x, w, bias, null, workspace),
  }[direction[0] as "d" | "w" | "f"];
  const { ms } = time(device, stream, () => void call(), 100);
  const text = new Uint8Array(256);
  native.convPick(handle, text, text.byteLength);
  return { ms, pick: fromCString(text) };
}

function measure(dtype: DType, [name, n, h, w, c, k]: (typeof shapes)[number], direction: string): string {
  const code = direction.startsWith("forward") ? 0 : direction.startsWith("data") ? 1 : 2;
  const fused = direction.includes("bias");
  const create = (pick: string) => {
    const out = outHandle();
    const [flags, activation] = fused ? [constants.CONV_BIAS, constants.ACT_RELU] : [0, constants.ACT_NONE];
    const geometry = [n, h, w, c, k, 1, 1, 1, 1, 0, 0, 1, 1, 1] as const;
    native.convCreate(device.handle, out.view, cString(pick), code, dtypeCode(dtype), ...geometry, flags, activation);
    return out.value;
  };
  using x = Tensor.full(device, [n, h, w, c], 0.01, dtype);
  using weight = Tensor.full(device, [k, c], 0.01, code === 2 ? "f32" : dtype);
  using y = Tensor.full(device, [n, h, w, k], 0.01, dtype);
  using bias = Tensor.full(device, [k], 0.01);
  const tensors = { x, w: weight, y, bias };
  const columns = ["", "lt:0", "tuned"].map((pick) => {
    try {
      const handle = create(pick === "tuned" ? "" : pick);
      if (pick === "tuned") native.convTuneSync(stream.handle, handle, tuneMs);
      const result = run(handle, direction, tensors);
      native.convDestroy(handle);
      const tflops = (2 * n * h * w * c * k) / result.ms / 1e9;
      return `${result.ms.toFixed(4).padStart(9)} ms ${tflops.toFixed(1).padStart(6)} TFLOP/s ${result.pick.split(" ")[0]!.padEnd(10).slice(0, 10)}`;
    } catch (error) {
      if (!(error instanceof DlfsError)) throw error;
      return `${error.message.slice(0, 36).padEnd(36)}`;
    }
  });
  return `${dtype.padEnd(4)} ${name.padEnd(16)} ${direction.padEnd(20)} ${columns.join(" | ")}`;
}

console.log(`${device.info.name}; columns: the default choice, cuBLASLt's first candidate, tuned for ${tuneMs} ms`);
for (const dtype of ["bf16", "f32"] as const) {
  if (dtype === "bf16" && !device.supports("conv.bf16")) continue;
  for (const shape of shapes) for (const direction of directions) console.log(measure(dtype, shape, direction));
}
