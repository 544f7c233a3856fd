/** What the facade and the native code say about arguments that cannot be right. */
import { afterAll, describe, expect, test } from "bun:test";
import { constants, cString, ErrorCode } from "../../lib/native";
import { dtypeCode, outHandle, Tensor } from "../../lib/tensor";
import { runChild } from "../support/child";
import { testDevice } from "../support/device";
import { errorOf } from "../support/errors";

const device = testDevice();
const { native } = device;
const stream = device.stream.handle;
// biome-ignore lint/suspicious/noExplicitAny: these tests pass what the types forbid
const untyped = native as any;

describe("the facade checks types before native code sees them", () => {
  const kinds: [string, () => unknown, string][] = [
    ["too few arguments", () => untyped.streamSynchronize(), "dlfs_stream_synchronize: expected 1 arguments, got 0"],
    [
      "too many arguments",
      () => untyped.streamSynchronize(stream, 1),
      "dlfs_stream_synchronize: expected 1 arguments, got 2",
    ],
    [
      "a missing integer",
      () => untyped.malloc(device.handle, outHandle().view, undefined),
      "dlfs_malloc: argument bytes: expected a safe integer, got undefined",
    ],
    [
      "a fraction",
      () => native.malloc(device.handle, outHandle().view, 1.5),
      "dlfs_malloc: argument bytes: expected a safe integer, got 1.5",
    ],
    [
      "NaN as an integer",
      () => native.malloc(device.handle, outHandle().view, Number.NaN),
      "dlfs_malloc: argument bytes: expected a safe integer, got NaN",
    ],
    [
      "2^53",
      () => native.malloc(device.handle, outHandle().view, 2 ** 53),
      "dlfs_malloc: argument bytes: expected a safe integer, got 9007199254740992",
    ],
    [
      "a bigint",
      () => untyped.malloc(device.handle, outHandle().view, 16n),
      "dlfs_malloc: argument bytes: expected a safe integer, got 16",
    ],
    [
      "2^31 as a 32-bit integer",
      () => native.contextCreate(outHandle().view, 2 ** 31),
      "dlfs_context_create: argument device: expected a 32-bit integer, got 2147483648",
    ],
    [
      "a fraction as a 32-bit integer",
      () => native.contextCreate(outHandle().view, 0.5),
      "dlfs_context_create: argument device: expected a 32-bit integer, got 0.5",
    ],
    [
      "NaN as a number",
      () => native.fill(stream, 256, 1, constants.F32, Number.NaN),
      "dlfs_fill: argument value: expected a number, got NaN",
    ],
    [
      "a string as a number",
      () => untyped.fill(stream, 256, 1, constants.F32, "1"),
      "dlfs_fill: argument value: expected a number, got 1",
    ],
    [
      "an array as a view",
      () => untyped.deviceCount([0]),
      "dlfs_device_count: argument out: expected a view of at least one byte, got 0",
    ],
    [
      "an empty view",
      () => native.deviceCount(new Int32Array(0)),
      "dlfs_device_count: argument out: expected a view of at least one byte, got Int32Array",
    ],
    [
      "a buffer that is no view",
      () => untyped.deviceCount(new ArrayBuffer(4)),
      "dlfs_device_count: argument out: expected a view of at least one byte, got [object ArrayBuffer]",
    ],
    [
      "a negative address",
      () => native.memset(stream, -8, 4, 0),
      "dlfs_memset: argument dst: expected a device address or null, got -8",
    ],
    [
      "0 as an address",
      () => native.memset(stream, 0, 4, 0),
      "dlfs_memset: argument dst: expected a device address or null, got 0",
    ],
    [
      "undefined as an address",
      () => untyped.memset(stream, undefined, 4, 0),
      "dlfs_memset: argument dst: expected a device address or null, got undefined",
    ],
  ];
  test.each(kinds)("%s", (_name, run, message) => {
    const error = errorOf(run);
    expect(error.message).toBe(message);
    expect(error.code).toBe(ErrorCode.argument);
  });

  test("a view whose memory was transferred away", () => {
    const view = new Int32Array(4);
    structuredClone(view.buffer, { transfer: [view.buffer] });
    expect(errorOf(() => native.deviceCount(view)).message).toContain("expected a view of at least one byte");
  });
});

