/** POST /predict: every kind of body, options, images that are damaged, and images named by URL. */
import { describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseMultipart } from "../../lib/service/multipart";
import { isPublicAddress, UrlFetcher } from "../../lib/service/url-fetch";
import { bytesOf, imageCases } from "../support/image-cases";
import { description, result } from "./fake-backend";
import { errorOf, jpeg, start } from "./support";

const png = bytesOf(imageCases().find(({ params }) => params.format === "png")!);
const detections = [
  { class: "green", label: 1, score: 0.75, box: [1, 2, 3.5, 4.25] },
  { class: "red", label: 0, score: 0.5, box: [5, 6, 7, 8] },
];
const image = { width: 20, height: 10, detections };

describe("/predict", () => {
  test("takes an image, whatever type it is said to be of", async () => {
    await using running = start();
    for (const type of ["image/jpeg", "application/octet-stream", "application/x-www-form-urlencoded", ""]) {
      const answer = await running.post("/predict", jpeg, {
        ...(type && { "Content-Type": type }),
        "X-Request-Id": "a",
      });
      expect(await answer.json()).toEqual({
        ...{ id: "a", model: "shapes", version: "1", images: [image] },
        times: { receive_ms: expect.any(Number), queue_ms: 1, compute_ms: 10, total_ms: expect.any(Number) },
      });
    }
    expect(new Uint8Array(running.backend.calls[3]!.request.images[0] as Uint8Array)).toEqual(jpeg);
  });

  test("has options in the query, in a form's fields and in JSON", async () => {
    await using running = start();
    const query = "model=shapes&version=1&score=0.25&max_detections=1&priority=2&timeout_ms=50&id=mine";
    const form = new FormData();
    for (const [name, value] of new URLSearchParams(query)) form.append(name, value);
    form.append("file", new Blob([jpeg]), "a.jpg");
    const json = {
      model: "shapes",
      version: 1,
      score: 0.25,
      max_detections: 1,
      priority: 2,
      timeout_ms: 50,
      id: "mine",
    };
    const answers = [
      await running.post(`/predict?${query}`, jpeg),
      await running.ask("/predict", { method: "POST", body: form }),
      await running.post("/predict", { ...json, images: [jpeg.toBase64()] }, { "Content-Type": "application/json" }),
    ];
    for (const [i, answer] of answers.entries()) {
      const name = i === 1 ? { name: "a.jpg" } : {};
      expect(await answer.json()).toMatchObject({
        ...{ id: "mine", images: [{ ...name, width: 20, height: 10, detections: detections.slice(0, 1) }] },
      });
      const { name: model, version, request } = running.backend.calls[i]!;
      expect([model, version]).toEqual(["shapes", "1"]);
      expect(request).toMatchObject({ scoreThreshold: 0.25, priority: 2, timeoutMs: 50 });
    }
  });

  test("takes several images, more than a batch, and says which of them are damaged", async () => {
    await using running = start();
    running.backend.answer = ({ images }) =>
      running.backend.reply(
        { images },
        images.map((bytes) =>
          (bytes as Uint8Array).length === png.length ? result({ error: "it ends early" }) : result(),
        ),
      );
    const form = new FormData();
    for (let i = 0; i < 5; i++) form.append("file", new Blob([jpeg]), `${i}.jpg`);
    form.append("file", new Blob([png]), "damaged.png");
    form.append("file", new Blob(["hello"]), "none.txt");
    const answer = await running.ask("/predict", { method: "POST", body: form });
    expect(answer.status).toBe(200);
    const { images } = (await answer.json()) as { images: unknown[] };
    expect(images).toEqual([
      ...[0, 1, 2, 3, 4].map((i) => ({ name: `${i}.jpg`, ...image })),
      { name: "damaged.png", error: "it ends early" },
      { name: "none.txt", error: "images[6]: expected a JPEG, PNG or WebP image, got something else" },
    ]);
    // Both of one version, whatever takes its place meanwhile.
    const asked = running.backend.calls.map(({ request, version }) => [request.images.length, version]);
    expect(asked).toEqual([
      [4, "1"],
      [2, "1"],
    ]);

    const both = { images: [png.toBase64(), "AAAA"] };
    expect(await errorOf(running.post("/predict", both))).toEqual([
      400,
      "no image could be used; the first: it ends early",
    ]);
    expect(await errorOf(running.post("/predict", png))).toEqual([400, "it ends early"]);
  });

  test("has the classes of the version that answered", async () => {
    await using running = start();
    const [first, second] = [description(), description({ version: "2", classes: ["one", "two"] })];
    running.backend.list = [first];
    running.backend.answer = (request) => {
      running.backend.list = [second, first];
      return running.backend.reply(request);
    };
    const answer = (await (await running.post("/predict", jpeg)).json()) as {
      version: string;
      images: [{ detections: { class: string }[] }];
    };
    expect(answer.version).toBe("2");
    expect(answer.images[0].detections.map((detection) => detection.class)).toEqual(["two", "one"]);
    expect(running.backend.calls[0]!.version).toBeUndefined();
  });

  test("says what is wrong", async () => {
    await using running = start({ limits: { maxImages: 2, maxPixels: 4000 } });
    const good = jpeg.toBase64();
    const form = (body: string) => ["/predict", body, { "Content-Type": "multipart/form-data; boundary=x" }] as const;
    const cases: [readonly [string, string | Uint8Array | object, Record<string, string>?], string][] = [
      [["/predict", ""], "image: the image is empty"],
      [["/predict", "hello"], "image: expected a JPEG, PNG or WebP image, got something else"],
      [["/predict", "GIF89a"], "image: expected a JPEG, PNG or WebP image, got GIF"],
      [
        ["/predict?size=5", jpeg],
        'the query: expected one of model, version, score, max_detections, priority, timeout_ms, id, got "size"',
      ],
      [["/predict?score=2", jpeg], 'score: expected a number from 0 to 1, got "2"'],
      [["/predict?max_detections=1.5", jpeg], 'max_detections: expected a whole number from 1, got "1.5"'],
      [["/predict?timeout_ms=Infinity", jpeg], 'timeout_ms: expected milliseconds above 0, got "Infinity"'],
      [["/predict?model=", jpeg], 'model: expected a text of 1 to 256 characters, got ""'],
      [["/predict", {}], "request: expected one of url and images"],
      [["/predict", { url: "http://a/", images: [] }], "request: expected one of url and images"],
      [["/predict", { images: [] }], "images: expected 1 to 2, got none"],
      [["/predict", { images: [good, good, good] }], "images: expected 1 to 2, got more"],
      [["/predict", { images: "abc" }], 'images: expected an array, got "abc"'],
      [["/predict", { images: [5] }], "images[0]: expected base64 or a data URL, got 5"],
      [["/predict", { images: ["*"] }], 'images[0]: expected base64, got "*"'],
      [
        ["/predict", { images: [good], mode: "x" }],
        'request: expected one of model, version, score, max_detections, priority, timeout_ms, id, got "mode"',
      ],
      [["/predict", "[]", { "Content-Type": "application/json" }], "request: expected an object, got []"],
      [["/predict", "{"], "JSON: Expected '}'"],
      [form("hello"), "multipart: the boundary is not in the body"],
      [form("--x\r\n\r\nabc"), "multipart: the last part has no end"],
      [
        form("--x\r\nA: b\r\n\r\nabc\r\n--x--"),
        "multipart: expected Content-Disposition: form-data with a name in each part",
      ],
      [form("--x--"), "images: expected 1 to 2, got none"],
      [
        ["/predict", "a", { "Content-Type": "multipart/form-data" }],
        "multipart: expected a boundary of 1 to 70 characters in Content-Type",
      ],
    ];
    for (const [args, message] of cases) expect(await errorOf(running.post(...args))).toEqual([400, message]);
    expect(await errorOf(running.post("/predict", { url: "http://example.org/a.jpg" }))).toEqual([
      403,
      "url: fetching images is not allowed here; send their bytes",
    ]);
    expect(await errorOf(running.post("/predict?model=none", jpeg))).toEqual([404, 'unknown model "none"']);
    expect(running.backend.calls.length).toBe(0);
    const huge = Buffer.from("iVBORw0KGgoAAAANSUhEUgAAAEEAAABBCAYAAAA=", "base64");
    expect(await errorOf(running.post("/predict", huge))).toEqual([
      400,
      "image: 65 x 65 pixels are more than the limit of 4000",
    ]);
  });

  test("of several models needs one named, unless there is a default", async () => {
    const list = [description(), description({ name: "other" })];
    await using running = start();
    running.backend.list = list;
    expect(await errorOf(running.post("/predict", jpeg))).toEqual([
      400,
      'model: expected one of "shapes", "other", got nothing',
    ]);
    await using second = start({ defaultModel: "other" });
    second.backend.list = list;
    expect((await second.post("/predict", jpeg)).status).toBe(200);
    expect(second.backend.calls[0]!.name).toBe("other");
  });
});

