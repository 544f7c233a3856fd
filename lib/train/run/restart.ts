import { join } from "node:path";
import { restartNote } from "../../distributed";
import { CheckpointStore } from "../../formats";

/**
 * The arguments of a training that a launcher has started again: go on from its last checkpoint, in the run folder that an earlier
 * start has noted. Null at the first start, and where there was no checkpoint yet.
 */
export async function restartArguments(): Promise<string[] | null> {
  const run = restartNote();
  if (run === null) return null;
  const latest = await new CheckpointStore(join(run, "checkpoints")).latest();
  await latest?.checkpoint.close();
  return latest ? ["--resume", run] : null;
}
