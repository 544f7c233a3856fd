/** Native objects after their end, of another kind, or from elsewhere: errors, never crashes. */
import { describe, expect, test } from "bun:test";
import { ErrorCode } from "../../lib/native";
import { Arena, Device, Event, outHandle, PinnedBuffer, Stream, Tensor } from "../../lib/tensor";
import { runChild } from "../support/child";
import { backend, testDevice } from "../support/device";
import { errorOf } from "../support/errors";

const device = testDevice();
const { native } = device;

function newEvent(): number {
  const out = outHandle();
  native.eventCreate(device.handle, out.view);
  return out.value;
}

describe("handles", () => {
  test("a destroyed one is an error, also when its slot is in use again", () => {
    const old = newEvent();
    native.eventDestroy(old);
    expect(errorOf(() => native.eventQuery(old)).code).toBe(ErrorCode.handle);
    const others = Array.from({ length: 20 }, newEvent);
    expect(others).not.toContain(old);
    expect(errorOf(() => native.eventQuery(old)).code).toBe(ErrorCode.handle);
    expect(errorOf(() => native.eventDestroy(old)).code).toBe(ErrorCode.handle);
    for (const other of others) expect(native.eventQuery(other)).toBe(0);
    for (const other of others) native.eventDestroy(other);
  });

  test("they are not reused within thousands of objects", () => {
    const seen = new Set<number>();
    for (let i = 0; i < 5000; ++i) {
      const handle = newEvent();
      native.eventDestroy(handle);
      seen.add(handle);
    }
    expect(seen.size).toBe(5000);
  });

  test("one of another kind is an error that names the kinds", () => {
    const event = newEvent();
    const error = errorOf(() => native.streamSynchronize(event));
    expect(error.code).toBe(ErrorCode.handle);
    expect(error.message).toMatch(/dlfs_stream_synchronize: .*stream/);
    expect(errorOf(() => native.eventQuery(device.stream.handle)).code).toBe(ErrorCode.handle);
    expect(errorOf(() => native.graphDestroy(event)).code).toBe(ErrorCode.handle);
    native.eventDestroy(event);
  });

  test.each([0, -1, 1, 2 ** 40, Number.MAX_SAFE_INTEGER])("%d is none", (handle) => {
    expect(errorOf(() => native.streamQuery(handle)).code).toBe(ErrorCode.handle);
    expect(errorOf(() => native.contextDestroy(handle)).code).toBe(ErrorCode.handle);
    expect(errorOf(() => native.jobQuery(handle)).code).toBe(ErrorCode.handle);
  });

  test("a context with live objects is not closed, and says what is left", () => {
    const own = new Device({ backend });
    const event = new Event(own);
    const tensor = Tensor.empty(own, [1000]);
    const message = errorOf(() => own.native.contextDestroy(own.handle)).message;
    expect(message).toMatch(/event/);
    expect(message).toMatch(/stream/);
    expect(message).toMatch(/memory|alloc|4000|4096/);
    event.dispose();
    tensor.dispose();
    own.dispose();
  });

  test("a graph of one context is not launched on another's stream", () => {
    using own = new Device({ backend });
    using tensor = Tensor.zeros(own, [4]);
    own.native.graphBegin(own.stream.handle);
    own.native.memset(own.stream.handle, tensor.address, 16, 1);
    const graph = outHandle();
    own.native.graphEnd(own.stream.handle, graph.view);
    expect([ErrorCode.argument, ErrorCode.handle] as number[]).toContain(
      errorOf(() => native.graphLaunch(device.stream.handle, graph.value)).code,
    );
    own.native.graphDestroy(graph.value);
  });
});

