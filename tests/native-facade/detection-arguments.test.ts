/** What the native code of matching and post-processing says about arguments that cannot be right; nothing is enqueued. */
import { afterAll, describe, expect, test } from "bun:test";
import { constants, ErrorCode } from "../../lib/native";
import { Tensor } from "../../lib/tensor";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";

const device = testDevice();
const { native } = device;
const stream = device.stream.handle;
const x = Tensor.zeros(device, [4096]);
afterAll(() => x.dispose());
const at = x.address;
const { argument, shape } = ErrorCode;

interface Matching {
  high?: number;
  low?: number;
  matching?: number;
}
const matchAnchors = ({ high = 0.5, low = 0.4, matching = constants.MATCH_LOW_QUALITY }: Matching) =>
  native.matchAnchors(stream, at, at, at, at, at, at, 1, 2, 3, high, low, matching);

interface Points {
  anchors?: number;
  first?: number;
  last?: number;
  radius?: number;
}
const matchPoints = ({ anchors = 8, first = 4, last = 2, radius = 1.5 }: Points) =>
  native.matchPoints(stream, at, at, at, at, at, 1, anchors, 3, first, last, radius);

const topk = ({ m = 16, stride = 16, kind = constants.SCORES_VALUES as number, threshold = 0 }) =>
  native.topk(stream, at, at, at, at, 2, m, stride, 4, 4, constants.F32, kind, threshold);

interface Candidates {
  k?: number;
  classes?: number;
  perClass?: number;
  coder?: number;
  wx?: number;
  rowStride?: number;
}
const decode = (changes: Candidates) => {
  const { k = 6, classes = 3, perClass = 2, coder = constants.CODER_CENTRE, wx = 1, rowStride = k } = changes;
  const sizes = [2, k, rowStride, 64, classes, perClass, coder, constants.F32, wx, 1, 1, 1] as const;
  return native.decodeCandidates(stream, at, at, at, at, at, at, ...sizes);
};

/** The maps of two levels. */
const addresses = BigInt64Array.of(BigInt(at), BigInt(at));
const none = new BigInt64Array(2);

interface Maps {
  maps?: BigInt64Array;
  cells?: number[];
  pitch?: number;
  levels?: number;
  perCell?: number;
  coder?: number;
  workspace?: number | null;
}
const boxLoss = ({ maps = addresses, cells = [2, 1], pitch = 8, levels = 2, perCell = 2, workspace = at }: Maps) => {
  const sizes = [Int32Array.from(cells), Int32Array.of(pitch, pitch), levels, 1, perCell] as const;
  const rules = [3, constants.F32, 0, 0, 1, 1, 1, 1, 0, 0, 1] as const;
  return native.boxLoss(stream, at, none, maps, at, at, at, at, null, workspace, ...sizes, ...rules);
};

const select = ({ maps = addresses, cells = [2, 1], pitch = 8, levels = 2, perCell = 2, ...rest }: Maps) => {
  const { coder = constants.CODER_CENTRE, workspace = at } = rest;
  const pitches = Int32Array.of(pitch, pitch);
  const sizes = [Int32Array.from(cells), pitches, pitches, pitches, levels, 1, perCell, 3, 4] as const;
  const rules = [coder, constants.F32, 0.5, 1, 1, 1, 1] as const;
  return native.selectCandidates(stream, at, at, at, maps, none, addresses, at, at, workspace, ...sizes, ...rules);
};

interface SoftNms {
  method?: number;
  iouThreshold?: number;
  sigma?: number;
  minScore?: number;
  maxOut?: number;
}
const softNms = ({
  method = constants.SOFT_NMS_LINEAR,
  iouThreshold = 0,
  sigma = 0.5,
  minScore = 0,
  maxOut = 2,
}: SoftNms) =>
  native.softNms(stream, at, at, at, at, at, at, at, 1, 4, maxOut, method, iouThreshold, sigma, minScore, 1);
const gaussian = constants.SOFT_NMS_GAUSSIAN;

/** Functions with a workspace of more than 0 bytes, whose content is not read before it is written. */
const F32 = constants.F32;
const withWorkspace: [string, (workspace: number | null) => unknown][] = [
  ["match_anchors", (w) => native.matchAnchors(stream, at, at, at, at, at, w, 1, 2, 3, 0.5, 0.4, 0)],
  ["topk", (w) => native.topk(stream, at, at, at, w, 1, 16, 16, 4, 4, F32, constants.SCORES_VALUES, 0)],
  ["nms", (w) => native.nms(stream, at, at, at, at, at, w, 1, 4, 2, 0.5, 1)],
  ["soft_nms", (w) => native.softNms(stream, at, at, at, at, at, at, w, 1, 4, 2, 0, 0.5, 0.5, 0, 1)],
  ["channel_sum", (w) => native.channelSum(stream, at, at, w, 4, 8, F32)],
  [
    "batch_norm_train",
    (w) =>
      native.batchNormTrain(stream, at, null, at, at, null, null, at, null, at, at, null, w, 4, 8, 0, F32, 0, 0, 0),
  ],
  [
    "batch_norm_backward",
    (w) => native.batchNormBackward(stream, at, null, at, at, at, at, null, at, at, at, at, w, 4, 8, F32, 0),
  ],
  ["group_norm_forward", (w) => native.groupNormForward(stream, at, at, at, at, at, at, w, 1, 4, 8, 2, F32, 0, 0)],
  [
    "group_norm_backward",
    (w) => native.groupNormBackward(stream, at, at, at, at, at, at, at, at, at, w, 1, 4, 8, 2, F32, 0),
  ],
  ["box_loss", (w) => boxLoss({ workspace: w })],
  ["select_candidates", (w) => select({ workspace: w })],
];

