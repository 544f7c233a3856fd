/** The service over HTTP: the protocol's endpoints, limits, keys, other origins, names of requests, metrics, and its end. */
import { describe, expect, test } from "bun:test";
import { deflateSync, gunzipSync, gzipSync } from "node:zlib";
import { acceptedEncoding } from "../../lib/service/server";
import { ServiceError } from "../../lib/service/types";
import { description, result } from "./fake-backend";
import { errorOf, jpeg, raw, start } from "./support";

const inputs = [{ name: "image_bytes", datatype: "BYTES", shape: [1], data: [jpeg.toBase64()] }];

describe("the Open Inference Protocol", () => {
  test("tells what the server and its models are", async () => {
    await using running = start();
    running.backend.list = [description(), description({ version: "2" })];
    const json = async (path: string) => (await running.ask(path)).json();
    expect(await json("/v2")).toMatchObject({
      name: "dlfs",
      extensions: expect.arrayContaining(["binary_tensor_data"]),
    });
    expect(await json("/v2/models/shapes")).toMatchObject({ name: "shapes", versions: ["1", "2"] });
    expect(await json("/v2/models/shapes/versions/1")).toMatchObject({ name: "shapes" });
    expect(await json("/v2/models/shapes/versions/2/ready")).toEqual({ name: "shapes", ready: true });
    expect(await json("/v2/models/shapes/config")).toMatchObject({ name: "shapes", max_batch_size: 4 });
    expect(await json("/v2/health/live")).toEqual({ live: true });
    expect(await json("/v2/health/ready")).toEqual({ ready: true, live: true });
    expect(await errorOf(running.ask("/v2/models/none"))).toEqual([404, 'unknown model "none"']);
    expect(await errorOf(running.ask("/v2/models/sh%61pes/versions/9"))).toEqual([
      404,
      'model "shapes" has no version "9"',
    ]);
    expect(await errorOf(running.ask("/v2/models/%ff"))).toEqual([400, "the path has an escape that is none"]);
    expect(await errorOf(running.ask("/v2/trace/setting"))).toEqual([404, "not found"]);
    const wrong = await running.post("/v2/models/shapes", "");
    expect([wrong.headers.get("allow"), await errorOf(wrong)]).toEqual([
      "GET, HEAD",
      [405, "expected GET, HEAD, got POST"],
    ]);
    expect((await running.ask("/v2", { method: "HEAD" })).status).toBe(200);
  });

  test("is ready when each model that is to be is", async () => {
    await using running = start();
    const reason = async () => {
      const answer = await running.ask("/readyz");
      return [answer.status, ((await answer.json()) as { error?: string }).error];
    };
    expect(await reason()).toEqual([200, undefined]);
    running.backend.list = [description({ state: "loading" }), description({ version: "2" })];
    expect(await reason()).toEqual([200, undefined]);
    running.backend.list = [description({ state: "loading" }), description({ name: "other" })];
    expect(await reason()).toEqual([503, 'model "shapes" is loading']);
    await using one = start({ readiness: "any" });
    one.backend.list = running.backend.list;
    expect((await one.ask("/readyz")).status).toBe(200);
    one.backend.list = [description({ state: "unavailable" })];
    expect(await errorOf(one.ask("/readyz"))).toEqual([503, 'model "shapes" is unavailable']);
    running.backend.list = [description({ state: "unloaded" })];
    expect(await reason()).toEqual([503, "no model is loaded"]);
    await using early = start({ starting: true });
    expect(await errorOf(early.ask("/v2/health/ready"))).toEqual([503, "models are being loaded"]);
    early.service.started();
    expect((await early.ask("/v2/health/ready")).status).toBe(200);
    running.backend.list = [description({ state: "unavailable", reason: "its engine ended" })];
    expect(await errorOf(running.ask("/v2/models/shapes/ready"))).toEqual([503, "its engine ended"]);
    const answer = await running.post("/v2/models/shapes/infer", { inputs });
    expect([answer.headers.get("retry-after"), await errorOf(answer)]).toEqual([
      "1",
      [503, 'model "shapes" is unavailable: its engine ended'],
    ]);
  });

  test("infers, whatever the body is compressed with", async () => {
    await using running = start();
    const body = Buffer.from(JSON.stringify({ id: "a", inputs, parameters: { priority: 2, timeout: 2000 } }));
    for (const [encoding, bytes] of [
      ["identity", body],
      ["gzip", gzipSync(body)],
      ["deflate", deflateSync(body)],
    ] as const) {
      const answer = await running.post("/v2/models/shapes/infer", bytes, { "Content-Encoding": encoding });
      expect(answer.headers.get("content-type")).toBe("application/json");
      expect(await answer.json()).toMatchObject({
        id: "a",
        model_name: "shapes",
        model_version: "1",
        outputs: [{}, {}, {}, {}],
      });
    }
    expect(running.backend.calls.length).toBe(3);
    const [{ request }] = running.backend.calls as [(typeof running.backend.calls)[0]];
    expect(request).toMatchObject({ priority: 2, timeoutMs: 2 });
    expect(new Uint8Array(request.images[0] as Uint8Array)).toEqual(jpeg);
    const binary = await running.post("/v2/models/shapes/versions/1/infer", jpeg, {
      "Inference-Header-Content-Length": "0",
    });
    expect(binary.headers.get("content-type")).toBe("application/octet-stream");
    const length = Number(binary.headers.get("inference-header-content-length"));
    const answer = await binary.bytes();
    // Boxes, scores, labels of two detections, and their number.
    expect(answer.length - length).toBe(2 * (16 + 4 + 8) + 4);
    expect(await errorOf(running.post("/v2/models/shapes/infer", body.subarray(1)))).toEqual([
      400,
      expect.stringContaining("JSON: "),
    ]);
  });

  test("indexes the repository, gives statistics, and loads where that is allowed", async () => {
    await using closed = start();
    const list = [{ name: "shapes", version: "1", state: "READY", reason: "" }];
    expect(await (await closed.post("/v2/repository/index", "")).json()).toEqual(list);
    closed.backend.list = [description({ state: "unloaded" })];
    expect(await (await closed.post("/v2/repository/index", { ready: true })).json()).toEqual([]);
    expect(await (await closed.post("/v2/repository/index", {})).json()).toEqual([
      { name: "shapes", version: "1", state: "UNAVAILABLE", reason: "unloaded" },
    ]);
    expect(await errorOf(closed.post("/v2/repository/models/shapes/load", ""))).toEqual([
      403,
      "models cannot be loaded here: see --model-control",
    ]);
    expect(await (await closed.ask("/v2/models/stats")).json()).toEqual({ model_stats: [] });

    await using open = start({ modelControl: true });
    expect(
      (await open.post("/v2/repository/models/shapes/unload", { parameters: { unload_dependents: false } })).status,
    ).toBe(200);
    expect((await open.post("/v2/repository/models/shapes/load", "")).status).toBe(200);
    expect(open.backend.loads).toEqual(["unload shapes", "load shapes"]);
    expect(await errorOf(open.post("/v2/repository/models/shapes/load", { parameters: { config: "{}" } }))).toEqual([
      400,
      'parameters: "config" is not taken by load',
    ]);
    expect((await open.post("/v2/repository/models/none/load", "")).status).toBe(404);
  });
});

