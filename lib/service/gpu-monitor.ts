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

export class GpuMonitor implements Disposable {
  #readings: readonly GpuReading[] = [];
  #timer: Timer | null = null;
  #asking = false;

  /** Asks from now on; not at all where there is no nvidia-smi. */
  constructor(everyMs = 10_000) {
    const program = Bun.which("nvidia-smi");
    if (program === null) return;
    const ask = () => void this.#ask(program);
    this.#timer = setInterval(ask, everyMs);
    this.#timer.unref();
    ask();
  }

  async #ask(program: string): Promise<void> {
    if (this.#asking) return;
    this.#asking = true;
    try {
      const command = [program, `--query-gpu=${FIELDS}`, "--format=csv,noheader,nounits"];
      const child = Bun.spawn(command, { stdout: "pipe", stderr: "ignore", stdin: "ignore", timeout: 10_000 });
      child.unref();
      const text = await new Response(child.stdout).text();
      this.#readings = (await child.exited) === 0 ? parseGpuReadings(text) : [];
    } catch {
      this.#readings = [];
    } finally {
      this.#asking = false;
    }
  }

  metrics(): NumberMetric[] {
    const gauge = (name: string, help: string, of: (reading: GpuReading) => number | null): NumberMetric => ({
      ...{ name, help, type: "gauge" },
      values: this.#readings.flatMap((reading) => {
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

  [Symbol.dispose](): void {
    if (this.#timer) clearInterval(this.#timer);
    this.#timer = null;
  }
}
