/** A process of a load (see load.ts): gets its task, sends requests, and gives back what it measured. */
import type { WorkerResult, WorkerTask } from "./load";

const IN_FLIGHT_MOST = 4096;

process.once("message", async (task: WorkerTask) => {
  const result = await run(task);
  process.send?.(result);
  setTimeout(() => process.exit(0), 100);
});

async function run({
  url,
  files,
  mode,
  rate = 1,
  clients = 1,
  seconds,
  warmUp = 0,
  headers,
  seed = 1,
  index,
  begin,
}: WorkerTask) {
  const bodies = await Promise.all(files.map((path) => Bun.file(path).bytes()));
  const latencies: number[] = [];
  const late: number[] = [];
  const statuses: Record<string, number> = {};
  let next = index * 7;
  await Bun.sleep(Math.max(0, begin - Date.now()));
  const start = performance.now();
  const counted = start + warmUp * 1000;
  const end = counted + seconds * 1000;

  /** Sends a request that was to be sent at `due`. */
  async function send(due: number): Promise<void> {
    const body = bodies[next++ % bodies.length] as Uint8Array<ArrayBuffer>;
    const sent = performance.now();
    let status: string;
    try {
      const answer = await fetch(url, { method: "POST", body, headers });
      await answer.arrayBuffer();
      status = String(answer.status);
    } catch {
      status = "error";
    }
    if (due < counted || due >= end) return;
    statuses[status] = (statuses[status] ?? 0) + 1;
    if (status !== "200") return;
    latencies.push(performance.now() - due);
    late.push(sent - due);
  }

  if (mode === "closed") {
    const client = async () => {
      while (performance.now() < end) await send(performance.now());
    };
    await Promise.all(Array.from({ length: clients }, client));
  } else {
    let state = (seed * 2654435761 + index * 40503) >>> 0;
    const random = () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return (state + 1) / 2 ** 32;
    };
    const pending = new Set<Promise<void>>();
    let due = start;
    for (;;) {
      due += (-Math.log(random()) / rate) * 1000;
      if (due >= end) break;
      // Timers are of a millisecond: what is due within it is sent at once.
      const wait = due - performance.now();
      if (wait > 0.5) await Bun.sleep(wait);
      if (pending.size >= IN_FLIGHT_MOST) await Promise.race(pending);
      const sent: Promise<void> = send(due).finally(() => pending.delete(sent));
      pending.add(sent);
    }
    await Promise.all(pending);
  }
  return { latencies: Float64Array.from(latencies), late: Float64Array.from(late), statuses } satisfies WorkerResult;
}
