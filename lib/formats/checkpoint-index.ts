/** The index of a checkpoint (schemas/checkpoint.fbs) to and from plain objects. */
import { Builder } from "flatbuffers";
import { DlfsError, ErrorCode } from "../native/error";
import { alignUp, damaged, SECTION_ALIGNMENT } from "./aligned-file";
import { CheckedByteBuffer } from "./checked-buffer";
import type {
  BestMetric,
  CheckpointEntry,
  CheckpointMetadata,
  CheckpointTensor,
  CheckpointVersions,
  LoaderPosition,
  MetricsRecord,
  RandomCounter,
  ScheduleState,
  StoredDType,
} from "./checkpoint-types";
import * as fb from "./generated/checkpoint_generated";

const DTYPES: Record<StoredDType, { code: fb.DType; size: number }> = {
  f32: { code: fb.DType.F32, size: 4 },
  bf16: { code: fb.DType.BF16, size: 2 },
  f16: { code: fb.DType.F16, size: 2 },
  i32: { code: fb.DType.I32, size: 4 },
  u8: { code: fb.DType.U8, size: 1 },
  i64: { code: fb.DType.I64, size: 8 },
};

/** The largest rank that a tensor in a checkpoint may have. */
const MAX_RANK = 16;

/** Bytes of a tensor; Infinity where that is no exact number. */
export function byteLength({ dtype, shape }: CheckpointTensor): number {
  const bytes = shape.reduce((product, size) => product * size, DTYPES[dtype].size);
  return Number.isSafeInteger(bytes) ? bytes : Infinity;
}

/** Refuses a tensor that cannot be written, naming the file and the tensor. */
export function checkTensor(path: string, tensor: CheckpointTensor, length: number): void {
  const fail = (message: string) => {
    throw new DlfsError(ErrorCode.argument, path, `tensor "${tensor.name}": ${message}`);
  };
  if (tensor.name === "") fail("its name is empty");
  if (!Object.hasOwn(DTYPES, tensor.dtype)) fail(`unknown dtype "${tensor.dtype}"`);
  const shape = `[${tensor.shape.join(", ")}]`;
  if (tensor.shape.length > MAX_RANK) fail(`shape ${shape} has more than ${MAX_RANK} dimensions`);
  if (!tensor.shape.every((size) => Number.isSafeInteger(size) && size >= 0)) {
    fail(`shape ${shape} must be of whole numbers from 0`);
  }
  const expected = byteLength(tensor);
  if (expected !== length) fail(`${tensor.dtype} ${shape} has ${expected} bytes, got ${length}`);
}

/** @param path named in messages */
export function encodeIndex(
  path: string,
  metadata: CheckpointMetadata,
  tensors: readonly CheckpointEntry[],
): Uint8Array {
  const builder = new Builder(64 * 1024);
  // Zeros are written too: an absent field then means that an older dlfs did not know it.
  builder.forceDefaults(true);
  const encoder = new IndexEncoder(path, builder);
  fb.Checkpoint.finishCheckpointBuffer(builder, encoder.checkpoint(metadata, tensors));
  return builder.asUint8Array();
}

/** Children before parents: flatbuffers build no table inside of another. */
class IndexEncoder {
  constructor(
    private readonly path: string,
    private readonly b: Builder,
  ) {}

  checkpoint(metadata: CheckpointMetadata, entries: readonly CheckpointEntry[]): number {
    const { b } = this;
    const json = JSON.stringify(metadata.config);
    if (json === undefined) this.fail("config", "JSON cannot hold it");
    const config = b.createString(json);
    const versions = this.versions(metadata.versions);
    const random = fb.Checkpoint.createRandomVector(
      b,
      metadata.random.map((entry, i) => this.random(entry, `random[${i}]`)),
    );
    const loader = metadata.loader && this.loader(metadata.loader);
    const schedule = metadata.schedule && this.schedule(metadata.schedule);
    const history = fb.Checkpoint.createHistoryVector(
      b,
      metadata.history.map((entry, i) => this.metrics(entry, `history[${i}]`)),
    );
    const best = metadata.best && this.best(metadata.best);
    const picks = fb.Checkpoint.createConvPicksVector(
      b,
      metadata.convPicks.map(({ key, value }) => this.keyValue(key, value)),
    );
    const state = fb.Checkpoint.createStateVector(
      b,
      Object.entries(metadata.state).map(([key, value]) => this.state(key, value)),
    );
    const tensors = fb.Checkpoint.createTensorsVector(
      b,
      entries.map((entry) => this.tensor(entry)),
    );
    fb.Checkpoint.startCheckpoint(b);
    fb.Checkpoint.addIteration(b, this.count(metadata.iteration, "iteration"));
    fb.Checkpoint.addEpoch(b, this.count(metadata.epoch, "epoch"));
    fb.Checkpoint.addCreated(b, this.count(metadata.created, "created"));
    fb.Checkpoint.addConfig(b, config);
    fb.Checkpoint.addVersions(b, versions);
    fb.Checkpoint.addRandom(b, random);
    if (loader) fb.Checkpoint.addLoader(b, loader);
    if (schedule) fb.Checkpoint.addSchedule(b, schedule);
    fb.Checkpoint.addHistory(b, history);
    if (best) fb.Checkpoint.addBest(b, best);
    fb.Checkpoint.addConvPicks(b, picks);
    fb.Checkpoint.addState(b, state);
    fb.Checkpoint.addTensors(b, tensors);
    return fb.Checkpoint.endCheckpoint(b);
  }

