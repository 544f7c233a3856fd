/** Memory shared with a child: both see what the other writes, it has no name, and its slots never overlap. */
import { expect, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
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
    expect.stringMatching(/^shared memory of 4096 bytes is in .*none has no room for it \(ENOENT/),
  ]);
  expect(readdirSync(folder)).toEqual([]);
  const refused = SharedMemory.create(4096, { folders: [none] });
  await expect(refused).rejects.toThrow("cannot have 4096 bytes of shared memory");
  memory[Symbol.dispose]();
  expect(() => memory.bytes).toThrow("used after dispose()");
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
