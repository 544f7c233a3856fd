/** A server without HTTP: loads the model that it is given, says the process id of its engine, and goes on until it is ended. */
import { ModelRepository } from "../../../lib/service";

const [path = "", program] = process.argv.slice(2);
const repository = await ModelRepository.open({ models: [`m=${path}`], program, config: { sharedMemory: 1 } });
await repository.load("m");
process.on("SIGINT", async () => {
  // Whoever is in the same process group has heard it, too: what is asked now is answered all the same.
  const { results } = await repository.infer("m", undefined, { images: [new Uint8Array([7])] });
  await repository.close();
  console.log(`answered ${results.length}`);
  process.exit(0);
});
console.log(repository.statistics()[0]?.engines[0]?.pid);
setInterval(() => {}, 1000);