  private fail(field: string, message: string): never {
    throw new DlfsError(ErrorCode.argument, this.path, `metadata.${field}: ${message}`);
  }

  private count(value: number, field: string): bigint {
    if (!Number.isSafeInteger(value) || value < 0) this.fail(field, `expected a whole number from 0, got ${value}`);
    return BigInt(value);
  }

  private keyValue(key: string, value: string): number {
    return fb.KeyValue.createKeyValue(this.b, this.b.createString(key), this.b.createString(value));
  }

  private numbers(values: Record<string, number>): number[] {
    return Object.entries(values).map(([name, value]) =>
      fb.NamedNumber.createNamedNumber(this.b, this.b.createString(name), value),
    );
  }

  private versions(versions: CheckpointVersions): number {
    const { b } = this;
    const libraries = fb.Versions.createLibrariesVector(
      b,
      Object.entries(versions.libraries).map(([key, value]) => this.keyValue(key, value)),
    );
    const dlfs = b.createString(versions.dlfs);
    const bun = b.createString(versions.bun);
    return fb.Versions.createVersions(b, dlfs, bun, b.createString(versions.backend), libraries);
  }

  private random(entry: RandomCounter, field: string): number {
    const name = this.b.createString(entry.name);
    const seed = this.count(entry.seed, `${field}.seed`);
    return fb.RandomCounter.createRandomCounter(this.b, name, seed, this.count(entry.counter, `${field}.counter`));
  }

  private loader(loader: LoaderPosition): number {
    const epoch = this.count(loader.epoch, "loader.epoch");
    const position = this.count(loader.position, "loader.position");
    return fb.LoaderPosition.createLoaderPosition(this.b, epoch, position, this.count(loader.seed, "loader.seed"));
  }

  private schedule(schedule: ScheduleState): number {
    const name = this.b.createString(schedule.name);
    const values = fb.ScheduleState.createValuesVector(this.b, this.numbers(schedule.values));
    return fb.ScheduleState.createScheduleState(this.b, name, this.count(schedule.step, "schedule.step"), values);
  }

  private metrics(record: MetricsRecord, field: string): number {
    const values = fb.Metrics.createValuesVector(this.b, this.numbers(record.values));
    return fb.Metrics.createMetrics(
      this.b,
      this.b.createString(record.kind),
      this.count(record.iteration, `${field}.iteration`),
      this.count(record.epoch, `${field}.epoch`),
      this.count(record.time, `${field}.time`),
      values,
    );
  }

  private best(best: BestMetric): number {
    const name = this.b.createString(best.name);
    return fb.BestMetric.createBestMetric(this.b, name, best.value, this.count(best.iteration, "best.iteration"));
  }

  private state(key: string, value: string | Uint8Array): number {
    const { b } = this;
    const keyOffset = b.createString(key);
    const content = typeof value === "string" ? b.createString(value) : b.createByteVector(value);
    fb.StateEntry.startStateEntry(b);
    fb.StateEntry.addKey(b, keyOffset);
    if (typeof value === "string") fb.StateEntry.addText(b, content);
    else fb.StateEntry.addBytes(b, content);
    return fb.StateEntry.endStateEntry(b);
  }

  private tensor(entry: CheckpointEntry): number {
    const name = this.b.createString(entry.name);
    const shape = fb.Tensor.createShapeVector(this.b, entry.shape.map(BigInt));
    const code = DTYPES[entry.dtype].code;
    return fb.Tensor.createTensor(
      this.b,
      name,
      code,
      shape,
      BigInt(entry.offset),
      BigInt(entry.length),
      entry.checksum,
    );
  }
}

/**
 * @param path named in messages
 * @param sectionsEnd where the file's tensors end: all of them must lie before it
 * @throws DlfsError that names the field which is missing, out of range or in conflict with another
 */
