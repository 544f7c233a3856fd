/** What nvidia-smi prints, as metrics. */
import { expect, test } from "bun:test";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { GpuMonitor, gpuMetrics, parseGpuReadings } from "../../lib/service/gpu-monitor";

test("what nvidia-smi prints becomes gauges in base units; what it does not know is left out", () => {
  const text =
    "0, NVIDIA H100 80GB HBM3, 1024, 81559, 37, 412.50, 61\n1, Some GPU, 10, 20, [N/A], [Not Supported], 40\n";
  const metrics = Object.fromEntries(gpuMetrics(parseGpuReadings(text)).map(({ name, values }) => [name, values]));
  const labels = { gpu: "0", name: "NVIDIA H100 80GB HBM3" };
  const other = { gpu: "1", name: "Some GPU" };
  expect(metrics).toEqual({
    dlfs_gpu_memory_used_bytes: [
      { labels, value: 2 ** 30 },
      { labels: other, value: 10 * 2 ** 20 },
    ],
    dlfs_gpu_memory_total_bytes: [
      { labels, value: 81_559 * 2 ** 20 },
      { labels: other, value: 20 * 2 ** 20 },
    ],
    dlfs_gpu_utilization_ratio: [{ labels, value: 0.37 }],
    dlfs_gpu_power_watts: [{ labels, value: 412.5 }],
    dlfs_gpu_temperature_celsius: [
      { labels, value: 61 },
      { labels: other, value: 40 },
    ],
  });
  expect(parseGpuReadings("")).toEqual([]);
});

test("a monitor has the last of what its program printed, and nothing once that has ended", async () => {
  const folder = mkdtempSync(join(tmpdir(), "dlfs-gpu-"));
  const program = join(folder, "nvidia-smi");
  writeFileSync(
    program,
    '#!/bin/sh\nprintf "0, A GPU, 1, 2, 3, 4, 5\\n0, A GPU, 6"\nsleep 0.2\nprintf ", 2, 3, 4, 5\\n"\nsleep 0.5\n',
  );
  chmodSync(program, 0o755);
  using monitor = new GpuMonitor(1, program);
  const used = () => monitor.metrics()[0]?.values.map(({ value }) => value / 2 ** 20);
  const seen = new Set<string>();
  for (let i = 0; i < 150; i++) {
    seen.add(JSON.stringify(used()));
    await Bun.sleep(10);
  }
  expect([...seen]).toEqual(["[]", "[1]", "[6]"]);
  expect(used()).toEqual([]);
  using none = new GpuMonitor(1, null);
  expect(none.metrics().flatMap(({ values }) => values)).toEqual([]);
  rmSync(folder, { recursive: true });
});
