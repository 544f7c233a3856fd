/** The batches of a training, and what evaluates it. */
import type { ProcessGroup } from "../../distributed";
import { type DetectionModel, modelFromConfig } from "../../models";
import { Stream } from "../../tensor";
import type { TrainConfig } from "../config/train-config";
import { Evaluator } from "../evaluator";
import { evaluatedSplit, type Reading, type Records, trainingFeed, validationFeed } from "./data-feeds";

/** What batches are made of, and what is trained and measured with them. */
export type Sources = Omit<Reading, "config" | "group"> & {
  model: DetectionModel;
  records: Records | null;
  group?: ProcessGroup;
};

/** Batches for training and evaluation, and what evaluates; nothing where there is no split to evaluate on. */
export function openFeeds(config: TrainConfig, { model, records, ...rest }: Sources, owned: AsyncDisposableStack) {
  const reading: Reading = { ...rest, config };
  const feed = trainingFeed(reading, records, owned);
  const validation = validationFeed(reading, records, owned);
  const evaluated = evaluatedSplit(config);
  if (!validation || !evaluated) return { feed, evaluator: null, evaluated: null };
  const { store } = rest.dataset;
  const images = { loader: validation.loader, decoder: validation.images, group: rest.group };
  const own = config.overlapEvaluation ? secondModel(config, model, owned) : { model };
  const evaluator = owned.use(new Evaluator({ ...own, store, ...evaluated, ...images }));
  return { feed, evaluator, evaluated };
}

/** A model of the same kind, with a stream of its own, to evaluate while the first one trains. */
function secondModel(config: TrainConfig, { device, precision }: DetectionModel, owned: AsyncDisposableStack) {
  const stream = owned.use(new Stream(device));
  return { model: owned.use(modelFromConfig(config.model).to(device, { precision })), stream };
}
