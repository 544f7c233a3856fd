/** Two network namespaces as two hosts, with a cable between them: a launcher on each, one training. */
import { afterAll, expect, test } from "bun:test";
import { fileURLToPath } from "node:url";
import { missing, testDevice } from "../support/device";

const root = fileURLToPath(new URL("../../", import.meta.url));
const [first, second] = [`dlfs-a-${process.pid}`, `dlfs-b-${process.pid}`];

function ip(...args: string[]): string | null {
  try {
    const { exitCode, stderr } = Bun.spawnSync(["ip", ...args], { stderr: "pipe" });
    return exitCode === 0 ? null : stderr.toString().trim() || `exit code ${exitCode}`;
  } catch {
    return "there is no ip command (package iproute2)";
  }
}

/** Makes both hosts; why that cannot be done, or null. */
function prepare(): string | null {
  const [here, there] = [`va${process.pid}`, `vb${process.pid}`];
  const steps = [
    ["netns", "add", first],
    ["netns", "add", second],
    ["-n", first, "link", "add", here, "type", "veth", "peer", "name", there, "netns", second],
    ["-n", first, "addr", "add", "10.77.0.1/24", "dev", here],
    ["-n", second, "addr", "add", "10.77.0.2/24", "dev", there],
    ...[first, second].map((name) => ["-n", name, "link", "set", "lo", "up"]),
    ["-n", first, "link", "set", here, "up"],
    ["-n", second, "link", "set", there, "up"],
  ];
  for (const step of steps) {
    const problem = ip(...step);
    if (problem !== null) return `no network namespaces here: ${problem}`;
  }
  return null;
}

const device = testDevice();
const reason =
  missing(device, "f32", ["collectives"]) ??
  (device.backend === "cuda" ? "GPUs are not of two hosts" : null) ??
  prepare();
afterAll(() => {
  for (const name of [first, second]) ip("netns", "delete", name);
});

test.skipIf(reason !== null)(
  `ranks of two hosts meet and train${reason ? ` (${reason})` : ""}`,
  async () => {
    const host = (name: string, node: number) => {
      const launcher = [process.execPath, "run", "lib/cli/main.ts", "launch", "--gpus", "2", "--nodes", "2"];
      const where = ["--node-rank", String(node), "--rendezvous", "10.77.0.1:29400"];
      const script = ["--", "tests/distributed/group-rank.ts", "exchange"];
      return Bun.spawn(["ip", "netns", "exec", name, ...launcher, ...where, ...script], {
        cwd: root,
        env: { ...process.env, DLFS_BACKEND: "cpu" },
        stdout: "pipe",
        stderr: "pipe",
      });
    };
    const hosts = [host(first, 0), host(second, 1)];
    const outputs = await Promise.all(
      hosts.map(async ({ stdout, stderr, exited }) => ({
        stdout: await new Response(stdout).text(),
        stderr: await new Response(stderr).text(),
        exitCode: await exited,
      })),
    );
    for (const { stderr, exitCode } of outputs) expect({ stderr, exitCode }).toEqual({ stderr: "", exitCode: 0 });
    const found = outputs.flatMap(({ stdout }) =>
      [...stdout.matchAll(/^(?:\[\d+\] )?(\{.*\})$/gm)].map(([, json]) => JSON.parse(json!)),
    );
    expect(found.map(({ rank, steps }) => [rank, steps]).sort()).toEqual([0, 1, 2, 3].map((rank) => [rank, 5]));
  },
  60_000,
);
