/** Maps the shared memory that it was given as file 3, and takes turns with its parent in writing to it. */
import { mapShared } from "../../../lib/service/shared-memory";

const bytes = mapShared(3);
const words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
process.send?.({ length: bytes.length });
// Nothing is said but through the memory: odd numbers are the parent's.
while (Atomics.load(words, 0) !== 99) {
  const value = Atomics.load(words, 0);
  if (value % 2 === 1) {
    words[words.length - 1] = (words[words.length - 1] as number) * 2;
    Atomics.store(words, 0, value + 1);
  }
  await Bun.sleep(0);
}
process.exit(7);
