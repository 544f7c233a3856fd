/** The largest batch of a training, on one rank or several. */
import type { ProcessGroup } from "../../distributed";
import { convolutionTuning, type TuningOptions, tuneConvolutions } from "../../graph";
import { formatBytes } from "../../layers/summary";
import { DlfsError, ErrorCode } from "../../native";
import { largestBatch } from "../batch-size";
import type { TrainConfig } from "../config/train-config";
import { autotune } from "../convolution-tuning";
import type { DryRun } from "../dry-run";
import { keepWeights } from "../keep-weights";
import { TrainStep } from "../train-step";
import { Trainer } from "../trainer";
import { openFeeds, type Sources } from "./open-feeds";
import { trainerOptions } from "./trainer-options";

/**
 * The most images that a batch may have by the devices' memory, found by trying; the model's weights stay as they are. Of several
 * ranks each tries its share by itself, all at the same time, and the one with the least memory left decides; it is the same on all
 * of them, and what they find is a multiple of their number.
 *
 * @param configOf the configuration for a batch
 */
export async function findBatch(
  { recompute, accumulate, size, overfit }: TrainConfig,
  sources: Sources,
  configOf: (batch: number) => TrainConfig,
  log: (line: string) => void,
): Promise<number> {
  const { model, device, dataset, group } = sources;
  const world = group?.world ?? 1;
  const restore = keepWeights(model);
  autotune(device);
  const tuning = convolutionTuning(device) as TuningOptions;
  let maxBoxes = 1;
  const rehearse = async (share: number): Promise<DryRun> => {
    await using owned = new AsyncDisposableStack();
    owned.defer(restore);
    tuneConvolutions(device, share <= 2 ? 0 : tuning); // one and two are only tried for what they take
    owned.defer(() => tuneConvolutions(device, tuning));
    const config = configOf(share * world);
    const { feed, evaluator } = openFeeds(config, sources, owned);
    maxBoxes = feed.loader.maxBoxes;
    const parts = { model, loader: feed.loader, decoder: feed.images, evaluator };
    return await owned.use(new Trainer({ ...trainerOptions(config), ...parts })).dryRun();
  };
  if (group && !group.isRoot) return world * (await tryWhatIsAsked(group, rehearse));
  let arena: ((batch: number) => number) | null = null;
  const arenaOf = (share: number): number => {
    const [height, width] = size;
    arena ??= TrainStep.estimate(model, { batchSize: 2, height, width, maxBoxes, recompute, accumulate });
    return arena(share);
  };
  const most = Math.max(1, Math.floor((overfit ?? dataset.train.usable / 16) / accumulate / world));
  const found = await largestBatch({
    arena: arenaOf,
    rehearse: group ? (share) => tryOnAll(group, share, rehearse) : rehearse,
    most: Math.min(most, 1024),
  });
  await group?.exchangeJson<Asked>(ASKED, { batch: found.batch });
  const { learningRate } = configOf(found.batch * world);
  const { left, total } = found.dryRun.memory;
  const tried = found.tried.map(({ batch, left }) => `${batch}${left === null ? ": too many" : ""}`).join(", ");
  const whole = world === 1 ? "" : `${found.batch * world} images, on each of ${world} ranks `;
  log(
    `batch auto: ${whole}${found.batch} images of at most ${most}, ${formatBytes(left)} of ${formatBytes(total)} left; ` +
      `learning rate ${learningRate} (tried ${tried})`,
  );
  return found.batch * world;
}

/** What rank 0 asks of the others: to try so many images, or to take so many. */
type Asked = { readonly share: number } | { readonly batch: number };
/** What came of a trial: the memory that it took, or why there was not enough. */
type Tried = Pick<DryRun, "memory"> | { readonly lacking: string };

const ASKED = "batch to try";
const TRIED = "batch tried";

/** On ranks but 0: tries what rank 0 asks for, until it knows how many images are to be taken. */
async function tryWhatIsAsked(group: ProcessGroup, rehearse: (share: number) => Promise<DryRun>): Promise<number> {
  for (;;) {
    const [asked] = (await group.exchangeJson<Asked | null>(ASKED, null)) as [Asked];
    if ("batch" in asked) return asked.batch;
    await trial(group, asked.share, rehearse);
  }
}

/** On rank 0: tries so many images on all ranks; what it takes where the least memory is left. */
async function tryOnAll(
  group: ProcessGroup,
  share: number,
  rehearse: (share: number) => Promise<DryRun>,
): Promise<DryRun> {
  await group.exchangeJson<Asked>(ASKED, { share });
  const { own, all } = await trial(group, share, rehearse);
  for (const [rank, tried] of all.entries()) {
    if (!("lacking" in tried)) continue;
    throw new DlfsError(ErrorCode.memory, "batch auto", `${share} images on rank ${rank}: ${tried.lacking}`);
  }
  const memories = all.flatMap((tried) => ("memory" in tried ? [tried.memory] : []));
  const memory = memories.reduce((least, other) => (other.left < least.left ? other : least));
  return { ...(own as DryRun), memory };
}

/** A trial on this rank, beside the others'. What is no lack of memory is an error at once, and ends all. */
async function trial(group: ProcessGroup, share: number, rehearse: (share: number) => Promise<DryRun>) {
  let own: DryRun | null = null;
  let tried: Tried;
  try {
    own = await rehearse(share);
    tried = { memory: own.memory };
  } catch (error) {
    if (!(error instanceof DlfsError) || error.code !== ErrorCode.memory) throw error;
    tried = { lacking: error.message };
  }
  return { own, all: await group.exchangeJson<Tried>(TRIED, tried) };
}
