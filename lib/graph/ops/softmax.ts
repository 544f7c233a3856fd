import { dtypeCode } from "../../tensor";
import { expectActivation, expectShape, type Op, rowsAndChannels } from "../node";

/** Softmax over the last axis. */
export const softmax: Op<object> = {
  kind: "softmax",
  inplace: [0],
  infer([x]) {
    expectActivation(x!, "a tensor");
    expectShape(x!.shape.length > 0, () => "expected a tensor of shape (..., C), got a scalar");
    return [x!];
  },
  gradient: (builder, { outputs: [y] }, [dy]) => builder.apply(softmaxBackward, [builder.value(dy!, y!), y!], {}),
  emit(e, { inputs: [x], outputs: [y] }) {
    const [dst, src, dtype] = [e.address(y!), e.address(x!), dtypeCode(x!.dtype)];
    const [rows, channels] = rowsAndChannels(x!.shape);
    e.call(() => e.native.softmaxForward(e.stream, dst, src, rows, channels, dtype));
  },
};

const softmaxBackward: Op<object> = {
  kind: "softmax_backward",
  inplace: [0],
  infer: ([dy]) => [dy!],
  emit(e, { inputs: [dy, y], outputs: [dx] }) {
    const [dst, upstream, kept, dtype] = [e.address(dx!), e.address(dy!), e.address(y!), dtypeCode(y!.dtype)];
    const [rows, channels] = rowsAndChannels(y!.shape);
    e.call(() => e.native.softmaxBackward(e.stream, dst, upstream, kept, rows, channels, dtype));
  },
};
