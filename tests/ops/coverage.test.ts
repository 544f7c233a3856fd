/** Every operation of the header has cases: a new one without them fails here. */
import { expect, test } from "bun:test";
import { argumentNames } from "../../lib/native/symbols.generated";
import { activationCases } from "./cases/activation";
import { augmentCases } from "./cases/augment";
import { boxCases } from "./cases/boxes";
import { channelCases } from "./cases/channel";
import { convCases } from "./cases/conv";
import { dropoutCases } from "./cases/dropout";
import { elementwiseCases } from "./cases/elementwise";
import { groupNormCases } from "./cases/group-norm";
import { initCases } from "./cases/init";
import { lossCases } from "./cases/losses";
import { normCases } from "./cases/norm";
import { normJoinCases } from "./cases/norm-join";
import { optimizerCases } from "./cases/optimizer";
import { poolCases } from "./cases/pool";
import { postprocessCases } from "./cases/postprocess";
import { preprocessCases } from "./cases/preprocess";
import { quantizeCases } from "./cases/quantize";

/** Functions on a stream that are no arithmetic of tensors, with the tests that they have. */
const elsewhere = {
  "tests/tensor": [
    "copy_to_device",
    "copy_to_host",
    "copy",
    "memset",
    "upload_sync",
    "download_sync",
    "event_record",
    "graph_begin",
    "graph_end",
    "graph_launch",
    "stream_destroy",
    "stream_query",
    "stream_synchronize",
    "stream_wait_event",
    "comm_all_reduce",
    "comm_broadcast",
    "comm_all_gather",
    "comm_barrier",
    "comm_wait",
  ],
  "tests/ops/norm-halves.test.ts": [
    "batch_norm_moments",
    "batch_norm_backward_sums",
    "batch_norm_backward_input",
    "sgd_checksums",
  ],
  "tests/ops/images.test.ts": ["image_decode_sync", "jpeg_encode_sync"],
  "tests/ops/conv-plans.test.ts": ["conv_tune_sync"],
  "tests/ops/conv-moments.test.ts": ["conv_forward_moments"],
};

test("every operation on a stream is in a case list", () => {
  const lists = [
    activationCases,
    augmentCases,
    boxCases,
    channelCases,
    convCases,
    dropoutCases,
    elementwiseCases,
    groupNormCases,
    initCases,
    lossCases,
    normCases,
    normJoinCases,
    optimizerCases,
    poolCases,
    postprocessCases,
    preprocessCases,
    quantizeCases,
  ];
  const tested = new Set([...lists.flat().map((opCase) => opCase.op), ...Object.values(elsewhere).flat()]);
  const operations = Object.entries(argumentNames)
    .filter(([, names]) => names[0] === "stream")
    .map(([symbol]) => symbol.slice("dlfs_".length));
  expect(operations.length).toBeGreaterThan(40);
  expect(operations.filter((name) => !tested.has(name))).toEqual([]);
  expect([...tested].filter((name) => !operations.includes(name))).toEqual([]);
});
