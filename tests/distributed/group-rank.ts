/** One rank of group.test.ts, by the launcher's environment: CASE [MORE]. Prints what it found as a line of JSON. */
import { deviceOfRank, ProcessGroup, ranksFromEnvironment } from "../../lib/distributed";
import { Device, Tensor } from "../../lib/tensor";

const [what = "", more = ""] = process.argv.slice(2);
const ranks = ranksFromEnvironment()!;
const { rank, world } = ranks;
const print = (found: object) => process.stdout.write(`${JSON.stringify({ rank, ...found })}\n`);

const facts = {
  config: { lr: what === "disagree" && rank === 1 ? 0.2 : 0.1, batch: 8 },
  data: what === "disagree" && rank === 1 ? "b" : "a",
};
// Short only where a test waits for it to be over: elsewhere a busy machine must not count as a fault.
const limit = ["freeze", "hang", "spin", "busy"].includes(what) ? 1500 : 20_000;
const patience = { join: 30_000, beat: 100, silence: what === "busy" ? 20_000 : limit, hang: limit };
const group = await ProcessGroup.join({ ranks, facts, patience });

/** Steps of one collective each; `before` may do something before one of them. */
function train(steps: number, before: (step: number) => Promise<void> | void): Promise<number> {
  return group.run(() => loop(steps, before));
}

/** What is done where the ranks meet. */
let meet: (step: number) => Promise<void> = () => Promise.reject(new Error("nobody has asked for a meeting"));

async function loop(steps: number, before: (step: number) => Promise<void> | void): Promise<number> {
  using device = new Device(deviceOfRank(ranks, process.env.DLFS_BACKEND ?? "cpu"));
  const communicator = await group.connect(device);
  using x = Tensor.full(device, [4], 1);
  group.phase = "steps";
  let step = what === "meet" ? 20 : 0; // as one that goes on
  for (; step < steps; step++) {
    await before(step);
    if (!(await group.mayBegin(step))) break;
    if (group.meetsBefore(step)) await meet(step);
    communicator.allReduce(device.stream, [x], `bucket ${step % 2}`, "average");
    communicator.wait(device.stream);
    await device.stream.done();
    if (steps === 1000) await Bun.sleep(60); // so that a sign of life falls into most steps
  }
  await group.disconnect();
  return step;
}

switch (what) {
  case "exchange": {
    const parts = await group.exchangeJson("greeting", { from: rank, text: "x".repeat(100_000 * rank) });
    const again = await group.exchangeJson("greeting", rank * rank);
    const root = await group.exchange("to root", Uint8Array.of(rank, rank), "root");
    const steps = await train(5, () => {});
    print({ lengths: parts.map(({ text }) => text.length), again, root: root.map((bytes) => [...bytes]), steps });
    break;
  }
  case "forever":
    await train(1000, (step) => {
      if (step === 3) print({ pid: process.pid });
    });
    break;
  case "die":
    await train(1000, (step) => {
      if (rank === 1 && step === 7) process.kill(process.pid, "SIGKILL");
    });
    break;
  case "die-first":
    await train(1000, (step) => {
      if (rank === 0 && step === 7) process.kill(process.pid, "SIGKILL");
    });
    break;
  case "throw":
    await train(1000, (step) => {
      if (rank === 1 && step === 3) throw new Error("the loss is not finite");
    });
    break;
  case "freeze":
    // The whole process stands still: no sign of life.
    await train(1000, (step) => {
      if (rank === 1 && step === 4) process.kill(process.pid, "SIGSTOP");
    });
    break;
  case "hang":
    // The process lives, but its training does not go on.
    await train(1000, (step) => (rank === 1 && step === 5 ? Bun.sleep(60_000) : undefined));
    break;
  case "spin":
    // The same, with a main thread that hears nothing.
    await train(1000, (step) => {
      while (rank === 1 && step === 5);
    });
    break;
  case "busy":
    // As long as a hang takes, but said before.
    await train(6, async (step) => {
      if (rank !== 1 || step !== 3) return;
      group.phase = "evaluation";
      await Bun.sleep(3000);
      group.phase = "steps";
    });
    print({});
    break;
  case "diverge":
    await train(1000, (step) => {
      if (step === 6) group.agree(step, "weights", { conv: "1f", fc: rank === 1 ? "2e" : "2f", head: "3f" });
    });
    break;
  case "stop": {
    const steps = await train(100_000, (step) => {
      if (rank === 1 && step === 9) group.requestStop();
    });
    print({ steps });
    break;
  }
  case "meet": {
    // Rank 0 asks before the first step, then again and again, also while they meet; rank 1 asks for the end meanwhile.
    const met: string[] = [];
    meet = async (step) => {
      if (rank === 0 && met.length === 3) group.requestMeeting();
      met.push((await group.exchangeJson("meeting", { rank, step })).map((one) => one.step).join(" "));
      if (rank === 0 && met.length < 9) group.requestMeeting();
    };
    const steps = await train(100_000, async (step) => {
      if (rank === 0 && step === 20) group.requestMeeting();
      if (step === 20) await Bun.sleep(100); // they have agreed by then, on a step that none of them does
      if (rank === 1 && met.length === 6) group.requestStop();
    });
    print({ steps, met });
    break;
  }
  case "restart": {
    // Fails at the first start, at another rank than 0.
    const attempt = Number(process.env.DLFS_RESTARTS);
    await train(10, (step) => {
      if (attempt < Number(more) && rank === world - 1 && step === 2) process.exit(9);
    });
    print({ attempt, world, visible: process.env.CUDA_VISIBLE_DEVICES ?? null });
    break;
  }
}
process.exit(0);
