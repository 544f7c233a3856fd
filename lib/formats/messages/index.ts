export { type ControlCommand, type ControlMessage, controlCommands, controlMessages } from "./control";
export { type EventContent, type EventMessage, eventMessages, type LogLevel } from "./event";
export { type LabelBox, type LabelEdit, type LabelMessage, labelMessages } from "./labels";
export { decodeMessage, encodeMessage, type Message, messageOf } from "./message";
export { type ClassMetrics, type MetricsMessage, metricsMessages } from "./metrics";
export { type ImagePrediction, predictionMessages } from "./predictions";
export { type GroundTruth, type SampleMessage, sampleMessages } from "./sample";
