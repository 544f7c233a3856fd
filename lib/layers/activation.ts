/** Activations as layers, one short class each; semantics and defaults are torch.nn's. */
import { hardsigmoid, hardswish, leakyRelu, relu, relu6, sigmoid, silu, softmax, type Value } from "../graph";
import { check } from "../native";
import { Layer } from "./layer";

export class ReLU extends Layer {
  forward(x: Value): Value {
    return relu(x);
  }
}

/** min(max(x, 0), 6). */
export class ReLU6 extends Layer {
  forward(x: Value): Value {
    return relu6(x);
  }
}

/** x where x > 0, else negativeSlope * x. */
export class LeakyReLU extends Layer {
  /** @param negativeSlope any finite number; default 0.01 */
  constructor(readonly negativeSlope = 0.01) {
    super();
    check(Number.isFinite(negativeSlope), "LeakyReLU", () => `expected a finite negativeSlope, got ${negativeSlope}`);
  }

  forward(x: Value): Value {
    return leakyRelu(x, this.negativeSlope);
  }
}

/** x * sigmoid(x). */
export class SiLU extends Layer {
  forward(x: Value): Value {
    return silu(x);
  }
}

export class Sigmoid extends Layer {
  forward(x: Value): Value {
    return sigmoid(x);
  }
}

/** x * min(max(x + 3, 0), 6) / 6 (Howard et al. 2019). */
export class Hardswish extends Layer {
  forward(x: Value): Value {
    return hardswish(x);
  }
}

/** min(max(x + 3, 0), 6) / 6. */
export class Hardsigmoid extends Layer {
  forward(x: Value): Value {
    return hardsigmoid(x);
  }
}

/** exp(x) / sum of exp(x) over the channels (the last axis), as torch.nn.Softmax2d on image batches. */
export class Softmax extends Layer {
  forward(x: Value): Value {
    return softmax(x);
  }
}