describe("multipart forms", () => {
  test("have files and fields, with whatever bytes", () => {
    const data = Buffer.from("\r\n--xy\r\n\r\n--x", "latin1");
    const body = Buffer.concat([
      Buffer.from(
        'preamble\r\n--xyz \r\nContent-Disposition: form-data; name="file"; filename="a \\"b\\".jpg"\r\nContent-Type: image/jpeg\r\n\r\n',
      ),
      data,
      Buffer.from("\r\n--xyz\r\ncontent-disposition: form-data; filename=; name=field\r\n\r\n\r\n--xyz--\r\nepilogue"),
    ]);
    const [file, field] = parseMultipart(body, 'multipart/form-data; boundary="xyz"', 2);
    expect([file!.name, file!.filename, Buffer.from(file!.data).toString("latin1")]).toEqual([
      "file",
      'a "b".jpg',
      data.toString("latin1"),
    ]);
    expect([field!.name, field!.filename, field!.data.length]).toEqual(["field", null, 0]);
    expect(() => parseMultipart(body, "multipart/form-data; boundary=xyz", 1)).toThrow("expected at most 1 parts");
  });
});

describe("images named by URL", () => {
  test("are of public addresses alone", () => {
    const open = ["8.8.8.8", "93.184.216.34", "172.32.0.1", "192.169.0.1", "2606:2800:220:1::1", "::ffff:8.8.8.8"];
    expect(open.filter((address) => !isPublicAddress(address))).toEqual([]);
    const closed = [
      ...["127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"],
      ...["169.254.169.254", "100.100.100.200", "168.63.129.16", "224.0.0.1", "255.255.255.255", "198.18.0.1"],
      ...["::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "2002:7f00:1::", "2001::1"],
      ...["::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "0:0:0:0:0:ffff:10.0.0.1", "64:ff9b::7f00:1", "::7f00:1", "nonsense"],
    ];
    expect(closed.filter(isPublicAddress)).toEqual([]);
  });

  test("are fetched within limits, with each redirect looked at again", async () => {
    const seen: (string | null)[][] = [];
    await using images = Object.assign(
      Bun.serve({
        ...{ port: 0, hostname: "127.0.0.1" },
        fetch(request) {
          seen.push([request.headers.get("host"), request.headers.get("traceparent")]);
          const { pathname } = new URL(request.url);
          const to = (location: string) => new Response(null, { status: 302, headers: { Location: location } });
          if (pathname === "/a.jpg") return new Response(jpeg);
          if (pathname === "/large") return new Response(new Uint8Array(100_000));
          if (pathname === "/redirect") return to("/a.jpg");
          if (pathname === "/loop") return to("/loop");
          if (pathname === "/inside") return to("http://[::1]:1/a.jpg");
          if (pathname === "/file") return to("file:///etc/passwd");
          if (pathname === "/slow") return new Promise<Response>(() => {});
          return new Response("no", { status: 404 });
        },
      }),
      { [Symbol.asyncDispose]: async () => await images.stop(true) },
    );
    const { port } = images;
    const urls = { networks: ["127.0.0.0/8"], seconds: 0.5, maxBytes: 50_000 };
    await using running = start({ urls });
    const ask = (url: string) => running.post("/predict", { url });
    for (const path of ["a.jpg", "redirect"]) {
      const answer = await ask(`http://localhost:${port}/${path}`);
      expect(((await answer.json()) as { images: unknown }).images).toEqual([image]);
    }
    expect(seen[0]).toEqual([`localhost:${port}`, expect.stringMatching(/^00-/)]);
    const cases: [string, string][] = [
      [`http://127.0.0.1:${port}/none`, "url: the server answered 404"],
      [`http://127.0.0.1:${port}/large`, "url: the image is larger than the limit of 50000 bytes"],
      [`http://127.0.0.1:${port}/loop`, "url: more than 3 redirects"],
      [`http://127.0.0.1:${port}/inside`, 'url: the host "::1" is not public'],
      [`http://127.0.0.1:${port}/file`, 'url: expected http:// or https://, got "file:"'],
      [`http://127.0.0.1:${port}/slow`, "url: no answer within 0.5 s"],
      ["http://127.0.0.1:1/", "url: the server cannot be reached (ECONNREFUSED)"],
      ["http://0x0a.1/", 'url: the host "10.0.0.1" is not public'],
      ["http://[::ffff:169.254.169.254]/", 'url: the host "::ffff:a9fe:a9fe" is not public'],
      ["http://user:secret@127.0.0.1/", "url: it must have no user name or password"],
      ["ftp://127.0.0.1/", 'url: expected http:// or https://, got "ftp:"'],
      ["hello", 'url: expected http:// or https://, got "hello"'],
      ["http://name.invalid/", 'url: the host "name.invalid" has no address'],
    ];
    for (const [url, message] of cases) expect([url, ...(await errorOf(ask(url)))]).toEqual([url, 400, message]);
    const outside = new UrlFetcher({ maxBytes: 1000 });
    const never = new AbortController().signal;
    await expect(outside.fetch(`http://localhost:${port}/a.jpg`, never)).rejects.toThrow(
      'the host "localhost" is not public',
    );
    const listed = new UrlFetcher({ maxBytes: 1000, hosts: ["*.example.org", "images.test"] });
    for (const url of ["http://example.org.evil.com/", "http://evilexample.org/", "http://8.8.8.8/"]) {
      await expect(listed.fetch(url, never)).rejects.toThrow("is not among those that are allowed");
    }
  });

  test("come over TLS under the certificate of their name", async () => {
    const folder = mkdtempSync(join(tmpdir(), "dlfs-tls-"));
    const [key, cert] = [join(folder, "key.pem"), join(folder, "cert.pem")];
    const command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    const subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"];
    const made = Bun.spawnSync([...command, "-keyout", key, "-out", cert, ...subject], { stderr: "ignore" });
    expect(made.exitCode).toBe(0);
    const tls = { key: readFileSync(key, "utf8"), cert: readFileSync(cert, "utf8") };
    rmSync(folder, { recursive: true });
    // The service itself, over TLS, asked by another that fetches from it.
    await using images = start({ tls });
    const { port } = images.service.url;
    expect(images.service.url.protocol).toBe("https:");
    const never = new AbortController().signal;
    const options = { maxBytes: 10_000, networks: ["127.0.0.0/8"], ca: tls.cert };
    const bytes = await new UrlFetcher(options).fetch(`https://localhost:${port}/healthz`, never);
    expect(Buffer.from(bytes).toString()).toBe('{"live":true}');
    const wrong = [
      () => new UrlFetcher(options).fetch(`https://127.0.0.1:${port}/healthz`, never),
      () => new UrlFetcher({ ...options, ca: undefined }).fetch(`https://localhost:${port}/healthz`, never),
    ];
    for (const fetch of wrong) await expect(fetch()).rejects.toThrow("url: the server cannot be reached (");
  });
});
