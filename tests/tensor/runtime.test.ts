/** Devices, arenas, pinned memory, streams, events, and captured graphs. */
import { describe, expect, test } from "bun:test";
import { ErrorCode } from "../../lib/native";
import {
  ALIGNMENT,
  Arena,
  align,
  Device,
  Event,
  outHandle,
  PinnedBuffer,
  Stream,
  Tensor,
  until,
} from "../../lib/tensor";
import { backend, missing, testDevice } from "../support/device";
import { errorOf } from "../support/errors";

const device = testDevice();
const { native } = device;

describe("Device", () => {
  test("counts what is allocated through it", () => {
    using own = new Device({ backend });
    const before = own.memory();
    const tensor = Tensor.empty(own, [1 << 18]);
    const during = own.memory();
    tensor.dispose();
    const after = own.memory();
    expect(during.allocated - before.allocated).toBeGreaterThanOrEqual(1 << 20);
    expect(after.allocated).toBe(before.allocated);
    expect(after.peak).toBeGreaterThanOrEqual(during.allocated);
    expect(during.total).toBeGreaterThanOrEqual(during.free);
  });

  test("releases its dependents before itself, the latest first", () => {
    const own = new Device({ backend });
    const released: string[] = [];
    own.onDispose(() => released.push(`first ${own.disposed}`));
    own.onDispose(() => released.push(`second ${own.disposed}`));
    own.dispose();
    expect(released).toEqual(["second false", "first false"]);
    expect(own.disposed).toBe(true);
  });

  test("memory beyond the device's is a memory error, and a smaller request works after it", () => {
    const error = errorOf(() => Tensor.empty(device, [2 ** 46]));
    expect(error.code).toBe(ErrorCode.memory);
    using x = Tensor.full(device, [10], 3);
    expect(x.read()[9]).toBe(3);
  });

  test("announces its backend once per process", () => {
    const lines: string[] = [];
    using first = new Device({ backend }, (line) => lines.push(line));
    using second = new Device({ backend }, (line) => lines.push(line));
    expect(lines.length).toBeLessThanOrEqual(1);
    for (const line of lines) expect(line).toContain(first.info.name);
    expect(second.backend).toBe(first.backend);
  });
});

describe("Arena", () => {
  test("hands out aligned blocks that do not overlap, and says when it is full", () => {
    using arena = new Arena(device, 3 * ALIGNMENT);
    const [a, b] = [arena.take(1), arena.take(ALIGNMENT + 1)];
    expect(a % ALIGNMENT).toBe(0);
    expect([a, b]).toEqual([arena.address, arena.address + ALIGNMENT]);
    expect(arena.used).toBe(3 * ALIGNMENT);
    const error = errorOf(() => arena.take(1));
    expect(error.code).toBe(ErrorCode.memory);
    expect(error.message).toBe("Arena: 1 bytes wanted, 0 of 768 left");
  });

  test.each([
    [0, 0],
    [1, 256],
    [256, 256],
    [257, 512],
  ])("align(%d) is %d", (bytes, aligned) => {
    expect(align(bytes)).toBe(aligned);
  });
});

describe("PinnedBuffer", () => {
  test("starts zeroed, is 64-byte aligned, and serves asynchronous copies", () => {
    using pinned = new PinnedBuffer(device, 1024);
    expect(pinned.address % 64).toBe(0);
    expect(pinned.bytes.every((byte) => byte === 0)).toBe(true);
    pinned.float32().set([1, 2, 3]);
    using x = Tensor.empty(device, [256]);
    native.copyToDevice(device.stream.handle, x.address, pinned.address, 1024);
    device.stream.synchronize();
    pinned.bytes.fill(0);
    native.copyToHost(device.stream.handle, pinned.address, x.address, 1024);
    device.stream.synchronize();
    expect(Array.from(pinned.float32().slice(0, 4))).toEqual([1, 2, 3, 0]);
    expect(pinned.int32().length).toBe(256);
  });
});

describe("streams and events", () => {
  test("work of one stream is done in order", () => {
    using x = Tensor.zeros(device, [4096]);
    for (let i = 1; i <= 100; ++i) native.fill(device.stream.handle, x.address, 4096, 0, i);
    expect(x.read()[4095]).toBe(100);
  });

  test("a stream waits for another's event", () => {
    using producer = new Stream(device);
    using consumer = new Stream(device);
    using event = new Event(device);
    using a = Tensor.zeros(device, [1 << 20]);
    using b = Tensor.zeros(device, [1 << 20]);
    device.stream.synchronize();
    for (let i = 1; i <= 20; ++i) native.fill(producer.handle, a.address, a.size, 0, i);
    event.record(producer);
    consumer.waitFor(event);
    native.copy(consumer.handle, b.address, a.address, b.byteLength);
    expect(b.read(consumer)[b.size - 1]).toBe(20);
  });

  test("query turns true, and done() resolves without blocking", async () => {
    using event = new Event(device);
    expect(event.query()).toBe(true); // never recorded
    using x = Tensor.zeros(device, [1 << 20]);
    native.fill(device.stream.handle, x.address, x.size, 0, 1);
    event.record(device.stream);
    await event.done();
    expect(event.query()).toBe(true);
    await device.stream.done();
    expect(device.stream.query()).toBe(true);
  });

  test("a later event is later", () => {
    using start = new Event(device);
    using middle = new Event(device);
    using end = new Event(device);
    using x = Tensor.zeros(device, [1 << 20]);
    start.record(device.stream);
    native.fill(device.stream.handle, x.address, x.size, 0, 1);
    middle.record(device.stream);
    for (let i = 0; i < 20; ++i) native.fill(device.stream.handle, x.address, x.size, 0, i);
    end.record(device.stream);
    end.synchronize();
    expect(middle.since(start)).toBeGreaterThan(0);
    expect(end.since(start)).toBeGreaterThan(middle.since(start));
  });

  test("until() asks again until the answer is yes", async () => {
    let asked = 0;
    await until(() => ++asked === 20);
    expect(asked).toBe(20);
  });

  test("destroying a stream waits for its work", () => {
    using x = Tensor.zeros(device, [1 << 20]);
    device.stream.synchronize();
    const stream = new Stream(device);
    for (let i = 1; i <= 20; ++i) native.fill(stream.handle, x.address, x.size, 0, i);
    stream.dispose();
    expect(x.read()[x.size - 1]).toBe(20);
  });
});

