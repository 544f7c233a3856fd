/** A model side that answers at once, or when it is told to: what the HTTP side asks of it is kept. */
import {
  type InferenceBackend,
  type InferenceReply,
  type InferenceRequest,
  type ModelDescription,
  type ModelStatistics,
  ServiceError,
  type ServiceResult,
} from "../../lib/service/types";

export const description = (more: Partial<ModelDescription> = {}): ModelDescription => ({
  ...{ name: "shapes", version: "1", state: "ready", reason: "", classes: ["red", "green"], size: [64, 96] },
  ...{ precision: "fp32", backend: "cpu", device: "a processor", maxBatch: 4, priorityLevels: 2 },
  ...more,
});

export const result = (more: Partial<ServiceResult> = {}): ServiceResult => ({
  ...{ width: 20, height: 10, error: null },
  detections: [
    { box: [1, 2, 3.5, 4.25], score: 0.75, label: 1 },
    { box: [5, 6, 7, 8], score: 0.5, label: 0 },
  ],
  ...more,
});

export class FakeBackend implements InferenceBackend {
  /** What was asked for, newest last. */
  readonly calls: { name: string; version: string | undefined; request: InferenceRequest }[] = [];
  list: ModelDescription[] = [description()];
  stats: ModelStatistics[] = [];
  /** Answers a request; default: a result for each image. */
  answer: (request: InferenceRequest) => InferenceReply | Promise<InferenceReply> = (request) => this.reply(request);
  readonly loads: string[] = [];

  reply({ images }: InferenceRequest, results: ServiceResult[] = images.map(() => result())): InferenceReply {
    const { name, version } = this.list[0] as ModelDescription;
    const times = { queue: 1, compute: 10, stages: { transfer: 1, decode: 2, infer: 3, postprocess: 4 } };
    return { model: name, version, results, times, batchSize: images.length };
  }

  models(): readonly ModelDescription[] {
    return this.list;
  }

  describe(name: string, version?: string): ModelDescription {
    const named = this.list.filter((model) => model.name === name);
    if (named.length === 0) throw new ServiceError(404, `unknown model ${JSON.stringify(name)}`);
    const found = version === undefined ? named.at(-1) : named.find((model) => model.version === version);
    if (!found) throw new ServiceError(404, `model ${JSON.stringify(name)} has no version ${JSON.stringify(version)}`);
    return found;
  }

  async infer(name: string, version: string | undefined, request: InferenceRequest): Promise<InferenceReply> {
    this.describe(name, version);
    this.calls.push({ name, version, request });
    return await this.answer(request);
  }

  async load(name: string): Promise<void> {
    this.describe(name);
    this.loads.push(`load ${name}`);
  }

  async unload(name: string): Promise<void> {
    this.describe(name);
    this.loads.push(`unload ${name}`);
  }

  statistics(): readonly ModelStatistics[] {
    return this.stats;
  }

  async close(): Promise<void> {
    this.loads.push("close");
  }
}
