/** Finding and opening the native libraries: what is said where that fails. Each in a process of its own. */
import { afterAll, describe, expect, test } from "bun:test";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chooseBackend, DlfsError, headerHash, loadLibrary, probeBackends } from "../../lib/native";
import { runChild } from "../support/child";
import { backend, testDevice } from "../support/device";

const folder = mkdtempSync(join(tmpdir(), "dlfs-library-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const open = `
  import { Device } from "./lib/tensor";
  try { new Device(); console.log("opened"); } catch (error) { console.log(error.name, error.code, error.message); }
`;

/** A folder with a file in the library's place. */
function placed(name: string, content: Uint8Array | null): string {
  const at = join(folder, name);
  mkdirSync(at, { recursive: true });
  if (content) writeFileSync(join(at, `libdlfs_${backend}.so`), content);
  return at;
}

describe("opening a library", () => {
  test("one that is missing: where it was looked for and how to build it", async () => {
    const at = placed("missing", null);
    const { stdout } = await runChild(open, { DLFS_NATIVE_PATH: at, DLFS_BACKEND: backend });
    expect(stdout.trim()).toBe(
      `DlfsError -300 backend ${backend}: no library found (looked for ${at}/libdlfs_${backend}.so); build it with \`bash scripts/build.sh ${backend}\``,
    );
  });

  test("a file that is no library", async () => {
    const at = placed("text", new TextEncoder().encode("not a library"));
    const { stdout } = await runChild(open, { DLFS_NATIVE_PATH: at, DLFS_BACKEND: backend });
    expect(stdout).toStartWith(`DlfsError -300 ${at}/libdlfs_${backend}.so: cannot be loaded: `);
  });

  test("one built from another header: how to rebuild it", async () => {
    const { path } = loadLibrary(testDevice().backend);
    const bytes = readFileSync(path);
    const other = "0123456789abcdef";
    let at = bytes.indexOf(headerHash);
    expect(at).toBeGreaterThan(0);
    for (; at >= 0; at = bytes.indexOf(headerHash, at + 1)) bytes.write(other, at);
    const { stdout } = await runChild(open, { DLFS_NATIVE_PATH: placed("stale", bytes), DLFS_BACKEND: backend });
    expect(stdout).toContain(
      `was built from another dlfs.h (${other}, this package has ${headerHash}); rebuild it with \`bash scripts/build.sh ${backend}\``,
    );
  });

  test("the one in DLFS_NATIVE_PATH is taken", async () => {
    const at = placed("copy", null);
    copyFileSync(loadLibrary(testDevice().backend).path, join(at, `libdlfs_${backend}.so`));
    const { stdout } = await runChild(
      `import { loadLibrary } from "./lib/native"; console.log(loadLibrary("${backend}").path);`,
      { DLFS_NATIVE_PATH: at },
    );
    expect(stdout.trim()).toBe(join(at, `libdlfs_${backend}.so`));
  });

  test("nothing is loaded by importing the package", async () => {
    const { exitCode, stdout } = await runChild(`await import("./lib/index"); console.log("imported");`, {
      DLFS_NATIVE_PATH: placed("nowhere", null),
      DLFS_BACKEND: "nonsense",
    });
    expect({ exitCode, stdout: stdout.trim() }).toEqual({ exitCode: 0, stdout: "imported" });
  });
});

describe("choosing a backend", () => {
  test("an unknown name is an error that lists the known ones", () => {
    expect(() => chooseBackend("tpu")).toThrow('backend: expected one of cuda, cpu, got "tpu"');
  });

  test("DLFS_BACKEND is read", async () => {
    const { stdout } = await runChild(open, { DLFS_BACKEND: "abacus" });
    expect(stdout.trim()).toBe('DlfsError -100 backend: expected one of cuda, cpu, got "abacus"');
  });

  test("one asked for by name is used or fails: no other takes its place", async () => {
    const { stdout } = await runChild(open, { DLFS_BACKEND: "cuda", DLFS_NATIVE_PATH: placed("empty", null) });
    expect(stdout).toStartWith("DlfsError -300 backend cuda: no library found");
  });

  test("the one under test is open, with its libraries' versions and a named device", () => {
    const { name, versions } = loadLibrary(chooseBackend(backend).name);
    expect(name).toBe(testDevice().backend);
    expect(versions).toMatch(/\w+=\d/);
    expect(testDevice().info.name.length).toBeGreaterThan(2);
    expect(testDevice().info.memoryBytes).toBeGreaterThan(1 << 20);
    expect(testDevice().info.units).toBeGreaterThan(0);
  });

  test("probing both throws nothing and finds the one under test", () => {
    const { probes, chosen } = probeBackends();
    expect(probes.map((probe) => probe.name)).toEqual(["cuda", "cpu"]);
    expect(probes.find((probe) => probe.name === backend)?.status).toBe("ok");
    expect(chosen).not.toBeNull();
    expect(() => loadLibrary("cpu")).not.toThrow(TypeError);
  });

  test("a device index that is not there is an error with the number there are", () => {
    expect(() => testDevice({ index: 77 })).toThrow(DlfsError);
    expect(() => testDevice({ index: 77 })).toThrow(/expected a device index below \d+, got 77/);
  });
});
