/**
 * Detects objects on many images with a trained model; `dlfs predict` as a program to start from.
 *
 *   bun run examples/batch_inference.ts MODEL SOURCE OUT
 *
 * MODEL is a model file (`dlfs export`), a checkpoint or the folder of a run; SOURCE a folder of images, a bucket's prefix
 * (gs://BUCKET/shots), a pattern, a list, a COCO annotation file, or a video. OUT gets predictions.dlpr, which a second call goes on with,
 * and predictions.jsonl.
 */
import { DlfsError, Engine, latestPredictions, listImages, runBatchInference, stopOnSignals } from "dlfs";

async function main([model, source, out]: string[]): Promise<number> {
  if (model === undefined || source === undefined || out === undefined) {
    console.error("usage: bun run examples/batch_inference.ts MODEL SOURCE OUT");
    return 2;
  }
  const list = await listImages(source);
  console.log(list.description);

  // Reads the model, folds its normalization, plans its convolutions, and runs each batch size once.
  await using engine = await Engine.load(model);

  // Files are read, decoded and detected on at the same time. Ctrl-C ends behind the batch under way.
  using stop = stopOnSignals();
  const result = await runBatchInference({ engine, list, out, formats: ["jsonl"], signal: stop.signal });
  const { images, seconds, failures, path } = result;
  console.log(`${images} images in ${seconds.toFixed(1)} s; ${failures.length} could not be used; ${path}`);

  // How often each class was found with some certainty.
  const counts = new Map<string, number>();
  for await (const { scores, labels } of latestPredictions(path)) {
    for (const [i, score] of scores.entries()) {
      const name = engine.classes[labels[i] as number] as string;
      if (score >= 0.5) counts.set(name, (counts.get(name) ?? 0) + 1);
    }
  }
  for (const [name, count] of [...counts].sort(([, a], [, b]) => b - a)) console.log(`${name}: ${count}`);
  return result.interrupted ? stop.exitStatus : 0;
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof DlfsError)) throw error;
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
}