test.each(withWorkspace)("%s takes an aligned workspace, and no other", (op, run) => {
  for (const [workspace, message] of [
    [null, /workspace is NULL/],
    [at + 64, /workspace is not 256-byte aligned/],
  ] as const) {
    const error = errorOf(() => run(workspace));
    expect(error.code).toBe(argument);
    expect(error.message).toMatch(new RegExp(`dlfs_${op}: .*${message.source}`));
  }
  device.stream.synchronize();
});

describe("matching and post-processing check their arguments", () => {
  const cases: [string, () => unknown, number, RegExp][] = [
    ["thresholds the wrong way round", () => matchAnchors({ high: 0.3 }), argument, /low 0.4 and high 0.3/],
    ["a threshold that is no number", () => matchAnchors({ high: Number.NaN }), argument, /argument high/],
    ["an unknown kind of matching", () => matchAnchors({ matching: 3 }), argument, /matching from 0 to 2, got 3/],
    ["no anchors", () => matchPoints({ anchors: 0 }), argument, /anchors_count .*got 0/],
    ["a first level larger than all", () => matchPoints({ first: 9 }), argument, /first_level from 0 to 8, got 9/],
    ["a negative last level", () => matchPoints({ last: -1 }), argument, /last_level from 0 to 8, got -1/],
    ["a radius of 0", () => matchPoints({ radius: 0 }), argument, /radius above 0, got 0/],
    ["an infinite radius", () => matchPoints({ radius: Number.POSITIVE_INFINITY }), argument, /finite radius/],
    ["an unknown kind of scores", () => topk({ kind: 2 }), argument, /kind from 0 to 1, got 2/],
    ["rows of logits that overlap", () => topk({ stride: 15 }), shape, /logits_stride of at least m = 16, got 15/],
    ["an infinite threshold", () => topk({ threshold: Number.POSITIVE_INFINITY }), argument, /finite threshold/],
    ["an unknown coder", () => decode({ coder: 2 }), argument, /coder from 0 to 1, got 2/],
    ["a box weight of 0", () => decode({ wx: 0 }), argument, /box weights above 0/],
    ["part of a class's candidates", () => decode({ k: 5 }), shape, /3 classes' 2 candidates, got 5/],
    ["candidates of more classes", () => decode({ k: 8 }), shape, /3 classes' 2 candidates, got 8/],
    ["a negative per_class", () => decode({ perClass: -1 }), argument, /per_class from 0/],
    ["rows of candidates that overlap", () => decode({ rowStride: 5 }), shape, /row_stride of at least k = 6, got 5/],
    ["an unknown kind of decay", () => softNms({ method: 2 }), argument, /method from 0 to 1, got 2/],
    ["an IoU threshold above 1", () => softNms({ iouThreshold: 1.5 }), argument, /iou_threshold from 0 to 1, got 1.5/],
    ["a sigma of 0", () => softNms({ method: gaussian, sigma: 0 }), argument, /sigma above 0, got 0/],
    ["a negative least score", () => softNms({ minScore: -0.1 }), argument, /min_score of at least 0, got -0.1/],
    ["no places for detections", () => softNms({ maxOut: 0 }), argument, /max_out from 1 to .*got 0/],
    ["losses of no levels", () => boxLoss({ levels: 0 }), argument, /levels from 1 to 16, got 0/],
    ["losses of too many levels", () => boxLoss({ levels: 17 }), argument, /levels from 1 to 16, got 17/],
    ["a level without cells", () => boxLoss({ cells: [2, 0] }), argument, /cells of a level from 1/],
    [
      "a pitch below a cell's values",
      () => boxLoss({ pitch: 7 }),
      shape,
      /level 0: .*pitch of at least 8 values, got 7/,
    ],
    ["a level without a map", () => boxLoss({ maps: none }), argument, /deltas of level 0 is NULL/],
    ["candidates of no levels", () => select({ levels: 0 }), argument, /levels from 1 to 16, got 0/],
    ["candidates of a level without a map", () => select({ maps: none }), argument, /logits of level 0 is NULL/],
    ["candidates of maps with a short pitch", () => select({ pitch: 5 }), shape, /pitch of at least 6 values, got 5/],
    ["candidates of an unknown coder", () => select({ coder: 2 }), argument, /coder from 0 to 1, got 2/],
  ];
  test.each(cases)("%s", (_name, run, code, message) => {
    const error = errorOf(run);
    expect(error.code).toBe(code);
    expect(error.message).toMatch(message);
    device.stream.synchronize();
  });

  test("box weights mean nothing to the linear coder", () => {
    native.decodeCandidates(
      stream,
      at,
      at + 4096,
      at + 8192,
      at,
      at,
      at,
      1,
      6,
      6,
      64,
      3,
      2,
      constants.CODER_LINEAR,
      constants.F32,
      0,
      0,
      0,
      0,
    );
    device.stream.synchronize();
  });
});
