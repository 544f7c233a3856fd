/** The Open Inference Protocol's requests and answers, as JSON and with binary tensors. */
import { describe, expect, test } from "bun:test";
import { ServiceError } from "../../lib/service/types";
import { detectionOf, modelConfig, modelMetadata, outputsOf } from "../../lib/service/v2-detector";
import { formatV2Reply, parseV2Request, type V2Request } from "../../lib/service/v2-protocol";
import { description, FakeBackend, result } from "./fake-backend";

const encoder = new TextEncoder();
const MOST = 2 ** 20;

/** A JPEG as far as its header says: 4 x 2 pixels. */
const jpeg = Uint8Array.of(0xff, 0xd8, 0xff, 0xc0, 0, 17, 8, 0, 2, 0, 4, 3, 1, 0x22, 0);

function packed(...elements: Uint8Array[]): Uint8Array {
  return Buffer.concat(elements.flatMap((element) => [Buffer.from(Uint32Array.of(element.length).buffer), element]));
}

/** A body of JSON and bytes, and the value of its header. */
function bodyOf(json: unknown, ...parts: Uint8Array[]): [Uint8Array, string] {
  const text = encoder.encode(JSON.stringify(json));
  return [Buffer.concat([text, ...parts]), String(text.length)];
}

function parse(json: unknown, ...parts: Uint8Array[]): V2Request {
  return parseV2Request(...bodyOf(json, ...parts), MOST) as V2Request;
}

function refusal(run: () => unknown): [number, string] {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(ServiceError);
    return [(error as ServiceError).status, (error as ServiceError).message];
  }
  throw new Error("nothing was refused");
}

const bytesInput = (n: number, size?: number) => ({
  ...{ name: "image_bytes", datatype: "BYTES", shape: [n] },
  ...(size !== undefined && { parameters: { binary_data_size: size } }),
});
const limits = { maxPixels: 100 };

