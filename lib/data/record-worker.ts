/** The thread of a RecordCopier: copies records from their files to pinned memory, as it is told by messages. */
import { borrowHostMemory } from "../native/memory";
import type { CopyReply, CopyRequest } from "./record-copier";
import { RecordFiles } from "./record-files";

declare const self: Worker;

/**
 * Requests after which garbage is collected. What a message is made of counts next to nothing for the collector's own clock, which
 * would let a hundred megabytes of them gather; this takes about a millisecond.
 */
const COLLECT_EVERY = 256;

let files: RecordFiles | null = null;
let buffers: Uint8Array[] = [];
let requests = 0;

self.onmessage = ({ data }: MessageEvent<CopyRequest>) => {
  if (data.kind === "open") {
    files = new RecordFiles(data.paths, data.sizes, data.map);
    buffers = data.buffers.map(({ address, byteLength }) => new Uint8Array(borrowHostMemory(address, byteLength)));
  } else if (data.kind === "copy") {
    const { id, buffer, copies, checksums } = data;
    let reply: CopyReply;
    try {
      const failures = (files as RecordFiles).copy(copies, checksums, buffers[buffer] as Uint8Array);
      reply = { id, failures, error: null };
    } catch (error) {
      reply = { id, failures: [], error: String(error) };
    }
    self.postMessage(reply);
    if (++requests % COLLECT_EVERY === 0) Bun.gc(true);
  } else {
    // The memory is about to be freed.
    buffers = [];
    files?.close();
    self.postMessage({ id: data.id, failures: [], error: null } satisfies CopyReply);
    process.exit(0);
  }
};
