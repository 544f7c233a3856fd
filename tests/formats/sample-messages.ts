/** One message of each kind, with every field set and with the optional ones left out. */
import type { Message } from "../../lib/formats";

const predictions = {
  ...{ name: "val/ü 1.jpg", imageId: 2 ** 40 + 1, width: 640, height: 427 },
  boxes: Float32Array.of(1.5, 2, 30, 40.25, 5, 6, 70, 80),
  scores: Float32Array.of(0.875, 0.25),
  labels: Uint32Array.of(1, 0),
};
const nothing = { name: "b", width: 0, height: 0, boxes: new Float32Array(0), scores: new Float32Array(0) };

export const sampleMessages: readonly Message[] = [
  {
    type: "event",
    value: {
      ...{ kind: "started", iteration: 0, time: 1_700_000_000_000, run: "bccd-1", config: '{"batch":16}' },
      classes: ["cat", "Hund, groß"],
      versions: { dlfs: "0.1.0", bun: "1.4.5", backend: "cpu", libraries: { onednn: "2.6" } },
    },
  },
  { type: "event", value: { kind: "ended", iteration: 9, time: 1, text: "done" } },
  { type: "event", value: { kind: "checkpoint", iteration: 9, time: 2, text: "checkpoint-00000009.dlck" } },
  { type: "event", value: { kind: "log", iteration: 9, time: 3, level: "warning", text: "slow\nreader" } },
  { type: "event", value: { kind: "accepted", iteration: 9, time: 4, id: "m-1", from: 12 } },
  { type: "event", value: { kind: "refused", iteration: 9, time: 5, id: "m-2", reason: "image: unknown" } },
  { type: "event", value: { kind: "dropped", iteration: 9, time: 6, count: 250 } },
  {
    type: "metrics",
    value: { what: "train", iteration: 7, epoch: 1, time: 5, values: { classification: 0.5, boxRegression: 0.25 } },
  },
  {
    type: "metrics",
    value: {
      ...{ what: "evaluation", iteration: 8, epoch: 1, time: 5, values: { AP: 0.5, AP50: 0.75 } },
      classes: [
        { category: "cat", objects: 12, ap: 0.5, ap50: 0.75, precision: Float32Array.of(1, 0.5, 0) },
        { category: "dog", objects: 0, ap: Number.NaN, ap50: Number.NaN, precision: new Float32Array(0) },
      ],
      confusion: Uint32Array.of(1, 2, 3, 4, 5, 6, 7, 8, 9),
    },
  },
  {
    type: "sample",
    value: {
      ...{ iteration: 8, time: 6, split: "val", predictions, thumbnail: Uint8Array.of(255, 216, 255), loss: 0.125 },
      truth: {
        boxes: Float64Array.of(0.1, 0.2, 30.3, 40.4),
        labels: Uint32Array.of(1),
        ids: Float64Array.of(2 ** 45 + 1),
        crowd: Uint8Array.of(1),
      },
    },
  },
  {
    type: "sample",
    value: {
      ...{ iteration: 0, time: 0, predictions: { ...nothing, labels: new Uint32Array(0), error: "damaged" } },
      truth: {
        ...{ boxes: new Float64Array(0), labels: new Uint32Array(0), ids: new Float64Array(0) },
        crowd: new Uint8Array(0),
      },
    },
  },
  { type: "predictions", value: predictions },
  {
    type: "labels",
    value: {
      ...{ id: "m-1", author: "ada", time: 7, image: "train/1.jpg", split: "train", replace: false, atOnce: true },
      ...{ weight: 4, newImage: { width: 64, height: 48, bytes: Uint8Array.of(1, 2, 3) } },
      edits: [
        { action: "add", category: "cat", box: [0.1, 0.2, 10.3, 20.4], crowd: false, score: 0.5 },
        { action: "change", annotationId: 2 ** 41, category: "dog" },
        { action: "change", annotationId: 5, box: [1, 2, 3, 4], crowd: true },
        { action: "delete", annotationId: 6 },
      ],
    },
  },
  {
    type: "labels",
    value: { ...{ id: "m-2", author: "", time: 0, image: "x", edits: [] }, replace: true, atOnce: false, weight: 1 },
  },
  { type: "control", value: { id: "c-1", author: "ada", time: 8, command: "learningRate", value: 0.5 } },
  { type: "control", value: { id: "c-2", author: "ada", time: 9, command: "stop" } },
];
