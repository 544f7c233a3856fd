/** Writes checkpoints of a run on a disk that has room for few: FOLDER. Prints what is there after each, and what was said. */
import { CheckpointStore } from "../../lib/formats";
import { smallMetadata } from "./sample";

const [folder = ""] = process.argv.slice(2);
const said: string[] = [];
const store = new CheckpointStore(folder, { keepLast: 9, warn: (message) => void said.push(message) });
const best = { name: "AP", value: 0.5, iteration: 1 };
for (let iteration = 1; iteration <= 6; iteration++) {
  const data = new Uint8Array(60_000).fill(iteration);
  const tensors = () => [{ name: "x", dtype: "u8" as const, shape: [data.length], data }];
  await store.save({ ...smallMetadata(iteration), best }, tensors);
  console.log((await store.list()).map((stored) => stored.iteration).join(" "));
}
for (const message of said) console.log(message);
// What cannot be had by removing others is an error, and leaves them alone.
const large = new Uint8Array(200_000);
const error = await store
  .save({ ...smallMetadata(7), best }, [{ name: "x", dtype: "u8", shape: [large.length], data: large }])
  .catch((reason: unknown) => reason);
console.log(String(error));
await using checkpoint = (await store.latest())!.checkpoint;
console.log(`latest ${checkpoint.metadata.iteration}: ${(await checkpoint.read("x"))[0]}`);
