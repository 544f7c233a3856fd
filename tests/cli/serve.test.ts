/** dlfs serve and examples/serve.ts: a model over HTTP from its start to its end, settings of a file, and what is wrong with them. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { serviceConfigOf } from "../../lib/service";
import { backend } from "../support/device";
import { runDlfs } from "../support/run-dlfs";
import { saveTinyModel, tinyJpeg } from "../support/tiny-model";

const root = fileURLToPath(new URL("../../", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "dlfs-cli-serve-"));
afterAll(() => rmSync(folder, { recursive: true }));
const model = await saveTinyModel(folder);
const jpeg = tinyJpeg(120, 80, 3) as Uint8Array<ArrayBuffer>;

interface Served extends AsyncDisposable {
  readonly url: string;
  readonly lines: Record<string, unknown>[];
  readonly child: Bun.Subprocess<"ignore", "pipe", "pipe">;
}

/** A program that serves, once it says that it is ready. */
async function start(command: readonly string[], env: Record<string, string> = {}): Promise<Served> {
  const child = Bun.spawn([process.execPath, "run", ...command], {
    ...{ cwd: root, stdin: "ignore", stdout: "pipe", stderr: "pipe" },
    env: { ...process.env, DLFS_BACKEND: backend, ...env },
  });
  const lines: Record<string, unknown>[] = [];
  const url = await new Promise<string>((done, fail) => {
    void (async () => {
      let text = "";
      for await (const chunk of child.stdout.pipeThrough(new TextDecoderStream())) {
        text += chunk;
        const whole = text.split("\n");
        text = whole.pop() as string;
        for (const line of whole) {
          const parsed = line.startsWith("{") ? JSON.parse(line) : { msg: line };
          lines.push(parsed);
          if (parsed.msg === "ready") done(parsed.url);
          if (parsed.msg.startsWith("ready: ")) done(parsed.msg.slice(7));
        }
      }
      fail(new Error(`it ended: ${await new Response(child.stderr).text()}`));
    })();
  });
  const end = async () => {
    child.kill("SIGKILL");
    await child.exited;
  };
  return { url, lines, child, [Symbol.asyncDispose]: end };
}