export function decodeIndex(
  path: string,
  index: Uint8Array,
  sectionsEnd: number,
): { metadata: CheckpointMetadata; tensors: CheckpointEntry[] } {
  return new IndexDecoder(path, sectionsEnd).checkpoint(index);
}

class IndexDecoder {
  constructor(
    private readonly path: string,
    private readonly sectionsEnd: number,
  ) {}

  checkpoint(index: Uint8Array): { metadata: CheckpointMetadata; tensors: CheckpointEntry[] } {
    const buffer = new CheckedByteBuffer(index);
    const root = this.field("root", () => {
      if (!fb.Checkpoint.bufferHasIdentifier(buffer)) throw new RangeError("it is no checkpoint index");
      return fb.Checkpoint.getRootAsCheckpoint(buffer);
    });
    const metadata: CheckpointMetadata = {
      iteration: this.count("iteration", () => root.iteration()),
      epoch: this.count("epoch", () => root.epoch()),
      created: this.count("created", () => root.created()),
      config: this.json("config", () => root.config()),
      versions: this.versions(this.required("versions", () => root.versions())),
      random: this.list("random", () => root.randomLength(), root.random.bind(root), this.random),
      history: this.list("history", () => root.historyLength(), root.history.bind(root), this.metrics),
      convPicks: this.list("conv_picks", () => root.convPicksLength(), root.convPicks.bind(root), this.keyValue),
      state: Object.fromEntries(this.list("state", () => root.stateLength(), root.state.bind(root), this.state)),
    };
    const loader = this.field("loader", () => root.loader());
    if (loader) metadata.loader = this.loader(loader);
    const schedule = this.field("schedule", () => root.schedule());
    if (schedule) metadata.schedule = this.schedule(schedule);
    const best = this.field("best", () => root.best());
    if (best) metadata.best = this.best(best);
    const tensors = this.list("tensors", () => root.tensorsLength(), root.tensors.bind(root), this.tensor);
    this.checkPlaces(tensors);
    return { metadata, tensors };
  }

  /** Runs one read; what goes wrong inside is damage of that field. */
  private field<T>(name: string, read: () => T): T {
    try {
      return read();
    } catch (error) {
      if (error instanceof DlfsError) throw error;
      throw damaged(this.path, `index, ${name}`, (error as Error).message);
    }
  }

  private required<T>(name: string, read: () => T | null): T {
    const value = this.field(name, read);
    if (value === null) throw damaged(this.path, `index, ${name}`, "it is missing");
    return value;
  }

  private count(name: string, read: () => bigint): number {
    const value = this.field(name, read);
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw damaged(this.path, `index, ${name}`, `${value} is beyond 2^53`);
    return Number(value);
  }

  private json(name: string, read: () => string | null): unknown {
    const text = this.required(name, read);
    return this.field(name, () => JSON.parse(text) as unknown);
  }

  private list<T, R>(
    name: string,
    length: () => number,
    at: (i: number) => T | null,
    decode: (this: IndexDecoder, entry: T, name: string) => R,
  ): R[] {
    const count = this.field(name, length);
    const out: R[] = [];
    for (let i = 0; i < count; i++) {
      const entry = `${name}[${i}]`;
      out.push(
        decode.call(
          this,
          this.required(entry, () => at(i)),
          entry,
        ),
      );
    }
    return out;
  }

  private keyValue(entry: fb.KeyValue, name: string): { key: string; value: string } {
    return {
      key: this.required(`${name}.key`, () => entry.key()),
      value: this.required(`${name}.value`, () => entry.value()),
    };
  }

  private number(entry: fb.NamedNumber, name: string): [string, number] {
    return [this.required(`${name}.name`, () => entry.name()), this.field(`${name}.value`, () => entry.value())];
  }

  private versions(versions: fb.Versions): CheckpointVersions {
    const libraries = this.list(
      "versions.libraries",
      () => versions.librariesLength(),
      versions.libraries.bind(versions),
      this.keyValue,
    );
    return {
      dlfs: this.required("versions.dlfs", () => versions.dlfs()),
      bun: this.required("versions.bun", () => versions.bun()),
      backend: this.required("versions.backend", () => versions.backend()),
      libraries: Object.fromEntries(libraries.map(({ key, value }) => [key, value])),
    };
  }

  private random(entry: fb.RandomCounter, name: string): RandomCounter {
    return {
      name: this.required(`${name}.name`, () => entry.name()),
      seed: this.count(`${name}.seed`, () => entry.seed()),
      counter: this.count(`${name}.counter`, () => entry.counter()),
    };
  }

  private loader(loader: fb.LoaderPosition): LoaderPosition {
    return {
      epoch: this.count("loader.epoch", () => loader.epoch()),
      position: this.count("loader.position", () => loader.position()),
      seed: this.count("loader.seed", () => loader.seed()),
    };
  }

