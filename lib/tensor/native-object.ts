import { DlfsError, ErrorCode } from "../native";
import { unwatchLeak, watchLeak } from "./leaks";

/** Owner of a native handle: dispose() (or `using`) releases it; use after that is an error. */
export abstract class NativeObject implements Disposable {
  #handle: number;
  readonly #what: string;
  readonly #release: (handle: number) => void;

  protected constructor(handle: number, what: string, release: (handle: number) => void) {
    this.#handle = handle;
    this.#what = what;
    this.#release = release;
    watchLeak(this, what);
  }

  get handle(): number {
    if (this.#handle === 0) throw new DlfsError(ErrorCode.handle, this.#what, "used after dispose()");
    return this.#handle;
  }

  get disposed(): boolean {
    return this.#handle === 0;
  }

  dispose(): void {
    const handle = this.#handle;
    if (handle === 0) return;
    this.#handle = 0;
    unwatchLeak(this);
    this.#release(handle);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Receives a handle, an address or another 64-bit integer from an out-parameter. */
export function outHandle(): { view: BigInt64Array; readonly value: number } {
  const view = new BigInt64Array(1);
  return {
    view,
    get value() {
      return Number(view[0]);
    },
  };
}
