/** Sends a service so many requests of every kind, valid ones and some that are not, and watches its memory. */
import type { StartedServer } from "./start";

export interface SoakOptions {
  readonly server: Pick<StartedServer, "url" | "memory">;
  /** The model's name. */
  readonly model: string;
  /** Files that can be decoded. */
  readonly images: readonly Uint8Array[];
  readonly requests: number;
  readonly clients?: number;
  /** Measurements of memory. Default 20. */
  readonly samples?: number;
  readonly onSample?: (sample: SoakSample) => void;
}

export interface SoakSample {
  readonly requests: number;
  readonly seconds: number;
  /** Bytes of the server's process, and of its engines'. */
  readonly own: number;
  readonly children: number;
}

export interface SoakResult {
  readonly requests: number;
  readonly seconds: number;
  /** By status. */
  readonly statuses: Readonly<Record<string, number>>;
  /** Answers of another status than expected. */
  readonly unexpected: number;
  readonly samples: readonly SoakSample[];
}

/** The lowest memory of each third of the samples, in bytes: what is left of it behind garbage collection. */
export function floorsOf(samples: readonly SoakSample[], part: "own" | "children"): [number, number, number] {
  const third = Math.floor(samples.length / 3);
  const least = (from: number, to?: number) => Math.min(...samples.slice(from, to).map((sample) => sample[part]));
  return [least(0, third), least(third, 2 * third), least(2 * third)];
}

/** Runs to the end. */
export async function soak(options: SoakOptions): Promise<SoakResult> {
  const { server, model, images, requests, clients = 16, samples: wanted = 20, onSample } = options;
  const infer = `${server.url}v2/models/${model}/infer`;
  const inputs = images.map((image) => {
    const data = [Buffer.from(image).toString("base64")];
    return JSON.stringify({ inputs: [{ name: "image_bytes", datatype: "BYTES", shape: [1], data }] });
  });
  const statuses: Record<string, number> = {};
  const samples: SoakSample[] = [];
  let [next, done, unexpected] = [0, 0, 0];
  const start = performance.now();
  const every = Math.max(1, Math.ceil(requests / wanted));

  async function one(i: number): Promise<void> {
    const body = images[i % images.length] as Uint8Array<ArrayBuffer>;
    // Most as people send them; some by the protocol; some damaged, and some that are given up.
    const kind = i % 20;
    const raw = { "Inference-Header-Content-Length": "0" };
    let expected = 200;
    let answer: Promise<Response>;
    if (kind === 17) {
      answer = fetch(infer, { method: "POST", body: inputs[i % inputs.length] });
    } else if (kind === 18) {
      expected = 400;
      answer = fetch(`${server.url}predict`, { method: "POST", body: body.subarray(0, 60) });
    } else if (kind === 19 && i % 40 === 19) {
      const abort = new AbortController();
      setTimeout(() => abort.abort(), i % 7);
      await fetch(`${server.url}predict`, { method: "POST", body, signal: abort.signal })
        .then((reply) => reply.arrayBuffer())
        .catch(() => {});
      return;
    } else if (kind >= 12) {
      answer = fetch(infer, { method: "POST", body, headers: raw });
    } else {
      answer = fetch(`${server.url}predict`, { method: "POST", body });
    }
    let status: number | "error" = "error";
    try {
      const reply = await answer;
      await reply.arrayBuffer();
      status = reply.status;
    } catch {
      // Counted.
    }
    statuses[status] = (statuses[status] ?? 0) + 1;
    if (status !== expected) unexpected++;
  }

  const worker = async () => {
    while (next < requests) {
      await one(next++);
      if (++done % every !== 0 && done !== requests) continue;
      const sample = { requests: done, seconds: (performance.now() - start) / 1000, ...server.memory() };
      samples.push(sample);
      onSample?.(sample);
    }
  };
  await Promise.all(Array.from({ length: clients }, worker));
  return { requests: done, seconds: (performance.now() - start) / 1000, statuses, unexpected, samples };
}