describe("objects after dispose()", () => {
  const cases: [string, () => { dispose(): void; use(): unknown }][] = [
    [
      "Stream",
      () => {
        const stream = new Stream(device);
        return { dispose: () => stream.dispose(), use: () => stream.synchronize() };
      },
    ],
    [
      "Event",
      () => {
        const event = new Event(device);
        return { dispose: () => event.dispose(), use: () => event.query() };
      },
    ],
    [
      "Tensor",
      () => {
        const tensor = Tensor.empty(device, [4]);
        return { dispose: () => tensor.dispose(), use: () => tensor.read() };
      },
    ],
    [
      "PinnedBuffer",
      () => {
        const pinned = new PinnedBuffer(device, 16);
        return { dispose: () => pinned.dispose(), use: () => pinned.bytes };
      },
    ],
    [
      "Arena",
      () => {
        const arena = new Arena(device, 1000);
        return { dispose: () => arena.dispose(), use: () => arena.take(10) };
      },
    ],
    [
      "Device",
      () => {
        const own = new Device({ backend });
        return { dispose: () => own.dispose(), use: () => own.memory() };
      },
    ],
  ];
  test.each(cases)("%s: use is a handle error, a second dispose() does nothing", (name, make) => {
    const { dispose, use } = make();
    use();
    dispose();
    const error = errorOf(use);
    expect(error.code).toBe(ErrorCode.handle);
    expect(error.message).toContain(name);
    expect(error.message).toContain("used after dispose()");
    dispose();
  });

  test("the native address of a freed tensor is an error", () => {
    const tensor = Tensor.empty(device, [4]);
    const { address } = tensor;
    tensor.dispose();
    expect(errorOf(() => device.free(address)).code).toBe(ErrorCode.argument);
  });
});

describe("in a process of its own", () => {
  test("what is not disposed of is reported with where it was made", async () => {
    const { exitCode, stderr } = await runChild(
      `
      import { Device, Tensor, Event } from "./lib/tensor";
      const device = new Device();
      function leak() { Tensor.empty(device, [3, 5]); new Event(device); Tensor.empty(device, [7]).dispose(); }
      leak();
      for (let i = 0; i < 50 && !globalThis.done; ++i) { Bun.gc(true); await Bun.sleep(5); }
      process.exit(0);
    `,
      { DLFS_LEAKS: "1" },
    );
    expect(exitCode).toBe(0);
    expect(stderr).toContain("Tensor f32 (3, 5) was not disposed of");
    expect(stderr).toContain("Event was not disposed of");
    expect(stderr).toContain("leak");
    expect(stderr).not.toContain("(7)");
  });

  test("Workers use one device at once", async () => {
    const { exitCode, signal, stdout, stderr } = await runChild(`
      import { Device, Tensor } from "./lib/tensor";
      import { writeFileSync, mkdtempSync } from "node:fs";
      const device = new Device();
      const source = \`
        import { Device, Tensor, Stream } from "${process.cwd()}/lib/tensor";
        self.onmessage = ({ data }) => {
          const device = new Device();
          const stream = new Stream(device);
          let wrong = 0;
          for (let i = 0; i < 200; ++i) {
            const x = Tensor.empty(device, [1000]);
            device.native.fill(stream.handle, x.address, 1000, 0, data + i);
            const values = x.read(stream);
            if (values[0] !== data + i || values[999] !== data + i) ++wrong;
            try { device.native.eventQuery(data); ++wrong; } catch (error) { if (!error.message.startsWith("dlfs_event_query")) ++wrong; }
            x.dispose();
          }
          stream.dispose();
          device.dispose();
          postMessage(wrong);
        };
      \`;
      const url = URL.createObjectURL(new Blob([source], { type: "application/typescript" }));
      const results = await Promise.all([1000, 2000, 3000].map((seed) => new Promise((resolve, reject) => {
        const worker = new Worker(url);
        worker.onmessage = ({ data }) => resolve(data);
        worker.onerror = (event) => reject(new Error(event.message));
        worker.postMessage(seed);
      })));
      console.log(results.join());
      process.exit(0);
    `);
    expect({ exitCode, signal, stdout: stdout.trim() }, stderr).toEqual({ exitCode: 0, signal: null, stdout: "0,0,0" });
  });

  test("it ends normally with work in flight and nothing disposed of", async () => {
    const { exitCode, signal } = await runChild(`
      import { Device, Tensor } from "./lib/tensor";
      const device = new Device();
      const x = Tensor.zeros(device, [1 << 20]);
      for (let i = 0; i < 50; ++i) device.native.fill(device.stream.handle, x.address, x.size, 0, i);
    `);
    expect({ exitCode, signal }).toEqual({ exitCode: 0, signal: null });
  });
});
