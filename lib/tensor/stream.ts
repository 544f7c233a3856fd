import type { Device } from "./device";
import { NativeObject, outHandle } from "./native-object";

/** An ordered queue of work on a device. Enqueuing returns at once; an error of the work shows at synchronize() or query(). */
export class Stream extends NativeObject {
  constructor(readonly device: Device) {
    const out = outHandle();
    device.native.streamCreate(device.handle, out.view);
    super(out.value, "Stream", (handle) => device.native.streamDestroy(handle));
  }

  /** Blocks the calling thread until all enqueued work is done. */
  synchronize(): void {
    this.device.native.streamSynchronize(this.handle);
  }

  /** True when all enqueued work is done. */
  query(): boolean {
    return this.device.native.streamQuery(this.handle) === 0;
  }

  /** Resolves when the work enqueued so far is done, without blocking the event loop. */
  async done(): Promise<void> {
    await until(() => this.query());
  }

  /** Later work on this stream waits for the event. */
  waitFor(event: Event): void {
    this.device.native.streamWaitEvent(this.handle, event.handle);
  }
}

/** A point in a stream. */
export class Event extends NativeObject {
  constructor(readonly device: Device) {
    const out = outHandle();
    device.native.eventCreate(device.handle, out.view);
    super(out.value, "Event", (handle) => device.native.eventDestroy(handle));
  }

  /** Marks the stream's present end. */
  record(stream: Stream): void {
    this.device.native.eventRecord(stream.handle, this.handle);
  }

  query(): boolean {
    return this.device.native.eventQuery(this.handle) === 0;
  }

  synchronize(): void {
    this.device.native.eventSynchronize(this.handle);
  }

  /**
   * Resolves when the recorded point has been passed, without blocking the event loop.
   *
   * @param expected milliseconds that this will take, as far as is known
   */
  async done(expected = 0): Promise<void> {
    await until(() => this.query(), expected);
  }

  /** Milliseconds from `start` to this event; both must have been passed. */
  since(start: Event): number {
    const out = new Float64Array(1);
    this.device.native.eventElapsed(out, start.handle, this.handle);
    return out[0] as number;
  }
}

/** A timer may come so many milliseconds late. */
const TIMER_DELAY = 1.5;
/** So many milliseconds after something was expected, it is asked about by timers alone. */
const PATIENCE = 0.5;

/**
 * Polls a condition from the event loop: bun:ffi has no asynchronous calls, so waiting means asking again. Up to shortly before
 * the `expected` milliseconds are over a timer keeps the CPU free; around their end every turn of the event loop asks, so that
 * the answer is late by microseconds; after that timers ask each millisecond.
 */
export async function until(ready: () => boolean, expected = 0): Promise<void> {
  const start = performance.now();
  while (!ready()) {
    const left = expected - (performance.now() - start);
    if (left > TIMER_DELAY + 1) await Bun.sleep(left - TIMER_DELAY);
    else if (left > -PATIENCE) await new Promise<void>((resolve) => setImmediate(resolve));
    else await Bun.sleep(1);
  }
}
