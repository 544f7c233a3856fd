/** Memory shared with a child: both see what the other writes, it has no name, and its slots never overlap. */
import { expect, test } from "bun:test";
import { ftruncateSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SharedMemory } from "../../lib/service/shared-memory";
import { SharedSlots } from "../../lib/service/shared-slots";

test("what parent and child write is seen by the other, with no call in between, and no file can be found", async () => {
  using memory = await SharedMemory.create(1 << 20);
  const words = new Int32Array(memory.bytes.buffer);
  const ready = Promise.withResolvers<unknown>();
  const child = Bun.spawn([process.execPath, join(import.meta.dir, "children/shared-memory.ts")], {
    stdio: ["ignore", "inherit", "inherit", memory.descriptor],
    serialization: "json",
    ipc: (message) => ready.resolve(message),
  });
  expect(await ready.promise).toEqual({ length: 1 << 20 });
  words[words.length - 1] = 21;
  for (let turn = 1; turn < 20; turn += 2) {
    Atomics.store(words, 0, turn);
    while (Atomics.load(words, 0) === turn) await Bun.sleep(0);
    expect(words[0]).toBe(turn + 1);
  }
  expect(words[words.length - 1]).toBe(21 * 2 ** 10);
  expect(readdirSync("/dev/shm").filter((name) => name.startsWith("dlfs-shared-"))).toEqual([]);
  Atomics.store(words, 0, 99);
  expect(await child.exited).toBe(7);
});

test("a folder that cannot hold it is passed by with a warning; where none can it is an error that says why", async () => {
  const folder = mkdtempSync(join(tmpdir(), "dlfs-shared-test-"));
  const none = join(folder, "none");
  const warnings: string[] = [];
  using memory = await SharedMemory.create(4096, {
    folders: [none, folder],
    warn: (message) => warnings.push(message),
  });
  expect(memory.folder).toBe(folder);
  memory.bytes[4095] = 5;
  expect(warnings).toEqual([
    expect.stringMatching(/^shared memory of 4096 bytes, of 4096, is in .*none has no room for 4096 \(ENOENT/),
  ]);
  expect(readdirSync(folder)).toEqual([]);
  const refused = SharedMemory.create(4096, { folders: [none] });
  await expect(refused).rejects.toThrow("cannot have 4096 bytes of shared memory");
  memory[Symbol.dispose]();
  expect(() => memory.bytes).toThrow("used after dispose()");
  rmSync(folder, { recursive: true });
});

test("where there is little room it is smaller, before another folder is taken, as far as it may be", async () => {
  const folder = mkdtempSync(join(tmpdir(), "dlfs-shared-test-"));
  const warnings: string[] = [];
  const tried: number[] = [];
  const options = {
    ...{ folders: [folder], warn: (message: string) => warnings.push(message) },
    reserve: async (file: number, bytes: number) => {
      tried.push(bytes);
      if (bytes > 5000) throw new Error("ENOSPC: no space left on device, write");
      ftruncateSync(file, bytes);
    },
  };
  using memory = await SharedMemory.create(16384, { ...options, leastBytes: 4096 });
  expect({ tried, bytes: memory.byteLength }).toEqual({ tried: [16384, 8192, 4096], bytes: 4096 });
  expect(warnings.join()).toContain("shared memory of 4096 bytes, of 16384, is in");
  const refused = SharedMemory.create(16384, { ...options, leastBytes: 8192 });
  await expect(refused).rejects.toThrow("has no room for 8192 (ENOSPC: no space left on device, write)");
  rmSync(folder, { recursive: true });
});

test("slots never overlap, lie at multiples of 64, and leave one piece when all are given back", () => {
  const slots = new SharedSlots(64 * 100);
  let seed = 7;
  const random = (below: number) => {
    seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
    return (seed >> 8) % below;
  };
  const owner = new Int32Array(100).fill(-1);
  const taken: { at: number; size: number }[] = [];
  let refused = 0;
  for (let step = 0; step < 3000; step++) {
    if (random(2) === 0 || taken.length === 0) {
      const bytes = random(64 * 30);
      const at = slots.take(bytes);
      const size = SharedSlots.sizeOf(bytes);
      if (at < 0) {
        refused++;
        continue;
      }
      expect(at % 64).toBe(0);
      const cells = owner.subarray(at / 64, (at + size) / 64);
      expect(cells.length * 64).toBe(size);
      expect(cells.every((cell) => cell === -1)).toBe(true);
      cells.fill(step);
      taken.push({ at, size });
    } else {
      const [{ at, size }] = taken.splice(random(taken.length), 1) as [{ at: number; size: number }];
      owner.fill(-1, at / 64, (at + size) / 64);
      slots.release(at);
    }
    expect(slots.used).toBe(taken.reduce((sum, { size }) => sum + size, 0));
  }
  expect(refused).toBeGreaterThan(10);
  for (const { at } of taken) slots.release(at);
  expect(slots.used).toBe(0);
  expect(slots.take(64 * 100)).toBe(0);
  expect(slots.take(1)).toBe(-1);
  expect(() => slots.release(64)).toThrow("no slot begins at 64");
});
