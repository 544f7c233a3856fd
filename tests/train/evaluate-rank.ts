/** One rank of train-ranks.test.ts: DATASET. Evaluates a model of random weights on its share; rank 0 prints what it measured. */
import { CocoDataLoader, DeviceBatchDecoder, DeviceImageCodec, loadDataset, Normalize, Resize } from "../../lib/data";
import { deviceOfRank, ProcessGroup, ranksFromEnvironment } from "../../lib/distributed";
import { CompactDetector } from "../../lib/models";
import { Device } from "../../lib/tensor";
import { Evaluator } from "../../lib/train";

const [folder = ""] = process.argv.slice(2);
const ranks = ranksFromEnvironment()!;
const group = await ProcessGroup.join({ ranks });
await group.run(async () => {
  using device = new Device({ ...deviceOfRank(ranks, process.env.DLFS_BACKEND ?? "cpu"), deterministic: true });
  using dataset = await loadDataset(folder, {
    codec: new DeviceImageCodec(device),
    store: ":memory:",
    progress: () => {},
  });
  using model = new CompactDetector({ classes: 2, width: 4, headConvs: 1 });
  model.to(device, { seed: 5 });
  const preprocessing = [new Resize(), new Normalize()];
  using decoder = new DeviceBatchDecoder(device, { batchSize: 2, height: 64, width: 64, preprocessing });
  const { store, source } = dataset;
  const place = { rank: ranks.rank, ranks: ranks.world };
  const options = { store, source, decoder, batchSize: 2, size: [64, 64] as const, split: "val2017", shuffle: false };
  await using loader = new CocoDataLoader({ ...options, ...place, preprocessing });
  using evaluator = new Evaluator({ model, store, split: "val2017", loader, decoder, group });
  const { result, detections } = await evaluator.evaluate();
  const hash = Bun.hash(JSON.stringify(detections)).toString(16);
  if (ranks.rank === 0) console.log(JSON.stringify({ stats: result.stats, images: detections.length, hash }));
});
process.exit(0);
