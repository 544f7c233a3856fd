/** `dlfs data download` against a local server, in a process of its own. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { inFolder } from "../data/fakes";
import { type ObjectServer, objectServer } from "../support/object-server";
import { zipOf } from "../support/zip";

const root = fileURLToPath(new URL("../../", import.meta.url));
let server: ObjectServer;

beforeAll(async () => {
  server = await objectServer();
});
afterAll(async () => {
  await server[Symbol.asyncDispose]();
});

function start(home: string, ...args: string[]) {
  return Bun.spawn([process.execPath, "run", "lib/cli/main.ts", "data", "download", ...args], {
    cwd: root,
    env: { ...process.env, HOME: home },
    stdout: "pipe",
    stderr: "pipe",
  });
}

async function finish(child: ReturnType<typeof start>): Promise<{ status: number; stdout: string; stderr: string }> {
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { status: await child.exited, stdout, stderr };
}

test("fetches what a file describes, stops at Ctrl-C, and goes on", async () => {
  await inFolder(async (home) => {
    const bytes = zipOf({ "train/1.jpg": "one", "train/2.jpg": "two" });
    server.put("sets/tiny.zip", bytes);
    const sha256 = new Bun.CryptoHasher("sha256").update(bytes).digest("hex");
    const archive = {
      name: "tiny.zip",
      url: `${server.address}/sets/tiny.zip`,
      size: bytes.length,
      unpacked: 6,
      sha256,
    };
    const file = join(home, "tiny.json");
    await Bun.write(file, JSON.stringify({ name: "tiny", archives: [archive] }));

    server.faults = [{ kind: "hang" }];
    const child = start(home, file);
    while (server.log.length === 0) await Bun.sleep(10);
    child.kill("SIGINT");
    const stopped = await finish(child);
    expect(stopped.status).toBe(130);
    expect(stopped.stderr).toContain("interrupted; the same command goes on from here");

    const done = await finish(start(home, file));
    expect(done).toEqual({
      status: 0,
      stdout: `${home}/datasets/tiny: 2 files unpacked, 0 there already; 0.0 MiB fetched\n`,
      stderr: "",
    });
    expect((await readdir(join(home, "datasets", "tiny", "train"))).sort()).toEqual(["1.jpg", "2.jpg"]);
    const elsewhere = join(home, "elsewhere");
    expect((await finish(start(home, file, "--out", elsewhere, "--keep"))).stdout).toStartWith(`${elsewhere}: `);
    expect((await readdir(join(elsewhere, ".download"))).sort()).toEqual(["done.json", "tiny.zip"]);
  });
});

test("says what is wrong with its arguments", async () => {
  await inFolder(async (home) => {
    const cases = [
      [[], 2, "expected the name of a data set: dlfs data download coco2017"],
      [["coco2017", "--only", "x.zip"], 1, 'coco2017 has no archive "x.zip", expected annotations_trainval2017.zip'],
      [["coco1999"], 1, 'there is no data set "coco1999", expected one of coco2017'],
      [["none.json"], 1, "none.json: no such file"],
      [["coco2017", "--fast"], 2, "--fast"],
    ] as const;
    for (const [args, status, words] of cases) {
      const result = await finish(start(home, ...args));
      expect(result.stderr).toContain(words);
      expect(result.status).toBe(status);
    }
    const help = await finish(start(home, "--help"));
    expect(help.stdout).toContain("dlfs data download NAME|FILE.json");
  });
});