describe("limits", () => {
  test("of bodies hold before and after decompression, with and without a length", async () => {
    await using running = start({ limits: { maxBodyBytes: 100_000, maxJsonBytes: 50_000 } });
    const { post, ask } = running;
    const path = "/v2/models/shapes/infer";
    const large = [413, "the body is larger than the limit of 100000 bytes"] as const;
    expect(await errorOf(post(path, new Uint8Array(100_001)))).toEqual([...large]);
    const bomb = gzipSync(new Uint8Array(50_000_000));
    expect(bomb.length).toBeLessThan(60_000);
    expect(await errorOf(post(path, bomb, { "Content-Encoding": "gzip" }))).toEqual([...large]);
    const endless = new ReadableStream({
      async pull(controller) {
        controller.enqueue(new Uint8Array(10_000));
      },
    });
    expect(await errorOf(ask(path, { method: "POST", body: endless }))).toEqual([...large]);
    expect(await errorOf(post(path, new Uint8Array(60_000).fill(32)))).toEqual([
      413,
      "JSON: expected at most 50000 bytes, got 60000; send tensors as bytes",
    ]);
    expect(await errorOf(post(path, "abc", { "Content-Encoding": "gzip" }))).toEqual([
      400,
      expect.stringMatching(/^the body is no gzip: /),
    ]);
    expect(await errorOf(post(path, gzipSync("{}").subarray(0, 12), { "Content-Encoding": "gzip" }))).toEqual([
      400,
      "the body is no gzip: unexpected end of file",
    ]);
    expect(await errorOf(post(path, "{}", { "Content-Encoding": "br" }))).toEqual([
      415,
      'Content-Encoding: expected gzip, deflate or identity, got "br"',
    ]);
    // What was taken was given back.
    for (let i = 0; i < 20; i++) expect((await post(path, { inputs })).status).toBe(200);
  });

  test("of time end bodies that do not come", async () => {
    await using running = start({ limits: { bodySeconds: 0.2 } });
    const head = "POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n";
    const slow = await raw(running.service.url, [head, "a", 100, "b", 200, "c"]);
    expect(slow).toStartWith("HTTP/1.1 408 Request Timeout\r\n");
    expect(slow).toContain('{"error":"the body did not come within 0.2 s"}');
    const chunked = "POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n";
    expect(await raw(running.service.url, [chunked])).toStartWith("HTTP/1.1 408 ");
    expect((await running.post("/predict", jpeg)).status).toBe(200);
  });

  test("of time end requests that are not answered", async () => {
    await using running = start({ limits: { answerSeconds: 0.1 } });
    running.backend.answer = ({ signal }) =>
      new Promise((_, fail) => {
        signal?.addEventListener("abort", () => fail(new ServiceError(499, "ended by its signal")));
      });
    expect(await errorOf(running.post("/predict", jpeg))).toEqual([503, "no answer within 0.1 s"]);
  });

  test("of requests at a time are not used up by those who send slowly", async () => {
    await using running = start({ limits: { maxConcurrent: 2, maxReceiving: 3, bodySeconds: 0.5 } });
    const head = "POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc";
    const slow = Array.from({ length: 2 }, () => raw(running.service.url, [head]));
    while (running.service.inFlight < 2) await Bun.sleep(1);
    for (let i = 0; i < 3; i++) expect((await running.post("/predict", jpeg)).status).toBe(200);
    slow.push(raw(running.service.url, [head]));
    while (running.service.inFlight < 3) await Bun.sleep(1);
    expect(await errorOf(running.post("/predict", jpeg))).toEqual([503, "busy: too many bodies on their way"]);
    for (const answer of await Promise.all(slow)) expect(answer).toStartWith("HTTP/1.1 408 ");
    expect((await running.post("/predict", jpeg)).status).toBe(200);
  });

  test("of requests at a time refuse more, but not questions of health", async () => {
    await using running = start({ limits: { maxConcurrent: 2 } });
    const answers: (() => void)[] = [];
    running.backend.answer = async (request) => {
      await new Promise<void>((done) => answers.push(done));
      return running.backend.reply(request);
    };
    const both = [running.post("/predict", jpeg), running.post("/predict", jpeg)];
    while (answers.length < 2) await Bun.sleep(1);
    const third = await running.post("/predict", jpeg);
    expect([third.headers.get("retry-after"), await errorOf(third)]).toEqual([
      "1",
      [503, "busy: too many requests at a time"],
    ]);
    expect((await running.ask("/readyz")).status).toBe(200);
    for (const answer of answers) answer();
    expect((await Promise.all(both)).map(({ status }) => status)).toEqual([200, 200]);
    running.backend.answer = (request) => running.backend.reply(request);
    expect((await running.post("/predict", jpeg)).status).toBe(200);
  });

  test("of memory refuse bodies that have no room", async () => {
    await using running = start({ limits: { maxBodyBytes: 1000, maxBufferedBytes: 1500 } });
    const first = raw(
      running.service.url,
      ["POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n", 300, new Uint8Array(1000)],
      /error/,
    );
    await Bun.sleep(50);
    expect(await errorOf(running.post("/predict", new Uint8Array(600)))).toEqual([
      503,
      "busy: no memory for another body at the moment",
    ]);
    expect(await first).toContain("expected a JPEG, PNG or WebP image");
    expect((await running.post("/predict", new Uint8Array(600))).status).toBe(400);
  });

  test("that are none are refused", () => {
    expect(() => start({ limits: { maxPixels: 0 } })).toThrow("limits.maxPixels: expected an integer from 1, got 0");
    expect(() => start({ limits: { idleSeconds: 300 } })).toThrow(
      "limits.idleSeconds: expected whole seconds up to 255",
    );
    expect(() => start({ limits: { maxBodyBytes: 2 ** 40 } })).toThrow("limits.maxBufferedBytes: expected at least");
    expect(() => start({ limits: { maxSize: 1 } as never })).toThrow('there is none named "maxSize"');
  });
});

