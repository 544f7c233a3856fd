/** Average pooling, with torch.nn's semantics. */
import { avgPool2d, globalAvgPool2d, pair, type Size2, type Value } from "../graph";
import { check, ErrorCode } from "../native";
import { Layer } from "./layer";

export interface AvgPool2dOptions {
  /** Default: the kernel's size. */
  stride?: Size2;
  /** At most half the kernel's size. Default 0. */
  padding?: Size2;
  /** Divides by the kernel's size (true) or by the pixels inside the image (false). Default true. */
  countIncludePad?: boolean;
}

/** Mean over windows. */
export class AvgPool2d extends Layer {
  constructor(
    readonly kernel: Size2,
    readonly options: AvgPool2dOptions = {},
  ) {
    super();
  }

  forward(x: Value): Value {
    return avgPool2d(x, this.kernel, this.options);
  }
}

/** The mean of each channel over the whole image: (N, H, W, C) to (N, 1, 1, C). */
export class GlobalAvgPool2d extends Layer {
  forward(x: Value): Value {
    return globalAvgPool2d(x);
  }
}

/**
 * Means over windows that divide the image into `outputSize` parts of one size, as torch.nn.AdaptiveAvgPool2d where the image
 * can be divided so; other images are an error.
 */
export class AdaptiveAvgPool2d extends Layer {
  /** @param outputSize 1 for the whole image */
  constructor(readonly outputSize: Size2) {
    super();
    check(
      pair(outputSize).every((size) => Number.isInteger(size) && size > 0),
      "AdaptiveAvgPool2d",
      () => `expected a positive output size, got ${outputSize}`,
    );
  }

  forward(x: Value): Value {
    const [p, q] = pair(this.outputSize);
    const [, h = 0, w = 0] = x.shape;
    check(
      h % p === 0 && w % q === 0,
      "AdaptiveAvgPool2d",
      () => `expected an image that ${p}x${q} windows divide, got ${h}x${w}`,
      ErrorCode.shape,
    );
    return avgPool2d(x, [h / p, w / q]);
  }
}
