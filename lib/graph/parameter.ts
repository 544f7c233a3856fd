import { DlfsError, ErrorCode } from "../native";
import { type DType, elementCount, type Tensor } from "../tensor";

/** How a parameter's values are drawn. */
export type Init =
  | { readonly kind: "constant"; readonly value: number }
  | { readonly kind: "uniform"; readonly low: number; readonly high: number }
  | { readonly kind: "normal"; readonly mean: number; readonly std: number };

/**
 * A named array of a layer that outlives programs: trained (a weight) or kept (a running statistic; `buffer`). fp32. It has
 * memory once its model has been moved to a device with `to()`.
 */
export class Parameter {
  /** Path in the model, "backbone.conv1.weight"; set by the model. */
  name = "";
  requiresGrad: boolean;
  /** Values, gradient and low-precision copy on the device; owned by the model. */
  #tensor: Tensor | null = null;
  grad: Tensor | null = null;
  copy: Tensor | null = null;
  readonly size: number;

  constructor(
    readonly shape: readonly number[],
    readonly init: Init,
    readonly options: {
      /** A running statistic: saved, not trained. */
      buffer?: boolean;
      /** False: state of the training alone, kept in checkpoints and left out of exported weights (torch's term). Default true. */
      persistent?: boolean;
      /** Gets weight decay; by convention biases and normalisation do too in torch's SGD. Default true. */
      decay?: boolean;
    } = {},
  ) {
    this.requiresGrad = !options.buffer;
    this.size = elementCount(shape);
  }

  get isBuffer(): boolean {
    return this.options.buffer ?? false;
  }

  get isPersistent(): boolean {
    return this.options.persistent ?? true;
  }

  get tensor(): Tensor {
    if (!this.#tensor) {
      throw new DlfsError(
        ErrorCode.argument,
        this.name || "parameter",
        "has no memory yet: call model.to(device) first",
      );
    }
    return this.#tensor;
  }

  set tensor(tensor: Tensor | null) {
    this.#tensor = tensor;
  }

  get allocated(): boolean {
    return this.#tensor !== null;
  }

  /** The tensor that operations in this dtype read. */
  inDType(dtype: DType): Tensor {
    if (dtype === "f32") return this.tensor;
    if (this.copy?.dtype !== dtype) {
      throw new DlfsError(
        ErrorCode.dtype,
        this.name,
        `has no ${dtype} copy: call model.to(device, { precision: "${dtype}" })`,
      );
    }
    return this.copy;
  }
}
