/** The index of a checkpoint (schemas/checkpoint.fbs) to and from plain objects. */
import { Builder } from "flatbuffers";
import { DlfsError, ErrorCode } from "../native/error";
import { CheckedByteBuffer } from "./checked-buffer";
import type {
  BestMetric,
  CheckpointEntry,
  CheckpointMetadata,
  LoaderPosition,
  MetricsRecord,
  RandomCounter,
  ScheduleState,
} from "./checkpoint-types";
import * as fb from "./generated/checkpoint_generated";
import { IndexReader } from "./index-reader";
import {
  decodeKeyValue,
  decodeNumber,
  decodeTensors,
  decodeVersions,
  encodeKeyValue,
  encodeNumbers,
  encodeTensor,
  encodeVersions,
} from "./index-tables";

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
    const versions = encodeVersions(b, metadata.versions);
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
      metadata.convPicks.map(({ key, value }) => encodeKeyValue(b, key, value)),
    );
    const state = fb.Checkpoint.createStateVector(
      b,
      Object.entries(metadata.state).map(([key, value]) => this.state(key, value)),
    );
    const tensors = fb.Checkpoint.createTensorsVector(
      b,
      entries.map((entry) => encodeTensor(b, entry)),
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
    const values = fb.ScheduleState.createValuesVector(this.b, encodeNumbers(this.b, schedule.values));
    return fb.ScheduleState.createScheduleState(this.b, name, this.count(schedule.step, "schedule.step"), values);
  }

  private metrics(record: MetricsRecord, field: string): number {
    const values = fb.Metrics.createValuesVector(this.b, encodeNumbers(this.b, record.values));
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
  private readonly reader: IndexReader;

  constructor(
    path: string,
    private readonly sectionsEnd: number,
  ) {
    this.reader = new IndexReader(path);
  }

  checkpoint(index: Uint8Array): { metadata: CheckpointMetadata; tensors: CheckpointEntry[] } {
    const buffer = new CheckedByteBuffer(index);
    const root = this.reader.field("root", () => {
      if (!fb.Checkpoint.bufferHasIdentifier(buffer)) throw new RangeError("it is no checkpoint index");
      return fb.Checkpoint.getRootAsCheckpoint(buffer);
    });
    const metadata: CheckpointMetadata = {
      iteration: this.reader.count("iteration", () => root.iteration()),
      epoch: this.reader.count("epoch", () => root.epoch()),
      created: this.reader.count("created", () => root.created()),
      config: this.reader.json("config", () => root.config()),
      versions: decodeVersions(
        this.reader,
        this.reader.required("versions", () => root.versions()),
      ),
      random: this.reader.list("random", () => root.randomLength(), root.random.bind(root), this.random.bind(this)),
      history: this.reader.list(
        "history",
        () => root.historyLength(),
        root.history.bind(root),
        this.metrics.bind(this),
      ),
      convPicks: this.reader.list(
        "conv_picks",
        () => root.convPicksLength(),
        root.convPicks.bind(root),
        (entry, name) => decodeKeyValue(this.reader, entry, name),
      ),
      state: Object.fromEntries(
        this.reader.list("state", () => root.stateLength(), root.state.bind(root), this.state.bind(this)),
      ),
    };
    const loader = this.reader.field("loader", () => root.loader());
    if (loader) metadata.loader = this.loader(loader);
    const schedule = this.reader.field("schedule", () => root.schedule());
    if (schedule) metadata.schedule = this.schedule(schedule);
    const best = this.reader.field("best", () => root.best());
    if (best) metadata.best = this.best(best);
    const tensors = decodeTensors(this.reader, this.sectionsEnd, () => root.tensorsLength(), root.tensors.bind(root));
    return { metadata, tensors };
  }

  private random(entry: fb.RandomCounter, name: string): RandomCounter {
    return {
      name: this.reader.required(`${name}.name`, () => entry.name()),
      seed: this.reader.count(`${name}.seed`, () => entry.seed()),
      counter: this.reader.count(`${name}.counter`, () => entry.counter()),
    };
  }

  private loader(loader: fb.LoaderPosition): LoaderPosition {
    return {
      epoch: this.reader.count("loader.epoch", () => loader.epoch()),
      position: this.reader.count("loader.position", () => loader.position()),
      seed: this.reader.count("loader.seed", () => loader.seed()),
    };
  }

  private schedule(schedule: fb.ScheduleState): ScheduleState {
    const values = this.reader.list(
      "schedule.values",
      () => schedule.valuesLength(),
      schedule.values.bind(schedule),
      (entry, name) => decodeNumber(this.reader, entry, name),
    );
    return {
      name: this.reader.required("schedule.name", () => schedule.name()),
      step: this.reader.count("schedule.step", () => schedule.step()),
      values: Object.fromEntries(values),
    };
  }

  private metrics(record: fb.Metrics, name: string): MetricsRecord {
    const values = this.reader.list(
      `${name}.values`,
      () => record.valuesLength(),
      record.values.bind(record),
      (entry, name) => decodeNumber(this.reader, entry, name),
    );
    return {
      kind: this.reader.required(`${name}.kind`, () => record.kind()),
      iteration: this.reader.count(`${name}.iteration`, () => record.iteration()),
      epoch: this.reader.count(`${name}.epoch`, () => record.epoch()),
      time: this.reader.count(`${name}.time`, () => record.time()),
      values: Object.fromEntries(values),
    };
  }

  private best(best: fb.BestMetric): BestMetric {
    return {
      name: this.reader.required("best.name", () => best.name()),
      value: this.reader.field("best.value", () => best.value()),
      iteration: this.reader.count("best.iteration", () => best.iteration()),
    };
  }

  private state(entry: fb.StateEntry, name: string): [string, string | Uint8Array] {
    const key = this.reader.required(`${name}.key`, () => entry.key());
    const text = this.reader.field(`${name}.text`, () => entry.text());
    if (text !== null) return [key, text];
    // The length first: it is checked, the view that the generated code makes of the bytes is not.
    this.reader.field(`${name}.bytes`, () => entry.bytesLength());
    // A copy, so that the index is not kept alive and the bytes are aligned.
    return [key, this.reader.required(`${name}.bytes`, () => entry.bytesArray()).slice()];
  }
}
