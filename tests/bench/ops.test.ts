/**
 * Times operations at the sizes they have in training and serving, from the case lists of tests/ops. GB/s counts every
 * operand once. `bun test tests/bench` runs it and prints a table; nothing about time is asserted.
 */
import { test } from "bun:test";
import { captured, expectFinite, fillNormal, line, time, title } from "../../lib/bench";
import { type Device, dtypeCode, Tensor } from "../../lib/tensor";
import { activationBenches } from "../ops/cases/activation";
import { augmentBenches } from "../ops/cases/augment";
import { boxBenches } from "../ops/cases/boxes";
import { type Arrays, type Input, kindOf, type OpCase } from "../ops/cases/case";
import { channelBenches } from "../ops/cases/channel";
import { convBenches } from "../ops/cases/conv";
import { dropoutBenches } from "../ops/cases/dropout";
import { elementwiseBenches } from "../ops/cases/elementwise";
import { groupNormBenches } from "../ops/cases/group-norm";
import { lossBenches } from "../ops/cases/losses";
import { normBenches } from "../ops/cases/norm";
import { normJoinBenches } from "../ops/cases/norm-join";
import { optimizerBenches } from "../ops/cases/optimizer";
import { poolBenches } from "../ops/cases/pool";
import { postprocessBenches } from "../ops/cases/postprocess";
import { preprocessBenches } from "../ops/cases/preprocess";
import { quantizeBenches } from "../ops/cases/quantize";
import { missing, testDevice } from "../support/device";
import { Random } from "../support/random";
import { describeBench } from "./requested";

const device = testDevice();

/** Above this many elements, numbers other than indices are drawn on the device, whatever the case would draw. */
const LARGE = 1 << 20;

function fill(tensor: Tensor, input: Input, random: Random, earlier: Arrays): ArrayLike<number> {
  if (tensor.size > LARGE && tensor.dtype !== "i32") {
    if (tensor.dtype === "f32" || tensor.dtype === "bf16") fillNormal(device, tensor);
    else device.native.memset(device.stream.handle, tensor.address, tensor.byteLength, 90);
    return [];
  }
  const values = Float64Array.from(
    input.values ? input.values(random, tensor.size, earlier) : random.normal(tensor.size),
  );
  // What is derived from a large operand, such as its statistics, was derived from nothing.
  for (const [i, value] of values.entries()) if (!Number.isFinite(value)) values[i] = 1;
  tensor.write(values);
  return values;
}

function measure(on: Device, opCase: OpCase, dtype: "f32" | "bf16"): string {
  const tensors = new Map<string, Tensor>();
  const owned: Disposable[] = [];
  const releases: (() => void)[] = [];
  try {
    const random = new Random(opCase.name);
    const drawn: Arrays = {};
    for (const [name, input] of Object.entries(opCase.inputs)) {
      const tensor = Tensor.empty(on, input.shape, kindOf(input, dtype));
      owned.push(tensor);
      tensors.set(name, tensor);
      drawn[name] = fill(tensor, input, random, drawn);
    }
    for (const [name, output] of Object.entries(opCase.outputs)) {
      const shared = output.inPlaceOf && tensors.get(output.inPlaceOf);
      const tensor = shared || Tensor.empty(on, output.shape, kindOf(output, dtype));
      if (!shared) owned.push(tensor);
      tensors.set(name, tensor);
    }
    const enqueue = opCase.prepare({
      device: on,
      native: on.native,
      stream: on.stream.handle,
      dtype: dtypeCode(dtype),
      address: (name) => tensors.get(name)?.address ?? null,
      defer: (release) => releases.push(release),
      workspace(bytes) {
        if (bytes === 0) return null;
        const tensor = Tensor.empty(on, [bytes], "u8");
        owned.push(tensor);
        return tensor.address;
      },
    });
    const { launch, release } = captured(on, on.stream, enqueue);
    releases.push(release);
    const timing = time(on, on.stream, launch);
    expectFinite(
      on,
      [...tensors].filter(([name]) => name in opCase.outputs),
    );
    const bytes = [...new Set(tensors.values())].reduce((sum, tensor) => sum + tensor.byteLength, 0);
    return line(on, dtype, `${opCase.op} ${opCase.name}`, timing, { flops: opCase.flops ?? 0, bytes });
  } finally {
    on.stream.synchronize();
    for (const release of releases.reverse()) release();
    for (const item of owned.reverse()) item[Symbol.dispose]();
  }
}

const lists = [
  convBenches,
  normBenches,
  normJoinBenches,
  activationBenches,
  groupNormBenches,
  elementwiseBenches,
  channelBenches,
  dropoutBenches,
  poolBenches,
  boxBenches,
  lossBenches,
  postprocessBenches,
  optimizerBenches,
  preprocessBenches,
  augmentBenches,
  quantizeBenches,
];

describeBench("operations", () => {
  for (const dtype of ["f32", "bf16"] as const) {
    const reason = missing(device, dtype, dtype === "bf16" ? ["conv.bf16"] : []);
    if (reason) {
      test.skip(`${dtype} (skipped: ${reason})`, () => {});
      continue;
    }
    test(`${dtype}: ceilings`, () => console.log(`${title(device, dtype)}\noperations`), 120_000);
    for (const opCase of lists.flat()) {
      if (opCase.dtypes && !opCase.dtypes.includes(dtype)) continue;
      if (missing(device, dtype, opCase.features?.(dtype))) continue;
      test(`${dtype}: ${opCase.op} ${opCase.name}`, () => console.log(measure(device, opCase, dtype)), 120_000);
    }
  }
});
