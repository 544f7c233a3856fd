/** What happens in a training (schemas/event.fbs). */
import { Builder } from "flatbuffers";
import type { CheckpointVersions } from "../checkpoint-types";
import * as fb from "../generated/event_generated";
import { decodeVersions, encodeVersions } from "../index-tables";
import { type MessageCodec, MessageReader, optionalText } from "./codec";

export type LogLevel = "info" | "warning" | "error";

/** `at`: optimizer steps done; `time`: milliseconds since 1970-01-01 UTC. */
export type EventMessage = { iteration: number; time: number } & (
  | { kind: "started"; run: string; config: string; classes: readonly string[]; versions: CheckpointVersions }
  /** Why. */
  | { kind: "ended"; text: string }
  /** The checkpoint's file name. */
  | { kind: "checkpoint"; text: string }
  | { kind: "log"; level: LogLevel; text: string }
  /** The id of a message that was taken in, and the iteration from which on it counts. */
  | { kind: "accepted"; id: string; from: number }
  /** The id of a message that was refused. */
  | { kind: "refused"; id: string; reason: string }
  /** Messages that a reader has missed at this place, since it was too slow. */
  | { kind: "dropped"; count: number }
  /** Of a newer dlfs. */
  | { kind: "other"; code: number; text: string }
);

/** An event, without what all of them have. */
export type EventContent = EventMessage extends infer E
  ? E extends EventMessage
    ? Omit<E, "iteration" | "time">
    : never
  : never;

type KnownKind = Exclude<EventMessage["kind"], "other">;

const kinds: Record<KnownKind, fb.Kind> = {
  started: fb.Kind.Started,
  ended: fb.Kind.Ended,
  checkpoint: fb.Kind.Checkpoint,
  log: fb.Kind.Log,
  accepted: fb.Kind.Accepted,
  refused: fb.Kind.Refused,
  dropped: fb.Kind.Dropped,
};
const levels: Record<LogLevel, fb.Level> = { info: fb.Level.Info, warning: fb.Level.Warning, error: fb.Level.Error };

/** The event's one text. */
function textOf(event: EventMessage): string {
  switch (event.kind) {
    case "started":
      return event.config;
    case "accepted":
    case "refused":
      return event.id;
    case "dropped":
      return "";
    default:
      return event.text;
  }
}

export const eventMessages: MessageCodec<EventMessage> = {
  kind: "DLEV",

  encode(event) {
    const { kind, iteration, time } = event;
    const started = kind === "started" ? event : undefined;
    const b = new Builder(512);
    b.forceDefaults(true);
    const textAt = b.createString(textOf(event));
    const reasonAt = optionalText(b, kind === "refused" ? event.reason : undefined);
    const runAt = optionalText(b, started?.run);
    const classesAt = started
      ? fb.Event.createClassesVector(
          b,
          started.classes.map((name) => b.createString(name)),
        )
      : 0;
    const versionsAt = started ? encodeVersions(b, started.versions) : 0;
    fb.Event.startEvent(b);
    fb.Event.addKind(b, kind === "other" ? event.code : kinds[kind]);
    fb.Event.addIteration(b, BigInt(iteration));
    fb.Event.addTime(b, BigInt(time));
    fb.Event.addText(b, textAt);
    if (kind === "refused") fb.Event.addReason(b, reasonAt);
    if (kind === "log") fb.Event.addLevel(b, levels[event.level]);
    if (kind === "accepted") fb.Event.addCount(b, BigInt(event.from));
    if (kind === "dropped") fb.Event.addCount(b, BigInt(event.count));
    if (started) {
      fb.Event.addRun(b, runAt);
      fb.Event.addClasses(b, classesAt);
      fb.Event.addVersions(b, versionsAt);
    }
    b.finish(fb.Event.endEvent(b), this.kind);
    return b.asUint8Array();
  },

  decode(message, source) {
    const reader = new MessageReader(message, source, this.kind, "event", fb.Event);
    const { root } = reader;
    const code = reader.field("kind", () => root.kind());
    const kind = (Object.keys(kinds) as KnownKind[]).find((name) => kinds[name] === code);
    const text = reader.required("text", () => root.text());
    const common = {
      iteration: reader.count("iteration", () => root.iteration()),
      time: reader.count("time", () => root.time()),
    };
    switch (kind) {
      case "started":
        return { ...common, kind, config: text, ...decodeStart(reader) };
      case "log": {
        const found = reader.field("level", () => root.level());
        const level = (Object.keys(levels) as LogLevel[]).find((name) => levels[name] === found);
        return { ...common, kind, level: level ?? "info", text };
      }
      case "accepted":
        return { ...common, kind, id: text, from: reader.count("count", () => root.count()) };
      case "refused":
        return { ...common, kind, id: text, reason: reader.required("reason", () => root.reason()) };
      case "dropped":
        return { ...common, kind, count: reader.count("count", () => root.count()) };
      case undefined:
        return { ...common, kind: "other", code, text };
      default:
        return { ...common, kind, text };
    }
  },
};

function decodeStart(reader: MessageReader<fb.Event>) {
  const { root } = reader;
  return {
    run: reader.required("run", () => root.run()),
    classes: reader.list(
      "classes",
      () => root.classesLength(),
      (i) => root.classes(i),
      (name) => name as string,
    ),
    versions: decodeVersions(
      reader,
      reader.required("versions", () => root.versions()),
    ),
  };
}
