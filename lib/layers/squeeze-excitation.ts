import { multiply, type Value } from "../graph";
import { ReLU, Sigmoid } from "./activation";
import { Conv2d } from "./basic";
import { Layer, type Unary } from "./layer";
import { GlobalAvgPool2d } from "./pooling";

export interface SqueezeExcitationOptions {
  /** Between the two maps. Default ReLU. */
  activation?: Unary;
  /** Makes the factors; default Sigmoid, MobileNetV3's is Hardsigmoid. */
  scaleActivation?: Unary;
}

/**
 * Scales each channel by a factor computed from the means of all channels (Hu et al. 2018), as
 * torchvision.ops.SqueezeExcitation: fc1 and fc2 are 1x1 convolutions with biases.
 */
export class SqueezeExcitation extends Layer {
  readonly avgpool = new GlobalAvgPool2d();
  readonly fc1: Conv2d;
  readonly fc2: Conv2d;
  readonly activation: Unary;
  readonly scaleActivation: Unary;

  constructor(inputChannels: number, squeezeChannels: number, options: SqueezeExcitationOptions = {}) {
    super();
    this.fc1 = new Conv2d(inputChannels, squeezeChannels, 1);
    this.fc2 = new Conv2d(squeezeChannels, inputChannels, 1);
    this.activation = options.activation ?? new ReLU();
    this.scaleActivation = options.scaleActivation ?? new Sigmoid();
  }

  forward(x: Value): Value {
    const squeezed = this.activation.forward(this.fc1.forward(this.avgpool.forward(x)));
    return multiply(x, this.scaleActivation.forward(this.fc2.forward(squeezed)));
  }
}
