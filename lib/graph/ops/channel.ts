import { dtypeCode } from "../../tensor";
import { expectActivation, expectShape, nhwc, type Op, rowsAndChannels, scratchMemory } from "../node";

/** (N, H, W, C) as N images of rows of channels. */
function imageRows(shape: readonly number[]): [n: number, rows: number, channels: number] {
  const [n, h, w, c] = shape as [number, number, number, number];
  return [n, h * w, c];
}

/** x (N, H, W, C) times s (N, 1, 1, C): a factor for each channel of each image. */
export const channelScale: Op<object> = {
  kind: "channel_scale",
  inplace: [0],
  infer([x, s]) {
    const [n, , , c] = nhwc(x!);
    expectActivation(x!, "an image batch");
    expectShape(
      s!.dtype === x!.dtype && s!.shape.join() === [n, 1, 1, c].join(),
      () => `expected factors ${x!.dtype} (${n}, 1, 1, ${c}), got ${s!.dtype} (${s!.shape.join(", ")})`,
    );
    return [x!];
  },
  gradient(builder, { inputs: [x, s], outputs: [y] }, [dy]) {
    const upstream = builder.value(dy!, y!);
    return [
      builder.needed(x!) ? builder.apply(channelScale, [upstream, s!], {})[0]! : null,
      builder.needed(s!) ? builder.apply(channelDot, [upstream, x!], {})[0]! : null,
    ];
  },
  emit(e, { inputs: [x, s], outputs: [y] }) {
    const [dst, src, factors, dtype] = [e.address(y!), e.address(x!), e.address(s!), dtypeCode(x!.dtype)];
    const [n, rows, channels] = imageRows(x!.shape);
    e.call(() => e.native.channelScale(e.stream, dst, src, factors, n, rows, channels, dtype));
  },
};

/** (N, 1, 1, C): the sums over each image's pixels of a * b, both (N, H, W, C). */
const channelDot: Op<object> = {
  kind: "channel_dot",
  infer([a]) {
    const [n, , , c] = nhwc(a!);
    return [{ shape: [n, 1, 1, c], dtype: a!.dtype }];
  },
  prepare(device, { inputs: [a] }) {
    const [size, dtype] = [imageRows(a!.shape), dtypeCode(a!.dtype)];
    return scratchMemory((out) => device.native.channelDotWorkspace(device.handle, out, ...size, dtype));
  },
  emit(e, { inputs: [a, b], outputs: [y] }) {
    const [dst, left, right, workspace] = [e.address(y!), e.address(a!), e.address(b!), e.workspace];
    const [[n, rows, channels], dtype] = [imageRows(a!.shape), dtypeCode(a!.dtype)];
    e.call(() => e.native.channelDot(e.stream, dst, left, right, workspace, n, rows, channels, dtype));
  },
};

/** torch's ChannelShuffle: channel g C / groups + j becomes channel j groups + g. */
export const channelShuffle: Op<{ groups: number }> = {
  kind: "channel_shuffle",
  infer([x], { groups }) {
    expectActivation(x!, "a tensor");
    const c = x!.shape.at(-1) ?? 0;
    expectShape(
      Number.isInteger(groups) && groups > 0 && c > 0 && c % groups === 0,
      () => `expected channels divisible by ${groups} groups, got ${c}`,
    );
    return [x!];
  },
  // Of (groups, C / groups) channels, transposed, the way back is the transposition of (C / groups, groups).
  gradient: (builder, { inputs: [x], outputs: [y], attrs: { groups } }, [dy]) =>
    builder.apply(channelShuffle, [builder.value(dy!, y!)], { groups: x!.shape.at(-1)! / groups }),
  emit(e, { inputs: [x], outputs: [y], attrs: { groups } }) {
    const [dst, src, dtype] = [e.address(y!), e.address(x!), dtypeCode(x!.dtype)];
    const [rows, channels] = rowsAndChannels(x!.shape);
    e.call(() => e.native.channelShuffle(e.stream, dst, src, rows, channels, groups, dtype));
  },
};
