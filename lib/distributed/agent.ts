/**
 * The thread of a ProcessGroup: keeps the connection to the coordinator, which on rank 0 it runs itself, and gives signs of life
 * whatever the main thread is at. When all is over it says so; a main thread that does not end then is ended.
 */
import { writeSync } from "node:fs";
import { createConnection, type Socket } from "node:net";
import { hostname } from "node:os";
import { type BackendName, loadLibrary, type NativeFunctions } from "../native";
import { Coordinator, describeProgress } from "./coordinator";
import { encodeFrame, FrameReader } from "./frames";
import type { FromAgent, RankProgress, ToAgent, ToCoordinator, ToRank } from "./messages";

declare const self: Worker;

type Join = Extract<ToAgent, { kind: "join" }>;

/** What the main thread is given to end by itself, in milliseconds. */
const GRACE = 5000;

let joined: Join;
let steps: Int32Array;
let coordinator: Coordinator | null = null;
let socket: Socket | null = null;
let phase = "start";
let communicator: { native: NativeFunctions; handle: number; names: readonly string[] } | null = null;
let ended = false;
let leaving = false;

const tell = (message: FromAgent): void => self.postMessage(message);
const send = (message: ToCoordinator, payload?: Uint8Array): void => void socket?.write(encodeFrame(message, payload));

function progress(): RankProgress {
  const found: RankProgress = { phase, step: steps[0]!, begun: 0, collective: null };
  if (!communicator) return found;
  try {
    const values = new BigInt64Array(2);
    communicator.native.commProgress(communicator.handle, values);
    const label = Number(values[1]);
    return {
      ...found,
      begun: Number(values[0]),
      collective: label < 0 ? null : (communicator.names[label] ?? `${label}`),
    };
  } catch {
    return found; // it has been released
  }
}

function over(message: string): void {
  if (ended) return;
  ended = true;
  tell({ kind: "over", message });
  setTimeout(() => {
    try {
      writeSync(2, `error: ${message}\nerror: rank ${joined.rank} did not end by itself and is killed\n`);
    } finally {
      process.kill(process.pid, "SIGKILL");
    }
  }, GRACE);
  try {
    communicator?.native.commAbort(communicator.handle); // the main thread may be waiting for it
  } catch {
    // It has been released.
  }
}

async function join(): Promise<void> {
  const { rank, world, rendezvous, attempt, patience } = joined;
  const { host, port } = rendezvous;
  if (rank === 0) {
    try {
      coordinator = await Coordinator.listen(port, world, attempt, patience);
    } catch (error) {
      over(`rank 0 cannot listen on port ${port} for the other ranks: ${(error as Error).message}`);
      return;
    }
  }
  const until = performance.now() + patience.join;
  for (;;) {
    try {
      socket = await connect(rank === 0 && world === 1 ? "127.0.0.1" : host, port);
      break;
    } catch (error) {
      if (performance.now() > until) {
        const reason = (error as Error).message;
        over(`rank ${rank} found no rank 0 at ${host}:${port} within ${Math.round(patience.join / 1000)} s: ${reason}`);
        return;
      }
      await Bun.sleep(100);
    }
  }
  socket.setNoDelay(true);
  listen(socket);
  const { facts } = joined;
  send({ kind: "hello", rank, world, pid: process.pid, machine: hostname(), attempt, facts });
  setInterval(() => send({ kind: "beat", progress: progress() }), patience.beat);
}

function connect(host: string, port: number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const made = createConnection({ host, port });
    made.once("connect", () => {
      made.removeAllListeners("error");
      resolve(made);
    });
    made.once("error", (error) => {
      made.destroy();
      reject(error);
    });
  });
}

function listen(connection: Socket): void {
  const reader = new FrameReader<ToRank>();
  connection.on("data", (chunk: Uint8Array) => {
    for (const { message, payload } of reader.push(chunk)) {
      if (message.kind === "abort") over(message.message);
      else if (message.kind === "bye") left();
      else tell({ kind: "message", message, payload });
    }
  });
  const closed = (error?: unknown) => {
    if (leaving) left();
    const { host, port } = joined.rendezvous;
    const reason = error instanceof Error ? ` (${error.message})` : "";
    over(
      `rank 0 ended, or its machine ${host}:${port} is gone${reason}; this is rank ${joined.rank}, ${describeProgress(progress())}`,
    );
  };
  connection.on("error", closed);
  connection.on("close", () => closed());
}

function left(): void {
  if (ended) return;
  ended = true;
  coordinator?.close();
  socket?.end();
  tell({ kind: "left" });
  // Bytes under way, the last bye's among them, are sent before the thread ends.
  setTimeout(() => process.exit(0), coordinator ? 200 : 0);
}

self.onmessage = ({ data }: MessageEvent<ToAgent>) => {
  switch (data.kind) {
    case "join":
      joined = data;
      steps = new Int32Array(data.shared);
      void join();
      break;
    case "phase":
      phase = data.phase;
      send({ kind: "beat", progress: progress() });
      break;
    case "communicator": {
      const { functions } = loadLibrary(data.backend as BackendName);
      communicator = { native: functions, handle: data.handle, names: data.names };
      break;
    }
    case "send":
      if (data.message.kind === "failed") {
        send({ kind: "beat", progress: progress() }); // where it failed
        socket?.write(encodeFrame(data.message), () => tell({ kind: "told" }));
      } else send(data.message, data.payload);
      break;
    case "leave":
      leaving = true;
      send({ kind: "bye" });
      break;
  }
};
