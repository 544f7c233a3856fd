/** Run folders for the dashboard's tests, as a training writes them. */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { encodeMessage, type Message, type SampleMessage } from "../../lib/formats";
import { FileSink, writeLiveFile } from "../../lib/live";
import { detectionLoss } from "../../lib/metrics";
import { createImage, fillRect, RunFolder } from "../../lib/monitor";

export { createImage, fillRect };

/** A run with `lines` lines of training, and an evaluation at each fifth part of them. */
export async function writeRun(root: string, name: string, lines: number, rate = 0.01): Promise<RunFolder> {
  const run = await RunFolder.create({ name, root, clock: () => 1_700_000_000_000 });
  await run.writeConfig({ iterations: lines * 2, classes: ["cell", "clot"] });
  for (let i = 0; i < lines; i++) {
    const losses = { classification: 1 + Math.sin(i) / 10 + 1 / (1 + rate * i), boxRegression: 0.5 };
    const speed = { imagesPerSecond: 40 + (i % 3), waitShare: 0.01 };
    run.appendMetrics({ kind: "train", iteration: i, epoch: 0, ...losses, learningRate: rate, ...speed });
    const share = Math.floor((i * 5) / lines) < Math.floor(((i + 1) * 5) / lines);
    if (share) run.appendMetrics({ kind: "evaluation", iteration: i + 1, AP: i / lines, AP50: (i + 1) / lines });
  }
  run.appendLog(`log of ${name}\nwarning: something`);
  return run;
}

export const sampleOf = (iteration: number, name: string, thumbnail?: Uint8Array): SampleMessage => ({
  ...{ iteration, time: 1, split: "val", ...(thumbnail && { thumbnail }) },
  predictions: {
    ...{ name, imageId: 7, width: 200, height: 100 },
    boxes: Float32Array.of(10, 20, 60, 80, 100, 10, 180, 90, 5, 5, 30, 30),
    scores: Float32Array.of(0.9, 0.6, 0.2),
    labels: Uint32Array.of(0, 1, 1),
  },
  truth: {
    boxes: Float64Array.of(12, 22, 58, 82),
    labels: Uint32Array.of(0),
    ids: Float64Array.of(41),
    crowd: Uint8Array.of(0),
  },
});

/** Writes samples into a run's live file, behind what is there. */
export async function writeSamples(run: string, samples: readonly SampleMessage[]): Promise<void> {
  await mkdir(join(run, "live"), { recursive: true });
  const sink = await FileSink.open(join(run, "live", "live.dlvs"));
  const log = (text: string) =>
    encodeMessage({ type: "event", value: { kind: "log", iteration: 0, time: 0, level: "info", text } });
  await sink.send([log("before"), ...samples.map((value) => encodeMessage({ type: "sample", value })), log("behind")]);
  await sink.close();
}

const SIDE = 200;

/**
 * An evaluation of `count` images, "val/0.jpg" and so on, with boxes of `classes` classes at places that depend on the number
 * alone: most are found, some with a wrong class, some twice or not at all.
 */
export async function writeEvaluation(
  run: RunFolder,
  iteration: number,
  count: number,
  classes: number,
): Promise<void> {
  await mkdir(run.evaluationsFolder, { recursive: true });
  let seed = iteration;
  const random = (): number => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return seed / 2 ** 32;
  };
  const images = function* (): Generator<Message> {
    for (let i = 0; i < count; i++) {
      const truth = Array.from({ length: 1 + (i % 4) }, () => {
        const [x, y, side] = [random() * 120, random() * 60, 8 + random() * 60];
        return {
          box: [x, y, Math.min(SIDE, x + side), Math.min(SIDE / 2, y + side)],
          label: Math.floor(random() * classes),
        };
      });
      const found = truth.flatMap(({ box, label }) => {
        if (random() < 0.15) return [];
        const wrong = random() < 0.1 ? Math.floor(random() * classes) : label;
        return [{ box: box.map((at) => at + 4 * random() - 2), label: wrong, score: 0.2 + 0.8 * random() }];
      });
      found.sort((a, b) => b.score - a.score);
      const predictions = {
        ...{ name: `val/${i}.jpg`, imageId: i + 1, width: SIDE, height: SIDE / 2 },
        boxes: Float32Array.from(found.flatMap(({ box }) => box)),
        scores: Float32Array.from(found, ({ score }) => score),
        labels: Uint32Array.from(found, ({ label }) => label),
      };
      const known = {
        boxes: Float64Array.from(truth.flatMap(({ box }) => box)),
        labels: Uint32Array.from(truth, ({ label }) => label),
        ids: Float64Array.from(truth, (_, k) => 10 * i + k),
        crowd: new Uint8Array(truth.length),
      };
      const loss = detectionLoss(predictions, known);
      yield { type: "sample", value: { iteration, time: 1, split: "val", predictions, truth: known, loss } };
    }
  };
  await writeLiveFile(run.evaluationPath(iteration), images());
}