test("a client that goes away takes its request out of the queue", async () => {
  await using running = start();
  let ended: (reason: unknown) => void = () => {};
  const reason = new Promise((done) => {
    ended = done;
  });
  running.backend.answer = ({ signal }) =>
    new Promise((_, fail) => {
      signal?.addEventListener("abort", () => {
        ended(signal.reason);
        fail(new ServiceError(499, "the client has gone"));
      });
    });
  const client = new AbortController();
  const asked = running.ask("/predict", { method: "POST", body: jpeg, signal: client.signal }).catch(() => null);
  while (running.backend.calls.length === 0) await Bun.sleep(1);
  client.abort();
  expect(await reason).toMatchObject({ status: 499 });
  await asked;
  while (running.service.inFlight > 0) await Bun.sleep(1);
  const metrics = await (await running.ask("/metrics")).text();
  expect(metrics).toContain('dlfs_inference_requests_total{model="shapes",version="1",status="499"} 1\n');
});

describe("access", () => {
  const apiKeys = ["a-key-of-some-length", "another-key-of-some-length"];

  test("needs one of the keys, but for health and the page", async () => {
    await using running = start({ apiKeys });
    const status = async (path: string, headers: Record<string, string> = {}) =>
      (await running.ask(path, { headers })).status;
    expect(await status("/v2/health/ready")).toBe(200);
    expect(await status("/healthz")).toBe(200);
    for (const path of ["/v2", "/metrics", "/v2/models/shapes", "/nothing"])
      expect([path, await status(path)]).toEqual([path, 401]);
    for (const key of apiKeys) {
      expect(await status("/v2", { Authorization: `Bearer ${key}` })).toBe(200);
      expect(await status("/v2", { "X-API-Key": key })).toBe(200);
    }
    for (const key of ["", "a-key-of-some-lengt", `${apiKeys[0]}x`, "x".repeat(10_000)]) {
      expect(await status("/v2", { "X-API-Key": key })).toBe(401);
    }
    const refused = await running.post("/predict", jpeg);
    expect(refused.headers.get("www-authenticate")).toBe('Bearer realm="dlfs"');
    expect((await errorOf(refused))[0]).toBe(401);
    expect(running.backend.calls.length).toBe(0);
    expect(() => start({ apiKeys: ["short"] })).toThrow("key 1: expected at least 16 visible ASCII characters, got 5");
  });

  test("from pages of other origins is for those that are listed", async () => {
    await using running = start({ corsOrigins: ["https://example.org"] });
    const preflight = (origin: string) =>
      running.ask("/predict", {
        method: "OPTIONS",
        headers: { Origin: origin, "Access-Control-Request-Method": "POST" },
      });
    const allowed = await preflight("https://example.org");
    expect([allowed.status, allowed.headers.get("access-control-allow-origin")]).toEqual([204, "https://example.org"]);
    expect(allowed.headers.get("access-control-allow-methods")).toBe("POST");
    expect((await errorOf(preflight("https://example.com")))[0]).toBe(403);
    const answer = async (origin: string) =>
      (await running.ask("/v2", { headers: { Origin: origin } })).headers.get("access-control-allow-origin");
    expect(await answer("https://example.org")).toBe("https://example.org");
    expect(await answer("https://example.org.evil.com")).toBeNull();
    await using closed = start();
    const plain = await closed.ask("/v2", { headers: { Origin: "https://example.org" } });
    expect([...plain.headers.keys()].filter((name) => name.startsWith("access-control"))).toEqual([]);
    expect(() => start({ corsOrigins: ["example.org"] })).toThrow(
      "CORS: expected an origin such as https://example.org",
    );
  });
});

