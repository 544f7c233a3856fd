/** All messages of a training's stream, told apart by their frames' kinds. */
import { damaged } from "../aligned-file";
import { decodeFrame, encodeFrame, type Frame } from "../framed-stream";
import type { MessageCodec } from "./codec";
import { type ControlMessage, controlMessages } from "./control";
import { type EventMessage, eventMessages } from "./event";
import { type LabelMessage, labelMessages } from "./labels";
import { type MetricsMessage, metricsMessages } from "./metrics";
import { type ImagePrediction, predictionMessages } from "./predictions";
import { type SampleMessage, sampleMessages } from "./sample";

/** What a training says (event, metrics, sample, predictions) or is told (labels, control). */
export type Message =
  | { type: "event"; value: EventMessage }
  | { type: "metrics"; value: MetricsMessage }
  | { type: "sample"; value: SampleMessage }
  | { type: "predictions"; value: ImagePrediction }
  | { type: "labels"; value: LabelMessage }
  | { type: "control"; value: ControlMessage };

type CodecOf<T extends Message["type"]> = MessageCodec<Extract<Message, { type: T }>["value"]>;

const codecs: { readonly [T in Message["type"]]: CodecOf<T> } = {
  event: eventMessages,
  metrics: metricsMessages,
  sample: sampleMessages,
  predictions: predictionMessages,
  labels: labelMessages,
  control: controlMessages,
};
const typeOfKind = new Map(
  (Object.keys(codecs) as Message["type"][]).map((type) => [codecs[type].kind, type] as const),
);

/** A message as a frame's bytes, as it goes into files and over sockets. */
export function encodeMessage({ type, value }: Message): Uint8Array {
  const codec = codecs[type] as MessageCodec<unknown>;
  return encodeFrame({ kind: codec.kind, message: codec.encode(value) });
}

/**
 * The message of a frame; null for kinds that this version does not know.
 *
 * @throws DlfsError of code `io` naming `source` and the field where it is damaged
 */
export function messageOf({ kind, message }: Frame, source: string): Message | null {
  const type = typeOfKind.get(kind);
  return type ? ({ type, value: codecs[type].decode(message, source) } as Message) : null;
}

/**
 * The message in bytes that are one frame, such as a WebSocket's message; null for kinds that this version does not know.
 *
 * @throws DlfsError of code `io` naming `source` where they are none, or the field where it is damaged
 */
export function decodeMessage(bytes: Uint8Array, source: string): Message | null {
  const decoded = decodeFrame(bytes, 0, source);
  if (!decoded || decoded.next !== bytes.length) {
    throw damaged(source, "frame", `${bytes.length} bytes are not one whole frame`);
  }
  return messageOf(decoded.frame, source);
}
