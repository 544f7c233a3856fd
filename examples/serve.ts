/**
 * Serves a trained model over HTTP; `dlfs serve` as a program to start from.
 *
 *   bun run examples/serve.ts MODEL [PORT]
 *
 * MODEL is a model file (`dlfs export`), a checkpoint, the folder of a run, or a folder of models. Then
 *
 *   curl --data-binary @photo.jpg http://127.0.0.1:8000/predict
 *
 * answers with boxes, http://127.0.0.1:8000/ is a page to try it on, and clients of the Open Inference Protocol, such as Triton's,
 * find it under /v2. docs/service.md has everything else.
 */
import { createLog, DlfsError, InferenceService, ModelRepository, serviceLogOf, stopOnSignals } from "dlfs";

async function main([model, port = "8000"]: string[]): Promise<number> {
  if (model === undefined) {
    console.error("usage: bun run examples/serve.ts MODEL [PORT]");
    return 2;
  }
  // JSON lines on standard output: one for each request, and what happens to models.
  using log = createLog("info");

  // Each model runs in a process of its own. What is waiting when it is done with a batch becomes the next one.
  await using repository = await ModelRepository.open({
    models: [model],
    config: { batching: { maxDelayMs: 0, maxQueue: 256 } },
    log: serviceLogOf(log),
  });

  // On this machine alone (see `hostname`), and not ready until models have warmed up.
  await using service = new InferenceService(repository, {
    port: Number(port),
    starting: true,
    log,
    limits: { maxBodyBytes: 16 * 2 ** 20, maxConcurrent: 256 },
  });
  const errors = await repository.loadAll();
  for (const { message } of errors.values()) console.error(message);
  if (errors.size > 0) return 1;
  service.started();
  console.log(`ready: ${service.url}`);

  // Ctrl-C: what is under way is answered, and nothing more.
  using stop = stopOnSignals();
  await new Promise<void>((done) => stop.signal.addEventListener("abort", () => done()));
  await service.stop(10);
  return 0;
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof DlfsError)) throw error;
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
}