describe("answers", () => {
  test("have the request's id and trace, or new ones", async () => {
    await using running = start();
    const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const named = await running.ask("/v2", { headers: { "X-Request-Id": "job-7/3", traceparent } });
    expect(named.headers.get("x-request-id")).toBe("job-7/3");
    expect(named.headers.get("traceparent")).toMatch(
      /^00-0af7651916cd43dd8448eb211c80319c-(?!b7ad6b7169203331)[0-9a-f]{16}-01$/,
    );
    for (const bad of ["a b", "x".repeat(200), '"><script>']) {
      const answer = await running.ask("/v2", { headers: { "X-Request-Id": bad, traceparent: `${traceparent}-x` } });
      expect(answer.headers.get("x-request-id")).toMatch(/^[0-9a-f-]{36}$/);
      expect(answer.headers.get("traceparent")).toMatch(/^00-(?!0af7651916cd43dd)[0-9a-f]{32}-[0-9a-f]{16}-00$/);
    }
  });

  test("are compressed for those who take it", async () => {
    await using running = start();
    running.backend.answer = (request) =>
      running.backend.reply(request, [result({ detections: new Array(100).fill(result().detections[0]) })]);
    const ask = (encoding: string) =>
      running.ask("/predict", {
        method: "POST",
        body: jpeg,
        headers: { "Accept-Encoding": encoding },
        decompress: false,
      });
    const plain = await (await ask("identity")).text();
    const answer = await ask("br, gzip;q=0.5");
    expect([answer.headers.get("content-encoding"), answer.headers.get("vary")]).toEqual(["gzip", "Accept-Encoding"]);
    const bytes = await answer.bytes();
    expect(bytes.length).toBeLessThan(plain.length / 3);
    const strip = (text: string) => ({ ...JSON.parse(text), id: "", times: {} });
    expect(strip(gunzipSync(bytes).toString())).toEqual(strip(plain));
    expect(acceptedEncoding("deflate, gzip;q=0")).toBe("deflate");
    expect(acceptedEncoding("*")).toBe("gzip");
    expect(acceptedEncoding("br")).toBeNull();
    expect(acceptedEncoding(null)).toBeNull();
  });

  test("to defects tell nothing of them; the log does", async () => {
    const lines: string[] = [];
    const { default: pino } = await import("pino");
    const log = pino({ level: "debug" }, { write: (line: string) => void lines.push(line) });
    await using running = start({ log, apiKeys: ["a-key-of-some-length"] });
    running.backend.answer = () => {
      throw new TypeError("/secret/path is undefined");
    };
    const headers = { "X-Request-Id": "r1", Authorization: "Bearer a-key-of-some-length" };
    const answer = await running.post("/predict", jpeg, headers);
    expect(await errorOf(answer)).toEqual([500, "internal error; the service's log has more under request id r1"]);
    const line = JSON.parse(lines[0]!);
    expect(line).toMatchObject({
      ...{ level: 50, requestId: "r1", method: "POST", route: "/predict", status: 500, model: "shapes", version: "1" },
      ...{ images: 1, bytesIn: jpeg.length, client: "127.0.0.1", err: { message: "/secret/path is undefined" } },
    });
    running.backend.answer = (request) => running.backend.reply(request);
    await running.post("/predict?model=shapes", jpeg, headers);
    expect(JSON.parse(lines[1]!)).toMatchObject({ level: 30, status: 200, batchSize: 1, queueMs: 1, computeMs: 10 });
    await running.ask("/private/name?key=value", { headers });
    expect(JSON.parse(lines[2]!)).toMatchObject({ level: 40, status: 404, path: "/private/name", error: "not found" });
    await running.ask("/healthz");
    expect(JSON.parse(lines[3]!)).toMatchObject({ level: 20, route: "/healthz" });
    expect(lines.join("")).not.toContain("a-key-of-some-length");
  });
});

