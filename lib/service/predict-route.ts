/** POST /predict: images in, JSON out; for people, pages and programs that have no client of the Open Inference Protocol. */

import { looksLike } from "../data/image-file";
import { isObject } from "../native/json";
import { checkImageFile } from "./image-header";
import { MAX_WAIT_MS } from "./limits";
import { type FormPart, parseMultipart } from "./multipart";
import { jsonReply, type Reply, type RequestContext } from "./request-context";
import type { ServiceParts } from "./routes";
import { bytesOfText, quoted, shown } from "./tensors";
import { traceparentOf } from "./trace";
import {
  type InferenceReply,
  type InferenceRequest,
  type ModelDescription,
  ServiceError,
  type ServiceResult,
} from "./types";
import { parseJson } from "./v2-protocol";
import { expectReady } from "./v2-routes";

/** How a request wants its images detected on. */
interface PredictOptions {
  model?: string;
  version?: string;
  /** Detections below it are left out. */
  score?: number;
  max_detections?: number;
  priority?: number;
  timeout_ms?: number;
  id?: string;
}

interface PredictImage {
  /** The file's name in a form; null elsewhere. */
  readonly name: string | null;
  readonly bytes: Uint8Array;
}

const bad = (message: string): ServiceError => new ServiceError(400, message);

const text = (value: unknown, at: string): string => {
  if (typeof value === "string" && value !== "" && value.length <= 256) return value;
  throw bad(`${at}: expected a text of 1 to 256 characters, got ${shown(value)}`);
};

function numeric(expected: string, fits: (value: number) => boolean) {
  return (value: unknown, at: string): number => {
    const parsed = typeof value === "string" && value.trim() !== "" ? Number(value) : value;
    if (typeof parsed === "number" && fits(parsed)) return parsed;
    throw bad(`${at}: expected ${expected}, got ${shown(value)}`);
  };
}

const wholeFrom1 = numeric("a whole number from 1", (value) => Number.isSafeInteger(value) && value >= 1);

/** Options by their names, in a query, a form's field or JSON. */
const OPTIONS: { readonly [K in keyof Required<PredictOptions>]: (value: unknown, at: string) => PredictOptions[K] } = {
  model: text,
  version: (value, at) => text(typeof value === "number" ? String(value) : value, at),
  score: numeric("a number from 0 to 1", (value) => value >= 0 && value <= 1),
  max_detections: wholeFrom1,
  priority: wholeFrom1,
  timeout_ms: numeric("milliseconds above 0", (value) => value > 0 && Number.isFinite(value)),
  id: text,
};

function readOptions(entries: Iterable<readonly [string, unknown]>, where: string, into: PredictOptions): void {
  for (const [name, value] of entries) {
    if (!Object.hasOwn(OPTIONS, name)) {
      const known = Object.keys(OPTIONS).join(", ");
      throw bad(`${where}: expected one of ${known}, got ${quoted(name)}`);
    }
    Object.assign(into, { [name]: OPTIONS[name as keyof PredictOptions](value, name) });
  }
}

/** Fields of a form beside its images. */
const MAX_FIELDS = 16;

/** The images of a body, whatever kind it is; options that it has go into `options`. */
async function imagesOf(
  context: RequestContext,
  body: Uint8Array,
  { limits, urls }: ServiceParts,
  options: PredictOptions,
): Promise<PredictImage[]> {
  const type = context.request.headers.get("content-type") ?? "";
  if (/^multipart\/form-data\b/i.test(type)) {
    const parts = parseMultipart(body, type, limits.maxImages + MAX_FIELDS);
    const isFile = ({ filename }: FormPart) => filename !== null;
    const fields = parts.filter((part) => !isFile(part));
    const decoder = new TextDecoder();
    readOptions(
      fields.map(({ name, data }) => [name, decoder.decode(data)] as const),
      "the form's fields",
      options,
    );
    return parts.filter(isFile).map(({ filename, data }) => ({ name: filename, bytes: data }));
  }
  // Some clients send another type, or none, so that what is no picture is told by its first byte.
  const isJson = /\bjson\b/i.test(type) || (looksLike(body) === null && firstOf(body) === "{");
  if (!isJson) return [{ name: null, bytes: body }];
  const json = parseJson(body, limits.maxJsonBytes);
  if (!isObject(json)) throw bad(`request: expected an object, got ${shown(json)}`);
  const { url, images, ...rest } = json;
  readOptions(Object.entries(rest), "request", options);
  if ((url === undefined) === (images === undefined)) throw bad("request: expected one of url and images");
  if (url !== undefined) {
    if (!urls) throw new ServiceError(403, "url: fetching images is not allowed here; send their bytes");
    const headers = { traceparent: traceparentOf(context.trace) };
    const bytes = await urls.fetch(text4k(url), context.abort.signal, headers);
    return [{ name: null, bytes }];
  }
  if (!Array.isArray(images)) throw bad(`images: expected an array, got ${shown(images)}`);
  return images.slice(0, limits.maxImages + 1).map((image, i) => {
    if (typeof image !== "string") throw bad(`images[${i}]: expected base64 or a data URL, got ${shown(image)}`);
    return { name: null, bytes: bytesOfText(image, `images[${i}]`) };
  });
}

function text4k(url: unknown): string {
  if (typeof url === "string" && url.length <= 4096) return url;
  throw bad(`url: expected a text of up to 4096 characters, got ${shown(url)}`);
}

