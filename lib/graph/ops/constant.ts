import { type DType, encodeElements } from "../../tensor";
import type { Op } from "../node";

/** A tensor of numbers known when the graph is built; uploaded once per program. */
export const constant: Op<{ shape: readonly number[]; dtype: DType; values: ArrayLike<number> }> = {
  kind: "constant",
  hoist: true,
  infer: (_, { shape, dtype }) => [{ shape, dtype }],
  emit(e, { outputs: [y], attrs }) {
    const dst = e.address(y!);
    const bytes = encodeElements(attrs.values, attrs.dtype);
    e.call(() => e.native.uploadSync(e.stream, dst, bytes, bytes.byteLength));
  },
};
