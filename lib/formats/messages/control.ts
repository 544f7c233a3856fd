/** What a training is told to do (schemas/control.fbs). */
import { Builder } from "flatbuffers";
import { check } from "../../native/error";
import * as fb from "../generated/control_generated";
import { type MessageCodec, MessageReader } from "./codec";

/** `learningRate`: the schedule's rates times `value`, a factor above 0, from the next step on. */
export type ControlCommand = "pause" | "resume" | "learningRate" | "evaluate" | "save" | "stop";

export interface ControlMessage {
  /** Of this message alone: the same one again changes nothing. */
  id: string;
  author: string;
  /** Milliseconds since 1970-01-01 UTC. */
  time: number;
  command: ControlCommand;
  value?: number;
}

/** How commands are written. */
export const commandCodes: Readonly<Record<ControlCommand, fb.Command>> = {
  pause: fb.Command.Pause,
  resume: fb.Command.Resume,
  learningRate: fb.Command.LearningRate,
  evaluate: fb.Command.Evaluate,
  save: fb.Command.Save,
  stop: fb.Command.Stop,
};

/** The names that commands are known by. */
export const controlCommands = Object.keys(commandCodes) as readonly ControlCommand[];

/** Why a command cannot have a value, or must have another; null where it may. */
function problemOf(command: ControlCommand, value: number | undefined): string | null {
  if (command !== "learningRate") return value === undefined ? null : `"${command}" takes none, got ${value}`;
  const good = value !== undefined && value > 0 && value < Number.POSITIVE_INFINITY;
  return good ? null : `expected a factor above 0 of the learning rate, got ${value}`;
}

export const controlMessages: MessageCodec<ControlMessage> = {
  kind: "DLCT",

  encode({ id, author, time, command, value }) {
    const problem = problemOf(command, value);
    check(problem === null, `control ${id}`, () => `value: ${problem}`);
    const b = new Builder(128);
    b.forceDefaults(true);
    const [idAt, authorAt] = [b.createString(id), b.createString(author)];
    fb.Control.startControl(b);
    fb.Control.addId(b, idAt);
    fb.Control.addAuthor(b, authorAt);
    fb.Control.addTime(b, BigInt(time));
    fb.Control.addCommand(b, commandCodes[command]);
    if (value !== undefined) fb.Control.addValue(b, value);
    b.finish(fb.Control.endControl(b), this.kind);
    return b.asUint8Array();
  },

  decode(message, source) {
    const reader = new MessageReader(message, source, this.kind, "control message", fb.Control);
    const { root } = reader;
    const code = reader.field("command", () => root.command());
    const command = controlCommands.find((name) => commandCodes[name] === code);
    if (!command) return reader.fail("command", `${code} is none of this version`);
    const value = reader.field("value", () => root.value()) ?? undefined;
    const problem = problemOf(command, value);
    if (problem !== null) reader.fail("value", problem);
    const id = reader.required("id", () => root.id());
    if (id === "") reader.fail("id", "it is empty");
    return {
      ...{ id, command },
      author: reader.required("author", () => root.author()),
      time: reader.count("time", () => root.time()),
      ...(value !== undefined && { value }),
    };
  },
};
