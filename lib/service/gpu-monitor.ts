/** What the GPUs of this machine are at, asked of nvidia-smi from time to time, beside the service's work. */
import type { NumberMetric } from "../monitor";

/** A GPU at a time; null where the driver does not say. */
export interface GpuReading {
  readonly gpu: string;
  readonly name: string;
  /** Of all processes, in bytes. */
  readonly memoryUsed: number | null;
  readonly memoryTotal: number | null;
  /** The share of time in which it computed, 0 to 1. */
  readonly utilization: number | null;
  readonly watts: number | null;
  readonly celsius: number | null;
}

const FIELDS = "index,name,memory.used,memory.total,utilization.gpu,power.draw,temperature.gpu";

/** What `nvidia-smi --query-gpu --format=csv,noheader,nounits` prints. */
export function parseGpuReadings(text: string): GpuReading[] {
  return text
    .split("\n")
    .filter((line) => line.trim() !== "")
    .map((line) => {
      const [gpu = "", name = "", ...values] = line.split(",").map((value) => value.trim());
      const [used, total, percent, watts, celsius] = values.map((value) =>
        value !== "" && Number.isFinite(Number(value)) ? Number(value) : null,
      );
      const scaled = (value: number | null | undefined, factor: number) => (value == null ? null : value * factor);
      return {
        ...{ gpu, name, memoryUsed: scaled(used, 2 ** 20), memoryTotal: scaled(total, 2 ** 20) },
        ...{ utilization: scaled(percent, 0.01), watts: watts ?? null, celsius: celsius ?? null },
      };
    });
}

/** Reads what one nvidia-smi prints every few seconds: starting one each time would disturb the driver more. */
export class GpuMonitor implements Disposable {
  readonly #readings = new Map<string, GpuReading>();
  readonly #child: Bun.Subprocess<"ignore", "pipe", "ignore"> | null = null;

  /** From now on; nothing is read where there is no such program. */
  constructor(everySeconds = 10, program = Bun.which("nvidia-smi")) {
    if (program === null) return;
    const command = [program, `--query-gpu=${FIELDS}`, "--format=csv,noheader,nounits", `--loop=${everySeconds}`];
    try {
      this.#child = Bun.spawn(command, { stdin: "ignore", stdout: "pipe", stderr: "ignore" });
      this.#child.unref();
      this.#read(this.#child.stdout).catch(() => {});
    } catch {
      // It is there, and cannot be run: there is nothing to tell.
    }
  }

  async #read(output: ReadableStream<Uint8Array>): Promise<void> {
    const decoder = new TextDecoder();
    let text = "";
    try {
      for await (const chunk of output) {
        text += decoder.decode(chunk, { stream: true });
        const end = text.lastIndexOf("\n") + 1;
        for (const reading of parseGpuReadings(text.slice(0, end))) this.#readings.set(reading.gpu, reading);
        text = text.slice(end);
      }
    } finally {
      this.#readings.clear();
    }
  }

  metrics(): NumberMetric[] {
    return gpuMetrics([...this.#readings.values()]);
  }

  [Symbol.dispose](): void {
    this.#child?.kill("SIGKILL");
  }
}

/** Readings as Prometheus has them; what is not known is left out. */
export function gpuMetrics(readings: readonly GpuReading[]): NumberMetric[] {
  const gauge = (name: string, help: string, of: (reading: GpuReading) => number | null): NumberMetric => ({
    ...{ name, help, type: "gauge" },
    values: readings.flatMap((reading) => {
      const value = of(reading);
      return value === null ? [] : [{ labels: { gpu: reading.gpu, name: reading.name }, value }];
    }),
  });
  return [
    gauge("dlfs_gpu_memory_used_bytes", "Memory of the GPU in use, by all processes.", (r) => r.memoryUsed),
    gauge("dlfs_gpu_memory_total_bytes", "Memory of the GPU.", (r) => r.memoryTotal),
    gauge("dlfs_gpu_utilization_ratio", "Share of time in which the GPU computed.", (r) => r.utilization),
    gauge("dlfs_gpu_power_watts", "Power that the GPU draws.", (r) => r.watts),
    gauge("dlfs_gpu_temperature_celsius", "Temperature of the GPU.", (r) => r.celsius),
  ];
}