describe("native code checks values", () => {
  const x = Tensor.zeros(device, [64]);
  afterAll(() => x.dispose());
  const f32 = dtypeCode("f32");
  const conv = (changes: {
    c?: number;
    k?: number;
    r?: number;
    stride?: number;
    pad?: number;
    dilation?: number;
    groups?: number;
    n?: number;
    dtype?: number;
    direction?: number;
    flags?: number;
    activation?: number;
    pick?: string;
  }) => {
    const {
      c = 8,
      k = 8,
      r = 3,
      stride = 1,
      pad = 1,
      dilation = 1,
      groups = 1,
      n = 1,
      dtype = f32,
      direction = 0,
      flags = 0,
      activation = 0,
      pick = "",
    } = changes;
    const out = outHandle();
    native.convCreate(
      device.handle,
      out.view,
      cString(pick),
      direction,
      dtype,
      n,
      6,
      6,
      c,
      k,
      r,
      r,
      stride,
      stride,
      pad,
      pad,
      dilation,
      dilation,
      groups,
      flags,
      activation,
    );
    native.convDestroy(out.value);
  };
  const cases: [string, () => unknown, readonly number[], RegExp][] = [
    [
      "a NULL that is not allowed",
      () => native.fill(stream, null, 4, f32, 0),
      [ErrorCode.argument],
      /dlfs_fill: .*dst/,
    ],
    [
      "a negative count",
      () => native.fill(stream, x.address, -4, f32, 0),
      [ErrorCode.argument, ErrorCode.shape],
      /dlfs_fill: .*-4/,
    ],
    ["an unknown dtype", () => native.fill(stream, x.address, 4, 99, 0), [ErrorCode.dtype], /dlfs_fill: .*99/],
    [
      "a dtype that the operation does not take",
      () => native.add(stream, x.address, x.address, x.address, 4, constants.I32, 0),
      [ErrorCode.dtype],
      /dlfs_add: .*i32/,
    ],
    [
      "an unknown activation",
      () => native.activationForward(stream, x.address, x.address, 4, f32, 17, 0),
      [ErrorCode.argument],
      /dlfs_activation_forward: .*17/,
    ],
    [
      "a slope that is no number",
      () =>
        native.activationForward(
          stream,
          x.address,
          x.address,
          4,
          f32,
          constants.ACT_LEAKY_RELU,
          Number.POSITIVE_INFINITY,
        ),
      [ErrorCode.argument],
      /dlfs_activation_forward: expected a finite slope/,
    ],
    [
      "a probability of 1",
      () => native.dropoutForward(stream, x.address, null, x.address, x.address, 4, f32, 1, 0),
      [ErrorCode.argument],
      /dlfs_dropout_forward: expected p in \[0, 1\), got 1/,
    ],
    [
      "groups that do not divide the channels",
      () => native.channelShuffle(stream, x.address, x.address, 1, 4, 3, f32),
      [ErrorCode.shape],
      /dlfs_channel_shuffle: expected channels divisible by 3 groups, got 4/,
    ],
    [
      "a transposition in place",
      () => native.transpose(stream, x.address, x.address, 1, 2, 2, f32),
      [ErrorCode.argument],
      /dlfs_transpose: dst and src overlap/,
    ],
    [
      "an activation that an addition cannot end in",
      () => native.add(stream, x.address, x.address, x.address, 4, f32, constants.ACT_HARDSWISH),
      [ErrorCode.argument],
      /dlfs_add: .*out of none, relu, sigmoid, silu, relu6, got hardswish/,
    ],
    [
      "an allocation of 0 bytes",
      () => native.malloc(device.handle, outHandle().view, 0),
      [ErrorCode.argument],
      /dlfs_malloc: /,
    ],
    [
      "an allocation of more than there is",
      () => native.malloc(device.handle, outHandle().view, 2 ** 50),
      [ErrorCode.memory],
      /dlfs_malloc: .*(1125899906842624|1073741824)/,
    ],
    ["an address that was not allocated", () => native.free(device.handle, 4096), [ErrorCode.argument], /dlfs_free: /],
    [
      "an address inside an allocation",
      () => native.free(device.handle, x.address + 4),
      [ErrorCode.argument],
      /dlfs_free: /,
    ],
    [
      "a device that is not there",
      () => native.contextCreate(outHandle().view, 1000),
      [ErrorCode.argument],
      /dlfs_context_create: .*1000/,
    ],
    [
      "a negative device",
      () => native.contextCreate(outHandle().view, -1),
      [ErrorCode.argument],
      /dlfs_context_create: .*-1/,
    ],
    [
      "an unknown context option",
      () => native.contextOption(device.handle, cString("speed"), 1),
      [ErrorCode.argument],
      /dlfs_context_option: .*speed/,
    ],
    [
      "channels that the groups do not divide",
      () => conv({ c: 9, groups: 2 }),
      [ErrorCode.shape, ErrorCode.argument],
      /dlfs_conv_create: .*\b9\b.*\b2\b|dlfs_conv_create: .*\b2\b.*\b9\b/,
    ],
    [
      "out channels that the groups do not divide",
      () => conv({ k: 9, groups: 2 }),
      [ErrorCode.shape, ErrorCode.argument],
      /dlfs_conv_create: .*9/,
    ],
    [
      "a kernel larger than the image",
      () => conv({ r: 15 }),
      [ErrorCode.shape, ErrorCode.argument],
      /dlfs_conv_create: .*15/,
    ],
    ["a stride of 0", () => conv({ stride: 0 }), [ErrorCode.shape, ErrorCode.argument], /dlfs_conv_create: .*0/],
    ["a negative padding", () => conv({ pad: -1 }), [ErrorCode.shape, ErrorCode.argument], /dlfs_conv_create: .*-1/],
    ["a dilation of 0", () => conv({ dilation: 0 }), [ErrorCode.shape, ErrorCode.argument], /dlfs_conv_create: .*0/],
    ["a batch of 0", () => conv({ n: 0 }), [ErrorCode.shape, ErrorCode.argument], /dlfs_conv_create: .*0/],
    ["an integer convolution", () => conv({ dtype: constants.I32 }), [ErrorCode.dtype], /dlfs_conv_create: .*i32/],
    ["an unknown direction", () => conv({ direction: 3 }), [ErrorCode.argument], /dlfs_conv_create: .*3/],
    ["an unknown flag", () => conv({ flags: 1 << 20 }), [ErrorCode.argument], /dlfs_conv_create: /],
    ["a pick that does not fit", () => conv({ pick: "no such algorithm" }), [ErrorCode.argument], /dlfs_conv_create: /],
    [
      "a pooling window of more than 255 positions",
      () => native.maxPoolForward(stream, x.address, null, x.address, 1, 16, 16, 1, 16, 16, 1, 1, 0, 0, f32),
      [ErrorCode.argument, ErrorCode.shape],
      /dlfs_max_pool_forward: .*16/,
    ],
    [
      "pooling padding of more than half the window",
      () => native.maxPoolForward(stream, x.address, null, x.address, 1, 8, 8, 1, 3, 3, 1, 1, 2, 2, f32),
      [ErrorCode.argument, ErrorCode.shape],
      /dlfs_max_pool_forward: .*2/,
    ],
    [
      "batch statistics of one row",
      () =>
        native.batchNormTrain(
          stream,
          x.address,
          null,
          x.address,
          x.address,
          null,
          null,
          x.address,
          null,
          x.address,
          x.address,
          null,
          x.address,
          1,
          4,
          0,
          f32,
          1e-5,
          0.1,
          0,
        ),
      [ErrorCode.argument, ErrorCode.shape],
      /dlfs_batch_norm_train: /,
    ],
    [
      "one running statistic without the other",
      () =>
        native.batchNormTrain(
          stream,
          x.address,
          null,
          x.address,
          x.address,
          x.address,
          null,
          x.address,
          null,
          x.address,
          x.address,
          null,
          x.address,
          4,
          4,
          0,
          f32,
          1e-5,
          0.1,
          0,
        ),
      [ErrorCode.argument],
      /dlfs_batch_norm_train: .*running/,
    ],
    [
      "the mask of an activation other than relu",
      () =>
        native.batchNormTrain(
          stream,
          x.address,
          x.address,
          x.address,
          x.address,
          null,
          null,
          x.address,
          null,
          x.address,
          x.address,
          null,
          x.address,
          4,
          4,
          0,
          f32,
          1e-5,
          0.1,
          0,
        ),
      [ErrorCode.argument],
      /dlfs_batch_norm_train: .*mask.*none/,
    ],
    [
      "moments of no part",
      () =>
        native.batchNormTrain(
          stream,
          x.address,
          null,
          x.address,
          x.address,
          null,
          null,
          x.address,
          null,
          x.address,
          x.address,
          x.address,
          x.address,
          4,
          4,
          0,
          f32,
          1e-5,
          0.1,
          0,
        ),
      [ErrorCode.argument],
      /dlfs_batch_norm_train: .*parts from 1 to 2147483647, got 0/,
    ],
    [
      "an event that was never recorded",
      () => {
        const [a, b] = [outHandle(), outHandle()];
        native.eventCreate(device.handle, a.view);
        native.eventCreate(device.handle, b.view);
        try {
          native.eventElapsed(new Float64Array(1), a.value, b.value);
        } finally {
          native.eventDestroy(a.value);
          native.eventDestroy(b.value);
        }
      },
      [ErrorCode.argument, ErrorCode.handle],
      /dlfs_event_elapsed: /,
    ],
  ];
  test.each(cases)("%s", (_name, run, codes, message) => {
    const error = errorOf(run);
    expect(codes).toContain(error.code);
    expect(error.message).toMatch(message);
    device.stream.synchronize();
  });

  test("an error leaves the stream usable", () => {
    errorOf(() => native.fill(stream, x.address, -4, f32, 0));
    native.fill(stream, x.address, 64, f32, 2.5);
    expect(x.read()[63]).toBe(2.5);
  });

  test("an unknown feature is not supported, and no error", () => {
    expect(device.supports("teleport" as never)).toBe(false);
  });
});

