import { basename, join } from "node:path";
import packageJson from "../../../package.json";
import type { DetectionModel } from "../../models";
import { MetricsServer, type RunFolder, TensorBoardWriter } from "../../monitor";
import type { TrainConfig } from "../config/train-config";
import type { TrainerObserver } from "../observers";
import { TrainingMetrics } from "../training-metrics";
import { WeightHistograms } from "../weight-histograms";
import { evaluatedSplit } from "./data-feeds";

/** What is watched. */
interface Watched {
  readonly config: TrainConfig;
  readonly run: RunFolder;
  readonly model: DetectionModel;
  /** Iterations done before. */
  readonly start: number;
  readonly memory: () => number;
  readonly skipped: () => number;
}

/** Gives out a training's figures at the address that its configuration names; none of them before `metrics` is there. */
export class MetricsEndpoint implements Disposable {
  metrics: TrainingMetrics | null = null;
  readonly #server: MetricsServer | null;

  constructor({ metricsPort: port, metricsHost: hostname }: TrainConfig) {
    const collect = () => this.metrics?.collect() ?? [];
    this.#server = port === undefined ? null : new MetricsServer({ port, hostname, collect });
  }

  /** null where no port was asked for. */
  get url(): string | null {
    return this.#server?.url ?? null;
  }

  [Symbol.dispose](): void {
    this.#server?.[Symbol.dispose]();
  }
}

/** What shows a training besides the terminal and the run folder, as its configuration asks for. */
export function watching(watched: Watched, endpoint: MetricsEndpoint, log: (line: string) => void) {
  const { config, run, model, start, memory, skipped } = watched;
  const { iterations, precision } = config;
  const observers: TrainerObserver[] = [];
  let tensorboard: TensorBoardWriter | undefined;
  if (config.tensorboard) {
    tensorboard = new TensorBoardWriter(join(run.path, "tensorboard"), { from: start });
    tensorboard.text(start, "config", `\`\`\`json\n${JSON.stringify(config, null, 2)}\n\`\`\``);
    observers.push(new WeightHistograms(model, tensorboard, log, evaluatedSplit(config) ? "evaluation" : "checkpoint"));
    log(`tensorboard: tensorboard --logdir ${run.path}`);
  }
  if (endpoint.url !== null) {
    const { backend, info: device } = model.device;
    const shown = { run: basename(run.path), model: model.constructor.name, precision, backend, device: device.name };
    const info = { ...shown, version: packageJson.version };
    endpoint.metrics = new TrainingMetrics({ info, iterations, start, memory, skipped });
    observers.push(endpoint.metrics);
    log(`metrics: ${endpoint.url}`);
  }
  return { observers, tensorboard };
}
