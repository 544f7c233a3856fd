/**
 * A server of objects over HTTP, as plain files, as a Google Cloud Storage bucket (JSON API) and as an S3 bucket (path style),
 * all of the same objects, which fails as it is told to.
 */
import { createHash, createHmac } from "node:crypto";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export interface Fault {
  /**
   * What happens to a request: an answer of that status; "reset": the connection is closed before an answer; "cut": in the middle of the
   * answer's bytes; "short": fewer bytes than the object has, in an answer that is complete by itself; "hang": no answer.
   */
  kind: number | "reset" | "cut" | "short" | "hang";
  /** Requests that fail; afterwards all is well. Default 1. */
  times?: number;
  /** Only requests whose method and path with query match. Default: all. */
  match?: RegExp;
  /** Retry-After header, with a status. */
  retryAfter?: string;
}

export interface StoredObject {
  bytes: Uint8Array;
  modified: number;
}

export interface ObjectServer extends AsyncDisposable {
  /** http://127.0.0.1:PORT */
  address: string;
  objects: Map<string, StoredObject>;
  faults: Fault[];
  /** Method and path with query of each request. */
  log: string[];
  /** Requests whose answer is being waited for, and the most of them. */
  atATime: number;
  mostAtATime: number;
  /** Authorization header of the latest request. */
  authorization: string | null;
  put(key: string, content: string | Uint8Array, modified?: number): void;
  /** Objects a page of a list. */
  pageSize: number;
  /** HEAD requests, ranges, and answers with Content-Length or Last-Modified can be left out, as some servers do. */
  without: Set<"head" | "ranges" | "length" | "modified">;
  /** Answers wait this many milliseconds. */
  delay: number;
}

export const BUCKET = "boxes";
export const S3_KEYS = { accessKeyId: "testkey", secretAccessKey: "testsecret" };
const DATE = Date.UTC(2024, 4, 6, 7, 8, 9);

