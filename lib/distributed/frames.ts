/** What goes over a rendezvous' connections: frames of a JSON message and, behind it, bytes. */

/** Frames longer than this are none: something else talks to this port. */
const MOST_BYTES = 2 ** 31 - 1;

export interface Frame<M> {
  message: M;
  payload: Uint8Array;
}

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** Bytes of the rest (4, little endian), bytes of the message (4), the message, the payload. */
export function encodeFrame(message: object, payload: Uint8Array = new Uint8Array()): Uint8Array {
  const text = encoder.encode(JSON.stringify(message));
  const frame = new Uint8Array(8 + text.byteLength + payload.byteLength);
  const view = new DataView(frame.buffer);
  view.setUint32(0, 4 + text.byteLength + payload.byteLength, true);
  view.setUint32(4, text.byteLength, true);
  frame.set(text, 8);
  frame.set(payload, 8 + text.byteLength);
  return frame;
}

/** Puts frames together from what arrives in pieces. */
export class FrameReader<M> {
  #chunks: Uint8Array[] = [];
  #bytes = 0;

  /** The frames that these bytes complete. Throws where they are no frames. */
  push(chunk: Uint8Array): Frame<M>[] {
    this.#chunks.push(chunk);
    this.#bytes += chunk.byteLength;
    const frames: Frame<M>[] = [];
    for (;;) {
      const frame = this.#next();
      if (!frame) return frames;
      frames.push(frame);
    }
  }

  #next(): Frame<M> | null {
    if (this.#bytes < 8) return null;
    if (this.#chunks[0]!.byteLength < 8) this.#join();
    const [head] = this.#chunks as [Uint8Array];
    const view = new DataView(head.buffer, head.byteOffset, 8);
    const [rest, length] = [view.getUint32(0, true), view.getUint32(4, true)];
    if (rest > MOST_BYTES || length + 4 > rest) throw new Error(`expected a frame, got ${rest} and ${length} bytes`);
    if (this.#bytes < 4 + rest) return null;
    this.#join();
    const [all] = this.#chunks as [Uint8Array];
    const message = JSON.parse(decoder.decode(all.subarray(8, 8 + length))) as M;
    const payload = all.slice(8 + length, 4 + rest);
    this.#bytes -= 4 + rest;
    this.#chunks = this.#bytes > 0 ? [all.subarray(4 + rest)] : [];
    return { message, payload };
  }

  #join(): void {
    if (this.#chunks.length <= 1) return;
    const all = new Uint8Array(this.#bytes);
    let at = 0;
    for (const chunk of this.#chunks) {
      all.set(chunk, at);
      at += chunk.byteLength;
    }
    this.#chunks = [all];
  }
}