describe("dlfs serve", () => {
  test("serves until it is asked to end, and reloads what has changed", async () => {
    const versions = join(folder, "versions", "shapes");
    mkdirSync(join(versions, "1"), { recursive: true });
    await Bun.write(join(versions, "1", "model.dlfs"), Bun.file(model));
    const settings = join(folder, "serve.yaml");
    writeFileSync(
      settings,
      "port: 0\nmodel: { batchSizes: [1, 2], tuneMs: 0 }\nlimits: { maxImages: 2 }\nlogLevel: debug\n",
    );
    const args = ["lib/cli/main.ts", "serve", join(folder, "versions"), "--config", settings, "--max-pixels", "10000"];
    await using served = await start(args, { DLFS_API_KEYS: "a-key-of-some-length" });
    const headers = { "X-API-Key": "a-key-of-some-length" };
    const predict = (query = "") => fetch(`${served.url}predict${query}`, { method: "POST", body: jpeg, headers });
    const answer = await predict();
    expect(answer.status).toBe(200);
    expect(await answer.json()).toMatchObject({
      ...{ model: "shapes", version: "1" },
      images: [
        {
          width: 120,
          height: 80,
          detections: expect.arrayContaining([expect.objectContaining({ class: expect.stringMatching(/red|green/) })]),
        },
      ],
    });
    expect((await fetch(`${served.url}predict`, { method: "POST", body: jpeg })).status).toBe(401);
    const big = tinyJpeg(120, 90, 1) as Uint8Array<ArrayBuffer>;
    expect((await fetch(`${served.url}predict`, { method: "POST", body: big, headers })).status).toBe(400);

    mkdirSync(join(versions, "2"));
    await Bun.write(join(versions, "2", "model.dlfs"), Bun.file(model));
    served.child.kill("SIGHUP");
    const deadline = performance.now() + 30_000;
    let version = "1";
    while (version !== "2" && performance.now() < deadline) {
      await Bun.sleep(20);
      version = ((await (await predict()).json()) as { version: string }).version;
    }
    expect(version).toBe("2");

    const last = predict();
    served.child.kill("SIGTERM");
    expect((await last).status).toBe(200);
    expect(await served.child.exited).toBe(0);
    const messages = served.lines.map(({ msg }) => msg);
    expect(messages[0]).toBe("listening");
    expect(messages.at(-1)).toBe("ended");
    expect(served.lines.filter(({ msg, status }) => msg === "request" && status === 401).length).toBe(1);
    expect(JSON.stringify(served.lines)).not.toContain("a-key-of-some-length");
  }, 60_000);

  test("answers 503 while an engine that died is started again, and hangs on nothing", async () => {
    const args = ["lib/cli/main.ts", "serve", model, "--port", "0", "--tune-ms", "0", "--batch", "2"];
    await using served = await start(args);
    const statuses: number[] = [];
    let ended = false;
    const clients = Array.from({ length: 4 }, async () => {
      while (!ended) {
        const answer = await fetch(`${served.url}predict`, { method: "POST", body: jpeg });
        const json = (await answer.json()) as { error?: string };
        statuses.push(answer.status);
        if (answer.status === 200) continue;
        expect([answer.status, json.error, answer.headers.has("retry-after")]).toEqual([503, expect.any(String), true]);
        expect(json.error).not.toMatch(/\/\w+\//);
        await Bun.sleep(5);
      }
    });
    const until = async (what: string, condition: () => boolean | Promise<boolean>) => {
      const deadline = performance.now() + 30_000;
      while (!(await condition())) {
        if (performance.now() > deadline) throw new Error(`not in 30 s: ${what}`);
        await Bun.sleep(10);
      }
    };
    await until("answers", () => statuses.length > 10);
    const [engine] = readFileSync(`/proc/${served.child.pid}/task/${served.child.pid}/children`, "utf8")
      .trim()
      .split(" ");
    process.kill(Number(engine), "SIGKILL");
    await until("a refusal", () => statuses.includes(503));
    await until("ready again", async () => (await fetch(`${served.url}readyz`)).status === 200);
    const before = statuses.length;
    await until("answers again", () => statuses.slice(before).filter((status) => status === 200).length > 10);
    ended = true;
    await Promise.all(clients);
    const metrics = await (await fetch(`${served.url}metrics`)).text();
    expect(metrics).toContain('dlfs_engine_restarts_total{model="tiny",version="1",engine="0"} 1\n');
    served.child.kill("SIGTERM");
    expect(await served.child.exited).toBe(0);
  }, 90_000);

  test("is a program to start from", async () => {
    await using served = await start(["examples/serve.ts", model, "0"]);
    const answer = await fetch(`${served.url}predict`, { method: "POST", body: jpeg });
    expect(await answer.json()).toMatchObject({ model: "tiny", images: [{ width: 120, height: 80 }] });
    served.child.kill("SIGINT");
    expect(await served.child.exited).toBe(0);
  }, 60_000);

  test("says what is wrong", async () => {
    writeFileSync(join(folder, "damaged.dlfs"), (await Bun.file(model).bytes()).subarray(0, 5000));
    writeFileSync(join(folder, "wrong.yaml"), "limits: { maxPixel: 5 }\n");
    writeFileSync(join(folder, "none.yaml"), "port: [1\n");
    writeFileSync(join(folder, "keys"), "# none\n");
    const cases: [string[], number, string][] = [
      [[], 2, "expected MODEL, or models in the file of --config"],
      [[model, "--port", "99999"], 2, '--port: expected a port from 0 to 65535, got "99999"'],
      [[model, "--max-body", "big"], 2, '--max-body: expected a size such as 64MiB, got "big"'],
      [[model, "--devices", "a"], 2, '--devices: expected numbers of devices, such as 0,1, got "a"'],
      [[model, "--config", join(folder, "wrong.yaml")], 1, "wrong.yaml.limits.maxPixel: unknown setting"],
      [[model, "--config", join(folder, "none.yaml")], 1, "none.yaml: it is no YAML"],
      [[model, "--api-keys", join(folder, "keys")], 1, "keys: expected an API key in a line of its own, got none"],
      [[model, "--tls-cert", "a.pem"], 1, "settings.tlsKey: expected both or none of tlsCert and tlsKey"],
      [[model, "--default-model", "x"], 1, 'defaultModel: expected one of tiny, got "x"'],
      [[join(folder, "none.dlfs")], 1, "none.dlfs: it does not exist"],
      [[join(folder, "damaged.dlfs"), "--port", "0", "--tune-ms", "0"], 1, 'model "damaged" cannot be loaded: '],
    ];
    await Promise.all(
      cases.map(async ([args, status, message]) => {
        const { exitCode, stderr } = await runDlfs(["serve", ...args]);
        expect([args, stderr]).toEqual([args, expect.stringContaining(message)]);
        expect(exitCode).toBe(status);
      }),
    );
  }, 60_000);
});

describe("settings", () => {
  test("are those of the command line over those of a file over the defaults", () => {
    const value = {
      models: ["a"],
      port: 1,
      limits: { maxPixels: 5 },
      model: { maxBatch: 2, batching: { maxDelayMs: 1 } },
      urls: {},
    };
    const config = serviceConfigOf(
      { value, at: "serve.yaml" },
      {
        port: 2,
        hostname: undefined,
        limits: { maxImages: 3, maxPixels: undefined },
        model: { batching: { maxQueue: 7 } },
        urls: { hosts: ["a"] },
      },
    );
    expect(config).toMatchObject({
      ...{ models: ["a"], port: 2, hostname: "127.0.0.1", limits: { maxPixels: 5, maxImages: 3, maxConcurrent: 512 } },
      model: { maxBatch: 2, batching: { maxDelayMs: 1, maxQueue: 7 } },
      urls: { hosts: ["a"], networks: [], seconds: 10 },
    });
    expect(serviceConfigOf(null, { models: ["b"] })).toMatchObject({ models: ["b"], port: 8000, page: true });
    expect(serviceConfigOf(null).urls).toBeUndefined();
    for (const [wrong, message] of [
      [{ port: "x" }, 'f.port: expected an integer from 0 to 65535, got "x"'],
      [{ prot: 1 }, "f.prot: unknown setting"],
      [{ model: { maxBatch: 0 } }, "f.model.maxBatch: expected an integer from 1 to 1024, got 0"],
      [{ limits: { maxPixels: 0 } }, "f.limits.maxPixels: expected an integer from 1, got 0"],
      [[], "f: expected an object with settings, got []"],
    ] as const) {
      expect(() => serviceConfigOf({ value: wrong, at: "f" })).toThrow(message);
    }
  });
});