describe("metrics", () => {
  test("count by routes, models that exist, and statuses", async () => {
    await using running = start();
    await running.post("/predict", jpeg);
    await running.post("/v2/models/shapes/versions/1/infer", { inputs });
    await running.post("/v2/models/none-such/infer", { inputs });
    await running.ask("/a-path-of-a-client", { method: "DELETE" });
    const text = await (await running.ask("/metrics")).text();
    for (const line of [
      'dlfs_http_requests_total{route="/predict",method="POST",status="200"} 1',
      'dlfs_http_requests_total{route="/v2/models/:model/infer",method="POST",status="200"} 1',
      'dlfs_http_requests_total{route="unknown",method="other",status="404"} 1',
      'dlfs_inference_requests_total{model="shapes",version="1",status="200"} 2',
      'dlfs_inference_requests_total{model="unknown",version="unknown",status="404"} 1',
      'dlfs_inference_request_duration_seconds_count{model="shapes",version="1"} 2',
      'dlfs_http_stage_duration_seconds_count{route="/predict",stage="receive"} 1',
      `dlfs_http_request_body_bytes_total{route="/predict"} ${jpeg.length}`,
      'dlfs_model_ready{model="shapes",version="1"} 1',
      "dlfs_service_ready 1",
      "dlfs_http_requests_in_flight 1",
    ]) {
      expect(text).toContain(`\n${line}\n`);
    }
    expect(text).not.toContain("none-such");
    expect(text).not.toContain("a-path-of-a-client");
    for (const name of ["dlfs_build_info", "process_resident_memory_bytes", "process_cpu_seconds_total"]) {
      expect(text).toContain(`# TYPE ${name} `);
    }
  });

  test("may have a port of their own", async () => {
    await using running = start({ metricsPort: 0, apiKeys: ["a-key-of-some-length"] });
    const answer = await fetch(running.service.metricsUrl);
    expect([answer.status, await answer.text()]).toEqual([200, expect.stringContaining("dlfs_service_ready 1\n")]);
    expect((await running.ask("/metrics", { headers: { "X-API-Key": "a-key-of-some-length" } })).status).toBe(404);
    await running.service.stop(0);
    await expect(fetch(running.service.metricsUrl)).rejects.toThrow();
  });
});

