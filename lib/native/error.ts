import { constants } from "./symbols.generated";

/** Error codes of the native ABI (csrc/include/dlfs.h); TypeScript code reuses the same ranges for its own checks. */
export const ErrorCode = {
  argument: constants.ERROR_ARGUMENT,
  shape: constants.ERROR_SHAPE,
  dtype: constants.ERROR_DTYPE,
  handle: constants.ERROR_HANDLE,
  unsupported: constants.ERROR_UNSUPPORTED,
  memory: constants.ERROR_MEMORY,
  hostMemory: constants.ERROR_HOST_MEMORY,
  io: constants.ERROR_IO,
  image: constants.ERROR_IMAGE,
  cuda: constants.ERROR_CUDA,
  cudaFatal: constants.ERROR_CUDA_FATAL,
  cudnn: constants.ERROR_CUDNN,
  cublas: constants.ERROR_CUBLAS,
  nvjpeg: constants.ERROR_NVJPEG,
  onednn: constants.ERROR_ONEDNN,
  collective: constants.ERROR_COLLECTIVE,
  internal: constants.ERROR_INTERNAL,
} as const;

/** The one error class of the library: `code` as in dlfs.h, `op` the operation, file or layer path that failed. */
export class DlfsError extends Error {
  override readonly name = "DlfsError";
  constructor(
    readonly code: number,
    readonly op: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super(`${op}: ${message}`, options);
  }
}

/** Throws an argument error unless `condition` holds; the message is only built when it does not. */
export function check(
  condition: boolean,
  op: string,
  message: () => string,
  code: number = ErrorCode.argument,
): asserts condition {
  if (!condition) throw new DlfsError(code, op, message());
}

/** What went wrong first, where more did while that was on its way up: releasing what an error left half-done often fails, too. */
export function firstError(error: unknown): unknown {
  return error instanceof SuppressedError ? firstError(error.suppressed) : error;
}
