/** Models whose engines are pretended (children/fake-engine.ts), so that tests can make them do anything, at once. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { ModelRepository, type ModelRepositoryOptions, type ServiceError } from "../../lib/service";

/** What a pretended engine does. */
export interface FakeModel {
  maxBatch?: number;
  loadMs?: number;
  /** Of a batch. */
  answerMs?: number;
  /** How many of its processes crash before they have loaded. */
  crashes?: number;
  /** The code of the error that loading ends with. */
  fails?: number;
  /** The code of the error of Deed.noMemory. */
  memoryCode?: number;
}

/** What becomes of a batch, by the first byte of one of its images; images with others are answered. */
export const Deed = { crash: 251, hang: 252, deviceError: 253, noMemory: 254, slow: 255 } as const;

export function writeFake(path: string, model: FakeModel = {}): string {
  writeFileSync(path, JSON.stringify(model));
  return path;
}

/** An image that begins with this byte. */
export function image(first: number, bytes = 1): Uint8Array {
  const data = new Uint8Array(bytes);
  data[0] = first;
  return data;
}

const program = join(import.meta.dir, "children/fake-engine.ts");
const backoff = { firstMs: 10, mostMs: 40, stableMs: 60_000 };

export function openFakes(options: ModelRepositoryOptions): Promise<ModelRepository> {
  return ModelRepository.open({ program, backoff, ...options, config: { sharedMemory: 1, ...options.config } });
}

/** What a promise is rejected with. */
export function errorOf(promise: Promise<unknown>): Promise<ServiceError> {
  return promise.then(
    (value) => Promise.reject(new Error(`it was expected to fail, and gave ${JSON.stringify(value)}`)),
    (error: ServiceError) => error,
  );
}

/** Lets what was asked for be given to the engines. */
export async function turn(): Promise<void> {
  for (let i = 0; i < 2; i++) await new Promise((resolve) => setImmediate(resolve));
}

/** Waits until something holds. */
export async function eventually(condition: () => boolean): Promise<void> {
  while (!condition()) await Bun.sleep(2);
}