describe("requests", () => {
  test("have tensors as bytes behind the JSON, in its order", () => {
    const [a, b] = [packed(jpeg, jpeg), Uint8Array.of(1, 2, 3)];
    const images = { name: "images", datatype: "UINT8", shape: [1, 1, 1, 3], parameters: { binary_data_size: 3 } };
    const { id, inputs, outputs, binaryOutput } = parse(
      { id: "7", parameters: { binary_data_output: true }, inputs: [bytesInput(2, a.length), images] },
      ...[a, b],
    );
    expect([id, outputs, binaryOutput]).toEqual(["7", null, true]);
    expect(inputs.map(({ name, bytes }) => [name, [...bytes!]])).toEqual([
      ["image_bytes", [...a]],
      ["images", [...b]],
    ]);
  });

  test("without the header are JSON as a whole; with one of 0 they are the input itself", () => {
    const json = { inputs: [{ ...bytesInput(1), data: [jpeg.toBase64()] }], outputs: [] };
    const request = parseV2Request(encoder.encode(JSON.stringify(json)), null, MOST) as V2Request;
    expect(detectionOf(request, description(), limits)).toEqual({
      ...{ id: null, maxDetections: null, request: { images: [jpeg] } },
      outputs: ["boxes", "scores", "labels", "num_detections"].map((name) => ({ name, binary: false })),
    });
    const raw = detectionOf(parseV2Request(jpeg, "0", MOST), description(), limits);
    expect(raw.request.images).toEqual([jpeg]);
    expect(raw.outputs.every(({ binary }) => binary)).toBe(true);
  });

  test("ask for outputs one by one, as bytes or not", () => {
    const outputs = [{ name: "scores" }, { name: "boxes", parameters: { binary_data: false } }];
    const file = packed(jpeg);
    const asked = { parameters: { binary_data_output: true }, inputs: [bytesInput(1, file.length)], outputs };
    expect(detectionOf(parse(asked, file), description(), limits).outputs).toEqual([
      { name: "scores", binary: true },
      { name: "boxes", binary: false },
    ]);
  });

  test("have priority, timeout and options of detections as parameters", () => {
    const file = packed(jpeg);
    const of = (parameters: unknown) =>
      detectionOf(parse({ parameters, inputs: [bytesInput(1, file.length)] }, file), description(), limits);
    const all = { priority: 2, timeout: 1500, score_threshold: 0.25, max_detections: 3, mine: [1] };
    expect(of(all)).toMatchObject({
      maxDetections: 3,
      request: { priority: 2, timeoutMs: 1.5, scoreThreshold: 0.25 },
    });
    // As long as a timer can be.
    expect(of({ timeout: Number.MAX_SAFE_INTEGER }).request.timeoutMs).toBe(86_400_000);
    // As Triton's clients send them where they were given none.
    expect(of({ priority: 0, timeout: 0, sequence_id: 0, sequence_start: false }).request).toEqual({ images: [jpeg] });
    for (const [parameters, message] of [
      [{ priority: -1 }, "parameters.priority: expected a whole number from 0, got -1"],
      [{ timeout: "1s" }, 'parameters.timeout: expected microseconds from 0, got "1s"'],
      [{ score_threshold: 2 }, "parameters.score_threshold: expected a number from 0 to 1, got 2"],
      [{ max_detections: 0 }, "parameters.max_detections: expected a whole number from 1, got 0"],
      [{ sequence_id: 5 }, "parameters.sequence_id: detectors keep nothing from one request to the next"],
    ] as const) {
      expect(refusal(() => of(parameters))).toEqual([400, message]);
    }
  });

  test("have pixels of a batch, each image of its own", () => {
    const data = Uint8Array.from({ length: 36 }, (_, i) => i);
    const input = { name: "images", datatype: "UINT8", shape: [2, 2, 3, 3] };
    const binary = parse({ inputs: [{ ...input, parameters: { binary_data_size: 36 } }] }, data);
    const json = parse({ inputs: [{ ...input, data: [...data] }] });
    for (const request of [binary, json]) {
      expect(detectionOf(request, description(), limits).request.images).toEqual([
        { width: 3, height: 2, data: Buffer.from(data.subarray(0, 18)) },
        { width: 3, height: 2, data: Buffer.from(data.subarray(18)) },
      ] as never);
    }
  });

  test("that are wrong are refused with the field, what was expected and what came", () => {
    const good = { ...bytesInput(1), data: ["AA=="] };
    const pixels = { name: "images", datatype: "UINT8", shape: [1, 1, 1, 3] };
    const cases: [unknown, string][] = [
      [[], "request: expected an object, got []"],
      [{}, "inputs: expected an array, got nothing"],
      [{ inputs: [] }, "inputs: expected at least one"],
      [{ inputs: [5] }, "inputs[0]: expected an object, got 5"],
      [{ inputs: new Array(65).fill(good) }, "inputs: expected at most 64, got 65"],
      [{ inputs: [good, good] }, 'inputs: "image_bytes" is there twice'],
      [{ id: 5, inputs: [good] }, "id: expected a string, got 5"],
      [{ parameters: [], inputs: [good] }, "parameters: expected an object, got []"],
      [{ inputs: [{ ...good, name: "" }] }, 'inputs[0].name: expected a name, got ""'],
      [
        { inputs: [{ ...good, datatype: "STRING" }] },
        'inputs[0] ("image_bytes").datatype: expected one of BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64, FP16, BF16, FP32, FP64, BYTES, got "STRING"',
      ],
      [
        { inputs: [{ ...good, shape: [1, -1] }] },
        'inputs[0] ("image_bytes").shape: expected up to 8 whole numbers from 0, got [1, -1]',
      ],
      [
        { inputs: [{ ...pixels, shape: [2 ** 40, 2 ** 40], data: [] }] },
        'inputs[0] ("images").shape: [1099511627776,1099511627776] has too many elements',
      ],
      [{ inputs: [bytesInput(1)] }, 'inputs[0] ("image_bytes"): expected data, or parameters.binary_data_size'],
      [
        { inputs: [{ ...pixels, parameters: { binary_data_size: 4 } }] },
        'inputs[0] ("images").parameters.binary_data_size: UINT8 of shape [1,1,1,3] has 3 bytes, got 4',
      ],
      [
        { inputs: [{ ...pixels, parameters: { binary_data_size: -3 } }] },
        'inputs[0] ("images").parameters.binary_data_size: expected a number of bytes, got -3',
      ],
      [{ inputs: [bytesInput(1, 10)] }, 'inputs[0] ("image_bytes"): expected 10 bytes behind the JSON, got 0'],
      [
        { inputs: [{ ...good, parameters: { binary_data_size: 0 } }] },
        'inputs[0] ("image_bytes"): has both data and parameters.binary_data_size',
      ],
      [
        { inputs: [{ ...good, parameters: { shared_memory_region: "a" } }] },
        'inputs[0] ("image_bytes").parameters: there is no shared memory here; send the elements with the request',
      ],
      [
        { inputs: [good], outputs: [{ name: "boxes", parameters: { binary_data: 1 } }] },
        "outputs[0].parameters.binary_data: expected true or false, got 1",
      ],
      [{ inputs: [good], outputs: [{ name: "boxes" }, { name: "boxes" }] }, 'outputs: "boxes" is there twice'],
    ];
    for (const [json, message] of cases) expect(refusal(() => parse(json))).toEqual([400, message]);
    const [body] = bodyOf({ inputs: [good] });
    const header = (value: string) => refusal(() => parseV2Request(body, value, MOST));
    for (const value of ["-1", "1e3", "abc", "", "99999999999999999999", String(body.length + 1)]) {
      expect(header(value)).toEqual([
        400,
        `Inference-Header-Content-Length: expected 0 to the ${body.length} bytes of the body, got ${JSON.stringify(value)}`,
      ]);
    }
    expect(header(String(body.length - 1))).toEqual([400, "JSON: Expected '}'"]);
    expect(refusal(() => parse({ inputs: [good] }, Uint8Array.of(1)))).toEqual([
      400,
      "the body has 1 bytes more than the JSON and its binary_data_size say",
    ]);
    expect(refusal(() => parseV2Request(Uint8Array.of(0xff, 0xfe), null, MOST))).toEqual([400, "JSON: it is no UTF-8"]);
    expect(refusal(() => parseV2Request(new Uint8Array(0), null, MOST))).toEqual([400, "JSON: the body is empty"]);
    expect(refusal(() => parseV2Request(new Uint8Array(11), null, 10))[0]).toBe(413);
  });

  test("that a detector cannot take are refused", () => {
    const file = packed(jpeg);
    const files = bytesInput(1, file.length);
    const pixels = (shape: number[], datatype = "UINT8") => ({
      inputs: [{ name: "images", datatype, shape, parameters: { binary_data_size: 0 } }],
    });
    const jsonPixels = (shape: number[]) => ({ inputs: [{ name: "images", datatype: "UINT8", shape, data: [] }] });
    const float = { name: "images", datatype: "FP32", shape: [1, 1, 1, 3], data: [0, 0, 0] };
    const other = { name: "images", datatype: "UINT8", shape: [1, 1, 1, 3], data: [0, 0, 0] };
    const cases: [unknown, Uint8Array[], string][] = [
      [{ inputs: [{ ...files, name: "input" }] }, [file], 'inputs: expected image_bytes or images, got "input"'],
      [{ inputs: [files, other] }, [file], "inputs: expected one of image_bytes and images, got both"],
      [
        { inputs: [files], outputs: [{ name: "masks" }] },
        [file],
        'outputs: expected boxes, scores, labels, num_detections, got "masks"',
      ],
      [{ inputs: [float] }, [], "images.datatype: expected UINT8 (RGB from 0 to 255, not normalised), got FP32"],
      [
        { inputs: [{ ...files, datatype: "UINT8", shape: [file.length] }] },
        [file],
        "image_bytes.datatype: expected BYTES, got UINT8",
      ],
      [{ inputs: [{ ...files, shape: [1, 2] }] }, [file], "image_bytes.shape: expected [n] or [n, 1], got [1,2]"],
      [{ inputs: [{ ...files, shape: [5] }] }, [file], "image_bytes.shape: expected 1 to 4 images, got 5"],
      [{ inputs: [{ ...files, shape: [0] }] }, [file], "image_bytes.shape: expected 1 to 4 images, got 0"],
      [pixels([1, 0, 4, 3]), [], "images.shape: expected [n, height, width, 3], got [1,0,4,3]"],
      [jsonPixels([1, 3, 4, 4]), [], "images.shape: expected [n, height, width, 3], got [1,3,4,4]"],
      [jsonPixels([9, 1, 1, 3]), [], "images.shape: expected 1 to 4 images, got 9"],
      [jsonPixels([1, 10, 11, 3]), [], "images: 11 x 10 pixels are more than the limit of 100"],
      [
        { inputs: [bytesInput(1, 9)] },
        [packed(encoder.encode("hello"))],
        "image_bytes[0]: expected a JPEG, PNG or WebP image, got something else",
      ],
    ];
    for (const [json, parts, message] of cases) {
      expect(refusal(() => detectionOf(parse(json, ...parts), description(), limits))).toEqual([400, message]);
    }
  });
});

