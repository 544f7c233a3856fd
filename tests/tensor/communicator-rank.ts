/** One rank of communicator.test.ts: RANK WORLD CASE [MORE]. Prints what it found as JSON. */
import { Communicator, Device, Event, Tensor } from "../../lib/tensor";
import { exchange } from "../support/ranks";

const [rank = 0, world = 1] = process.argv.slice(2, 4).map(Number);
const [what = "", more = ""] = process.argv.slice(4);
const device = new Device({ backend: process.env.DLFS_BACKEND, index: process.env.DLFS_BACKEND === "cuda" ? rank : 0 });
const { stream, native } = device;
const comm = new Communicator(device, { rank, world, host: "127.0.0.1", timeoutMs: 60_000 });
const addresses = await exchange([...comm.address()]);
await comm.connect(addresses.map((address) => Uint8Array.from(address)));

const dtypes = ["f32", ...(["bf16", "f16"] as const).filter((dtype) => device.supports(dtype))] as const;

async function results(): Promise<object> {
  const found: Record<string, number[]> = {};
  for (const dtype of dtypes) {
    // Sums are exact in each dtype, so they can be compared as they are.
    for (const [name, size] of [
      ["odd", 1],
      ["small", 7],
      ["large", 100_003],
    ] as const) {
      using x = Tensor.from(
        device,
        Float32Array.from({ length: size }, (_, i) => ((i + rank) % 5) - 2),
        [size],
        dtype,
      );
      using y = Tensor.from(
        device,
        Float32Array.from({ length: 3 }, (_, i) => rank * 4 + i),
        [3],
        dtype,
      );
      comm.allReduce(stream, [x, y], `sum ${dtype}`);
      comm.wait(stream);
      const sum = [...(x.read() as Float32Array)];
      found[`sum ${dtype} ${name}`] = [...sum.slice(0, 7), sum.at(-1)!, ...(y.read() as Float32Array)];
    }
    using x = Tensor.full(device, [5], 2 * rank, dtype);
    comm.allReduce(stream, [x], `average ${dtype}`, "average");
    comm.wait(stream);
    found[`average ${dtype}`] = [...(x.read() as Float32Array)];
  }
  using a = Tensor.full(device, [3], rank + 1);
  using b = Tensor.full(device, [1000], -rank, "i32");
  comm.broadcast(stream, [a, b], "broadcast", world - 1);
  comm.wait(stream);
  found.broadcast = [...(a.read() as Float32Array), (b.read() as Int32Array)[999]!];
  using own = Tensor.from(device, [rank, 10 * rank], [2], "i32");
  using all = Tensor.zeros(device, [world, 2], "i32");
  comm.allGather(stream, all, own, "gather");
  comm.wait(stream);
  found.gather = [...(all.read() as Int32Array)];
  return found;
}

/** Sums in a captured graph, with work beside them on the stream, launched several times. */
async function graph(): Promise<object> {
  using x = Tensor.full(device, [1000], rank + 1);
  using y = Tensor.full(device, [1000], 1);
  const calls = () => {
    comm.allReduce(stream, [x], "first");
    native.add(stream.handle, y.address, y.address, y.address, y.size, 0, 0);
    comm.wait(stream);
    native.scale(stream.handle, x.address, x.address, null, x.size, 0, 0.5);
    comm.allReduce(stream, [y], "second", "average");
    comm.wait(stream);
  };
  calls();
  stream.synchronize();
  const before = comm.progress();
  const out = new BigInt64Array(1);
  native.graphBegin(stream.handle);
  calls();
  native.graphEnd(stream.handle, out);
  const captured = comm.progress();
  for (let i = 0; i < 3; i++) native.graphLaunch(stream.handle, Number(out[0]));
  stream.synchronize();
  const after = comm.progress();
  native.graphDestroy(Number(out[0]));
  return { x: (x.read() as Float32Array)[999], y: (y.read() as Float32Array)[0], before, captured, after };
}

/** The last rank does not come to a reduction, or to `more` launches of a graph of it; the others are aborted, and say so. */
async function abort(): Promise<object> {
  using x = Tensor.full(device, [1000], 1);
  const launches = Number(more);
  const reduce = () => {
    comm.allReduce(stream, [x], "bucket 3");
    comm.wait(stream);
  };
  if (launches > 0) reduce(); // the first of a size is not captured
  stream.synchronize();
  if (rank === world - 1) {
    await exchange("waiting");
    return {};
  }
  const { begun } = comm.progress();
  const graph = new BigInt64Array(1);
  if (launches > 0) native.graphBegin(stream.handle);
  reduce();
  if (launches > 0) native.graphEnd(stream.handle, graph);
  for (let i = 0; i < launches; i++) native.graphLaunch(stream.handle, Number(graph[0]));
  using end = new Event(device);
  end.record(stream);
  const started = performance.now();
  while (comm.progress().begun === begun) await Bun.sleep(1);
  const { collective } = comm.progress();
  comm.abort();
  const messages: string[] = [];
  for (const attempt of [() => stream.synchronize(), () => comm.check(), () => comm.barrier(stream, "later")]) {
    try {
      attempt();
      messages.push("none");
    } catch (error) {
      messages.push((error as Error).message);
    }
  }
  const seconds = (performance.now() - started) / 1000;
  if (launches > 0) native.graphDestroy(Number(graph[0]));
  await exchange("waiting");
  return { collective, messages, prompt: seconds < 5 };
}

/** The last rank is killed while the others wait for it. */
async function death(): Promise<object> {
  if (rank === world - 1) {
    await Bun.sleep(100);
    process.kill(process.pid, "SIGKILL");
  }
  using x = Tensor.full(device, [1000], 1);
  comm.allReduce(stream, [x], "bucket 3");
  comm.wait(stream);
  try {
    stream.synchronize();
    return { message: "none" };
  } catch (error) {
    comm.abort();
    return { message: (error as Error).message };
  }
}

const found = await { results, graph, abort, death }[what]!();
comm.dispose();
device.dispose();
process.stdout.write(JSON.stringify(found));
process.disconnect?.();