describe("no argument crashes the process", () => {
  // Every function with NULL, 0, 1, -1 and the largest numbers in all places, on valid and on invalid handles. What is
  // checked is only that each call returns: addresses are NULL, so that nothing can be written anywhere.
  test("for any function", async () => {
    const { exitCode, signal, stdout, stderr } = await runChild(`
      import { symbols } from "./lib/native/symbols.generated";
      import { Device, DlfsError } from "./lib/index";
      const device = new Device();
      const { native } = device;
      const name = (symbol) => symbol.slice(5).replace(/_([a-z0-9])/g, (_, c) => c.toUpperCase());
      let [errors, calls] = [0, 0];
      for (const [symbol, { args }] of Object.entries(symbols)) {
        if (["dlfs_abi_version", "dlfs_last_error"].includes(symbol)) continue;
        for (const handle of [0, -1, 12345, device.handle, device.stream.handle]) {
          for (const number of [0, 1, -1, 2147483647]) {
            // closing the context or its stream is what other tests do
            if (/context_destroy|stream_destroy/.test(symbol) && handle > 12345) continue;
            const values = args.map((kind, i) => kind === "buffer" ? new Uint8Array(65536) : kind === "ptr" ? null : i === 0 && kind === "i64" ? handle : number);
            // sizes of host memory that is not there would be the caller's lie, not an argument error
            if (/capacity|length/.test(symbol) || number === 2147483647 && args.includes("buffer")) continue;
            ++calls;
            try {
              native[name(symbol)](...values);
            } catch (error) {
              if (!(error instanceof DlfsError) || error.message.length < 10) throw error;
              ++errors;
            }
          }
        }
      }
      try { device.stream.synchronize(); } catch {}
      console.log(calls > 1000 && errors > calls / 2 ? "survived" : [calls, errors].join());
      process.exit(0);
    `);
    expect({ exitCode, signal, stdout: stdout.trim() }, stderr).toEqual({
      exitCode: 0,
      signal: null,
      stdout: "survived",
    });
  });
});
