/** Error codes of the native ABI (csrc/include/dlfs.h); TypeScript code reuses the same ranges for its own checks. */
export const ErrorCode = {
  argument: -100,
  shape: -101,
  dtype: -102,
  handle: -103,
  unsupported: -104,
  memory: -200,
  hostMemory: -201,
  io: -300,
  image: -301,
  cuda: -400,
  cudaFatal: -401,
  cudnn: -500,
  cublas: -501,
  nvjpeg: -502,
  onednn: -503,
  internal: -900,
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
export function check(condition: boolean, op: string, message: () => string, code: number = ErrorCode.argument): asserts condition {
  if (!condition) throw new DlfsError(code, op, message());
}
