/** A few thousand requests to `dlfs serve`, by every way: each has its answer, and memory stays. Many more: scripts/soak-service.ts. */
import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { writeTinyModel } from "../../scripts/service/bench-model";
import { Fuzzer } from "../../scripts/service/fuzz-requests";
import { RawClient } from "../../scripts/service/raw-client";
import { floorsOf, soak } from "../../scripts/service/soak";
import { serveCommand, startServer } from "../../scripts/service/start";
import { backend } from "../support/device";
import { tinyJpeg } from "../support/tiny-model";

const images = [1, 2, 3].map((seed) => tinyJpeg(40 + 8 * seed, 64 - 8 * seed, seed));

test("requests by the thousand, valid and not, are answered, and leave nothing behind", async () => {
  const folder = mkdtempSync(join(tmpdir(), "dlfs-soak-"));
  try {
    const model = await writeTinyModel(folder);
    const options = [
      "--port",
      "0",
      "--tune-ms",
      "0",
      "--precision",
      "fp32",
      "--backend",
      backend,
      "--max-body",
      "1MiB",
    ];
    await using server = await startServer(serveCommand(model, ...options));
    const { statuses, unexpected, samples } = await soak({
      server,
      model: "tiny",
      images,
      requests: 2400,
      samples: 24,
    });
    expect([statuses, unexpected]).toEqual([expect.objectContaining({ "200": 2220, "400": 120 }), 0]);
    // A leak of a body's size for each request would be of more than 50 MiB a thousand requests.
    for (const part of ["own", "children"] as const) {
      const [, second, last] = floorsOf(samples, part);
      expect((last - second) / 2 ** 20).toBeLessThan(32);
    }

    const { hostname, port } = new URL(server.url);
    const fuzzer = new Fuzzer("tiny", images, 2 ** 20);
    const client = new RawClient(hostname, Number(port));
    const answers = new Map<string, number>();
    for (let seed = 0; seed < 600; seed++) {
      const { kind, outcome, parts } = fuzzer.make(seed);
      if (kind === "slow sender") continue;
      if (outcome === "abandoned") {
        await client.abandon(parts, seed % 2 === 0);
        continue;
      }
      const { status, body } = await client.request(parts, 10_000);
      if (outcome === "malformed") {
        client.close();
        expect([seed, status === 505 || status < 500]).toEqual([seed, true]);
      } else if (outcome === "refused" || status !== 200) {
        expect([seed, kind, Math.floor(status / 100)]).toEqual([seed, kind, status === 503 ? 5 : 4]);
        expect((JSON.parse(body.toString()) as { error: string }).error).not.toBe("");
      }
      answers.set(kind, (answers.get(kind) ?? 0) + 1);
    }
    client.close();
    expect(answers.size).toBeGreaterThan(14);
    expect((await fetch(`${server.url}readyz`)).status).toBe(200);
    expect(await server.stop()).toBe(0);
  } finally {
    rmSync(folder, { recursive: true });
  }
}, 60_000);