/** Starts a server; disposing ends it and all of its connections. */
export async function objectServer(): Promise<ObjectServer> {
  const state: ObjectServer = {
    address: "",
    objects: new Map(),
    faults: [],
    log: [],
    atATime: 0,
    mostAtATime: 0,
    authorization: null,
    pageSize: 1000,
    without: new Set(),
    delay: 0,
    put: (key, content, modified = DATE) => {
      const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content;
      state.objects.set(key, { bytes, modified });
    },
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
  const server = createServer((request, response) => {
    answer(state, request, response).catch((error: unknown) => {
      response.writeHead(500).end(String(error));
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  state.address = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return state;
}

async function answer(state: ObjectServer, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const { method = "GET", url = "/" } = request;
  state.log.push(`${method} ${url}`);
  state.authorization = request.headers.authorization ?? null;
  const body: Buffer[] = [];
  for await (const chunk of request) body.push(chunk as Buffer);
  state.mostAtATime = Math.max(state.mostAtATime, ++state.atATime);
  if (state.delay > 0) await Bun.sleep(state.delay);
  state.atATime--;
  const fault = takeFault(state, `${method} ${url}`);
  if (fault?.kind === "hang") return;
  if (fault?.kind === "reset") {
    request.socket.destroy();
    return;
  }
  const address = new URL(url, "http://server");
  const reply: Reply = { state, request, response, fault };
  if (typeof fault?.kind === "number") {
    const headers: Record<string, string> = fault.retryAfter === undefined ? {} : { "retry-after": fault.retryAfter };
    response.writeHead(fault.kind, headers).end(method === "HEAD" ? undefined : "told to fail");
  } else if (/^\/(upload\/|download\/)?storage\/v1\//.test(address.pathname)) {
    answerAsGcs(reply, address, Buffer.concat(body));
  } else if (address.searchParams.has("X-Amz-Signature") || request.headers.authorization?.startsWith("AWS4")) {
    answerAsS3(reply, address, Buffer.concat(body));
  } else {
    sendObject(reply, decodeURIComponent(address.pathname.slice(1)), () => response.writeHead(404).end());
  }
}

function takeFault(state: ObjectServer, line: string): Fault | null {
  const fault = state.faults.find(({ match, times = 1 }) => times > 0 && (match?.test(line) ?? true));
  if (!fault) return null;
  fault.times = (fault.times ?? 1) - 1;
  return fault;
}

interface Reply {
  state: ObjectServer;
  request: IncomingMessage;
  response: ServerResponse;
  fault: Fault | null;
}

/** Answers a GET or HEAD of an object, with its range if one is asked for. */
function sendObject(reply: Reply, key: string, missing: () => void, headers: Record<string, string> = {}): void {
  const { state, request, response, fault } = reply;
  const object = state.objects.get(key);
  if (!object) {
    missing();
    return;
  }
  if (request.method === "HEAD" && state.without.has("head")) {
    response.writeHead(405).end();
    return;
  }
  const { bytes, modified } = object;
  const size = bytes.length;
  const asked = state.without.has("ranges") ? null : /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? "");
  const start = asked ? Number(asked[1]) : 0;
  const end = asked?.[2] ? Math.min(Number(asked[2]) + 1, size) : size;
  if (asked && start >= size) {
    response.writeHead(416, { "content-range": `bytes */${size}` }).end("<Error><Code>InvalidRange</Code></Error>");
    return;
  }
  let part = bytes.subarray(start, end);
  if (fault?.kind === "short") part = part.subarray(0, part.length >> 1);
  const all: Record<string, string | number> = { ...headers };
  if (!state.without.has("modified")) all["last-modified"] = new Date(modified).toUTCString();
  if (!state.without.has("length")) all["content-length"] = part.length;
  if (asked) all["content-range"] = `bytes ${start}-${end - 1}/${size}`;
  response.writeHead(asked ? 206 : 200, all);
  if (request.method === "HEAD") {
    response.end();
  } else if (fault?.kind === "cut") {
    response.write(part.subarray(0, part.length >> 1));
    setTimeout(() => request.socket.destroy(), 10);
  } else {
    response.end(part);
  }
}

/** A page of keys that start with `prefix`, after `token`, in the order of their bytes. */
function page(state: ObjectServer, prefix: string, token: string | null): { keys: string[]; next: string | null } {
  const all = [...state.objects.keys()]
    .sort()
    .filter((key) => key.startsWith(prefix) && (token === null || key > token));
  const keys = all.slice(0, state.pageSize);
  return { keys, next: all.length > keys.length ? (keys.at(-1) as string) : null };
}

/** https://cloud.google.com/storage/docs/json_api/v1, as far as it is used here. */
function answerAsGcs(reply: Reply, address: URL, body: Buffer): void {
  const { state, request, response } = reply;
  const json = (status: number, value: unknown): void => {
    response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
  };
  const fail = (code: number, message: string): void => json(code, { error: { code, message, errors: [{ message }] } });
  const match = /\/b\/([^/]+)\/o(?:\/(.+))?$/.exec(address.pathname);
  const [bucket, name] = [match?.[1], match?.[2] === undefined ? null : decodeURIComponent(match[2])];
  if (bucket === "forbidden") {
    fail(403, "The caller does not have storage.objects.get access.");
    return;
  }
  if (bucket !== BUCKET) {
    fail(404, "The specified bucket does not exist.");
    return;
  }
  const metadata = (key: string) => {
    const { bytes, modified } = state.objects.get(key) as StoredObject;
    return { name: key, bucket, size: String(bytes.length), updated: new Date(modified).toISOString() };
  };
  if (request.method === "POST" && address.pathname.startsWith("/upload/")) {
    const { name: key, content } = readUpload(request, body, address);
    state.put(key, content);
    const hash = new DataView(new ArrayBuffer(4));
    hash.setUint32(0, crc32c(content));
    json(200, { ...metadata(key), crc32c: Buffer.from(hash.buffer).toString("base64"), md5Hash: md5(content) });
    return;
  }
  if (name === null) {
    const { keys, next } = page(state, address.searchParams.get("prefix") ?? "", address.searchParams.get("pageToken"));
    json(200, { items: keys.map(metadata), ...(next === null ? {} : { nextPageToken: next }) });
    return;
  }
  const missing = (): void => fail(404, `No such object: ${bucket}/${name}`);
  if (address.searchParams.get("alt") === "media") {
    const size = state.objects.get(name)?.bytes.length ?? 0;
    const stored = { "x-goog-stored-content-length": String(size), "x-goog-stored-content-encoding": "identity" };
    sendObject(reply, name, missing, stored);
    return;
  }
  if (!state.objects.has(name)) {
    missing();
    return;
  }
  if (request.method === "DELETE") {
    state.objects.delete(name);
    response.writeHead(204).end();
    return;
  }
  json(200, metadata(name));
}

/** The parts of a multipart upload: metadata as JSON, then the bytes. */
function readUpload(request: IncomingMessage, body: Buffer, address: URL): { name: string; content: Uint8Array } {
  const boundary = /boundary="?([^";]+)/.exec(request.headers["content-type"] ?? "")?.[1];
  const blank = Buffer.from("\r\n\r\n");
  const first = body.indexOf(blank) + 4;
  const second = body.indexOf(blank, first) + 4;
  const end = body.lastIndexOf(`\r\n--${boundary}--`);
  const head = body.subarray(first, body.indexOf(`\r\n--${boundary}`, first)).toString();
  const { name = address.searchParams.get("name") } = JSON.parse(head) as { name?: string };
  return { name: name as string, content: new Uint8Array(body.subarray(second, end)) };
}

/** The REST API of S3 with path-style addresses; refuses what is not signed by S3_KEYS. */
function answerAsS3(reply: Reply, address: URL, body: Buffer): void {
  const { state, request, response } = reply;
  const fail = (status: number, code: string, message: string): void => {
    const text = `<?xml version="1.0" encoding="UTF-8"?><Error><Code>${code}</Code><Message>${message}</Message></Error>`;
    response.writeHead(status, { "content-type": "application/xml" }).end(request.method === "HEAD" ? undefined : text);
  };
  if (!signedRight(request, address)) {
    fail(403, "SignatureDoesNotMatch", "The signature does not match.");
    return;
  }
  const [, bucket, ...rest] = address.pathname.split("/");
  const key = decodeURIComponent(rest.join("/"));
  if (bucket === "forbidden") {
    fail(403, "AccessDenied", "Access Denied");
    return;
  }
  if (bucket !== BUCKET) {
    fail(404, "NoSuchBucket", "The specified bucket does not exist");
    return;
  }
  if (key === "") {
    const token = address.searchParams.get("continuation-token");
    const { keys, next } = page(state, address.searchParams.get("prefix") ?? "", token);
    const entries = keys.map((name) => {
      const { bytes, modified } = state.objects.get(name) as StoredObject;
      const time = new Date(modified).toISOString();
      return `<Contents><Key>${escaped(name)}</Key><LastModified>${time}</LastModified><Size>${bytes.length}</Size></Contents>`;
    });
    const more = next === null ? "" : `<NextContinuationToken>${escaped(next)}</NextContinuationToken>`;
    const text =
      `<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>${BUCKET}</Name><KeyCount>${keys.length}</KeyCount>` +
      `<IsTruncated>${next !== null}</IsTruncated>${more}${entries.join("")}</ListBucketResult>`;
    response.writeHead(200, { "content-type": "application/xml" }).end(text);
  } else if (request.method === "DELETE") {
    state.objects.delete(key);
    response.writeHead(204).end();
  } else if (request.method === "PUT") {
    state.put(key, new Uint8Array(body));
    response.writeHead(200, { etag: '"0"' }).end();
  } else {
    sendObject(reply, key, () => fail(404, "NoSuchKey", "The specified key does not exist."));
  }
}

function escaped(text: string): string {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

/** Whether a request bears the signature of AWS's version 4 that S3_KEYS give, in its query or its headers. */
function signedRight(request: IncomingMessage, address: URL): boolean {
  const query = address.searchParams;
  const inQuery = query.has("X-Amz-Signature");
  const header = request.headers.authorization ?? "";
  const field = (name: string): string => new RegExp(`${name}=([^, ]+)`).exec(header)?.[1] ?? "";
  const credential = inQuery ? (query.get("X-Amz-Credential") ?? "") : field("Credential");
  const signedHeaders = inQuery ? (query.get("X-Amz-SignedHeaders") ?? "") : field("SignedHeaders");
  const given = inQuery ? query.get("X-Amz-Signature") : field("Signature");
  const time = inQuery ? (query.get("X-Amz-Date") ?? "") : String(request.headers["x-amz-date"]);
  const [accessKey, day = "", region = "", service = ""] = credential.split("/");
  if (accessKey !== S3_KEYS.accessKeyId) return false;
  const encode = (text: string): string =>
    encodeURIComponent(text).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
  const parameters = [...query]
    .filter(([name]) => name !== "X-Amz-Signature")
    .map(([name, value]) => `${encode(name)}=${encode(value)}`)
    .sort();
  const path = address.pathname.split("/").map((part) => encode(decodeURIComponent(part)));
  const headers = signedHeaders.split(";").map((name) => `${name}:${String(request.headers[name] ?? "").trim()}\n`);
  const payload = inQuery ? "UNSIGNED-PAYLOAD" : String(request.headers["x-amz-content-sha256"]);
  const canonical = [request.method, path.join("/"), parameters.join("&"), headers.join(""), signedHeaders, payload];
  const scope = `${day}/${region}/${service}/aws4_request`;
  const digest = createHash("sha256").update(canonical.join("\n")).digest("hex");
  const hmac = (key: string | Buffer, text: string): Buffer => createHmac("sha256", key).update(text).digest();
  const key = [day, region, service, "aws4_request"].reduce<string | Buffer>(hmac, `AWS4${S3_KEYS.secretAccessKey}`);
  return hmac(key, `AWS4-HMAC-SHA256\n${time}\n${scope}\n${digest}`).toString("hex") === given;
}

function md5(bytes: Uint8Array): string {
  return createHash("md5").update(bytes).digest("base64");
}

function crc32c(bytes: Uint8Array): number {
  let sum = 0xffffffff;
  for (const byte of bytes) {
    sum ^= byte;
    for (let k = 0; k < 8; k++) sum = sum & 1 ? (sum >>> 1) ^ 0x82f63b78 : sum >>> 1;
  }
  return (sum ^ 0xffffffff) >>> 0;
}