describe("captured graphs", () => {
  const reason = missing(device, "f32", ["graph"]);
  const captures = reason ? test.skip : test;

  function capture(stream: Stream, body: () => void): number {
    native.graphBegin(stream.handle);
    body();
    const out = outHandle();
    native.graphEnd(stream.handle, out.view);
    return out.value;
  }

  captures("calls are recorded instead of run, and launched as often as wanted", () => {
    using x = Tensor.zeros(device, [8]);
    using one = Tensor.full(device, [8], 1);
    device.stream.synchronize();
    const graph = capture(device.stream, () =>
      native.add(device.stream.handle, x.address, x.address, one.address, 8, 0, 0),
    );
    expect(x.read()[0]).toBe(0);
    for (let i = 0; i < 5; ++i) native.graphLaunch(device.stream.handle, graph);
    expect(Array.from(x.read())).toEqual(Array(8).fill(5));
    native.graphDestroy(graph);
  });

  captures("a launch keeps its place in the stream's order, on another stream of the device too", () => {
    using other = new Stream(device);
    using x = Tensor.zeros(device, [1 << 16]);
    device.stream.synchronize();
    const graph = capture(device.stream, () =>
      native.scale(device.stream.handle, x.address, x.address, null, x.size, 0, 2),
    );
    native.fill(other.handle, x.address, x.size, 0, 3);
    native.graphLaunch(other.handle, graph);
    native.graphLaunch(other.handle, graph);
    expect(x.read(other)[x.size - 1]).toBe(12);
    native.graphDestroy(graph);
  });

  captures("scalar arguments are those of the capture", () => {
    using x = Tensor.zeros(device, [4]);
    device.stream.synchronize();
    let value = 7;
    const graph = capture(device.stream, () => native.fill(device.stream.handle, x.address, 4, 0, value));
    value = 9;
    native.graphLaunch(device.stream.handle, graph);
    expect(x.read()[0]).toBe(7);
    native.graphDestroy(graph);
  });

  captures("other streams go on while one is captured", () => {
    using other = new Stream(device);
    using x = Tensor.zeros(device, [4]);
    using y = Tensor.zeros(device, [4]);
    device.stream.synchronize();
    const graph = capture(device.stream, () => {
      native.fill(device.stream.handle, x.address, 4, 0, 1);
      native.fill(other.handle, y.address, 4, 0, 2);
      other.synchronize();
    });
    expect([x.read()[0], y.read()[0]]).toEqual([0, 2]);
    native.graphDestroy(graph);
  });

  captures("synchronising calls are refused during capture; what went wrong is reported at its end", () => {
    using x = Tensor.zeros(device, [4]);
    using stream = new Stream(device);
    device.stream.synchronize();
    native.graphBegin(stream.handle);
    const host = new Uint8Array(16);
    expect(errorOf(() => native.downloadSync(stream.handle, host, x.address, 16)).code).toBeLessThan(0);
    errorOf(() => native.graphEnd(stream.handle, outHandle().view));
    native.fill(stream.handle, x.address, 4, 0, 5);
    expect(x.read(stream)[0]).toBe(5);
  });

  captures("ending without a beginning, and beginning twice, are errors", () => {
    using stream = new Stream(device);
    expect(errorOf(() => native.graphEnd(stream.handle, outHandle().view)).message).toContain("dlfs_graph_end");
    native.graphBegin(stream.handle);
    expect(errorOf(() => native.graphBegin(stream.handle)).message).toContain("dlfs_graph_begin");
  });

  captures("an empty capture can be launched", () => {
    const graph = capture(device.stream, () => {});
    native.graphLaunch(device.stream.handle, graph);
    device.stream.synchronize();
    native.graphDestroy(graph);
  });

  captures("a graph destroyed while it runs is waited for", () => {
    using x = Tensor.zeros(device, [1 << 20]);
    using one = Tensor.full(device, [1 << 20], 1);
    device.stream.synchronize();
    const graph = capture(device.stream, () =>
      native.add(device.stream.handle, x.address, x.address, one.address, x.size, 0, 0),
    );
    for (let i = 0; i < 10; ++i) native.graphLaunch(device.stream.handle, graph);
    native.graphDestroy(graph);
    expect(x.read()[x.size - 1]).toBe(10);
  });
});
