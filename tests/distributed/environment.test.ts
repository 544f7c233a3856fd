/** Ranks and addresses as launchers give them in the environment. */
import { describe, expect, test } from "bun:test";
import { firstHost, parseAddress, ranksFromEnvironment } from "../../lib/distributed";
import { tasksOfNode } from "../../lib/distributed/environment";
import { encodeFrame, FrameReader } from "../../lib/distributed/frames";
import { errorOf } from "../support/errors";

describe("the place of a rank", () => {
  test("is none without a launcher, and none in a Slurm batch script itself", () => {
    expect(ranksFromEnvironment({})).toBeNull();
    expect(ranksFromEnvironment({ SLURM_PROCID: "0", SLURM_NTASKS: "8", SLURM_JOB_ID: "7" })).toBeNull();
  });

  test("is torchrun's, at a port besides its own", () => {
    const env = {
      RANK: "5",
      WORLD_SIZE: "8",
      LOCAL_RANK: "1",
      LOCAL_WORLD_SIZE: "4",
      MASTER_ADDR: "node0",
      MASTER_PORT: "29400",
    };
    expect(ranksFromEnvironment(env)).toEqual({
      ...{ rank: 5, world: 8, localRank: 1, localWorld: 4, launcher: "torchrun" },
      rendezvous: { host: "node0", port: 29501 },
    });
    expect(ranksFromEnvironment({ ...env, DLFS_RENDEZVOUS: "[fe80::1]:7" })!.rendezvous).toEqual({
      host: "fe80::1",
      port: 7,
    });
    expect(errorOf(() => ranksFromEnvironment({ ...env, MASTER_ADDR: undefined })).message).toContain(
      "DLFS_RENDEZVOUS",
    );
    expect(errorOf(() => ranksFromEnvironment({ ...env, RANK: "8" })).message).toContain("rank 8 of 8");
    expect(errorOf(() => ranksFromEnvironment({ ...env, WORLD_SIZE: "many" })).message).toContain('got "many"');
  });

  test("is Slurm's step's, by its first host", () => {
    const env = {
      ...{ SLURM_PROCID: "9", SLURM_STEP_ID: "0", SLURM_STEP_NUM_TASKS: "12", SLURM_LOCALID: "1", SLURM_NODEID: "2" },
      ...{ SLURM_STEP_TASKS_PER_NODE: "4(x2),2,2", SLURM_STEP_NODELIST: "gpu[03-05,09]", SLURM_JOB_ID: "4711" },
    };
    const place = ranksFromEnvironment(env)!;
    expect(place).toMatchObject({ rank: 9, world: 12, localRank: 1, localWorld: 2, launcher: "Slurm" });
    expect(place.rendezvous.host).toBe("gpu03");
    expect(place.rendezvous.port).toBeGreaterThanOrEqual(20_000);
    expect(ranksFromEnvironment({ ...env, SLURM_PROCID: "0" })!.rendezvous).toEqual(place.rendezvous);
    expect(ranksFromEnvironment({ ...env, SLURM_STEP_ID: "1" })!.rendezvous).not.toEqual(place.rendezvous);
  });

  test("is Open MPI's, also under Slurm; on several hosts the address must be given", () => {
    const one = {
      ...{
        OMPI_COMM_WORLD_RANK: "1",
        OMPI_COMM_WORLD_SIZE: "2",
        OMPI_COMM_WORLD_LOCAL_RANK: "1",
        OMPI_COMM_WORLD_LOCAL_SIZE: "2",
      },
      ...{ PMIX_NAMESPACE: "123@1", SLURM_PROCID: "0", SLURM_STEP_ID: "0" },
    };
    expect(ranksFromEnvironment(one)).toMatchObject({
      rank: 1,
      world: 2,
      launcher: "Open MPI",
      rendezvous: { host: "127.0.0.1" },
    });
    const several = { ...one, OMPI_COMM_WORLD_SIZE: "4" };
    expect(errorOf(() => ranksFromEnvironment(several)).message).toContain("mpirun -x DLFS_RENDEZVOUS=HOST:PORT");
    const given = ranksFromEnvironment({ ...several, DLFS_RENDEZVOUS: "head:4000" })!;
    expect(given.rendezvous).toEqual({ host: "head", port: 4000 });
  });

  test("lists of hosts and tasks, and addresses, are read as they are written", () => {
    expect(["a", "a,b", "n[7,9]", "n[07-12]-x,m1"].map(firstHost)).toEqual(["a", "a", "n7", "n07-x"]);
    expect([0, 1, 2, 3, 4].map((node) => tasksOfNode("8(x2),4(x2)", node))).toEqual([8, 8, 4, 4, null]);
    for (const bad of ["host", "host:", "host:0", "host:65536", ":5", "a b:5", "fe80::1:5"])
      expect(errorOf(() => parseAddress(bad)).message, bad).toContain(`got "${bad}"`);
  });
});

test("frames arrive whole, however they are cut", () => {
  const sent = [0, 1, 50_000].map((size, i) => ({
    message: { i, text: "ü".repeat(i) },
    payload: new Uint8Array(size).fill(i),
  }));
  const bytes = Buffer.concat(sent.map(({ message, payload }) => encodeFrame(message, payload)));
  for (const step of [1, 7, 4096, bytes.length]) {
    const reader = new FrameReader<object>();
    const got = [];
    for (let at = 0; at < bytes.length; at += step) got.push(...reader.push(bytes.subarray(at, at + step)));
    expect(got).toEqual(sent);
  }
  expect(() => new FrameReader().push(new TextEncoder().encode("GET / HTTP/1.1\r\n"))).toThrow("expected a frame");
});