describe("answers", () => {
  const backend = new FakeBackend();
  const none = result({ detections: [] });
  const reply = backend.reply({ images: [jpeg, jpeg] }, [none, result()]);
  const every = ["boxes", "scores", "labels", "num_detections"];

  test("are padded to the most detections of an image, as JSON", () => {
    const outputs = outputsOf(reply, { outputs: every.map((name) => ({ name, binary: false })), maxDetections: null });
    const { body, headerLength } = formatV2Reply({ model: "shapes", version: "1", id: "7" }, outputs);
    expect(headerLength).toBeNull();
    expect(JSON.parse(new TextDecoder().decode(body))).toEqual({
      ...{ model_name: "shapes", model_version: "1", id: "7" },
      outputs: [
        {
          ...{ name: "boxes", datatype: "FP32", shape: [2, 2, 4] },
          data: [0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3.5, 4.25, 5, 6, 7, 8],
        },
        { name: "scores", datatype: "FP32", shape: [2, 2], data: [0, 0, 0.75, 0.5] },
        { name: "labels", datatype: "INT64", shape: [2, 2], data: [-1, -1, 1, 0] },
        { name: "num_detections", datatype: "INT32", shape: [2, 1], data: [0, 2] },
      ],
    });
  });

  test("have bytes behind the JSON where these are wanted, and the best detections alone", () => {
    const wanted = [
      { name: "labels", binary: true },
      { name: "scores", binary: false },
      { name: "num_detections", binary: true },
    ];
    const { body, headerLength } = formatV2Reply(
      { model: "shapes", version: "1", id: null },
      outputsOf(reply, { outputs: wanted, maxDetections: 1 }),
    );
    expect(JSON.parse(new TextDecoder().decode(body.subarray(0, headerLength!)))).toEqual({
      ...{ model_name: "shapes", model_version: "1" },
      outputs: [
        { name: "labels", datatype: "INT64", shape: [2, 1], parameters: { binary_data_size: 16 } },
        { name: "scores", datatype: "FP32", shape: [2, 1], data: [0, 0.75] },
        { name: "num_detections", datatype: "INT32", shape: [2, 1], parameters: { binary_data_size: 8 } },
      ],
    });
    const rest = body.slice(headerLength!).buffer;
    expect([...new BigInt64Array(rest, 0, 2)]).toEqual([-1n, 1n]);
    expect([...new Int32Array(rest, 16, 2)]).toEqual([0, 1]);
  });

  test("without detections have tensors without elements", () => {
    const outputs = outputsOf(backend.reply({ images: [jpeg] }, [none]), {
      ...{ outputs: every.map((name) => ({ name, binary: true })), maxDetections: null },
    });
    expect(outputs.map(({ tensor }) => tensor.shape)).toEqual([
      [1, 0, 4],
      [1, 0],
      [1, 0],
      [1, 1],
    ]);
  });

  test("have no room for images that are damaged", () => {
    const damaged = backend.reply({ images: [jpeg, jpeg] }, [none, result({ error: "it is cut off" })]);
    const wanted = { outputs: [{ name: "boxes", binary: true }], maxDetections: null };
    expect(refusal(() => outputsOf(damaged, wanted))).toEqual([400, "image 1: it is cut off"]);
  });
});