describe("malformed HTTP", () => {
  const cases: [string, string][] = [
    ["no request line", "hello\r\n\r\n"],
    ["a negative length", "POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n"],
    ["two lengths", "POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"],
    [
      "a length and chunks",
      "POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    [
      "chunks of no size",
      "POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    ],
    ["headers without end", `GET / HTTP/1.1\r\nHost: a\r\nX: ${"y".repeat(100_000)}\r\n\r\n`],
  ];
  test.each(cases)("with %s ends the connection", async (_, text) => {
    await using running = start();
    expect(await raw(running.service.url, [text])).toMatch(/^HTTP\/1\.1 (4\d\d|505) /);
    expect((await running.post("/predict", jpeg)).status).toBe(200);
  });

  test("with a strange Host or target is answered", async () => {
    await using running = start();
    const { url } = running.service;
    const until = /\r\n\r\n.*\}/s;
    expect(await raw(url, ["GET /v2 HTTP/1.1\r\nHost: a b\\c:99999999\r\n\r\n"], until)).toStartWith("HTTP/1.1 ");
    expect(await raw(url, ["GET http://b/v2?x HTTP/1.1\r\nHost: a\r\n\r\n"], until)).toContain('"name":"dlfs"');
    expect(await raw(url, ["GET //v2 HTTP/1.1\r\nHost: a\r\n\r\n"], until)).toContain("not found");
    expect(await raw(url, ["CONNECT b:1 HTTP/1.1\r\nHost: a\r\n\r\n"], until)).toStartWith("HTTP/1.1 40");
  });
});

describe("its end", () => {
  test("waits for what is under way, and takes nothing more", async () => {
    const running = start();
    let answer: () => void = () => {};
    running.backend.answer = async (request) => {
      await new Promise<void>((done) => {
        answer = done;
      });
      return running.backend.reply(request);
    };
    const asked = running.post("/predict", jpeg);
    while (running.backend.calls.length === 0) await Bun.sleep(1);
    running.service.drain();
    expect(await errorOf(running.ask("/readyz"))).toEqual([503, "the service is ending"]);
    expect((await running.ask("/healthz")).status).toBe(200);
    const stopped = running.service.stop(10);
    const late = await running.ask("/healthz");
    expect([late.status, late.headers.get("connection")]).toEqual([200, "close"]);
    await Bun.sleep(250);
    await expect(running.ask("/healthz")).rejects.toThrow();
    answer();
    expect((await asked).status).toBe(200);
    await stopped;
    expect(running.service.inFlight).toBe(0);
  });

  test("cuts off what takes longer than its grace", async () => {
    const running = start();
    running.backend.answer = ({ signal }) =>
      new Promise((_, fail) => signal?.addEventListener("abort", () => fail(new ServiceError(499, "gone"))));
    const asked = running.post("/predict", jpeg).then(
      () => "answered",
      () => "cut off",
    );
    while (running.backend.calls.length === 0) await Bun.sleep(1);
    await running.service.stop(0.05);
    expect(await asked).toBe("cut off");
  });

  test("a port that is taken is an error", async () => {
    await using running = start();
    expect(() => start({ port: Number(running.service.url.port) })).toThrow(
      /service: cannot listen on 127\.0\.0\.1:\d+: /,
    );
  });
});
