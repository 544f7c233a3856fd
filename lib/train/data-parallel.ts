import type { Call, GradientCall, Parameter, Program } from "../graph";
import type { Model } from "../layers";
import { check, ErrorCode } from "../native";
import { type Communicator, Tensor } from "../tensor";

export interface DataParallelOptions {
  /**
   * Bytes of gradients that are reduced at once, as soon as they are complete; larger ones use the network better, smaller ones can
   * begin earlier. Default 25 MiB, as torch's DistributedDataParallel.
   */
  bucketBytes?: number;
}

/** The gradients of some parameters, one behind the other in memory. */
interface Bucket {
  parameters: Parameter[];
  memory: Tensor;
}

/**
 * Data-parallel training: each rank computes the gradients of its own images, and all take a step with the mean over the ranks,
 * as torch's DistributedDataParallel. So a loss that is a mean over images (RetinaNet's) gives the gradients of one rank with all
 * images; one that is divided by the batch's foreground (FCOS', SSD's) divides by each rank's own, as torchvision's do there.
 * The reductions are part of the captured step and run beside the backward pass. Losses are reported as means over the ranks, so
 * that one which is not finite on any rank leaves all weights as they are.
 */
export class DataParallel {
  readonly #buckets: Bucket[];

  /** For the parameters of a model that require gradients now; see SGD.selectTrained. */
  constructor(
    model: Model,
    readonly communicator: Communicator,
    { bucketBytes = 25 * 2 ** 20 }: DataParallelOptions = {},
  ) {
    check(bucketBytes > 0, "DataParallel", () => `bucketBytes: expected a number above 0, got ${bucketBytes}`);
    check(
      communicator.device === model.device,
      "DataParallel",
      () => "the communicator is of another device than the model",
      ErrorCode.handle,
    );
    this.#buckets = bucketsOf(model, bucketBytes);
  }

  /** How many reductions a step's gradients take. */
  get buckets(): number {
    return this.#buckets.length;
  }

  /** The reductions of a step, for ProgramOptions. */
  gradientCalls(): GradientCall[] {
    return this.#buckets.map(({ parameters, memory }, i) => {
      const name = `gradients ${i + 1} of ${this.#buckets.length}`;
      const run: GradientCall["run"] = (stream) => this.communicator.allReduce(stream, [memory], name, "average");
      return { kind: "all_reduce", path: name, parameters, run };
    });
  }

  /** The calls that make losses means over all ranks and wait for all reductions: after a program's own. */
  lossCalls(program: Program, losses: readonly string[]): Call[] {
    const { communicator } = this;
    const { stream } = program;
    const tensors = losses.map((name) => program.results[name] as Tensor);
    const call = (kind: string, run: () => void): Call => ({ kind, path: "losses", outputs: [], run });
    return [
      call("all_reduce", () => communicator.allReduce(stream, tensors, "losses", "average")),
      call("wait_reductions", () => communicator.wait(stream)),
    ];
  }

  /** Gives all ranks rank 0's values. The tensors are the same ones, in the same order, on all ranks. */
  broadcast(tensors: readonly Tensor[], name: string): void {
    const { communicator } = this;
    const { stream } = communicator.device;
    communicator.broadcast(stream, tensors, name);
    communicator.wait(stream);
  }
}

/**
 * Parameters in the order in which their gradients become complete, about the reverse of the model's: a bucket is a run of the
 * gradients' memory, with what lies between them.
 */
function bucketsOf(model: Model, bucketBytes: number): Bucket[] {
  const trained = [...model.namedParameters()]
    .map(([, parameter]) => parameter)
    .filter(({ requiresGrad }) => requiresGrad)
    .sort((a, b) => b.grad!.address - a.grad!.address);
  const buckets: Bucket[] = [];
  let parameters: Parameter[] = [];
  const close = () => {
    const [last, first] = [parameters[0]!.grad!, parameters.at(-1)!.grad!];
    const floats = (last.address + last.byteLength - first.address) / 4;
    buckets.push({ parameters, memory: Tensor.at(model.device, first.address, [floats], "f32") });
    parameters = [];
  };
  for (const parameter of trained) {
    const end = (parameters[0] ?? parameter).grad!;
    if (parameters.length > 0 && end.address + end.byteLength - parameter.grad!.address > bucketBytes) close();
    parameters.push(parameter);
  }
  if (parameters.length > 0) close();
  return buckets;
}
