/** Requests that are wrong, or may be, each made from a seed. */
import { deflateSync, gzipSync } from "node:zlib";

/** What may come of a request. */
export type Outcome =
  /** An answer of 4xx with {"error"}. */
  | "refused"
  /** That, or 200: a damaged image may still be one. */
  | "any"
  /** That, or the HTTP parser's own answer without a body, or the end of the connection. */
  | "malformed"
  /** None: the client goes away. */
  | "abandoned";

export interface FuzzRequest {
  readonly kind: string;
  readonly outcome: Outcome;
  /** What is sent, with pauses in milliseconds. */
  readonly parts: readonly (Uint8Array | number)[];
}

/** Numbers from 0 to 1 that a seed determines (mulberry32). */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  below(n: number): number {
    return Math.floor(this.next() * n);
  }

  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)] as T;
  }

  bytes(n: number): Buffer {
    return Buffer.from(Array.from({ length: n }, () => this.below(256)));
  }
}

const text = (value: string) => Buffer.from(value, "latin1");

function request(path: string, body: Uint8Array, headers: Record<string, string> = {}, method = "POST"): Buffer {
  const lines = Object.entries({ Host: "fuzz", "Content-Length": String(body.length), ...headers });
  const head = `${method} ${path} HTTP/1.1\r\n${lines.map(([name, value]) => `${name}: ${value}\r\n`).join("")}\r\n`;
  return Buffer.concat([text(head), body]);
}

/** Numbers that break what does not expect them. */
const ODD_NUMBERS = [-1, 0, 1.5, 1e308, -1e308, 2 ** 31, 2 ** 32, 2 ** 53, -(2 ** 63), 1e21, 4294967295];
const ODD_VALUES: readonly unknown[] = [
  ...[null, true, "", "x", [], {}, [[]], [null], { a: 1 }, "\u0000", "\ud800", "__proto__", "../../etc/passwd"],
  ...ODD_NUMBERS,
];

const KINDS: Readonly<Record<string, number>> = {
  ...{ "damaged image": 20, "hostile image": 8, "no image": 4, "JSON infer": 16, "no JSON": 8, "binary infer": 14 },
  ...{ "raw infer": 4, compressed: 5, "zip bomb": 0.5, multipart: 7, query: 5, path: 5, headers: 5, "predict JSON": 6 },
  ...{ "malformed HTTP": 8, chunked: 3, abandoned: 4, "slow sender": 0.1, deep: 0.5, "huge length": 1 },
};
const TOTAL = Object.values(KINDS).reduce((sum, weight) => sum + weight, 0);

export class Fuzzer {
  readonly #images: readonly Uint8Array[];
  readonly #bombs: readonly { encoding: string; bytes: Uint8Array }[];