const firstOf = (body: Uint8Array): string => {
  const at = body.findIndex((byte) => byte > 0x20);
  return at < 0 || at > 100 ? "" : String.fromCharCode(body[at] as number);
};

/** The model that is meant where none is named: the default one, or the only one. */
function modelOf(options: PredictOptions, { backend, defaultModel }: ServiceParts): string {
  const named = options.model ?? defaultModel;
  if (named !== undefined && named !== null) return named;
  const names = [...new Set(backend.models().map(({ name }) => name))];
  if (names.length === 1) return names[0] as string;
  throw bad(`model: expected one of ${names.map((name) => quoted(name)).join(", ")}, got nothing`);
}

export async function predict(context: RequestContext, parts: ServiceParts): Promise<Reply> {
  const options: PredictOptions = {};
  readOptions(context.query, "the query", options);
  const images = await imagesOf(context, await parts.body(context), parts, options);
  const { maxImages, maxPixels } = parts.limits;
  if (images.length < 1 || images.length > maxImages) {
    throw bad(`images: expected 1 to ${maxImages}, got ${images.length > maxImages ? "more" : "none"}`);
  }
  context.images = images.length;
  const name = modelOf(options, parts);
  const model = parts.backend.describe(name, options.version);
  context.model = model;
  expectReady(model);

  const refusals = images.map(({ bytes }, i) =>
    refusalOf(bytes, images.length === 1 ? "image" : `images[${i}]`, maxPixels),
  );
  const good = images.filter((_, i) => refusals[i] === null).map(({ bytes }) => bytes);
  const replies = await inferAll(context, parts, model, options, good);
  const found = replies.flatMap(({ results }) => results).values();
  const results: PredictResult[] = refusals.map((error) =>
    error === null ? (found.next().value as ServiceResult) : { error },
  );

  const { id = context.id } = options;
  const errors = results.flatMap(({ error }) => (error === null ? [] : [error]));
  if (errors.length === images.length) {
    const [error] = errors;
    return jsonReply({ error: images.length === 1 ? error : `no image could be used; the first: ${error}`, id }, 400);
  }
  // Where another version has taken its place meanwhile, the classes are that one's.
  const { model: answered, version } = replies[0] as InferenceReply;
  const { classes } = version === model.version ? model : parts.backend.describe(answered, version);
  const times = {
    receive_ms: context.stages.receive ?? 0,
    queue_ms: context.times?.queue ?? 0,
    compute_ms: context.times?.compute ?? 0,
    total_ms: performance.now() - context.started,
  };
  return jsonReply({
    ...{ id, model: answered, version },
    images: results.map((result, i) => formatResult(images[i] as PredictImage, result, classes, options)),
    times: Object.fromEntries(Object.entries(times).map(([stage, ms]) => [stage, rounded(ms, 1000)])),
  });
}

/** What was detected on an image, or why nothing was. */
type PredictResult = ServiceResult | { readonly error: string };

/** Why an image is not even tried; null where it is. */
function refusalOf(bytes: Uint8Array, at: string, maxPixels: number): string | null {
  try {
    checkImageFile(bytes, at, maxPixels);
    return null;
  } catch (error) {
    if (error instanceof ServiceError) return error.message;
    throw error;
  }
}

/**
 * All images, in as few batches as the model takes them, of one version. Where one fails as a whole, the others leave the queue.
 */
async function inferAll(
  context: RequestContext,
  { backend }: ServiceParts,
  { name, maxBatch, version: described }: ModelDescription,
  { version, score, priority, timeout_ms }: PredictOptions,
  files: readonly Uint8Array[],
): Promise<InferenceReply[]> {
  const request: Omit<InferenceRequest, "images"> = {
    signal: context.abort.signal,
    ...(score !== undefined && { scoreThreshold: score }),
    ...(priority !== undefined && { priority }),
    ...(timeout_ms !== undefined && { timeoutMs: Math.min(timeout_ms, MAX_WAIT_MS) }),
  };
  const batches = Array.from({ length: Math.ceil(files.length / maxBatch) }, (_, i) =>
    files.slice(i * maxBatch, (i + 1) * maxBatch),
  );
  const meant = version ?? (batches.length > 1 ? described : undefined);
  try {
    return await context.timed("infer", () =>
      Promise.all(
        batches.map(async (batch) => {
          const reply = await backend.infer(name, meant, { ...request, images: batch });
          context.answered(reply);
          return reply;
        }),
      ),
    );
  } catch (error) {
    context.abort.abort();
    throw error;
  }
}

/** Coordinates to a hundredth of a pixel, scores to a millionth: more is noise, and bytes. */
const rounded = (value: number, unit: number) => Math.round(value * unit) / unit;

function formatResult(
  { name }: PredictImage,
  result: PredictResult,
  classes: readonly string[],
  { max_detections }: PredictOptions,
): unknown {
  const named = name === null ? {} : { name };
  if (result.error !== null) return { ...named, error: result.error };
  const { width, height, detections } = result as ServiceResult;
  return {
    ...{ ...named, width, height },
    detections: detections.slice(0, max_detections).map(({ box, score, label }) => ({
      class: classes[label] ?? String(label),
      label,
      score: rounded(score, 1e6),
      box: box.map((side) => rounded(side, 100)),
    })),
  };
}
