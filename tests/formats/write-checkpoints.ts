/**
 * Run by tests in a process of its own: saves `count` checkpoints of `megabytes` each in `folder`. In the middle of
 * iteration `stopAt` it prints "stopped" and waits to be killed. A failed save prints its error and exits with 3.
 *
 *   bun write-checkpoints.ts FOLDER MEGABYTES FIRST_ITERATION COUNT [STOP_AT]
 */
import { CheckpointStore } from "../../lib/formats/index";
import { DlfsError } from "../../lib/native/error";
import { smallMetadata } from "./sample";

const folder = process.argv[2]!;
const [megabytes, first, count, stopAt] = process.argv.slice(3).map(Number) as [number, number, number, number?];
const store = new CheckpointStore(folder, { keepLast: 2 });
const data = new Uint8Array(1024 * 1024);

async function* tensors(iteration: number) {
  for (let i = 0; i < megabytes; i++) {
    if (iteration === stopAt && i === megabytes / 2) {
      console.log("stopped");
      await Bun.sleep(1e9);
    }
    data.fill((iteration + i) & 0xff);
    yield { name: `tensor${i}`, dtype: "u8" as const, shape: [data.length], data };
  }
}

try {
  for (let iteration = first; iteration < first + count; iteration++) {
    await store.save(smallMetadata(iteration), tensors(iteration));
    console.log(`saved ${iteration}`);
  }
} catch (error) {
  if (!(error instanceof DlfsError)) throw error;
  console.log(`failed ${error.code} ${error.message}`);
  process.exit(3);
}