  /**
   * @param model the model's name
   * @param images files that can be decoded
   * @param maxBody the service's limit
   */
  constructor(
    readonly model: string,
    images: readonly Uint8Array[],
    readonly maxBody: number,
  ) {
    this.#images = images;
    const zeros = new Uint8Array(20 * maxBody);
    this.#bombs = [
      { encoding: "gzip", bytes: gzipSync(zeros) },
      { encoding: "deflate", bytes: deflateSync(zeros) },
      { encoding: "gzip", bytes: gzipSync(Buffer.alloc(3 * maxBody, '{"inputs":[')) },
    ];
  }

  /** The request of a seed. */
  make(seed: number): FuzzRequest {
    const random = new Random(seed);
    let at = random.next() * TOTAL;
    const kind = Object.entries(KINDS).find(([, weight]) => {
      at -= weight;
      return at < 0;
    })?.[0] as string;
    return { kind, ...this.#make(kind, random) };
  }

  #make(kind: string, random: Random): Omit<FuzzRequest, "kind"> {
    const infer = `/v2/models/${this.model}/infer`;
    const refused = (bytes: Uint8Array) => ({ outcome: "refused" as const, parts: [bytes] });
    const any = (bytes: Uint8Array) => ({ outcome: "any" as const, parts: [bytes] });
    const malformed = (...parts: (Uint8Array | number)[]) => ({ outcome: "malformed" as const, parts });
    switch (kind) {
      case "damaged image":
        return any(this.#imageRequest(this.#damaged(random), random, infer));
      case "hostile image":
        return any(this.#imageRequest(hostileImage(random), random, infer));
      case "no image":
        return refused(this.#imageRequest(random.bytes(random.below(300)), random, infer));
      case "JSON infer":
        return any(request(infer, Buffer.from(JSON.stringify(this.#oddInfer(random)))));
      case "no JSON":
        return refused(
          request(random.pick([infer, "/v2/repository/index", "/predict"]), this.#noJson(random), {
            "Content-Type": "application/json",
          }),
        );
      case "binary infer":
        return any(this.#binaryInfer(random, infer));
      case "raw infer":
        return any(request(infer, this.#damaged(random), { "Inference-Header-Content-Length": "0" }));
      case "compressed": {
        const whole = gzipSync(this.#damaged(random));
        const cut = random.next() < 0.5 ? whole.subarray(0, random.below(whole.length)) : flip(whole, random);
        return any(
          request(random.pick([infer, "/predict"]), cut, {
            "Content-Encoding": random.pick(["gzip", "deflate", "x-gzip", "br", "zip", "gzip, gzip"]),
          }),
        );
      }
      case "zip bomb": {
        const { encoding, bytes } = random.pick(this.#bombs);
        return refused(request(random.pick([infer, "/predict"]), bytes, { "Content-Encoding": encoding }));
      }
      case "multipart":
        return any(this.#multipart(random));
      case "predict JSON": {
        const json: Record<string, unknown> = { images: [random.pick<unknown>([...ODD_VALUES, "AAAA", "data:,x"])] };
        for (let i = random.below(3); i > 0; i--) {
          json[
            random.pick([
              "url",
              "images",
              "score",
              "model",
              "version",
              "priority",
              "timeout_ms",
              "max_detections",
              "id",
              "x",
            ])
          ] = random.pick(ODD_VALUES);
        }
        return refused(request("/predict", Buffer.from(JSON.stringify(json)), { "Content-Type": "application/json" }));
      }
      case "query": {
        const name = random.pick([
          "score",
          "model",
          "version",
          "max_detections",
          "priority",
          "timeout_ms",
          "x",
          "",
          "%ff",
          "__proto__",
        ]);
        const value = encodeURIComponent(
          String(random.pick([...ODD_NUMBERS, "NaN", "Infinity", "", "a".repeat(300), "%00"])),
        );
        return any(request(`/predict?${name}=${value}`, this.#image(random)));
      }
      case "path":
        return refused(
          request(oddPath(random), this.#image(random), {}, random.pick(["POST", "PUT", "DELETE", "PATCH"])),
        );
      case "headers":
        return any(request("/predict", this.#image(random), oddHeaders(random)));
      case "malformed HTTP":
        return malformed(oddHttp(random));
      case "chunked": {
        const size = random.pick(["5", "zz", "-1", "ffffffffffffffff", "0x5", "5;a=b", "", " 5"]);
        const head = "POST /predict HTTP/1.1\r\nHost: fuzz\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
        return malformed(
          text(`${head}${size}\r\nhello\r\n${random.pick(["0\r\n\r\n", "0\r\nX: y\r\n\r\n", "\r\n", "5\r\nab"])}`),
          20,
        );
      }
      case "abandoned": {
        const whole = request(random.pick([infer, "/predict"]), this.#image(random));
        return { outcome: "abandoned", parts: [whole.subarray(0, random.below(whole.length + 1)), random.below(4)] };
      }
      case "slow sender": {
        const whole = request("/predict", this.#image(random));
        const first = random.below(200);
        return malformed(
          whole.subarray(0, first),
          700,
          whole.subarray(first, first + 1),
          700,
          whole.subarray(first + 1, first + 2),
          4000,
        );
      }
      case "deep": {
        const depth = 10 ** (2 + random.below(4));
        const open = random.pick(["[", '{"a":', '{"inputs":[']);
        return refused(
          request(
            infer,
            Buffer.from(open.repeat(depth) + (open === "[" && random.next() < 0.5 ? "]".repeat(depth) : "")),
          ),
        );
      }
      default: {
        const length = random.pick([
          String(this.maxBody + 1),
          "99999999999",
          "9007199254740993",
          "18446744073709551616",
        ]);
        return malformed(text(`POST /predict HTTP/1.1\r\nHost: fuzz\r\nContent-Length: ${length}\r\n\r\nabc`));
      }
    }
  }

  #image(random: Random): Uint8Array {
    return random.pick(this.#images);
  }

  /** An image of which bytes are changed, left out, doubled, or at whose end some are missing. */
  #damaged(random: Random): Buffer {
    let bytes: Buffer = Buffer.from(this.#image(random));
    for (let i = 1 + random.below(4); i > 0; i--) {
      const at = random.below(bytes.length + 1);
      const n = random.below(64);
      const change = random.below(4);
      if (change === 0) bytes = flip(bytes, random);
      else if (change === 1) bytes = bytes.subarray(0, at);
      else if (change === 2) bytes = Buffer.concat([bytes.subarray(0, at), random.bytes(n), bytes.subarray(at)]);
      else bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + n)]);
    }
    return bytes;
  }

  /** An image in one of the ways in which one can be sent. */
  #imageRequest(image: Uint8Array, random: Random, infer: string): Buffer {
    const way = random.below(4);
    if (way === 0) return request("/predict", image, { "Content-Type": "image/jpeg" });
    if (way === 1) return request(infer, image, { "Inference-Header-Content-Length": "0" });
    if (way === 2) {
      const json = {
        inputs: [{ name: "image_bytes", datatype: "BYTES", shape: [1], data: [Buffer.from(image).toString("base64")] }],
      };
      return request(infer, Buffer.from(JSON.stringify(json)));
    }
    return request("/predict", Buffer.from(JSON.stringify({ images: [Buffer.from(image).toString("base64")] })));
  }

  /** A request of the protocol of which some fields have odd values. */
  #oddInfer(random: Random): unknown {
    const input: Record<string, unknown> = {
      ...{
        name: "images",
        datatype: "UINT8",
        shape: [1, 2, 2, 3],
        data: Array.from({ length: 12 }, () => random.below(256)),
      },
    };
    const json: Record<string, unknown> = { id: "x", inputs: [input], outputs: [{ name: "boxes" }], parameters: {} };
    for (let i = 1 + random.below(3); i > 0; i--) {
      const value = random.pick(ODD_VALUES);
      const shape = () =>
        Array.from({ length: random.below(6) }, () => random.pick<unknown>([...ODD_NUMBERS, 1, 2, 3, "3"]));
      const changes: (() => unknown)[] = [
        () => Object.assign(input, { [random.pick(["name", "datatype", "shape", "data", "parameters"])]: value }),
        () => Object.assign(input, { shape: shape() }),
        () => Object.assign(input, { datatype: random.pick(["FP32", "BYTES", "INT64", "BF16", "BOOL", "uint8"]) }),
        () => Object.assign(input, { parameters: { binary_data_size: value } }),
        () => Object.assign(json, { [random.pick(["id", "inputs", "outputs", "parameters"])]: value }),
        () => Object.assign(json, { inputs: [input, input, value] }),
        () =>
          Object.assign(json, {
            parameters: {
              [random.pick([
                "priority",
                "timeout",
                "score_threshold",
                "max_detections",
                "sequence_id",
                "binary_data_output",
              ])]: value,
            },
          }),
        () =>
          Object.assign(json, {
            outputs: [{ name: random.pick<unknown>(["boxes", "x", value]), parameters: { binary_data: value } }],
          }),
        () => delete input[random.pick(["name", "datatype", "shape", "data"])],
      ];
      random.pick(changes)();
    }
    return json;
  }

  #noJson(random: Random): Buffer {
    const whole = Buffer.from(
      JSON.stringify({ inputs: [{ name: "images", datatype: "UINT8", shape: [1, 1, 1, 3], data: [1, 2, 3] }] }),
    );
    const way = random.below(4);
    if (way === 0) return whole.subarray(0, 1 + random.below(whole.length - 1));
    if (way === 1) return Buffer.concat([text("{"), random.bytes(1 + random.below(100))]);
    if (way === 2) return Buffer.concat([whole.subarray(0, 20), Buffer.of(0xff, 0xfe, 0xc0), whole.subarray(20)]);
    return text(
      random.pick(["[1,2", '{"a":1,}', "{'a':1}", "{NaN:1}", "[1e999]", '"\\ud800', "{\u0000}", '[{"inputs":[]}]']),
    );
  }

  #binaryInfer(random: Random, infer: string): Buffer {
    const image = Buffer.from(this.#image(random));
    const length = Buffer.alloc(4);
    length.writeUInt32LE(
      random.next() < 0.5 ? image.length : random.pick([0, 1, 0xffffffff, image.length + 1, image.length - 1]),
    );
    const tensor = Buffer.concat([length, image]);
    const sizes = [tensor.length, tensor.length - 1, tensor.length + 1, 0, -1, 1e15, "5", null];
    const json = Buffer.from(
      JSON.stringify({
        inputs: [
          {
            ...{
              name: "image_bytes",
              datatype: "BYTES",
              shape: random.pick<unknown>([[1], [2], [0], [1, 1], [-1], [1e9], []]),
            },
            parameters: { binary_data_size: random.next() < 0.4 ? tensor.length : random.pick<unknown>(sizes) },
          },
        ],
      }),
    );
    const header =
      random.next() < 0.5 ? json.length : random.pick([json.length - 1, json.length + 1, 1, -1, 1e12, "x", "0x10", ""]);
    let body: Buffer = Buffer.concat([json, tensor]);
    if (random.next() < 0.4) body = body.subarray(0, random.below(body.length));
    return request(infer, body, { "Inference-Header-Content-Length": String(header) });
  }

  #multipart(random: Random): Buffer {
    const boundary = random.pick(["x", "----WebKitFormBoundary7", "a b", "", "y".repeat(80), '"q"', "."]);
    const disposition = random.pick([
      'form-data; name="file"; filename="a.jpg"',
      'form-data; name="score"',
      "attachment",
      "form-data",
      "",
    ]);
    const image = random.next() < 0.5 ? this.#damaged(random) : random.bytes(random.below(200));
    let body: Buffer = Buffer.concat([
      text(`--${boundary}\r\nContent-Disposition: ${disposition}\r\n\r\n`),
      image,
      text(`\r\n--${boundary}${random.pick(["--\r\n", "\r\n", ""])}`),
    ]);
    if (random.next() < 0.3) body = flip(body, random);
    if (random.next() < 0.2) body = body.subarray(0, random.below(body.length));
    return request("/predict", body, { "Content-Type": `multipart/form-data; boundary=${boundary}` });
  }
}

function flip(bytes: Uint8Array, random: Random): Buffer {
  const copy = Buffer.from(bytes);
  for (let i = 1 + random.below(8); i > 0 && copy.length > 0; i--) copy[random.below(copy.length)] = random.below(256);
  return copy;
}

/** Files of few bytes that say that they are large, many, or nothing. */
function hostileImage(random: Random): Buffer {
  const side = random.pick([0, 1, 2000, 4096, 30_000, 65_500, 65_535]);
  const other = random.pick([0, 1, 2000, 65_535]);
  const u16 = (value: number) => Buffer.of((value >> 8) & 255, value & 255);
  const way = random.below(4);
  if (way === 0) {
    const frame = Buffer.concat([
      Buffer.of(0xff, random.pick([0xc0, 0xc1, 0xc2, 0xc3, 0xc9]), 0, 17, 8),
      u16(side),
      u16(other),
    ]);
    const components = Buffer.of(random.pick([0, 1, 3, 4, 255]), 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1);
    const scan = Buffer.of(0xff, 0xda, 0, 8, 1, 1, 0, 0, 63, 0, 0);
    const scans = Buffer.concat(Array.from({ length: random.pick([1, 50, 5000]) }, () => scan));
    return Buffer.concat([Buffer.of(0xff, 0xd8), frame, components, scans, Buffer.of(0xff, 0xd9)]);
  }
  if (way === 1) {
    const png = Buffer.from("iVBORw0KGgoAAAANSUhEUgAAAAAAAAAACAYAAAAAAAAA", "base64");
    png.writeUInt32BE(random.pick([0, 1, 65_535, 2 ** 31 - 1, 2 ** 32 - 1]), 16);
    png.writeUInt32BE(random.pick([0, 1, 65_535, 2 ** 31 - 1, 2 ** 32 - 1]), 20);
    return Buffer.concat([png, random.bytes(random.below(100))]);
  }
  if (way === 2) {
    const webp = Buffer.concat([
      text("RIFF\xff\xff\xff\xffWEBP"),
      text(random.pick(["VP8X", "VP8 ", "VP8L", "ALPH"])),
      random.bytes(40),
    ]);
    return webp;
  }
  // Segments that lead nowhere.
  return Buffer.concat([
    Buffer.of(0xff, 0xd8),
    Buffer.concat(Array.from({ length: random.below(2000) }, () => Buffer.of(0xff, 0xe1, 0, 2))),
  ]);
}

function oddPath(random: Random): string {
  const parts = [
    "v2",
    "models",
    "..",
    ".",
    "%2e%2e",
    "%2F",
    "%ff",
    "%zz",
    "",
    "versions",
    "infer",
    "predict",
    "a".repeat(2000),
    "__proto__",
    "%00",
    "é",
    "metrics",
  ];
  const path = `/${Array.from({ length: 1 + random.below(6) }, () => random.pick(parts)).join("/")}`;
  // What would be right is made wrong.
  return Buffer.from(`${path}/x`, "latin1").toString("latin1").replaceAll("é", "%e9");
}

function oddHeaders(random: Random): Record<string, string> {
  const values = [
    "",
    "x".repeat(5000),
    "\xff\xfe",
    "0",
    "-1",
    "a;b;c=,,",
    '"',
    "<script>",
    "00-0-0-0",
    "*/*;q=-1",
    "gzip;q=x",
    "null",
  ];
  const names = [
    "Content-Type",
    "Accept-Encoding",
    "X-Request-Id",
    "traceparent",
    "Origin",
    "Authorization",
    "Expect",
    "Range",
    "Cookie",
    "If-Match",
    "X-API-Key",
  ];
  return Object.fromEntries(
    Array.from({ length: 1 + random.below(4) }, () => [random.pick(names), random.pick(values)]),
  );
}

function oddHttp(random: Random): Buffer {
  const valid = text("POST /predict HTTP/1.1\r\nHost: fuzz\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc");
  const way = random.below(6);
  if (way === 0) return Buffer.concat([random.bytes(1 + random.below(200)), text("\r\n\r\n")]);
  if (way === 1) return Buffer.concat([flip(valid.subarray(0, 40), random), valid.subarray(40)]);
  if (way === 2) {
    const lines = [
      "Content-Length: -1",
      "Content-Length: 3\r\nContent-Length: 4",
      "Transfer-Encoding: chunked\r\nContent-Length: 3",
      "X\r\n : y",
      "A B: c",
      "X: \0",
      `X: ${"y".repeat(70_000)}`,
      Array.from({ length: 300 }, (_, i) => `H${i}: x`).join("\r\n"),
    ];
    return text(`POST /predict HTTP/1.1\r\nHost: fuzz\r\n${random.pick(lines)}\r\n\r\nabc`);
  }
  if (way === 3)
    return text(
      `${random.pick(["GET", "get", "BLAH", "CONNECT", "OPTIONS", "TRACE", ""])} ${random.pick(["*", "", "http://", "//", "\\", "/\t"])} ${random.pick(["HTTP/1.1", "HTTP/9", "HTTP/1.1 ", "http/1.1", ""])}\r\nHost: ${random.pick(["", "a b", "[::1", "\\", "x:99999999"])}\r\nConnection: close\r\n\r\n`,
    );
  if (way === 4) return text(`GET /${random.pick(["a", "%"]).repeat(100_000)} HTTP/1.1\r\nHost: a\r\n\r\n`);
  return text(
    `POST /predict HTTP/${random.pick(["0.9", "1.0", "2.0", "1.2", "11"])}\r\n${random.pick(["", "Host: a\r\n"])}Connection: close\r\n\r\n`,
  );
}