test("metadata and configuration describe the tensors", () => {
  expect(modelMetadata("shapes", ["1", "2"])).toEqual({
    ...{ name: "shapes", versions: ["1", "2"], platform: "dlfs_flatbuffer" },
    inputs: [
      { name: "image_bytes", datatype: "BYTES", shape: [-1] },
      { name: "images", datatype: "UINT8", shape: [-1, -1, -1, 3] },
    ],
    outputs: [
      { name: "boxes", datatype: "FP32", shape: [-1, -1, 4] },
      { name: "scores", datatype: "FP32", shape: [-1, -1] },
      { name: "labels", datatype: "INT64", shape: [-1, -1] },
      { name: "num_detections", datatype: "INT32", shape: [-1, 1] },
    ],
  });
  expect(modelConfig(description(), ["1"])).toMatchObject({
    ...{ name: "shapes", max_batch_size: 4, platform: "dlfs_flatbuffer" },
    input: [
      { name: "image_bytes", data_type: "TYPE_STRING", dims: [1], optional: true },
      { name: "images", data_type: "TYPE_UINT8", dims: [-1, -1, 3], optional: true },
    ],
    instance_group: [{ kind: "KIND_CPU" }],
    parameters: { class_names: { string_value: '["red","green"]' }, input_size: { string_value: "64x96" } },
  });
});
