/** Training steps and the network alone at several image sizes and batch sizes: whether others than the usual ones do as well. */
import type { Device } from "../tensor";
import { autotune, constantRate, SGD } from "../train";
import { ceilings } from "./measure";
import { makeModel, type NetworkSettings, timeNetwork, timeTraining } from "./network";
import type { BenchRow } from "./results";

export interface SizeCases {
  sizes: readonly NetworkSettings["size"][];
  batches: readonly number[];
}

/**
 * On a GPU: 512, 800, and 800x1344, to which torchvision's detectors pad the 800x1333 of their largest input; batches of 1, 7
 * and 16. Smaller ones on the CPU.
 */
export function sizeCases(device: Device): SizeCases {
  const square = (size: number) => [size, size] as const;
  return device.backend === "cuda"
    ? { sizes: [square(512), square(800), [800, 1344]], batches: [1, 7, 16] }
    : { sizes: [square(128), [192, 320]], batches: [1, 3] };
}

/** Times all combinations, each with the share of its own floor; yields the rows of one work and one size at a time. */
export async function* benchSizes(
  device: Device,
  settings: Record<"train" | "infer", NetworkSettings>,
  { sizes, batches }: SizeCases,
): AsyncGenerator<{ work: "train" | "infer"; rows: BenchRow[] }> {
  autotune(device);
  for (const work of ["train", "infer"] as const) {
    const top = ceilings(device, settings[work].precision);
    using model = makeModel(settings[work], device);
    using optimizer = work === "train" ? new SGD(model, { schedule: constantRate(1e-4), iterations: 1_000_000 }) : null;
    for (const size of sizes) {
      const rows: BenchRow[] = [];
      for (const batch of batches) {
        const used = { ...settings[work], quantize: undefined, size, batch };
        const row = optimizer
          ? await timeTraining(model, optimizer, used, top, ({ row }) => row)
          : timeNetwork(model, used, top, ({ row }) => row);
        rows.push({ ...row, bench: "sizes" });
      }
      yield { work, rows };
    }
  }
}