  private schedule(schedule: fb.ScheduleState): ScheduleState {
    const values = this.list(
      "schedule.values",
      () => schedule.valuesLength(),
      schedule.values.bind(schedule),
      this.number,
    );
    return {
      name: this.required("schedule.name", () => schedule.name()),
      step: this.count("schedule.step", () => schedule.step()),
      values: Object.fromEntries(values),
    };
  }

  private metrics(record: fb.Metrics, name: string): MetricsRecord {
    const values = this.list(`${name}.values`, () => record.valuesLength(), record.values.bind(record), this.number);
    return {
      kind: this.required(`${name}.kind`, () => record.kind()),
      iteration: this.count(`${name}.iteration`, () => record.iteration()),
      epoch: this.count(`${name}.epoch`, () => record.epoch()),
      time: this.count(`${name}.time`, () => record.time()),
      values: Object.fromEntries(values),
    };
  }

  private best(best: fb.BestMetric): BestMetric {
    return {
      name: this.required("best.name", () => best.name()),
      value: this.field("best.value", () => best.value()),
      iteration: this.count("best.iteration", () => best.iteration()),
    };
  }

  private state(entry: fb.StateEntry, name: string): [string, string | Uint8Array] {
    const key = this.required(`${name}.key`, () => entry.key());
    const text = this.field(`${name}.text`, () => entry.text());
    if (text !== null) return [key, text];
    // The length first: it is checked, the view that the generated code makes of the bytes is not.
    this.field(`${name}.bytes`, () => entry.bytesLength());
    // A copy, so that the index is not kept alive and the bytes are aligned.
    return [key, this.required(`${name}.bytes`, () => entry.bytesArray()).slice()];
  }

  private tensor(entry: fb.Tensor, place: string): CheckpointEntry {
    const name = this.required(`${place}.name`, () => entry.name());
    const at = (field: string) => `${place} "${name}" ${field}`;
    if (name === "") throw damaged(this.path, `index, ${place}.name`, "it is empty");
    const code = this.field(at("dtype"), () => entry.dtype());
    const dtype = (Object.keys(DTYPES) as StoredDType[]).find((key) => DTYPES[key].code === code);
    if (!dtype) throw damaged(this.path, `index, ${at("dtype")}`, `${code} is none of this version`);
    const rank = this.field(at("shape"), () => entry.shapeLength());
    if (rank > MAX_RANK) {
      throw damaged(this.path, `index, ${at("shape")}`, `${rank} dimensions, at most ${MAX_RANK} are possible`);
    }
    const shape: number[] = [];
    for (let i = 0; i < rank; i++) shape.push(this.count(at(`shape[${i}]`), () => entry.shape(i) ?? 0n));
    const tensor: CheckpointEntry = {
      name,
      dtype,
      shape,
      offset: this.count(at("offset"), () => entry.offset()),
      length: this.count(at("length"), () => entry.length()),
      checksum: this.field(at("checksum"), () => entry.checksum()),
    };
    if (tensor.offset % SECTION_ALIGNMENT !== 0 || tensor.offset < SECTION_ALIGNMENT) {
      throw damaged(
        this.path,
        `index, ${at("offset")}`,
        `expected a multiple of ${SECTION_ALIGNMENT} from ${SECTION_ALIGNMENT}, got ${tensor.offset}`,
      );
    }
    if (tensor.length !== byteLength(tensor)) {
      throw damaged(
        this.path,
        `index, ${at("length")}`,
        `${dtype} [${shape.join(", ")}] has ${byteLength(tensor)} bytes, got ${tensor.length}`,
      );
    }
    if (tensor.offset + tensor.length > this.sectionsEnd) {
      throw damaged(
        this.path,
        `index, ${at("offset")}`,
        `${tensor.length} bytes at ${tensor.offset} go beyond the end of the tensors at ${this.sectionsEnd}`,
      );
    }
    return tensor;
  }

  private checkPlaces(tensors: readonly CheckpointEntry[]): void {
    const names = new Set<string>();
    let previous: CheckpointEntry | undefined;
    for (const tensor of tensors) {
      if (names.has(tensor.name)) throw damaged(this.path, "index, tensors", `"${tensor.name}" occurs twice`);
      names.add(tensor.name);
      if (previous && tensor.offset < alignUp(previous.offset + previous.length)) {
        throw damaged(
          this.path,
          `index, tensor "${tensor.name}" offset`,
          `${tensor.offset} overlaps "${previous.name}" with ${previous.length} bytes at ${previous.offset}`,
        );
      }
      previous = tensor;
    }
  }
}
