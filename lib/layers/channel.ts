/** Layers that combine, divide and reorder channels. */
import { channelShuffle, multiply, split, type Value } from "../graph";
import { check } from "../native";
import { Layer } from "./layer";

/** The product of two or more tensors of one shape, or of images (N, H, W, C) and factors (N, 1, 1, C) of their channels. */
export class Multiply extends Layer {
  forward(...inputs: Value[]): Value {
    return inputs.reduce((product, x) => multiply(product, x));
  }
}

/** Deals the channels of `groups` groups out in turn, as torch.nn.ChannelShuffle (Zhang et al. 2018). */
export class ChannelShuffle extends Layer {
  constructor(readonly groups: number) {
    super();
    check(
      Number.isInteger(groups) && groups > 0,
      "ChannelShuffle",
      () => `expected a positive number of groups, got ${groups}`,
    );
  }

  forward(x: Value): Value {
    return channelShuffle(x, this.groups);
  }
}

/** The parts of a tensor along an axis, by default the channels, of one size or of the sizes listed, as torch.split. */
export class Split extends Layer {
  constructor(
    readonly sizes: number | readonly number[],
    readonly axis = 3,
  ) {
    super();
  }

  forward(x: Value): Value[] {
    return split(x, this.sizes, this.axis);
  }
}
