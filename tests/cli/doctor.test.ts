import { describe, expect, test } from "bun:test";
import { type Findings, formatFindings } from "../../lib/cli/doctor";
import type { BackendProbe } from "../../lib/native/index";
import packageJson from "../../package.json";

const missing: BackendProbe = {
  name: "cuda",
  path: null,
  tried: ["/a/libdlfs_cuda.so", "/b/libdlfs_cuda.so"],
  status: "missing",
  message: "not built",
  versions: "",
  devices: [],
};

const found: BackendProbe = {
  name: "cpu",
  path: "/a/libdlfs_cpu.so",
  tried: ["/a/libdlfs_cpu.so"],
  status: "ok",
  message: "",
  versions: "onednn=2.6.3, libjpeg-turbo=2.1.5",
  devices: [{ index: 0, name: "A processor", memoryBytes: 24 * 2 ** 30, units: 2, computeCapability: 0 }],
};

function report(changes: Partial<Findings>): string {
  return formatFindings({
    bun: { version: "1.4.5", path: "/usr/bin/bun" },
    probes: [missing, found],
    chosen: "cpu",
    reason: "no CUDA library built",
    cudaSearch: ["missing: nvcc (CUDA's compiler)", "searched: /usr"],
    ...changes,
  });
}

describe("the report of dlfs doctor", () => {
  test("says what was found, what was not and where it was looked for", () => {
    expect(report({})).toBe(
      [
        `dlfs     ${packageJson.version}`,
        "bun      1.4.5",
        "         /usr/bin/bun",
        "cuda     not found",
        "         looked for /a/libdlfs_cuda.so",
        "         looked for /b/libdlfs_cuda.so",
        "         not built",
        "         missing: nvcc (CUDA's compiler)",
        "         searched: /usr",
        "cpu      /a/libdlfs_cpu.so",
        "         onednn=2.6.3, libjpeg-turbo=2.1.5",
        "         device 0: A processor, 24.0 GiB, 2 threads",
        "backend  cpu: no CUDA library built",
      ].join("\n"),
    );
  });

  test("describes a card by its compute capability", () => {
    const card = { index: 1, name: "A card", memoryBytes: 80 * 2 ** 30, units: 132, computeCapability: 90 };
    const cuda: BackendProbe = { ...missing, path: "/a/libdlfs_cuda.so", status: "ok", devices: [card] };
    expect(report({ probes: [cuda] })).toContain(
      "device 1: A card, 80.0 GiB, compute capability 9.0, 132 multiprocessors",
    );
  });

  test("a library without a device, a stale one and a broken one are told apart", () => {
    const at = { ...missing, path: "/a/libdlfs_cuda.so" };
    expect(report({ probes: [{ ...at, status: "ok" }] })).toContain("no device found");
    const stale = report({ probes: [{ ...at, status: "stale", message: "rebuild it with X" }] });
    expect(stale).toContain("/a/libdlfs_cuda.so (stale)");
    expect(stale).toContain("rebuild it with X");
    const broken = report({ probes: [{ ...at, status: "error", message: "libcudnn.so.9: cannot open" }] });
    expect(broken).toContain("/a/libdlfs_cuda.so (cannot be used)");
    expect(broken).toContain("libcudnn.so.9: cannot open");
    expect(stale).not.toContain("searched:");
  });

  test("says that Bun is too old, and that no backend can be used", () => {
    const text = report({ bun: { version: "1.3.9", path: "/usr/bin/bun" }, chosen: null, reason: "nothing built" });
    expect(text).toContain("1.3.9 (too old: 1.4.5 is needed)");
    expect(text).toEndWith("backend  none: nothing built");
  });
});
